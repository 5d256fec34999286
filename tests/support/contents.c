#include "contents.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "core/cache.h"

void contents_init(struct contents *c, const kivi_config *config, uint32_t layer)
{
    memset(c, 0, sizeof *c);
    c->heads = config->n_kv_heads;
    c->k_dim = config->k_dim;
    c->v_dim = config->v_dim;
    c->k_bits = config->layer_k_bits ? config->layer_k_bits[layer] : config->k_bits;
    c->v_bits = config->layer_v_bits ? config->layer_v_bits[layer] : config->v_bits;
    c->group_size = config->group_size;
    c->n_sink = config->n_sink;
    c->v_groups = (config->v_dim + config->group_size - 1) / config->group_size;
}

static void *grow(void *array, uint64_t old, uint64_t more, uint64_t of, size_t size)
{
    char *grown = realloc(array, (size_t)((old + more) * of) * size);

    ck_assert_ptr_nonnull(grown);
    memset(grown + (size_t)(old * of) * size, 0, (size_t)(more * of) * size);
    return grown;
}

void contents_reserve(struct contents *c, uint64_t n)
{
    const uint64_t unit = 4 * (uint64_t)c->group_size;
    uint64_t old = c->room, more;
    const uint64_t k = (uint64_t)c->heads * c->k_dim, v = (uint64_t)c->heads * c->v_dim;
    const uint64_t groups = (uint64_t)c->heads * c->v_groups;

    if (n <= old)
        return;
    more = (n + n / 2 - old + unit) / unit * unit;
    c->k_code = grow(c->k_code, old, more, k, 1);
    c->v_code = grow(c->v_code, old, more, v, 1);
    c->k_row = grow(c->k_row, old, more, k, 2);
    c->v_row = grow(c->v_row, old, more, v, 2);
    c->v_scale = grow(c->v_scale, old, more, groups, 2);
    c->v_min = grow(c->v_min, old, more, groups, 2);
    c->k_scale = grow(c->k_scale, old / c->group_size, more / c->group_size, k, 2);
    c->k_min = grow(c->k_min, old / c->group_size, more / c->group_size, k, 2);
    c->room = old + more;
}

void contents_free(struct contents *c)
{
    free(c->k_code);
    free(c->v_code);
    free(c->k_row);
    free(c->v_row);
    free(c->k_scale);
    free(c->k_min);
    free(c->v_scale);
    free(c->v_min);
    memset(c, 0, sizeof *c);
}

int contents_k_is_full(const struct contents *c, uint64_t token)
{
    return token >= c->k_packed || token < c->n_sink || c->k_bits == 16;
}

int contents_v_is_full(const struct contents *c, uint64_t token)
{
    return token >= c->v_packed || token < c->n_sink || c->v_bits == 16;
}

/* ------------------------------------------------- from the library */

/* A layer of a sequence with its blocks copied to host memory. */
struct source {
    const struct kivi_geometry *geometry;
    const struct kivi_layer_geometry *layer;
    char *pages;
    char *window;
};

static void copy_block(const kivi_cache *cache, const struct kivi_block *block, size_t bytes,
                       char *to)
{
    if (block)
        ck_assert_int_eq(
            cache->backend->block_read(cache->context, to, block->memory, 0, bytes, NULL), KIVI_OK);
}

static void copy_layer(struct source *s, const kivi_cache *cache, const struct kivi_layer *layer,
                       uint32_t index)
{
    const size_t page_bytes = cache->geometry.page_bytes;
    uint32_t i;

    s->geometry = &cache->geometry;
    s->layer = &cache->geometry.layers[index];
    s->pages = malloc(layer->n_pages * page_bytes + 1);
    s->window = malloc(cache->geometry.window_bytes);
    ck_assert(s->pages && s->window);
    copy_block(cache, layer->window, cache->geometry.window_bytes, s->window);
    for (i = 0; i < layer->n_pages; i++)
        copy_block(cache, layer->blocks[i], page_bytes, s->pages + i * page_bytes);
}

static void *page_of(const struct source *s, uint64_t token)
{
    return s->pages + (size_t)(token / s->layer->page_tokens) * s->geometry->page_bytes;
}

static void read_key(struct contents *c, const struct source *s, uint64_t t, uint32_t head)
{
    const struct kivi_layout *l = &s->layer->k;
    const uint64_t at = (t * c->heads + head) * c->k_dim;
    const uint64_t group = (t / c->group_size * c->heads + head) * c->k_dim;
    void *window = s->window;

    if (t < c->n_sink) {
        memcpy(c->k_row + at, kivi_sink_key(s->geometry, window, head, t), c->k_dim * 2);
    } else if (t >= c->k_packed) {
        memcpy(c->k_row + at, kivi_window_key(s->geometry, window, head, t), c->k_dim * 2);
    } else {
        const uint32_t in_block = (uint32_t)(t % l->tokens);
        void *block = kivi_page_keys(s->layer, page_of(s, t), head, t);
        uint32_t i, shift;

        if (c->k_bits == 16) {
            memcpy(c->k_row + at, (uint16_t *)block + in_block * c->k_dim, c->k_dim * 2);
            return;
        }
        memcpy(c->k_scale + group, kivi_scales(l, block), c->k_dim * 2);
        memcpy(c->k_min + group, kivi_minima(l, block), c->k_dim * 2);
        for (i = 0; i < c->k_dim; i++) {
            const uint32_t word = ((uint32_t *)block)[kivi_key_word(l, in_block, i, &shift)];
            c->k_code[at + i] = (uint8_t)(word >> shift & ((1u << l->bits) - 1));
        }
    }
}

