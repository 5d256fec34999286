/* Random numbers that depend on the seed alone (SplitMix64). */
#ifndef KIVI_TESTS_RANDOM_H
#define KIVI_TESTS_RANDOM_H

#include <math.h>
#include <stdint.h>

struct rng {
    uint64_t state;
};

static inline uint64_t rng_next(struct rng *rng)
{
    uint64_t x = rng->state += 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* A whole number below n > 0. */
static inline uint64_t rng_below(struct rng *rng, uint64_t n)
{
    return rng_next(rng) % n;
}

/* A whole number from low to high. */
static inline uint64_t rng_between(struct rng *rng, uint64_t low, uint64_t high)
{
    return low + rng_below(rng, high - low + 1);
}

/* True once in n times. */
static inline int rng_one_in(struct rng *rng, uint64_t n)
{
    return rng_below(rng, n) == 0;
}

/* In [0, 1). */
static inline double rng_uniform(struct rng *rng)
{
    return ldexp((double)(rng_next(rng) >> 11), -53);
}

/* Mean 0, variance 1, and as good as normal: a sum of four uniform numbers. */
static inline double rng_normal(struct rng *rng)
{
    const uint64_t x = rng_next(rng);
    const uint64_t sum = (x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48);

    return ((double)sum - 2 * 65535.0) * (1.7320508075688772 / 65536);
}

/* One of the elements of an array. */
#define RNG_PICK(rng, array) ((array)[rng_below(rng, sizeof(array) / sizeof(array)[0])])

#endif
