#include "session.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t k_bits[MODEL_LAYERS] = {2, 4, 8}, v_bits[MODEL_LAYERS] = {2, 8, 16};

void session_config(kivi_config *config)
{
    kivi_config_init(config);
    config->n_layers = 2;
    config->n_q_heads = 4;
    config->n_kv_heads = 2;
    config->k_dim = 40;
    config->v_dim = 24;
    config->residual_length = 64;
    config->page_tokens = 128;
    config->n_threads = 1;
    config->layer_k_bits = k_bits;
    config->layer_v_bits = v_bits;
}

void session_open(struct session *s, const kivi_config *config, const char *backend)
{
    kivi_error error;

    s->config = *config;
    s->config.backend = backend;
    memory_init(&s->memory);
    s->config.allocator = memory_allocator(&s->memory);
    session_ok(kivi_cache_create(&s->config, &s->cache, &error), &error);
}

void session_close(struct session *s)
{
    kivi_cache_destroy(s->cache);
    ck_assert_uint_eq(atomic_load(&s->memory.blocks), 0);
    ck_assert_uint_eq(atomic_load(&s->memory.bytes), 0);
}

kivi_seq session_new(struct session *s)
{
    kivi_error error;
    kivi_seq seq;

    session_ok(kivi_seq_create(s->cache, &seq, &error), &error);
    return seq;
}

kivi_seq session_fork(struct session *s, kivi_seq source)
{
    kivi_error error;
    kivi_seq seq;

    session_ok(kivi_seq_fork(s->cache, source, &seq, &error), &error);
    return seq;
}

uint64_t session_length(const struct session *s, kivi_seq seq)
{
    uint64_t n;

    ck_assert_int_eq(kivi_seq_length(s->cache, seq, 0, &n, NULL), KIVI_OK);
    return n;
}

float *session_rows(const struct session *s, enum role role, uint64_t stream, uint64_t first,
                    uint64_t n)
{
    const uint32_t heads = role == ROLE_Q ? s->config.n_q_heads : s->config.n_kv_heads;
    const uint32_t dim = role == ROLE_V ? s->config.v_dim : s->config.k_dim;
    float *rows = malloc((size_t)n * heads * dim * sizeof *rows + 1), *at = rows;
    uint64_t token;
    uint32_t head, channel;

    ck_assert_ptr_nonnull(rows);
    for (token = first; token < first + n; token++) {
        struct rng rng = {(stream << 40) + (token << 4) + (uint64_t)role};

        for (head = 0; head < heads; head++)
            for (channel = 0; channel < dim; channel++)
                *at++ = (float)fill_ordinary.at(&rng, role, token, head, channel);
    }
    return rows;
}

void session_append_layer(struct session *s, kivi_seq seq, uint32_t layer, uint64_t stream,
                          uint64_t n)
{
    uint64_t first;
    float *k, *v;
    kivi_error error;

    ck_assert_int_eq(kivi_seq_length(s->cache, seq, layer, &first, NULL), KIVI_OK);
    k = session_rows(s, ROLE_K, stream, first, n);
    v = session_rows(s, ROLE_V, stream, first, n);
    session_ok(kivi_append(s->cache, layer, seq, n, (kivi_in){k, KIVI_F32, 0, 0},
                           (kivi_in){v, KIVI_F32, 0, 0}, &error),
               &error);
    free(k);
    free(v);
}

void session_append(struct session *s, kivi_seq seq, uint64_t stream, uint64_t n)
{
    uint32_t layer;

    for (layer = 0; layer < s->config.n_layers; layer++)
        session_append_layer(s, seq, layer, stream, n);
}

float *session_attend(const struct session *s, kivi_seq seq, uint32_t layer, uint64_t n_q,
                      kivi_precision precision)
{
    float *q = session_rows(s, ROLE_Q, 99, 0, n_q);
    const size_t n = (size_t)n_q * s->config.n_q_heads * s->config.v_dim;
    float *out = malloc(n * sizeof *out + 1);
    kivi_attention attention;
    kivi_error error;

    ck_assert_ptr_nonnull(out);
    kivi_attention_init(&attention);
    attention.precision = precision;
    session_ok(kivi_attend(s->cache, layer, seq, n_q, (kivi_in){q, KIVI_F32, 0, 0},
                           (kivi_out){out, KIVI_F32, 0, 0}, &attention, &error),
               &error);
    free(q);
    return out;
}

kivi_stats session_stats(const struct session *s)
{
    kivi_stats stats = {.size = sizeof stats};

    ck_assert_int_eq(kivi_cache_stats(s->cache, &stats, NULL), KIVI_OK);
    return stats;
}

static void check_same_attention(const struct session *s, kivi_seq a, const struct session *t,
                                 kivi_seq b, uint32_t layer, const char *what)
{
    uint64_t n, n_q;
    float *x, *y;

    ck_assert_int_eq(kivi_seq_length(s->cache, a, layer, &n, NULL), KIVI_OK);
    n_q = n < 2 ? n : 2;
    x = session_attend(s, a, layer, n_q, KIVI_STANDARD);
    y = session_attend(t, b, layer, n_q, KIVI_STANDARD);
    ck_assert_msg(memcmp(x, y, (size_t)n_q * s->config.n_q_heads * s->config.v_dim * sizeof *x)
                      == 0,
                  "%s: layer %u attends to other numbers", what, layer);
    free(x);
    free(y);
}

void session_check_same(const struct session *s, kivi_seq a, const struct session *t, kivi_seq b,
                        const char *what)
{
    uint32_t layer;

    for (layer = 0; layer < s->config.n_layers; layer++) {
        struct contents x, y;

        contents_read(&x, &s->config, s->cache, a, layer);
        contents_read(&y, &t->config, t->cache, b, layer);
        contents_check_equal(&x, &y, what);
        contents_free(&x);
        contents_free(&y);
        if (strcmp(s->config.backend, t->config.backend) == 0
            && s->config.rollback == t->config.rollback)
            check_same_attention(s, a, t, b, layer, what);
    }
}
