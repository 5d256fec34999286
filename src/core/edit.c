/*
 * Truncating a sequence, and dropping a range of it. What takes memory or time is prepared beside the old
 * layers, without the cache's lock, while others find the sequence busy; it takes their place once nothing can
 * fail any more.
 */
#include <math.h>

#include "../cpu/scalar.h"
#include "cache.h"
#include "half.h"
#include "registry.h"

/* What the functions below work on: one layer, old and new, and room on the host. */
struct edit {
    kivi_cache *cache;
    const struct kivi_kernels *kernels; /* for the host */
    struct kivi_sequence *sequence;
    struct kivi_sequence *prepared; /* the new layers; truncation: only windows, of some */
    uint32_t index;
    const struct kivi_layer *old;
    struct kivi_layer *fresh;
    void *block;         /* one packed block */
    float *numbers;      /* one block of rows in f32 */
    uint16_t *rows;      /* and in f16 */
    uint64_t begin, end; /* of what is dropped; truncation: what is kept, UINT64_MAX */
    const kivi_rope *rope;
    float *turn; /* by the dropped positions: cosines [n_rot / 2], sines [n_rot / 2] */
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

/* A window for the new layer, equal to the old one's. */
static kivi_status copy_window(const struct edit *e, kivi_error *error)
{
    kivi_status status;

    kivi_lock_take(&e->cache->lock);
    status = kivi_layer_new_window(e->cache, e->fresh, error);
    kivi_lock_release(&e->cache->lock);
    if (status != KIVI_OK)
        return status;
    return copy_block(e, e->fresh->window->memory, e->old->window->memory,
                      e->cache->geometry.window_bytes, error);
}

/* e->rows become the first n of e->numbers, within f16's range: a dequantized group may end one rounding
 * above the largest. */
static void narrow(const struct edit *e, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        const float x = e->numbers[i] < KIVI_F16_MAX ? e->numbers[i] : KIVI_F16_MAX;

        e->numbers[i] = x > -KIVI_F16_MAX ? x : -KIVI_F16_MAX;
    }
    e->kernels->to_f16[KIVI_F32](e->rows, e->numbers, n);
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
        narrow(e, (size_t)left * layout->dim);
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
static kivi_status restore_window(const struct edit *e, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer left = first_tokens(g, e->old, e->begin);
    const uint64_t k_end = min_u64(e->old->k_low, left.span.n);
    const uint64_t v_end = min_u64(e->old->v_low, left.span.n);
    kivi_status status;
    uint32_t head;

    if (!needs_codes(g, e->old, e->begin))
        return KIVI_OK;
    status = copy_window(e, error);
    for (head = 0; head < g->n_kv_heads && status == KIVI_OK; head++) {
        status = restore(e, head, left.k_low, k_end, 1, error);
        if (status == KIVI_OK)
            status = restore(e, head, left.v_low, v_end, 0, error);
    }
    return status;
}

/* Layer i becomes what is left of it, with the window that was prepared, if any, in exchange for its own. */
static void cut_layer(struct edit *e, uint32_t i)
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

/* ---------------------------------------------------------------- dropping */

/* Where token t of the new layer was. */
static uint64_t old_position(const struct edit *e, uint64_t t)
{
    return t < e->begin ? t : t + (e->end - e->begin);
}

/* Whether the key of token `t` of the new layer turns. */
static int turns(const struct edit *e, uint64_t t)
{
    return e->rope && (e->rope->turn_first ? t < e->begin : t >= e->begin);
}

static void find_turn(const struct edit *e)
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
static void rotate(const struct edit *e, uint32_t n, uint32_t dim)
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
static kivi_status move_rotated(const struct edit *e, const struct kivi_layout *l, void *to,
                                const void *from, uint32_t skip, kivi_error *error)
{
    const kivi_status status = read_block(e, from, l->block_bytes, e->block, error);

    if (status != KIVI_OK)
        return status;
    kivi_dequantize_k(l, e->block, 0, l->tokens, e->numbers);
    rotate(e, l->tokens, l->dim);
    narrow(e, (size_t)l->tokens * l->dim);
    if (l->bits == 16)
        return write_block(e, to, l->block_bytes, e->rows, error);
    e->kernels->quantize_k(l, e->rows, l->dim, skip, e->block);
    return write_block(e, to, l->block_bytes, e->block, error);
}

/* Fills page `index` of the new layer, block by block, from where its tokens were. */
static kivi_status fill_page(const struct edit *e, uint32_t index, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer_geometry *l = layer_geometry(e);
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
                                 : copy_block(e, to, from, l->k.block_bytes, error);
        }
        for (t = begin; t < min_u64(end, e->fresh->span.v_packed) && status == KIVI_OK;
             t += l->v.tokens) {
            const uint64_t was = old_position(e, t);
            const void *from = kivi_page_values(l, e->old->pages[was / l->page_tokens], head, was);

            status =
                copy_block(e, kivi_page_values(l, page, head, t), from, l->v.block_bytes, error);
        }
    }
    return status;
}

