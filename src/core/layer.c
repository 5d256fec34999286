/* One layer of one sequence: its pages and its window. */
#include "cache.h"

#include <string.h>

struct kivi_span kivi_layer_after(const kivi_cache *cache, const struct kivi_layer *layer,
                                  uint64_t n_new)
{
    const uint64_t n = layer->span.n + n_new;
    const struct kivi_span after = {
        n,
        kivi_keys_packed(&cache->geometry, n, layer->k_base),
        kivi_values_packed(&cache->geometry, n),
    };

    return after;
}

static uint64_t pages_for(uint64_t tokens, uint32_t page_tokens)
{
    return (tokens + page_tokens - 1) / page_tokens;
}

static uint64_t packed_end(const struct kivi_span *span)
{
    return span->k_packed > span->v_packed ? span->k_packed : span->v_packed;
}

/* Tokens [*begin, *end) of pages change between the two spans. */
static void changed(const struct kivi_span *before, const struct kivi_span *after, uint64_t *begin,
                    uint64_t *end)
{
    *begin = UINT64_MAX;
    *end = 0;
    if (after->k_packed > before->k_packed) {
        *begin = before->k_packed;
        *end = after->k_packed;
    }
    if (after->v_packed > before->v_packed) {
        *begin = before->v_packed < *begin ? before->v_packed : *begin;
        *end = after->v_packed > *end ? after->v_packed : *end;
    }
}

static void free_table(kivi_cache *cache, struct kivi_layer *layer)
{
    kivi_heap_free(&cache->heap, layer->blocks, layer->page_capacity * sizeof *layer->blocks);
    kivi_heap_free(&cache->heap, layer->pages, layer->page_capacity * sizeof *layer->pages);
    layer->blocks = NULL;
    layer->pages = NULL;
    layer->page_capacity = 0;
}

/* Room in the page table for n pages; it doubles. */
static kivi_status grow_table(kivi_cache *cache, struct kivi_layer *layer, uint64_t n,
                              kivi_error *error)
{
    uint64_t capacity = layer->page_capacity ? layer->page_capacity : 4;
    struct kivi_block **blocks;
    void **pages;

    if (n <= layer->page_capacity)
        return KIVI_OK;
    if (n > UINT32_MAX / 2)
        return kivi_fail(error, KIVI_ERROR_CAPACITY, "a sequence of %llu pages is too long",
                         (unsigned long long)n);
    while (capacity < n)
        capacity *= 2;
    blocks = kivi_heap_alloc(&cache->heap, capacity * sizeof *blocks, 0);
    pages = kivi_heap_alloc(&cache->heap, capacity * sizeof *pages, 0);
    if (!blocks || !pages) {
        kivi_heap_free(&cache->heap, blocks, capacity * sizeof *blocks);
        kivi_heap_free(&cache->heap, pages, capacity * sizeof *pages);
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a table of %llu pages",
                         (unsigned long long)capacity);
    }
    if (layer->n_pages) {
        memcpy(blocks, layer->blocks, layer->n_pages * sizeof *blocks);
        memcpy(pages, layer->pages, layer->n_pages * sizeof *pages);
    }
    free_table(cache, layer);
    layer->blocks = blocks;
    layer->pages = pages;
    layer->page_capacity = (uint32_t)capacity;
    return KIVI_OK;
}

/* Of a page's tokens from `begin` on, how many are below `packed`. */
static uint64_t tokens_seen(uint64_t packed, uint64_t begin, uint32_t page_tokens)
{
    return packed > begin ? min_u64(packed - begin, page_tokens) : 0;
}

/* Notes a writer that sees k and v tokens of the block. The keeper writes beyond what all others see, so that
 * they can still go back to the block. */
