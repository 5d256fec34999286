#define _DEFAULT_SOURCE /* madvise */
#include "memory.h"

#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_WIN32)
#include <malloc.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)

static void *default_alloc(void *context, size_t bytes, size_t alignment)
{
    void *memory;
    const size_t align = bytes >= 2 * HUGE_PAGE && alignment < HUGE_PAGE ? HUGE_PAGE : alignment;

    (void)context;
#if defined(_WIN32)
    memory = _aligned_malloc(bytes, align);
#else
    if (posix_memalign(&memory, align, bytes) != 0)
        return NULL;
#endif
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    /* A decode step reads all of it: with small pages, address translation costs as much. */
    if (memory && align == HUGE_PAGE)
        (void)madvise(memory, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return memory;
}

static void default_release(void *context, void *memory, size_t bytes)
{
    (void)context;
    (void)bytes;
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

static void *counted_alloc(void *context, size_t bytes, size_t alignment)
{
    struct kivi_heap *heap = context;
    void *memory = heap->host.alloc(heap->host.context, bytes, alignment);

    if (memory)
        atomic_fetch_add(&heap->bytes, bytes);
    return memory;
}

static void counted_release(void *context, void *memory, size_t bytes)
{
    struct kivi_heap *heap = context;

    atomic_fetch_sub(&heap->bytes, bytes);
    heap->host.release(heap->host.context, memory, bytes);
}

void kivi_heap_init(struct kivi_heap *heap, const kivi_allocator *host)
{
    heap->host = *host;
    if (!host->alloc && !host->release) {
        heap->host.alloc = default_alloc;
        heap->host.release = default_release;
    }
    atomic_init(&heap->bytes, 0);
}

kivi_allocator kivi_heap_allocator(struct kivi_heap *heap)
{
    const kivi_allocator allocator = {counted_alloc, counted_release, heap};

    return allocator;
}

void *kivi_heap_alloc(struct kivi_heap *heap, size_t bytes, int zero)
{
    void *memory = counted_alloc(heap, bytes, KIVI_ALIGNMENT);

    if (memory && zero)
        memset(memory, 0, bytes);
    return memory;
}

void kivi_heap_free(struct kivi_heap *heap, void *memory, size_t bytes)
{
    if (memory)
        counted_release(heap, memory, bytes);
}
