/*
 * Truncating a sequence, and dropping a range of it. Either builds new layers beside the old ones,
 * which share what did not change, and replaces them once nothing can fail any more.
 */
#include <math.h>
#include <string.h>

#include "../cpu/scalar.h"
#include "cache.h"
#include "half.h"

/* What the functions below work on: one layer, old and new, and room on the host. */
struct edit {
    kivi_cache *cache;
    uint32_t index;
    const struct kivi_layer *old;
    struct kivi_layer *fresh;
    void *block;         /* one packed block */
    float *numbers;      /* one block of rows in f32 */
    uint16_t *rows;      /* and in f16 */
    uint64_t begin, end; /* of what is dropped; truncation: what is kept, UINT64_MAX */
    const kivi_rope *rope;
};

static const struct kivi_layer_geometry *layer_geometry(const struct edit *e)
{
    return &e->cache->geometry.layers[e->index];
}

static kivi_status read_block(const struct edit *e, const void *from, size_t bytes, void *host,
                              kivi_error *error)
{
    return e->cache->backend->block_read(e->cache->context, host, from, 0, bytes, error);
}

static kivi_status write_block(const struct edit *e, void *to, size_t bytes, const void *host,
                               kivi_error *error)
{
    return e->cache->backend->block_write(e->cache->context, to, 0, host, bytes, error);
}

static kivi_status copy_block(const struct edit *e, void *to, const void *from, size_t bytes,
                              kivi_error *error)
{
    return e->cache->backend->block_copy(e->cache->context, to, from, bytes, error);
}

/* f32 to f16 within range: a dequantized group may end one rounding above the largest f16. */
static void narrow(uint16_t *to, const float *from, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        const float x = from[i] > KIVI_F16_MAX    ? KIVI_F16_MAX
                        : from[i] < -KIVI_F16_MAX ? -KIVI_F16_MAX
                                                  : from[i];
        to[i] = kivi_f16_from_f32(x);
    }
}

/* -------------------------------------------------------------- truncation */

/* Brings keys (or values) of tokens [begin, end) of one head back into the new window: sinks from
 * their rows, the others dequantized. */
static kivi_status restore(const struct edit *e, uint32_t head, uint64_t begin, uint64_t end,
                           int is_key, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer_geometry *l = layer_geometry(e);
    const struct kivi_layout *layout = is_key ? &l->k : &l->v;
    void *window = e->fresh->window->memory;
    uint64_t t = begin;

    while (t < end) {
        void *page = e->old->pages[t / l->page_tokens];
        const uint32_t first = (uint32_t)(t % layout->tokens);
        const uint32_t left =
            (uint32_t)(end - t < layout->tokens - first ? end - t : layout->tokens - first);
        uint32_t i;
        kivi_status status = read_block(
            e, is_key ? kivi_page_keys(l, page, head, t) : kivi_page_values(l, page, head, t),
            layout->block_bytes, e->block, error);

        if (status != KIVI_OK)
            return status;
        (is_key ? kivi_dequantize_k : kivi_dequantize_v)(layout, e->block, first, left, e->numbers);
        narrow(e->rows, e->numbers, (size_t)left * layout->dim);
        for (i = 0; i < left && status == KIVI_OK; i++, t++) {
            void *row = is_key ? kivi_window_key(g, window, head, t)
                               : kivi_window_value(g, window, head, t);

            if (t < g->n_sink)
                status = copy_block(e, row,
                                    is_key ? kivi_sink_key(g, window, head, t)
                                           : kivi_sink_value(g, window, head, t),
                                    (size_t)layout->dim * 2, error);
            else
                status = write_block(e, row, (size_t)layout->dim * 2,
                                     e->rows + (size_t)i * layout->dim, error);
        }
        if (status != KIVI_OK)
            return status;
    }
    return KIVI_OK;
}

static kivi_status truncate_layer(const struct edit *e, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    struct kivi_layer *fresh = e->fresh;
    uint32_t head;
    kivi_status status = kivi_layer_share(e->cache, fresh, e->old, error);

    if (status != KIVI_OK || fresh->span.n <= e->begin)
        return status;
    fresh->span.n = e->begin;
    if (fresh->k_base > e->begin)
        fresh->k_base = 0;
    fresh->span.k_packed = kivi_keys_packed(g, e->begin, fresh->k_base);
    fresh->span.v_packed = kivi_values_packed(g, e->begin);
    fresh->k_low = min_u64(fresh->k_low, fresh->span.k_packed);
    fresh->v_low = min_u64(fresh->v_low, fresh->span.v_packed);
    if (fresh->k_low < e->old->k_low || fresh->v_low < e->old->v_low)
        status = kivi_layer_new_window(e->cache, fresh, error);
    for (head = 0; head < g->n_kv_heads && status == KIVI_OK; head++) {
        status = restore(e, head, fresh->k_low, min_u64(e->old->k_low, e->begin), 1, error);
        if (status == KIVI_OK)
            status = restore(e, head, fresh->v_low, min_u64(e->old->v_low, e->begin), 0, error);
    }
    if (status == KIVI_OK)
        kivi_layer_shrink(e->cache, e->index, fresh);
    return status;
}