static void claim(const kivi_cache *cache, const struct kivi_layer *layer, struct kivi_block *block,
                  uint64_t k, uint64_t v)
{
    if (block->epoch != cache->epoch) {
        block->epoch = cache->epoch;
        block->k_counted = block->v_counted = 0;
        block->writers = 0;
        block->keeper = NULL;
    }
    block->writers++;
    if (k >= block->k_counted && v >= block->v_counted)
        block->keeper = layer;
    else if (k > block->k_counted || v > block->v_counted)
        block->keeper = NULL;
    block->k_counted = max_u64(k, block->k_counted);
    block->v_counted = max_u64(v, block->v_counted);
}

void kivi_layer_claim(const kivi_cache *cache, uint32_t index, const struct kivi_layer *layer,
                      const struct kivi_span *after)
{
    const uint32_t page_tokens = cache->geometry.layers[index].page_tokens;
    const struct kivi_span *span = &layer->span;
    uint64_t begin, end, i;

    if (layer->window)
        claim(cache, layer, layer->window, span->n, span->n);
    changed(span, after, &begin, &end);
    for (i = begin / page_tokens; i < pages_for(end, page_tokens) && i < layer->n_pages; i++)
        claim(cache, layer, layer->blocks[i],
              tokens_seen(span->k_packed, i * page_tokens, page_tokens),
              tokens_seen(span->v_packed, i * page_tokens, page_tokens));
}

/* Whether the layer, which has claimed the block or just taken it, may write to it: no others have it but those
 * that write to copies of their own in the same call. */
static int is_writable(const kivi_cache *cache, const struct kivi_layer *layer,
                       const struct kivi_block *block)
{
    return block->references == 1
           || (block->references == block->writers && block->epoch == cache->epoch
               && block->keeper == layer);
}

/* Makes *block one that the layer may write to: itself, or a copy. */
static kivi_status privatize(const kivi_cache *cache, const struct kivi_layer *layer,
                             struct kivi_pool *pool, struct kivi_block **block, kivi_error *error)
{
    struct kivi_block *original = *block, *copy;

    if (is_writable(cache, layer, original))
        return KIVI_OK;
    copy = kivi_pool_copy(pool, original, error);
    if (!copy)
        return error->status;
    copy->original = original;
    *block = copy;
    return KIVI_OK;
}

/* The copy stays and what it was made from goes, or the other way round. */
static void settle(struct kivi_pool *pool, struct kivi_block **block, int apply)
{
    struct kivi_block *copy = *block, *original = copy->original;

    if (!original)
        return;
    copy->original = NULL;
    if (!apply)
        *block = original;
    kivi_pool_drop(pool, apply ? original : copy);
}

void kivi_layer_count(const kivi_cache *cache, uint32_t index, const struct kivi_layer *layer,
                      const struct kivi_span *after, uint64_t *n_windows, uint64_t *n_pages)
{
    const uint32_t page_tokens = cache->geometry.layers[index].page_tokens;
    const uint64_t n = pages_for(packed_end(after), page_tokens);
    uint64_t begin, end, i;

    *n_windows = !layer->window || !is_writable(cache, layer, layer->window);
    *n_pages = n > layer->n_pages ? n - layer->n_pages : 0;
    changed(&layer->span, after, &begin, &end);
    for (i = begin / page_tokens; i < pages_for(end, page_tokens) && i < layer->n_pages; i++)
        *n_pages += !is_writable(cache, layer, layer->blocks[i]);
}

kivi_status kivi_layer_reserve(kivi_cache *cache, uint32_t index, struct kivi_layer *layer,
                               const struct kivi_span *after, kivi_error *error)
{
    const uint32_t page_tokens = cache->geometry.layers[index].page_tokens;
    const uint64_t n = pages_for(packed_end(after), page_tokens);
    uint64_t begin, end, i;
    kivi_status status;

    if (!layer->window) {
        layer->window = kivi_pool_take(&cache->window_pool, error);
        if (!layer->window)
            return error->status;
    }
    status = privatize(cache, layer, &cache->window_pool, &layer->window, error);
    if (status != KIVI_OK)
        return status;
    while (layer->n_pages < n) { /* the table grows with the pages that there is room for */
        status = kivi_layer_add_page(cache, layer, NULL, error);
        if (status != KIVI_OK)
            return status;
    }
    changed(&layer->span, after, &begin, &end);
    for (i = begin / page_tokens; i < pages_for(end, page_tokens); i++) {
        status = privatize(cache, layer, &cache->page_pool, &layer->blocks[i], error);
        if (status != KIVI_OK)
            return status;
        layer->pages[i] = layer->blocks[i]->memory;
    }
    return KIVI_OK;
}