static void read_value(struct contents *c, const struct source *s, uint64_t t, uint32_t head)
{
    const struct kivi_layout *l = &s->layer->v;
    const uint64_t at = (t * c->heads + head) * c->v_dim;
    const uint64_t group = (t * c->heads + head) * c->v_groups;
    void *window = s->window;

    if (t < c->n_sink) {
        memcpy(c->v_row + at, kivi_sink_value(s->geometry, window, head, t), c->v_dim * 2);
    } else if (t >= c->v_packed) {
        memcpy(c->v_row + at, kivi_window_value(s->geometry, window, head, t), c->v_dim * 2);
    } else {
        const uint32_t in_block = (uint32_t)(t % l->tokens);
        void *block = kivi_page_values(s->layer, page_of(s, t), head, t);
        uint32_t i, shift;

        if (c->v_bits == 16) {
            memcpy(c->v_row + at, (uint16_t *)block + in_block * c->v_dim, c->v_dim * 2);
            return;
        }
        for (i = 0; i < c->v_groups; i++) {
            c->v_scale[group + i] = kivi_scales(l, block)[i * KIVI_TILE + in_block];
            c->v_min[group + i] = kivi_minima(l, block)[i * KIVI_TILE + in_block];
        }
        for (i = 0; i < c->v_dim; i++) {
            const uint32_t word = ((uint32_t *)block)[kivi_value_word(l, in_block, i, &shift)];
            c->v_code[at + i] = (uint8_t)(word >> shift & ((1u << l->bits) - 1));
        }
    }
}

void contents_read(struct contents *c, const kivi_config *config, const kivi_cache *cache,
                   kivi_seq seq, uint32_t layer)
{
    const struct kivi_sequence *sequence = kivi_sequence_find(cache, seq, NULL);
    struct source source;
    uint64_t t;
    uint32_t head;

    ck_assert_ptr_nonnull(sequence);
    contents_init(c, config, layer);
    c->n = sequence->layers[layer].span.n;
    c->k_packed = sequence->layers[layer].span.k_packed;
    c->v_packed = sequence->layers[layer].span.v_packed;
    contents_reserve(c, c->n);
    copy_layer(&source, cache, &sequence->layers[layer], layer);
    for (t = 0; t < c->n; t++) {
        for (head = 0; head < c->heads; head++) {
            read_key(c, &source, t, head);
            read_value(c, &source, t, head);
        }
    }
    free(source.pages);
    free(source.window);
}

/* ------------------------------------------------------- comparison */

/* One row of an array: `width` elements of `size` bytes. */
static void check_row(const void *a, const void *b, uint64_t row, uint64_t width, size_t size,
                      const char *what, const char *part, uint64_t token)
{
    const char *left = (const char *)a + (size_t)(row * width) * size;
    const char *right = (const char *)b + (size_t)(row * width) * size;

    if (memcmp(left, right, (size_t)width * size) != 0)
        ck_abort_msg("%s: %s of token %llu differ", what, part, (unsigned long long)token);
}

void contents_check_equal(const struct contents *a, const struct contents *b, const char *what)
{
    const uint64_t k = (uint64_t)a->heads * a->k_dim, v = (uint64_t)a->heads * a->v_dim;
    uint64_t t;

    ck_assert_msg(a->n == b->n && a->k_packed == b->k_packed && a->v_packed == b->v_packed,
                  "%s: %llu tokens, %llu keys and %llu values packed against %llu, %llu, %llu",
                  what, (unsigned long long)a->n, (unsigned long long)a->k_packed,
                  (unsigned long long)a->v_packed, (unsigned long long)b->n,
                  (unsigned long long)b->k_packed, (unsigned long long)b->v_packed);
    for (t = 0; t < a->n; t++) {
        if (contents_k_is_full(a, t)) {
            check_row(a->k_row, b->k_row, t, k, 2, what, "f16 keys", t);
        } else {
            check_row(a->k_code, b->k_code, t, k, 1, what, "key codes", t);
            check_row(a->k_scale, b->k_scale, t / a->group_size, k, 2, what, "key scales", t);
            check_row(a->k_min, b->k_min, t / a->group_size, k, 2, what, "key minima", t);
        }
        if (contents_v_is_full(a, t)) {
            check_row(a->v_row, b->v_row, t, v, 2, what, "f16 values", t);
        } else {
            const uint64_t groups = (uint64_t)a->heads * a->v_groups;

            check_row(a->v_code, b->v_code, t, v, 1, what, "value codes", t);
            check_row(a->v_scale, b->v_scale, t, groups, 2, what, "value scales", t);
            check_row(a->v_min, b->v_min, t, groups, 2, what, "value minima", t);
        }
    }
}
