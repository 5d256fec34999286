/* Memory use, exactly. */
#include "cache.h"

/* The first to meet a block in an epoch counts it. `bytes`: where its size goes. */
static int meet(struct kivi_block *block, size_t size, uint64_t epoch, uint64_t *bytes,
                kivi_stats *stats)
{
    if (block->epoch == epoch)
        return 0;
    block->epoch = epoch;
    block->k_counted = block->v_counted = 0;
    *bytes += size;
    if (block->references > 1)
        stats->shared_bytes += size;
    return 1;
}

static void count_page(const kivi_cache *cache, struct kivi_block *page, uint64_t epoch,
                       kivi_stats *stats)
{
    if (meet(page, cache->geometry.page_bytes, epoch, &stats->unused_bytes, stats)) {
        stats->pages++;
        stats->shared_pages += page->references > 1;
    }
}

/* Adds what one layer of one sequence holds, with what a call under way may go back to. A page or window
 * that was counted in this epoch, through another sequence, adds only what it holds beyond that. */
static void count_layer(const kivi_cache *cache, uint32_t index, const struct kivi_layer *layer,
                        uint64_t epoch, kivi_stats *stats)
{
    const struct kivi_layer_geometry *l = &cache->geometry.layers[index];
    const uint64_t heads = cache->geometry.n_kv_heads;
    struct kivi_block *const window = layer->window;
    uint32_t i;

    for (i = 0; i < layer->n_pages; i++) {
        struct kivi_block *page = layer->blocks[i];
        const uint64_t begin = (uint64_t)i * l->page_tokens, end = begin + l->page_tokens;
        uint64_t k = layer->span.k_packed < end ? layer->span.k_packed : end;
        uint64_t v = layer->span.v_packed < end ? layer->span.v_packed : end;

        k = k > begin ? k - begin : 0;
        v = v > begin ? v - begin : 0;
        if (page->original)
            count_page(cache, page->original, epoch, stats);
        count_page(cache, page, epoch, stats);
        if (k > page->k_counted) {
            const uint64_t more = heads * (k - page->k_counted);

            stats->code_bytes += more * l->k.code_bytes / l->k.tokens;
            stats->scale_bytes += more * 2 * l->k.scale_bytes / l->k.tokens;
            stats->unused_bytes -= more * l->k.block_bytes / l->k.tokens;
            page->k_counted = k;
        }
        if (v > page->v_counted) {
            const uint64_t more = heads * (v - page->v_counted);

            stats->code_bytes += more * l->v.code_bytes / l->v.tokens;
            stats->scale_bytes += more * 2 * l->v.scale_bytes / l->v.tokens;
            stats->unused_bytes -= more * l->v.block_bytes / l->v.tokens;
            page->v_counted = v;
        }
    }
    if (window && window->original)
        meet(window->original, cache->geometry.window_bytes, epoch, &stats->window_bytes, stats);
    if (window)
        meet(window, cache->geometry.window_bytes, epoch, &stats->window_bytes, stats);
}

static uint64_t layer_own_bytes(const struct kivi_layer *layer)
{
    return layer->page_capacity * (sizeof *layer->blocks + sizeof *layer->pages);
}

static void count_sequence(const kivi_cache *cache, const struct kivi_sequence *sequence,
                           uint64_t epoch, kivi_stats *stats)
{
    const struct kivi_geometry *g = &cache->geometry;
    uint64_t longest = 0;
    uint32_t i;

    stats->sequences++;
    stats->bookkeeping_bytes += sizeof *sequence + g->n_layers * sizeof(struct kivi_layer);
    for (i = 0; i < g->n_layers; i++) {
        const struct kivi_layer *layer = &sequence->layers[i];

        count_layer(cache, i, layer, epoch, stats);
        longest = layer->span.n > longest ? layer->span.n : longest;
        stats->bookkeeping_bytes += layer_own_bytes(layer);
        stats->f16_bytes += layer->span.n * g->n_kv_heads * 2 * (g->k_dim + g->v_dim);
    }
    stats->tokens += longest;
}

/* Counts n sequences, of which some may be NULL, and what one more token for each of them takes. */
static void count_sequences(kivi_cache *cache, struct kivi_sequence *const *sequences, uint32_t n,
                            kivi_stats *stats)
{
    uint32_t i;

    cache->epoch++;
    for (i = 0; i < n; i++)
        if (sequences[i])
            count_sequence(cache, sequences[i], cache->epoch, stats);
    cache->epoch++;
    for (i = 0; i < n; i++)
        if (sequences[i])
            kivi_sequence_claim(cache, sequences[i], 1);
    for (i = 0; i < n; i++)
        if (sequences[i]) {
            uint64_t n_windows, n_pages;

            kivi_sequence_count(cache, sequences[i], 1, &n_windows, &n_pages);
            stats->next_append_bytes +=
                n_windows * cache->geometry.window_bytes + n_pages * cache->geometry.page_bytes;
        }
}

static kivi_status begin(kivi_stats *stats, kivi_error *error)
{
    const size_t size = sizeof *stats;

    if (stats->size != size)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "stats.size is %zu, not %zu", stats->size,
                         size);
    *stats = (kivi_stats){.size = size};
    return KIVI_OK;
}

static void finish(kivi_stats *stats)
{
    stats->total_bytes = stats->code_bytes + stats->scale_bytes + stats->window_bytes
                         + stats->unused_bytes + stats->bookkeeping_bytes;
}

/* The lock, and the epoch that it protects, belong to the cache's bookkeeping: a reader changes them. */
static kivi_cache *bookkeeping(const kivi_cache *cache)
{
    return (kivi_cache *)cache;
}

kivi_status kivi_cache_stats(const kivi_cache *cache, kivi_stats *stats, kivi_error *error)
{
    kivi_cache *books = bookkeeping(cache);
    uint64_t slabs;
    kivi_status status;
    KIVI_DETAIL(error);

    if (!cache || !stats)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "stats" : "cache");
    status = begin(stats, error);
    if (status != KIVI_OK)
        return status;
    kivi_lock_take(&books->lock);
    count_sequences(books, cache->sequences, cache->max_sequences, stats);
    /* All host memory that is not blocks; a device's blocks are not host memory. */
    slabs = cache->backend->kernels ? cache->source.reserved : 0;
    stats->bookkeeping_bytes = atomic_load(&cache->heap.bytes) - slabs;
    stats->free_bytes = kivi_pools_free_bytes(&cache->source);
    /* Blocks of sequences that are not in the table, or not yet, are in use, too. */
    stats->unused_bytes = cache->source.reserved - stats->free_bytes - stats->code_bytes
                          - stats->scale_bytes - stats->window_bytes;
    finish(stats);
    kivi_lock_release(&books->lock);
    return kivi_succeed(error);
}

kivi_status kivi_seq_stats(const kivi_cache *cache, kivi_seq seq, kivi_stats *stats,
                           kivi_error *error)
{
    kivi_cache *books = bookkeeping(cache);
    struct kivi_sequence *sequence;
    kivi_status status;
    KIVI_DETAIL(error);

    if (!cache || !stats)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "stats" : "cache");
    status = begin(stats, error);
    if (status != KIVI_OK)
        return status;
    kivi_lock_take(&books->lock);
    sequence = kivi_sequence_find(cache, seq, error);
    if (sequence) {
        count_sequences(books, &sequence, 1, stats);
        finish(stats);
    }
    kivi_lock_release(&books->lock);
    return sequence ? kivi_succeed(error) : error->status;
}
