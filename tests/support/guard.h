/* Arrays between two pages that nobody may touch: a byte read or written beyond either end is a
 * fault. What the page has left over beside the array is watched too. */
#ifndef KIVI_TESTS_GUARD_H
#define KIVI_TESTS_GUARD_H

#include <stddef.h>

#include "random.h"

/* `bytes` bytes that touch the guard behind them or lie close to the one before them, at any address
 * of that alignment, as the random numbers have it. Every byte is 0xff: NaN in f32 and f16. */
void *guard_new(struct rng *rng, size_t bytes, size_t alignment);

/* From now on, writing to the array is a fault. */
void guard_read_only(const void *array);

/* Frees all arrays; fails the test if something beside one of them was written. */
void guard_release(void);

#endif