/* The rows that stay in the rings of one head move to the slots of their new positions. */
static kivi_status move_rows(const struct edit *e, uint32_t head, kivi_error *error)
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
                             : copy_block(e, slot, row, a_row.block_bytes, error);
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
    const uint64_t begin = (uint64_t)index * page_tokens, last = begin + page_tokens - 1;
    const uint64_t was = old_position(e, begin);

    if (turns(e, begin) || turns(e, last) || was % page_tokens
        || old_position(e, last) - was != last - begin)
        return NULL;
    return e->old->blocks[was / page_tokens];
}

/* Whether every layer keeps its newest tokens, of which values or keys are not packed. */
static kivi_status check_end(const struct edit *e, kivi_error *error)
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
static kivi_status drop_tokens(const struct edit *e, kivi_error *error)
{
    const struct kivi_geometry *g = &e->cache->geometry;
    const struct kivi_layer *old = e->old;
    struct kivi_layer *fresh = e->fresh;
    const uint64_t dropped = e->end - e->begin;
    const uint32_t page_tokens = layer_geometry(e)->page_tokens;
    kivi_status status = KIVI_OK;
    uint32_t head;

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
        status = copy_window(e, error); /* its sinks; other rows move to their new slots */
    for (head = 0; head < g->n_kv_heads && status == KIVI_OK; head++)
        status = move_rows(e, head, error);
    return status;
}

/* Layer i and the one that was prepared change places. */
static void replace_layer(struct edit *e, uint32_t i)
{
    const struct kivi_layer old = e->sequence->layers[i];

    e->cache->layer_tokens[i] -= e->end - e->begin;
    e->sequence->layers[i] = e->prepared->layers[i];
    e->prepared->layers[i] = old;
}

/* ------------------------------------------------------------------- both */

/* Host memory for a block of any layer, in one piece: [f32 rows][f16 rows][packed block][turn]; four
 * bytes a number hold codes of 8 or 16 bits, with the scales of the smallest dimension too. */
static size_t scratch_bytes(const struct kivi_geometry *g, size_t numbers)
{
    return numbers * (4 + 2 + 4) + g->k_dim * sizeof(float);
}

/* Finds the sequence, which must be idle; with the lock held. */
static kivi_status find_idle(struct edit *e, kivi_seq seq, kivi_error *error)
{
    e->sequence = kivi_sequence_find(e->cache, seq, error);
    return e->sequence ? kivi_sequence_idle(e->cache, e->sequence, 1, error) : error->status;
}

static void mark_writing(const struct edit *e, int begin)
{
    uint32_t i;

    for (i = 0; i < e->cache->geometry.n_layers; i++)
        e->sequence->layers[i].writers += begin ? 1u : -1u;
}

/* Prepares new layers, one after the other. The lock is held before and after, but not meanwhile: the
 * caller frees e->prepared then, whatever the status and whatever it has left in it. */
static kivi_status prepare(struct edit *e,
                           kivi_status (*prepare_layer)(const struct edit *, kivi_error *),
                           kivi_error *error)
{
    kivi_cache *cache = e->cache;
    const struct kivi_geometry *g = &cache->geometry;
    const size_t numbers = (size_t)g->group_size * max_u64(g->k_dim, g->v_dim);
    kivi_status status = KIVI_OK;
    uint32_t i;

    mark_writing(e, 1);
    kivi_lock_release(&cache->lock);
    e->kernels = kivi_host_kernels(cache->backend);
    e->prepared = kivi_sequence_new(cache, error);
    e->numbers = kivi_heap_alloc(&cache->heap, scratch_bytes(g, numbers), 0);
    if (!e->prepared || !e->numbers) {
        status = kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to edit a sequence");
    } else {
        e->rows = (uint16_t *)(void *)(e->numbers + numbers);
        e->block = e->rows + numbers;
        e->turn = (float *)e->block + numbers;
        if (e->rope)
            find_turn(e);
    }
    for (i = 0; i < g->n_layers && status == KIVI_OK; i++) {
        e->index = i;
        e->old = &e->sequence->layers[i];
        e->fresh = &e->prepared->layers[i];
        status = prepare_layer(e, error);
    }
    kivi_heap_free(&cache->heap, e->numbers, scratch_bytes(g, numbers));
    kivi_lock_take(&cache->lock);
    mark_writing(e, 0);
    return status;
}

kivi_status kivi_seq_truncate(kivi_cache *cache, kivi_seq seq, uint64_t n_tokens, kivi_error *error)
{
    struct edit e = {.cache = cache, .begin = n_tokens, .end = UINT64_MAX};
    kivi_status status;
    int restores = 0;
    uint32_t i;
    KIVI_DETAIL(error);

    if (!cache)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "cache is NULL");
    kivi_lock_take(&cache->lock);
    status = find_idle(&e, seq, error);
    for (i = 0; status == KIVI_OK && i < cache->geometry.n_layers; i++)
        restores |= needs_codes(&cache->geometry, &e.sequence->layers[i], n_tokens);
    if (restores)
        status = prepare(&e, restore_window, error);
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
    status = find_idle(&e, seq, error);
    if (status == KIVI_OK && begin < end)
        status = check_end(&e, error);
    if (status == KIVI_OK && begin < end)
        status = prepare(&e, drop_tokens, error);
    for (i = 0; status == KIVI_OK && begin < end && i < cache->geometry.n_layers; i++)
        replace_layer(&e, i);
    kivi_sequence_free(cache, e.prepared);
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}
