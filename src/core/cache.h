/* The cache object and its sequences, as the core's files share them. */
#ifndef KIVI_CACHE_H
#define KIVI_CACHE_H

#include "backend.h"
#include "error.h"
#include "lock.h"
#include "memory.h"
#include "pool.h"

/* One layer of one sequence. Pages hold packed tokens, the window the rest. */
struct kivi_layer {
    struct kivi_span span;
    uint64_t k_base; /* keys are packed up to here modulo residual_length: geometry.h */
    uint64_t k_low, v_low; /* oldest tokens whose rows the window's rings still have; not above
                              k_packed and v_packed */
    struct kivi_block *window; /* NULL while the layer is empty */
    uint32_t n_pages, page_capacity;
    struct kivi_block **blocks; /* page_capacity of each: the pages, */
    void **pages;               /* and their memory, in the form the backend wants */
    uint32_t readers, writers;  /* calls at work on it */
};

struct kivi_sequence {
    kivi_seq id;
    uint64_t epoch; /* the latest round that met it: see kivi_cache.epoch */
    struct kivi_layer layers[];
};

struct kivi_cache {
    struct kivi_heap heap;
    struct kivi_geometry geometry;
    uint32_t n_threads, max_sequences;
    uint64_t capacity;
    kivi_memory memory;
    const struct kivi_backend *backend;
    const char *why_backend;
    void *context; /* the backend's */

    kivi_lock lock; /* protects all below, and every layer's fields but span, pages and contents of
                       a layer that a call has marked as its own */
    struct kivi_pool_source source;
    struct kivi_pool page_pool, window_pool;
    struct kivi_sequence **sequences; /* max_sequences slots, NULL if free */
    uint64_t *generations;            /* of each slot: part of its sequence's id */
    uint32_t n_sequences, first_free; /* no slot below first_free is free */
    uint64_t *layer_tokens; /* sum over sequences of the tokens of a layer */
    uint64_t epoch; /* the number of the latest round over layers or sequences: of statistics or a call */
};

/* If the caller wants no detail, the core still does: `KIVI_DETAIL(error);` opens such a function. */
#define KIVI_DETAIL(error)                                                                         \
    kivi_error detail_;                                                                            \
    if (!(error))                                                                                  \
    (error) = &detail_

/* sequence.c: all with the lock held. */

/* The sequence, or NULL with *error. */
struct kivi_sequence *kivi_sequence_find(const kivi_cache *cache, kivi_seq seq, kivi_error *error);

/* A new, empty sequence that no one can find yet, or NULL with *error. */
struct kivi_sequence *kivi_sequence_new(kivi_cache *cache, kivi_error *error);

/* Releases a sequence that is not in the table, and what it holds. */
void kivi_sequence_free(kivi_cache *cache, struct kivi_sequence *sequence);

/* Whether n more sequences may live. */
kivi_status kivi_sequence_room(const kivi_cache *cache, uint64_t n, kivi_error *error);

/* Whether n more tokens may join a layer. */
kivi_status kivi_token_room(const kivi_cache *cache, uint32_t layer, uint64_t n, kivi_error *error);

/* Puts a sequence into the table, for which there is room: it has an id, and its tokens count. */
void kivi_sequence_publish(kivi_cache *cache, struct kivi_sequence *sequence);

/* Takes a sequence out of the table and frees it. */
void kivi_sequence_remove(kivi_cache *cache, struct kivi_sequence *sequence);

/* The sequence's layers become `fresh` (n_layers of them), and what they were is released. */
void kivi_sequence_replace(kivi_cache *cache, struct kivi_sequence *sequence,
                           struct kivi_layer *fresh);

/* KIVI_ERROR_BUSY if a call is at work on any layer: on reading ones only if `also_readers`. */
kivi_status kivi_sequence_idle(const kivi_cache *cache, const struct kivi_sequence *sequence,
                               int also_readers, kivi_error *error);

/* Notes which blocks n_new more tokens in every layer write to: for all sequences of a round, in one epoch, before
 * the first kivi_sequence_count. */
void kivi_sequence_claim(const kivi_cache *cache, const struct kivi_sequence *sequence,
                         uint64_t n_new);

/* How many blocks these tokens take in all layers, if those of the whole round come in one call. */
void kivi_sequence_count(const kivi_cache *cache, const struct kivi_sequence *sequence,
                         uint64_t n_new, uint64_t *n_windows, uint64_t *n_pages);

/* layer.c: all with the lock held. */

/* The span after n_new more tokens. */
struct kivi_span kivi_layer_after(const kivi_cache *cache, const struct kivi_layer *layer,
                                  uint64_t n_new);

/* Notes which blocks an append up to `after` writes to: for every layer of a call, in one epoch, before
 * the first kivi_layer_count or kivi_layer_reserve. */
void kivi_layer_claim(const kivi_cache *cache, uint32_t index, const struct kivi_layer *layer,
                      const struct kivi_span *after);

/* How many blocks kivi_layer_reserve would take. */
void kivi_layer_count(const kivi_cache *cache, uint32_t index, const struct kivi_layer *layer,
                      const struct kivi_span *after, uint64_t *n_windows, uint64_t *n_pages);

/* Makes room for `after`: window, pages, and private copies of what will be written. What is visible
 * does not change. kivi_layer_settle follows, also on failure. */
kivi_status kivi_layer_reserve(kivi_cache *cache, uint32_t index, struct kivi_layer *layer,
                               const struct kivi_span *after, kivi_error *error);

/* Ends what kivi_layer_reserve began. `apply`: the layer is at `after`; else it is as it was, with the very
 * blocks that it had. */
void kivi_layer_settle(kivi_cache *cache, uint32_t index, struct kivi_layer *layer,
                       const struct kivi_span *after, int apply);

/* Releases pages (and the window) that the layer's span does not need. */
void kivi_layer_shrink(kivi_cache *cache, uint32_t index, struct kivi_layer *layer);

/* A window, undefined, for a layer that has none. */
kivi_status kivi_layer_new_window(kivi_cache *cache, struct kivi_layer *layer, kivi_error *error);

/* Appends a page, undefined or shared with another layer. */
kivi_status kivi_layer_add_page(kivi_cache *cache, struct kivi_layer *layer,
                                struct kivi_block *shared, kivi_error *error);

/* *to, empty, becomes a copy of *from that shares its pages and window. */
kivi_status kivi_layer_share(kivi_cache *cache, struct kivi_layer *to,
                             const struct kivi_layer *from, kivi_error *error);

/* Releases everything: the layer is empty. */
void kivi_layer_clear(kivi_cache *cache, uint32_t index, struct kivi_layer *layer);

#endif
