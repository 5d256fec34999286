/*
 * Truncating a sequence: whole pages are let go, and what of a page is needed comes back as rows of the window, from
 * its codes. How far back that is exact.
 */
#include "../cpu/scalar.h"
#include "edit.h"

/* Brings keys (or values) of tokens [begin, end) of one head back into the new window: sinks from
 * their rows, the others dequantized. */
static kivi_status restore(const struct kivi_edit *e, uint32_t head, uint64_t begin, uint64_t end,
                           int is_key, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer_geometry *l = kivi_edit_geometry(e);
    const struct kivi_layout *layout = is_key ? &l->k : &l->v;
    void *window = e->fresh->window->memory;
    uint64_t t = begin;

    while (t < end) {
        void *page = e->old->pages[t / l->page_tokens];
        const uint32_t first = (uint32_t)(t % layout->tokens);
        const uint32_t left =
            (uint32_t)(end - t < layout->tokens - first ? end - t : layout->tokens - first);
        uint32_t i;
        kivi_status status = kivi_edit_read(
            e, is_key ? kivi_page_keys(l, page, head, t) : kivi_page_values(l, page, head, t),
            layout->block_bytes, e->block, error);

        if (status != KIVI_OK)
            return status;
        (is_key ? kivi_dequantize_k : kivi_dequantize_v)(layout, e->block, first, left, e->numbers);
        kivi_edit_narrow(e, (size_t)left * layout->dim);
        for (i = 0; i < left && status == KIVI_OK; i++, t++) {
            void *row = is_key ? kivi_window_key(g, window, head, t)
                               : kivi_window_value(g, window, head, t);

            if (t < g->n_sink)
                status = kivi_edit_copy(e, row,
                                        is_key ? kivi_sink_key(g, window, head, t)
                                               : kivi_sink_value(g, window, head, t),
                                        (size_t)layout->dim * 2, error);
            else
                status = kivi_edit_write(e, row, (size_t)layout->dim * 2,
                                         e->rows + (size_t)i * layout->dim, error);
        }
        if (status != KIVI_OK)
            return status;
    }
    return KIVI_OK;
}

/* What the layer is with its first n tokens alone: its pages and window are those it has. */
static struct kivi_layer first_tokens(const struct kivi_geometry *g, const struct kivi_layer *layer,
                                      uint64_t n)
{
    struct kivi_layer left = *layer;

    if (n >= layer->span.n)
        return left;
    left.span.n = n;
    if (left.k_base > n)
        left.k_base = 0;
    left.span.k_packed = kivi_keys_packed(g, n, left.k_base);
    left.span.v_packed = kivi_values_packed(g, n);
    left.k_low = min_u64(left.k_low, left.span.k_packed);
    left.v_low = min_u64(left.v_low, left.span.v_packed);
    return left;
}

/* Whether rows of the first n tokens have to come back from codes: those of keys [left.k_low, layer->k_low), and
 * likewise values. */
static int needs_codes(const struct kivi_geometry *g, const struct kivi_layer *layer, uint64_t n)
{
    const struct kivi_layer left = first_tokens(g, layer, n);

    return left.k_low < min_u64(layer->k_low, left.span.n)
           || left.v_low < min_u64(layer->v_low, left.span.n);
}

/* Whether any of them come back otherwise than they were: sinks, and what has 16 bits, do not. */
static int loses_precision(const struct kivi_geometry *g, uint32_t index,
                           const struct kivi_layer *layer, uint64_t n)
{
    const struct kivi_layer_geometry *l = &g->layers[index];
    const struct kivi_layer left = first_tokens(g, layer, n);

    return (l->k.bits < 16 && max_u64(left.k_low, g->n_sink) < min_u64(layer->k_low, left.span.n))
           || (l->v.bits < 16
               && max_u64(left.v_low, g->n_sink) < min_u64(layer->v_low, left.span.n));
}

/* Prepares a window with the rows that come back, if any do. */
static kivi_status restore_window(const struct kivi_edit *e, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer left = first_tokens(g, e->old, e->begin);
    const uint64_t k_end = min_u64(e->old->k_low, left.span.n);
    const uint64_t v_end = min_u64(e->old->v_low, left.span.n);
    kivi_status status;
    uint32_t head;

    if (!needs_codes(g, e->old, e->begin))
        return KIVI_OK;
    status = kivi_edit_copy_window(e, error);
    for (head = 0; head < g->n_kv_heads && status == KIVI_OK; head++) {
        status = restore(e, head, left.k_low, k_end, 1, error);
        if (status == KIVI_OK)
            status = restore(e, head, left.v_low, v_end, 0, error);
    }
    return status;
}

/* Layer i becomes what is left of it, with the window that was prepared, if any, in exchange for its own. */
static void cut_layer(struct kivi_edit *e, uint32_t i)
{
    struct kivi_layer *layer = &e->sequence->layers[i];
    struct kivi_layer left = first_tokens(&e->cache->geometry, layer, e->begin);

    if (e->prepared && e->prepared->layers[i].window) {
        left.window = e->prepared->layers[i].window;
        e->prepared->layers[i].window = layer->window;
    }
    e->cache->layer_tokens[i] -= layer->span.n - left.span.n;
    *layer = left;
    kivi_layer_shrink(e->cache, i, layer);
}

kivi_status kivi_seq_truncate(kivi_cache *cache, kivi_seq seq, uint64_t n_tokens, kivi_error *error)
{
    struct kivi_edit e = {.cache = cache, .begin = n_tokens, .end = UINT64_MAX};
    kivi_status status;
    int restores = 0;
    uint32_t i;
    KIVI_DETAIL(error);

    if (!cache)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "cache is NULL");
    kivi_lock_take(&cache->lock);
    status = kivi_edit_find(&e, seq, error);
    for (i = 0; status == KIVI_OK && i < cache->geometry.n_layers; i++)
        restores |= needs_codes(&cache->geometry, &e.sequence->layers[i], n_tokens);
    if (restores)
        status = kivi_edit_prepare(&e, restore_window, error);
    for (i = 0; status == KIVI_OK && i < cache->geometry.n_layers; i++)
        cut_layer(&e, i);
    kivi_sequence_free(cache, e.prepared);
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

/* The least length from which on every cut of the layer is exact: not far back, unless nothing is quantized, since
 * only the window's rows are. */
static uint64_t exact_from(const struct kivi_geometry *g, uint32_t index,
                           const struct kivi_layer *layer)
{
    uint64_t n = layer->span.n;

    if (g->layers[index].k.bits == 16 && g->layers[index].v.bits == 16)
        return 0;
    while (n > 0 && !loses_precision(g, index, layer, n - 1))
        n--;
    return n;
}

kivi_status kivi_seq_exact_from(const kivi_cache *cache, kivi_seq seq, uint64_t *n_tokens,
                                kivi_error *error)
{
    kivi_lock *lock;
    const struct kivi_sequence *sequence;
    uint32_t i;
    KIVI_DETAIL(error);

    if (!cache || !n_tokens)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "n_tokens" : "cache");
    lock = (kivi_lock *)&cache->lock;
    kivi_lock_take(lock);
    sequence = kivi_sequence_find(cache, seq, error);
    if (sequence) {
        *n_tokens = 0;
        for (i = 0; i < cache->geometry.n_layers; i++)
            *n_tokens = max_u64(*n_tokens, exact_from(&cache->geometry, i, &sequence->layers[i]));
    }
    kivi_lock_release(lock);
    return sequence ? kivi_succeed(error) : error->status;
}