/* ---------------------------------------------------------------- dropping */

/* Whether the key of token `t` of the new layer turns. */
static int turns(const struct edit *e, uint64_t t)
{
    return e->rope && (e->rope->turn_first ? t < e->begin : t >= e->begin);
}

/* Turns n rows of keys by the dropped positions: forward before the gap, back after it. */
static void rotate(const struct edit *e, float *rows, uint32_t n, uint32_t dim)
{
    const kivi_rope *rope = e->rope;
    const uint32_t half = rope->n_rot / 2;
    const double dropped = (double)(e->end - e->begin);
    const double distance = rope->turn_first ? dropped : -dropped;
    uint32_t i, t;

    for (i = 0; i < half; i++) {
        const double angle = distance * (double)rope->frequencies[i];
        const float c = (float)cos(angle), s = (float)sin(angle);
        const uint32_t a = rope->interleaved ? 2 * i : i, b = rope->interleaved ? a + 1 : i + half;

        for (t = 0; t < n; t++) {
            float *row = rows + (size_t)t * dim;
            const float x = row[a], y = row[b];

            row[a] = x * c - y * s;
            row[b] = x * s + y * c;
        }
    }
}

/* One key block, turned: dequantized, rotated, quantized again, without its first `skip` tokens. */
static kivi_status move_rotated(const struct edit *e, void *to, const void *from, uint32_t skip,
                                kivi_error *error)
{
    const struct kivi_layout *l = &layer_geometry(e)->k;
    const kivi_status status = read_block(e, from, l->block_bytes, e->block, error);

    if (status != KIVI_OK)
        return status;
    kivi_dequantize_k(l, e->block, 0, l->tokens, e->numbers);
    rotate(e, e->numbers, l->tokens, l->dim);
    narrow(e->rows, e->numbers, (size_t)l->tokens * l->dim);
    if (l->bits == 16)
        return write_block(e, to, l->block_bytes, e->rows, error);
    kivi_quantize_k_scalar(l, e->rows, l->dim, skip, e->block);
    return write_block(e, to, l->block_bytes, e->block, error);
}

/* Fills page `index` of the new layer, block by block, from where its tokens were. */
static kivi_status fill_page(const struct edit *e, uint32_t index, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer_geometry *l = layer_geometry(e);
    const uint64_t begin = (uint64_t)index * l->page_tokens, end = begin + l->page_tokens;
    const uint64_t dropped = e->end - e->begin;
    void *page = e->fresh->pages[index];
    uint32_t head;
    uint64_t t;
    kivi_status status = KIVI_OK;

    for (head = 0; head < g->n_kv_heads && status == KIVI_OK; head++) {
        for (t = begin; t < min_u64(end, e->fresh->span.k_packed) && status == KIVI_OK;
             t += l->k.tokens) {
            const uint64_t from = t < e->begin ? t : t + dropped;
            void *to = kivi_page_keys(l, page, head, t);
            const void *source =
                kivi_page_keys(l, e->old->pages[from / l->page_tokens], head, from);

            const uint64_t sinks = g->n_sink > t ? min_u64(g->n_sink - t, l->k.tokens) : 0;

            status = turns(e, t) ? move_rotated(e, to, source, (uint32_t)sinks, error)
                                 : copy_block(e, to, source, l->k.block_bytes, error);
        }
        for (t = begin; t < min_u64(end, e->fresh->span.v_packed) && status == KIVI_OK;
             t += l->v.tokens) {
            const uint64_t from = t < e->begin ? t : t + dropped;

            status =
                copy_block(e, kivi_page_values(l, page, head, t),
                           kivi_page_values(l, e->old->pages[from / l->page_tokens], head, from),
                           l->v.block_bytes, error);
        }
    }
    return status;
}

