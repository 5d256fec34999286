/*
 * What truncating a sequence (truncate.c) and dropping a range of it (drop.c) share. What takes memory or time is
 * prepared beside the old layers, without the cache's lock, while others find the sequence busy; it takes their
 * place once nothing can fail any more.
 */
#ifndef KIVI_EDIT_H
#define KIVI_EDIT_H

#include "cache.h"

/* One layer, old and new, and room on the host. */
struct kivi_edit {
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

/* Of the layer. */
const struct kivi_layer_geometry *kivi_edit_geometry(const struct kivi_edit *e);

/* Finds the sequence, which must be idle; with the lock held. */
kivi_status kivi_edit_find(struct kivi_edit *e, kivi_seq seq, kivi_error *error);

/* Prepares new layers, one after the other. The lock is held before and after, but not meanwhile: the
 * caller frees e->prepared then, whatever the status and whatever it has left in it. */
kivi_status kivi_edit_prepare(struct kivi_edit *e,
                              kivi_status (*prepare_layer)(const struct kivi_edit *, kivi_error *),
                              kivi_error *error);

/* For prepare_layer: from a backend's block to the host, from the host to a block, and from block to block. */
kivi_status kivi_edit_read(const struct kivi_edit *e, const void *from, size_t bytes, void *host,
                           kivi_error *error);
kivi_status kivi_edit_write(const struct kivi_edit *e, void *to, size_t bytes, const void *host,
                            kivi_error *error);
kivi_status kivi_edit_copy(const struct kivi_edit *e, void *to, const void *from, size_t bytes,
                           kivi_error *error);

/* A window for the new layer, equal to the old one's. */
kivi_status kivi_edit_copy_window(const struct kivi_edit *e, kivi_error *error);

/* e->rows become the first n of e->numbers, within f16's range: a dequantized group may end one rounding
 * above the largest. */
void kivi_edit_narrow(const struct kivi_edit *e, size_t n);

#endif
