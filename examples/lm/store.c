#define _POSIX_C_SOURCE 200809L

#include "store.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "per_token.h"

struct lm_store {
    const struct lm_model *model;
    size_t n_sequences;
    kivi_attention attention;
    kivi_cache *cache; /* this or per_token, the other is NULL */
    struct lm_per_token *per_token;
    kivi_seq *sequences;
    kivi_item *items;
    double seconds;
};

/* ------------------------------------------------------------- the names */

/* Steps over `word` if the text goes on with it. */
static int eat(const char **text, const char *word)
{
    const size_t n = strlen(word);

    if (strncmp(*text, word, n) != 0)
        return 0;
    *text += n;
    return 1;
}

/* Steps over `word` and a number of bits. */
static int eat_bits(const char **text, const char *word, uint32_t *bits)
{
    const char *rest = *text;

    if (!eat(&rest, word))
        return 0;
    if (eat(&rest, "16"))
        *bits = 16;
    else if (*rest == '2' || *rest == '4' || *rest == '8')
        *bits = (uint32_t)(*rest++ - '0');
    else
        return 0;
    *text = rest;
    return 1;
}

int lm_cache_type_parse(const char *text, size_t size, struct lm_cache_type *type,
                        struct lm_error *error)
{
    struct lm_cache_type t = {{0}, 16, 16, 0};
    const char *rest = t.name;
    int known = 1;

    memcpy(t.name, text, size < sizeof t.name ? size : sizeof t.name - 1);
    if (eat_bits(&rest, "kivi", &t.k_bits)) {
        t.v_bits = t.k_bits;
    } else if (eat_bits(&rest, "k", &t.k_bits)) {
        t.keys_per_token = eat(&rest, "t");
        t.v_bits = t.k_bits;
        known = eat_bits(&rest, "v", &t.v_bits) || t.keys_per_token;
    } else {
        known = eat(&rest, "f16");
    }
    if (!known || rest != t.name + size || (t.keys_per_token && (t.k_bits == 16 || t.v_bits == 16)))
        return lm_fail(error,
                       "unknown cache type '%.*s': f16, kivi2, kivi4, kivi8, k4v2 and the "
                       "like, k2t, k4tv2",
                       size > 60 ? 60 : (int)size, text);
    *type = t;
    return 0;
}

/* ------------------------------------------------------- create, destroy */

static int create_cache(struct lm_store *store, const struct lm_cache_type *type,
                        const struct lm_cache_options *options, struct lm_error *error)
{
    const struct lm_model *m = store->model;
    kivi_config config;
    kivi_error detail;

    kivi_config_init(&config);
    config.n_layers = m->n_layers;
    config.n_q_heads = m->n_heads;
    config.n_kv_heads = m->n_kv_heads;
    config.k_dim = m->k_dim;
    config.v_dim = m->v_dim;
    config.k_bits = type->k_bits;
    config.v_bits = type->v_bits;
    config.group_size = options->group_size;
    config.residual_length = options->residual_length;
    config.n_sink = options->n_sink;
    config.max_sequences = (uint32_t)store->n_sequences;
    config.backend = options->backend;
    config.n_threads = options->n_threads;
    if (kivi_cache_create(&config, &store->cache, &detail))
        return lm_fail(error, "%s: %s", type->name, detail.message);
    store->sequences = calloc(store->n_sequences, sizeof *store->sequences);
    store->items = calloc(store->n_sequences, sizeof *store->items);
    if (!store->sequences || !store->items)
        return lm_fail(error, "out of memory for %zu sequences", store->n_sequences);
    for (size_t s = 0; s < store->n_sequences; s++) {
        if (kivi_seq_create(store->cache, &store->sequences[s], &detail))
            return lm_fail(error, "%s: %s", type->name, detail.message);
    }
    return 0;
}

int lm_store_create(const struct lm_model *model, const struct lm_cache_type *type,
                    const struct lm_cache_options *options, size_t n_sequences, uint32_t max_tokens,
                    struct lm_store **store, struct lm_error *error)
{
    struct lm_store *s = calloc(1, sizeof *s);
    int result;

