/*
 * Dropping a range of a sequence: blocks behind it move down, their keys turned back, or those before it forward.
 */
#include <math.h>

#include "../cpu/scalar.h"
#include "edit.h"

/* Where token t of the new layer was. */
static uint64_t old_position(const struct kivi_edit *e, uint64_t t)
{
    return t < e->begin ? t : t + (e->end - e->begin);
}

/* Whether the key of token `t` of the new layer turns. */
static int turns(const struct kivi_edit *e, uint64_t t)
{
    return e->rope && (e->rope->turn_first ? t < e->begin : t >= e->begin);
}

static void find_turn(const struct kivi_edit *e)
{
    const double dropped = (double)(e->end - e->begin);
    const double distance = e->rope->turn_first ? dropped : -dropped;
    const uint32_t half = e->rope->n_rot / 2;
    uint32_t i;

    for (i = 0; i < half; i++) {
        const double angle = distance * (double)e->rope->frequencies[i];

        e->turn[i] = (float)cos(angle);
        e->turn[half + i] = (float)sin(angle);
    }
}

/* Turns n rows of keys by the dropped positions: forward before the gap, back after it. */
static void rotate(const struct kivi_edit *e, uint32_t n, uint32_t dim)
{
    const uint32_t half = e->rope->n_rot / 2;
    const uint32_t step = e->rope->interleaved ? 2 : 1, apart = e->rope->interleaved ? 1 : half;
    const float *c = e->turn, *s = e->turn + half;
    uint32_t i, t;

    for (t = 0; t < n; t++) {
        float *a = e->numbers + (size_t)t * dim, *b = a + apart;

        for (i = 0; i < half; i++) {
            const float x = a[step * i], y = b[step * i];

            a[step * i] = x * c[i] - y * s[i];
            b[step * i] = x * s[i] + y * c[i];
        }
    }
}

/* One key block, turned: dequantized, rotated, quantized again, without its first `skip` tokens. */
static kivi_status move_rotated(const struct kivi_edit *e, const struct kivi_layout *l, void *to,
                                const void *from, uint32_t skip, kivi_error *error)
{
    const kivi_status status = kivi_edit_read(e, from, l->block_bytes, e->block, error);

    if (status != KIVI_OK)
        return status;
    kivi_dequantize_k(l, e->block, 0, l->tokens, e->numbers);
    rotate(e, l->tokens, l->dim);
    kivi_edit_narrow(e, (size_t)l->tokens * l->dim);
    if (l->bits == 16)
        return kivi_edit_write(e, to, l->block_bytes, e->rows, error);
    e->kernels->quantize_k(l, e->rows, l->dim, skip, e->block);
    return kivi_edit_write(e, to, l->block_bytes, e->block, error);
}

/* Fills page `index` of the new layer, block by block, from where its tokens were. */
static kivi_status fill_page(const struct kivi_edit *e, uint32_t index, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer_geometry *l = kivi_edit_geometry(e);
    const uint64_t begin = (uint64_t)index * l->page_tokens, end = begin + l->page_tokens;
    void *page = e->fresh->pages[index];
    uint32_t head;
    uint64_t t;
    kivi_status status = KIVI_OK;

    for (head = 0; head < g->n_kv_heads && status == KIVI_OK; head++) {
        for (t = begin; t < min_u64(end, e->fresh->span.k_packed) && status == KIVI_OK;
             t += l->k.tokens) {
            const uint64_t was = old_position(e, t);
            const void *from = kivi_page_keys(l, e->old->pages[was / l->page_tokens], head, was);
            void *to = kivi_page_keys(l, page, head, t);
            const uint64_t sinks = g->n_sink > t ? min_u64(g->n_sink - t, l->k.tokens) : 0;

            status = turns(e, t) ? move_rotated(e, &l->k, to, from, (uint32_t)sinks, error)
                                 : kivi_edit_copy(e, to, from, l->k.block_bytes, error);
        }
        for (t = begin; t < min_u64(end, e->fresh->span.v_packed) && status == KIVI_OK;
             t += l->v.tokens) {
            const uint64_t was = old_position(e, t);
            const void *from = kivi_page_values(l, e->old->pages[was / l->page_tokens], head, was);

            status = kivi_edit_copy(e, kivi_page_values(l, page, head, t), from, l->v.block_bytes,
                                    error);
        }
    }
    return status;
}

