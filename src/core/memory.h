/* Host memory of one cache: the caller's allocator, counted. */
#ifndef KIVI_MEMORY_H
#define KIVI_MEMORY_H

#include <stdatomic.h>

#include <kivi/kivi.h>

#define KIVI_ALIGNMENT 64u

struct kivi_heap {
    kivi_allocator host;     /* the caller's, or the C library's */
    _Atomic uint64_t bytes;  /* taken from it and not yet given back */
};

/* Uses `host`, or the default if both of its functions are NULL. */
void kivi_heap_init(struct kivi_heap *heap, const kivi_allocator *host);

/* An allocator over the heap, for the backend. */
kivi_allocator kivi_heap_allocator(struct kivi_heap *heap);

/* `bytes` bytes aligned to 64, or NULL. Zeroed if `zero`. Release with the same size. NULL is ignored. */
void *kivi_heap_alloc(struct kivi_heap *heap, size_t bytes, int zero);
void kivi_heap_free(struct kivi_heap *heap, void *memory, size_t bytes);

#endif
