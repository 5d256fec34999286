#include "pool.h"

#include "error.h"
#include "geometry.h"

#define SLAB_BYTES ((uint64_t)32 << 20) /* enough for huge pages, little enough to be given back */
#define SMALL_SLAB_BYTES ((uint64_t)4 << 20) /* the least that gets huge pages: memory.c */

void kivi_pool_init(struct kivi_pool *pool, struct kivi_pool_source *source, size_t block_bytes)
{
    pool->source = source;
    pool->block_bytes = block_bytes;
    pool->next = source->pools;
    source->pools = pool;
}

static size_t slab_size(size_t n_blocks)
{
    return sizeof(struct kivi_slab) + n_blocks * sizeof(struct kivi_block);
}

static int add_slab(struct kivi_pool *pool, size_t n_blocks)
{
    struct kivi_pool_source *source = pool->source;
    const size_t bytes = n_blocks * pool->block_bytes;
    struct kivi_slab *slab = kivi_heap_alloc(source->heap, slab_size(n_blocks), 1);
    size_t i;

    if (!slab)
        return 0;
    slab->memory = source->backend->block_alloc(source->context, bytes);
    if (!slab->memory) {
        kivi_heap_free(source->heap, slab, slab_size(n_blocks));
        return 0;
    }
    slab->n_blocks = slab->n_free = n_blocks;
    slab->next = pool->slabs;
    pool->slabs = slab;
    for (i = n_blocks; i-- > 0;) { /* the lowest address is taken first */
        struct kivi_block *block = &slab->blocks[i];

        block->memory = (char *)slab->memory + i * pool->block_bytes;
        block->slab = slab;
        block->next_free = pool->free;
        pool->free = block;
    }
    pool->n_blocks += n_blocks;
    pool->n_free += n_blocks;
    source->reserved += bytes;
    return 1;
}

/* Blocks of a slab, at most. One block in use keeps its slab from other uses, so that under a budget a
 * slab is a small share of it: a 64th, or for the sake of huge pages up to a 16th. */
static size_t max_slab(const struct kivi_pool *pool)
{
    const uint64_t budget = pool->source->budget;
    uint64_t bytes = SLAB_BYTES;

    if (budget)
        bytes = min_u64(bytes, max_u64(budget / 64, min_u64(budget / 16, SMALL_SLAB_BYTES)));
    return (size_t)(round_up(max_u64(bytes, 1), pool->block_bytes) / pool->block_bytes);
}

/* Bytes that the budget still allows: if that is not one block, after what is free is given back. */
static uint64_t make_room(const struct kivi_pool *pool)
{
    struct kivi_pool_source *source = pool->source;
    const uint64_t room = source->budget - source->reserved;

    return room < pool->block_bytes ? room + kivi_pools_trim(source) : room;
}

/* Room for one more block: as many as there are, so that slabs double, within reason. */
static kivi_status grow(struct kivi_pool *pool, kivi_error *error)
{
    struct kivi_pool_source *source = pool->source;
    size_t n = (size_t)min_u64(max_u64(pool->n_blocks, 1), max_slab(pool));

    if (source->budget) {
        n = (size_t)min_u64(n, make_room(pool) / pool->block_bytes);
        if (n == 0) {
            const uint64_t unused = kivi_pools_free_bytes(source);

            return kivi_fail(error, KIVI_ERROR_CAPACITY,
                             "memory_budget: of %llu bytes, %llu are in use and %llu are free in "
                             "partly used slabs; %zu more are needed",
                             (unsigned long long)source->budget,
                             (unsigned long long)(source->reserved - unused),
                             (unsigned long long)unused, pool->block_bytes);
        }
    }
    if (add_slab(pool, n) || (n > 1 && add_slab(pool, 1)))
        return KIVI_OK;
    return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a block of %zu bytes",
                     pool->block_bytes);
}

struct kivi_block *kivi_pool_take(struct kivi_pool *pool, kivi_error *error)
{
    struct kivi_block *block;

    if (!pool->free && grow(pool, error) != KIVI_OK)
        return NULL;
    block = pool->free;
    pool->free = block->next_free;
    pool->n_free--;
    block->slab->n_free--;
    block->references = 1;
    block->original = NULL;
    return block;
}

struct kivi_block *kivi_pool_copy(struct kivi_pool *pool, const struct kivi_block *block,
                                  kivi_error *error)
{
    const struct kivi_pool_source *source = pool->source;
    struct kivi_block *copy = kivi_pool_take(pool, error);

    if (copy
        && source->backend->block_copy(source->context, copy->memory, block->memory,
                                       pool->block_bytes, error)
               != KIVI_OK) {
        kivi_pool_drop(pool, copy);
        copy = NULL;
    }
    return copy;
}

void kivi_pool_drop(struct kivi_pool *pool, struct kivi_block *block)
{
    if (--block->references > 0)
        return;
    block->next_free = pool->free;
    pool->free = block;
    pool->n_free++;
    block->slab->n_free++;
}

static uint64_t trim(struct kivi_pool *pool)
{
    struct kivi_pool_source *source = pool->source;
    struct kivi_block **free_link = &pool->free;
    struct kivi_slab **link = &pool->slabs;
    uint64_t bytes = 0;

    while (*free_link) {
        if ((*free_link)->slab->n_free == (*free_link)->slab->n_blocks)
            *free_link = (*free_link)->next_free;
        else
            free_link = &(*free_link)->next_free;
    }
    while (*link) {
        struct kivi_slab *slab = *link;
        const size_t size = slab->n_blocks * pool->block_bytes;

        if (slab->n_free < slab->n_blocks) {
            link = &slab->next;
            continue;
        }
        *link = slab->next;
        source->backend->block_free(source->context, slab->memory, size);
        pool->n_blocks -= slab->n_blocks;
        pool->n_free -= slab->n_blocks;
        source->reserved -= size;
        bytes += size;
        kivi_heap_free(source->heap, slab, slab_size(slab->n_blocks));
    }
    return bytes;
}

uint64_t kivi_pools_trim(struct kivi_pool_source *source)
{
    struct kivi_pool *pool;
    uint64_t bytes = 0;

    for (pool = source->pools; pool; pool = pool->next)
        bytes += trim(pool);
    return bytes;
}

uint64_t kivi_pools_free_bytes(const struct kivi_pool_source *source)
{
    const struct kivi_pool *pool;
    uint64_t bytes = 0;

    for (pool = source->pools; pool; pool = pool->next)
        bytes += pool->n_free * (uint64_t)pool->block_bytes;
    return bytes;
}
