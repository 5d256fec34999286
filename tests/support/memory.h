/* An allocator for config.allocator that counts what is alive, checks what comes back, and fails on
 * demand. Safe for several threads. */
#ifndef KIVI_TESTS_MEMORY_H
#define KIVI_TESTS_MEMORY_H

#include <kivi/kivi.h>
#include <stdatomic.h>

struct memory {
    atomic_size_t calls;         /* of alloc so far, failed ones included */
    atomic_size_t blocks, bytes; /* alive */
    atomic_size_t fail_at;       /* the call that fails, counted from 1; 0: none does */
    atomic_int fail_after;       /* 1: all later calls fail too */
    atomic_int fill; /* the byte that new blocks are filled with: nothing may count on it */
};

/* Starts with nothing alive and nothing failing. */
void memory_init(struct memory *memory);

kivi_allocator memory_allocator(struct memory *memory);

/* The n-th call from now on fails, n from 1; with `and_after`, all after it too. 0: none does. */
void memory_fail(struct memory *memory, size_t n, int and_after);

/* Whether the call that was to fail has come. */
int memory_has_failed(const struct memory *memory);

#endif