void kivi_layer_settle(kivi_cache *cache, uint32_t index, struct kivi_layer *layer,
                       const struct kivi_span *after, int apply)
{
    const struct kivi_geometry *g = &cache->geometry;
    const uint32_t page_tokens = g->layers[index].page_tokens;
    uint64_t begin, end, i;

    if (layer->window)
        settle(&cache->window_pool, &layer->window, apply);
    changed(&layer->span, after, &begin, &end);
    for (i = begin / page_tokens; i < pages_for(end, page_tokens) && i < layer->n_pages; i++) {
        settle(&cache->page_pool, &layer->blocks[i], apply);
        layer->pages[i] = layer->blocks[i]->memory;
    }
    if (apply) { /* the new tokens become visible; older rows may have left the rings */
        layer->span = *after;
        if (after->n > g->k_ring)
            layer->k_low = max_u64(layer->k_low, after->n - g->k_ring);
        if (after->n > g->v_ring)
            layer->v_low = max_u64(layer->v_low, after->n - g->v_ring);
    }
    kivi_layer_shrink(cache, index, layer);
}

kivi_status kivi_layer_new_window(kivi_cache *cache, struct kivi_layer *layer, kivi_error *error)
{
    layer->window = kivi_pool_take(&cache->window_pool, error);
    return layer->window ? KIVI_OK : error->status;
}

kivi_status kivi_layer_add_page(kivi_cache *cache, struct kivi_layer *layer,
                                struct kivi_block *shared, kivi_error *error)
{
    const kivi_status status = grow_table(cache, layer, (uint64_t)layer->n_pages + 1, error);
    struct kivi_block *page = shared;

    if (status != KIVI_OK)
        return status;
    if (shared)
        shared->references++;
    else
        page = kivi_pool_take(&cache->page_pool, error);
    if (!page)
        return error->status;
    layer->blocks[layer->n_pages] = page;
    layer->pages[layer->n_pages++] = page->memory;
    return KIVI_OK;
}

void kivi_layer_shrink(kivi_cache *cache, uint32_t index, struct kivi_layer *layer)
{
    const uint64_t n =
        pages_for(packed_end(&layer->span), cache->geometry.layers[index].page_tokens);

    while (layer->n_pages > n)
        kivi_pool_drop(&cache->page_pool, layer->blocks[--layer->n_pages]);
    if (layer->n_pages == 0)
        free_table(cache, layer);
    if (layer->span.n == 0 && layer->window) {
        kivi_pool_drop(&cache->window_pool, layer->window);
        layer->window = NULL;
    }
}

kivi_status kivi_layer_share(kivi_cache *cache, struct kivi_layer *to,
                             const struct kivi_layer *from, kivi_error *error)
{
    const kivi_status status = grow_table(cache, to, from->n_pages, error);
    uint32_t i;

    if (status != KIVI_OK)
        return status;
    to->span = from->span;
    to->k_base = from->k_base;
    to->k_low = from->k_low;
    to->v_low = from->v_low;
    to->window = from->window;
    if (to->window)
        to->window->references++;
    for (i = 0; i < from->n_pages; i++) {
        to->blocks[i] = from->blocks[i];
        to->pages[i] = from->pages[i];
        to->blocks[i]->references++;
    }
    to->n_pages = from->n_pages;
    return KIVI_OK;
}

void kivi_layer_clear(kivi_cache *cache, uint32_t index, struct kivi_layer *layer)
{
    const struct kivi_span empty = {0, 0, 0};

    layer->span = empty;
    layer->k_base = layer->k_low = layer->v_low = 0;
    kivi_layer_shrink(cache, index, layer);
}