/* One f16 row of keys, turned. */
static kivi_status move_row_rotated(const struct edit *e, void *to, const void *from,
                                    kivi_error *error)
{
    const uint32_t dim = e->cache->geometry.k_dim;
    const kivi_status status = read_block(e, from, dim * 2, e->rows, error);
    uint32_t c;

    if (status != KIVI_OK)
        return status;
    for (c = 0; c < dim; c++)
        e->numbers[c] = kivi_f32_from_f16(e->rows[c]);
    rotate(e, e->numbers, 1, dim);
    narrow(e->rows, e->numbers, dim);
    return write_block(e, to, dim * 2, e->rows, error);
}

/* The rows that stay in the rings of one head move to the slots of their new positions. */
static kivi_status move_rows(const struct edit *e, uint32_t head, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const uint64_t dropped = e->end - e->begin;
    void *from = e->old->window->memory, *to = e->fresh->window->memory;
    kivi_status status = KIVI_OK;
    uint64_t t;

    for (t = 0; t < g->n_sink && turns(e, t) && status == KIVI_OK; t++)
        status = move_row_rotated(e, kivi_sink_key(g, to, head, t), kivi_sink_key(g, from, head, t),
                                  error);
    for (t = e->fresh->k_low; t < e->fresh->span.n && status == KIVI_OK; t++) {
        const uint16_t *row = kivi_window_key(g, from, head, t + dropped);

        status = turns(e, t)
                     ? move_row_rotated(e, kivi_window_key(g, to, head, t), row, error)
                     : copy_block(e, kivi_window_key(g, to, head, t), row, g->k_dim * 2, error);
    }
    for (t = e->fresh->v_low; t < e->fresh->span.n && status == KIVI_OK; t++)
        status = copy_block(e, kivi_window_value(g, to, head, t),
                            kivi_window_value(g, from, head, t + dropped), g->v_dim * 2, error);
    return status;
}

/* The old page whose tokens are exactly those of the new page `index`, in place, or NULL. */
static struct kivi_block *same_page(const struct edit *e, uint32_t index)
{
    const uint32_t page_tokens = layer_geometry(e)->page_tokens;
    const uint64_t begin = (uint64_t)index * page_tokens, end = begin + page_tokens;
    const uint64_t dropped = e->end - e->begin;

    if (turns(e, begin) || turns(e, end - 1))
        return NULL;
    if (end <= e->begin)
        return e->old->blocks[index];
    if (begin >= e->begin && dropped % page_tokens == 0)
        return e->old->blocks[index + dropped / page_tokens];
    return NULL;
}

static kivi_status drop_layer(const struct edit *e, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer *old = e->old;
    struct kivi_layer *fresh = e->fresh;
    const uint64_t dropped = e->end - e->begin;
    const uint32_t page_tokens = layer_geometry(e)->page_tokens;
    kivi_status status = KIVI_OK;
    uint32_t head;

    if (e->end > old->span.v_packed || e->end > old->span.k_packed)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "end is %llu, layer %u has %llu packed tokens",
                         (unsigned long long)e->end, e->index,
                         (unsigned long long)old->span.v_packed);
    fresh->span.n = old->span.n - dropped;
    fresh->span.k_packed = old->span.k_packed - dropped;
    fresh->span.v_packed = old->span.v_packed - dropped;
    fresh->k_base = fresh->span.k_packed % g->residual_length;
    fresh->k_low = (old->k_low > e->end ? old->k_low : e->end) - dropped;
    fresh->v_low = (old->v_low > e->end ? old->v_low : e->end) - dropped;

    while ((uint64_t)fresh->n_pages * page_tokens < fresh->span.k_packed && status == KIVI_OK) {
        struct kivi_block *same = same_page(e, fresh->n_pages);

        status = kivi_layer_add_page(e->cache, fresh, same, error);
        if (status == KIVI_OK && !same)
            status = fill_page(e, fresh->n_pages - 1, error);
    }
    fresh->window = old->window; /* for its sinks; then a copy with the rows in their new slots */
    fresh->window->references++;
    if (status == KIVI_OK)
        status = kivi_layer_new_window(e->cache, fresh, error);
    for (head = 0; head < g->n_kv_heads && status == KIVI_OK; head++)
        status = move_rows(e, head, error);
    return status;
}

/* ------------------------------------------------------------------- both */

/* Host memory for a block of any layer, in one piece: [f32 rows][f16 rows][packed block]; four bytes
 * a number hold codes of 8 or 16 bits, with the scales of the smallest dimension too. */
static size_t scratch_bytes(const kivi_cache *cache)
{
    const struct kivi_geometry *g = &cache->geometry;
    const size_t dim = g->k_dim > g->v_dim ? g->k_dim : g->v_dim;

    return (size_t)g->group_size * dim * (4 + 2 + 4);
}

