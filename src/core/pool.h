/*
 * Blocks of one size, reference counted: pages or windows. Memory comes from the backend in slabs
 * that grow with the pool. The cache's lock protects every call.
 */
#ifndef KIVI_POOL_H
#define KIVI_POOL_H

#include "backend.h"
#include "memory.h"

struct kivi_block {
    void *memory; /* the backend's: not for the host to read unless the backend is a CPU */
    uint32_t references;
    struct kivi_slab *slab;
    struct kivi_block *next_free;
    struct kivi_block *original; /* of a call's private copy: what it was made from, with the layer's
                                    reference to it; NULL once the call has ended */
    /* Of one round over layers, which meets shared blocks more than once: see kivi_cache.epoch. */
    uint64_t epoch;
    uint64_t k_counted, v_counted; /* tokens of it that layers met so far can see, the most of any */
    uint32_t writers;              /* layers met that write to it */
    const struct kivi_layer *keeper; /* of a call's writers the one that sees the most, NULL if none sees
                                        all that others do */
};

struct kivi_slab {
    struct kivi_slab *next;
    void *memory;
    size_t n_blocks, n_free;
    struct kivi_block blocks[];
};

/* What the pools of one cache share. */
struct kivi_pool_source {
    const struct kivi_backend *backend;
    void *context;           /* the backend's */
    struct kivi_heap *heap;  /* for descriptors */
    struct kivi_pool *pools; /* all of them */
    uint64_t reserved;       /* bytes taken from the backend by all pools */
    uint64_t budget;         /* of them, at most; 0: no limit */
};

struct kivi_pool {
    struct kivi_pool_source *source;
    struct kivi_pool *next; /* of the source */
    size_t block_bytes;
    size_t n_blocks, n_free;
    struct kivi_slab *slabs;
    struct kivi_block *free;
};

/* An empty pool, which joins the source's. */
void kivi_pool_init(struct kivi_pool *pool, struct kivi_pool_source *source, size_t block_bytes);

/* A block with one reference and undefined contents, or NULL with *error filled in. If the budget is in
 * the way, what any pool keeps for reuse is given back first. */
struct kivi_block *kivi_pool_take(struct kivi_pool *pool, kivi_error *error);

/* The same with the contents of `block`, which is of this pool. */
struct kivi_block *kivi_pool_copy(struct kivi_pool *pool, const struct kivi_block *block,
                                  kivi_error *error);

/* Drops one reference; the last one makes the block free. */
void kivi_pool_drop(struct kivi_pool *pool, struct kivi_block *block);

/* Gives slabs without blocks in use back to the backend, those of every pool; returns their bytes. */
uint64_t kivi_pools_trim(struct kivi_pool_source *source);

/* Bytes of the free blocks of every pool. */
uint64_t kivi_pools_free_bytes(const struct kivi_pool_source *source);

#endif