    *store = NULL;
    if (!s)
        return lm_fail(error, "out of memory");
    s->model = model;
    s->n_sequences = n_sequences;
    kivi_attention_init(&s->attention);
    s->attention.precision = options->precision;
    if (type->keys_per_token)
        result = lm_per_token_create(model, type, options, n_sequences, max_tokens, &s->per_token,
                                     error);
    else
        result = create_cache(s, type, options, error);
    if (result)
        lm_store_destroy(s);
    else
        *store = s;
    return result;
}

void lm_store_destroy(struct lm_store *store)
{
    if (!store)
        return;
    kivi_cache_destroy(store->cache);
    lm_per_token_destroy(store->per_token);
    free(store->sequences);
    free(store->items);
    free(store);
}

/* -------------------------------------------------------------- the work */

static int run_cache(struct lm_store *store, uint32_t layer, const struct lm_heads *heads, size_t n,
                     struct lm_error *error)
{
    const struct lm_model *m = store->model;
    const ptrdiff_t stride = (ptrdiff_t)heads->stride;
    kivi_error detail;

    for (size_t s = 0; s < store->n_sequences; s++) {
        const size_t row = s * n;
        kivi_item *item = &store->items[s];

        item->seq = store->sequences[s];
        item->n_new = item->n_q = n;
        item->q = (kivi_in){heads->q + row * heads->stride, KIVI_F32, stride, m->k_dim};
        item->k = (kivi_in){heads->k + row * heads->stride, KIVI_F32, stride, m->k_dim};
        item->v = (kivi_in){heads->v + row * heads->stride, KIVI_F32, stride, m->v_dim};
        item->out = (kivi_out){heads->out + row * m->n_heads * m->v_dim, KIVI_F32, 0, 0};
    }
    if (kivi_run(store->cache, layer, store->items, store->n_sequences, &store->attention, &detail))
        return lm_fail(error, "layer %u: %s", layer, detail.message);
    return 0;
}

int lm_store_attend(struct lm_store *store, uint32_t layer, const struct lm_heads *heads, size_t n,
                    struct lm_error *error)
{
    const double start = lm_seconds();
    const int result = store->cache ? run_cache(store, layer, heads, n, error)
                                    : lm_per_token_attend(store->per_token, layer, heads, error);

    store->seconds += lm_seconds() - start;
    return result;
}

int lm_store_usage(const struct lm_store *store, struct lm_usage *usage, struct lm_error *error)
{
    kivi_error detail;

    memset(usage, 0, sizeof *usage);
    if (store->per_token) {
        lm_per_token_usage(store->per_token, usage);
        return 0;
    }
    for (size_t s = 0; s < store->n_sequences; s++) {
        kivi_stats stats = {.size = sizeof stats};

        if (kivi_seq_stats(store->cache, store->sequences[s], &stats, &detail))
            return lm_fail(error, "%s", detail.message);
        usage->tokens += stats.tokens;
        usage->code_bytes += stats.code_bytes;
        usage->scale_bytes += stats.scale_bytes;
        usage->window_bytes += stats.window_bytes;
        usage->f16_bytes += stats.f16_bytes;
    }
    return 0;
}

static int write_file(void *file, const void *data, size_t bytes)
{
    return fwrite(data, 1, bytes, file) != bytes;
}

int lm_store_save(const struct lm_store *store, FILE *file, struct lm_error *error)
{
    kivi_error detail;

    if (kivi_cache_save(store->cache, write_file, file, &detail))
        return lm_fail(error, "%s",
                       detail.status == KIVI_ERROR_IO ? "cannot be written" : detail.message);
    return 0;
}

double lm_store_seconds(const struct lm_store *store)
{
    return store->seconds;
}

void lm_store_describe(const struct lm_store *store, char *text, size_t capacity)
{
    char *end;

    text[0] = '\0';
    if (store->cache)
        kivi_describe(store->cache, text, capacity);
    end = strstr(text, ". ");
    if (end)
        *end = '\0';
}