static kivi_status edit_sequence(struct edit *e, struct kivi_sequence *sequence,
                                 kivi_status (*edit_layer)(const struct edit *, kivi_error *),
                                 kivi_error *error)
{
    kivi_cache *cache = e->cache;
    const struct kivi_geometry *g = &cache->geometry;
    const size_t dim = g->k_dim > g->v_dim ? g->k_dim : g->v_dim;
    const size_t layers_bytes = g->n_layers * sizeof(struct kivi_layer);
    struct kivi_layer *fresh = kivi_heap_alloc(&cache->heap, layers_bytes, 1);
    kivi_status status = KIVI_OK;
    uint32_t i;

    e->numbers = kivi_heap_alloc(&cache->heap, scratch_bytes(cache), 0);
    if (!fresh || !e->numbers) {
        status = kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to edit a sequence");
    } else {
        e->rows = (uint16_t *)(void *)(e->numbers + g->group_size * dim);
        e->block = e->rows + g->group_size * dim;
    }
    for (i = 0; i < g->n_layers && status == KIVI_OK; i++) {
        e->index = i;
        e->old = &sequence->layers[i];
        e->fresh = &fresh[i];
        status = edit_layer(e, error);
    }
    if (status == KIVI_OK)
        kivi_sequence_replace(cache, sequence, fresh);
    for (i = 0; fresh && status != KIVI_OK && i < g->n_layers; i++)
        kivi_layer_clear(cache, i, &fresh[i]);
    kivi_heap_free(&cache->heap, fresh, layers_bytes);
    kivi_heap_free(&cache->heap, e->numbers, scratch_bytes(cache));
    return status;
}

kivi_status kivi_seq_truncate(kivi_cache *cache, kivi_seq seq, uint64_t n_tokens, kivi_error *error)
{
    struct edit e = {.cache = cache, .begin = n_tokens, .end = UINT64_MAX};
    struct kivi_sequence *sequence;
    kivi_status status;
    KIVI_DETAIL(error);

    if (!cache)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "cache is NULL");
    kivi_lock_take(&cache->lock);
    sequence = kivi_sequence_find(cache, seq, error);
    status = sequence ? kivi_sequence_idle(cache, sequence, 1, error) : error->status;
    if (status == KIVI_OK)
        status = edit_sequence(&e, sequence, truncate_layer, error);
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

static kivi_status check_rope(const kivi_cache *cache, const kivi_rope *rope, kivi_error *error)
{
    uint32_t i;

    if (!rope)
        return KIVI_OK;
    if (rope->size != sizeof *rope)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "rope.size is %zu, not %zu", rope->size,
                         sizeof *rope);
    if (rope->n_rot % 2 || rope->n_rot == 0 || rope->n_rot > cache->geometry.k_dim)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "rope.n_rot is %u, not even and 2 to %u",
                         rope->n_rot, cache->geometry.k_dim);
    if (!rope->frequencies)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "rope.frequencies is NULL");
    if (rope->turn_first > 1)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "rope.turn_first is %u, not 0 or 1",
                         rope->turn_first);
    for (i = 0; i < rope->n_rot / 2; i++)
        if (!isfinite(rope->frequencies[i]))
            return kivi_fail(error, KIVI_ERROR_ARGUMENT, "rope.frequencies[%u] is not finite", i);
    return KIVI_OK;
}

kivi_status kivi_seq_drop(kivi_cache *cache, kivi_seq seq, uint64_t begin, uint64_t end,
                          const kivi_rope *rope, kivi_error *error)
{
    struct edit e = {.cache = cache, .begin = begin, .end = end, .rope = rope};
    struct kivi_sequence *sequence;
    kivi_status status;
    KIVI_DETAIL(error);

    if (!cache)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "cache is NULL");
    if (begin > end || begin % cache->geometry.group_size || end % cache->geometry.group_size)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT,
                         "[%llu, %llu) does not begin and end at multiples of group_size %u",
                         (unsigned long long)begin, (unsigned long long)end,
                         cache->geometry.group_size);
    if (begin < cache->geometry.n_sink)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "begin is %llu, among the %u sink tokens",
                         (unsigned long long)begin, cache->geometry.n_sink);
    status = check_rope(cache, rope, error);
    if (status != KIVI_OK)
        return status;
    kivi_lock_take(&cache->lock);
    sequence = kivi_sequence_find(cache, seq, error);
    status = sequence ? kivi_sequence_idle(cache, sequence, 1, error) : error->status;
    if (status == KIVI_OK && begin < end)
        status = edit_sequence(&e, sequence, drop_layer, error);
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}