/* The rows that stay in the rings of one head move to the slots of their new positions. */
static kivi_status move_rows(const struct kivi_edit *e, uint32_t head, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const uint64_t dropped = e->end - e->begin;
    const struct kivi_layout a_row = kivi_layout_keys(16, g->k_dim, 1);
    void *from = e->old->window->memory, *to = e->fresh->window->memory;
    kivi_status status = KIVI_OK;
    uint64_t t;

    for (t = 0; t < g->n_sink && turns(e, t) && status == KIVI_OK; t++)
        status = move_rotated(e, &a_row, kivi_sink_key(g, to, head, t),
                              kivi_sink_key(g, from, head, t), 0, error);
    for (t = e->fresh->k_low; t < e->fresh->span.n && status == KIVI_OK; t++) {
        const void *row = kivi_window_key(g, from, head, t + dropped);
        void *slot = kivi_window_key(g, to, head, t);

        status = turns(e, t) ? move_rotated(e, &a_row, slot, row, 0, error)
                             : kivi_edit_copy(e, slot, row, a_row.block_bytes, error);
    }
    for (t = e->fresh->v_low; t < e->fresh->span.n && status == KIVI_OK; t++)
        status = kivi_edit_copy(e, kivi_window_value(g, to, head, t),
                                kivi_window_value(g, from, head, t + dropped), g->v_dim * 2, error);
    return status;
}

/* The old page whose tokens are exactly those of the new page `index`, in place, or NULL. */
static struct kivi_block *same_page(const struct kivi_edit *e, uint32_t index)
{
    const uint32_t page_tokens = kivi_edit_geometry(e)->page_tokens;
    const uint64_t begin = (uint64_t)index * page_tokens, last = begin + page_tokens - 1;
    const uint64_t was = old_position(e, begin);

    if (turns(e, begin) || turns(e, last) || was % page_tokens
        || old_position(e, last) - was != last - begin)
        return NULL;
    return e->old->blocks[was / page_tokens];
}

/* Whether every layer keeps its newest tokens, of which values or keys are not packed. */
static kivi_status check_end(const struct kivi_edit *e, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    uint32_t i;

    for (i = 0; i < g->n_layers; i++) {
        const struct kivi_span *span = &e->sequence->layers[i].span;

        if (e->end > span->v_packed) /* which is at most k_packed */
            return kivi_fail(error, KIVI_ERROR_ARGUMENT,
                             "end is %llu, above %llu: layer %u has %llu tokens, and the newest "
                             "residual_length %u stay",
                             (unsigned long long)e->end, (unsigned long long)span->v_packed, i,
                             (unsigned long long)span->n, g->residual_length);
    }
    return KIVI_OK;
}

/* Prepares the layer without the dropped tokens. */
static kivi_status drop_tokens(const struct kivi_edit *e, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer *old = e->old;
    struct kivi_layer *fresh = e->fresh;
    const uint64_t dropped = e->end - e->begin;
    const uint32_t page_tokens = kivi_edit_geometry(e)->page_tokens;
    kivi_status status = KIVI_OK;
    uint32_t head;

    if (e->rope && e->index == 0) /* once: it is the same for all layers */
        find_turn(e);
    fresh->span.n = old->span.n - dropped;
    fresh->span.k_packed = old->span.k_packed - dropped;
    fresh->span.v_packed = old->span.v_packed - dropped;
    fresh->k_base = fresh->span.k_packed % g->residual_length;
    fresh->k_low = max_u64(old->k_low, e->end) - dropped;
    fresh->v_low = max_u64(old->v_low, e->end) - dropped;

    while ((uint64_t)fresh->n_pages * page_tokens < fresh->span.k_packed && status == KIVI_OK) {
        struct kivi_block *same = same_page(e, fresh->n_pages);

        kivi_lock_take(&e->cache->lock);
        status = kivi_layer_add_page(e->cache, fresh, same, error);
        kivi_lock_release(&e->cache->lock);
        if (status == KIVI_OK && !same)
            status = fill_page(e, fresh->n_pages - 1, error);
    }
    if (status == KIVI_OK)
        status =
            kivi_edit_copy_window(e, error); /* its sinks; other rows move to their new slots */
    for (head = 0; head < g->n_kv_heads && status == KIVI_OK; head++)
        status = move_rows(e, head, error);
    return status;
}

/* Layer i and the one that was prepared change places. */
static void replace_layer(struct kivi_edit *e, uint32_t i)
{
    const struct kivi_layer old = e->sequence->layers[i];

    e->cache->layer_tokens[i] -= e->end - e->begin;
    e->sequence->layers[i] = e->prepared->layers[i];
    e->prepared->layers[i] = old;
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
    struct kivi_edit e = {.cache = cache, .begin = begin, .end = end, .rope = rope};
    kivi_status status;
    uint32_t i;
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
    status = kivi_edit_find(&e, seq, error);
    if (status == KIVI_OK && begin < end)
        status = check_end(&e, error);
    if (status == KIVI_OK && begin < end)
        status = kivi_edit_prepare(&e, drop_tokens, error);
    for (i = 0; status == KIVI_OK && begin < end && i < cache->geometry.n_layers; i++)
        replace_layer(&e, i);
    kivi_sequence_free(cache, e.prepared);
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}
