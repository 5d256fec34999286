/* Key and value blocks, queries and weights for the tests of kernels, random and adversarial, and
 * what they stand for in double precision. */
#ifndef KIVI_TESTS_BLOCKS_H
#define KIVI_TESTS_BLOCKS_H

#include <stdint.h>

#include "core/layout.h"
#include "random.h"

/* f16 rows. The first two are random data; the rest is adversarial. */
enum rows_fill {
    ROWS_GAUSSIAN,
    ROWS_OUTLIERS, /* a few channels with a large mean and ten times the magnitude */
    ROWS_THOUSAND, /* one channel a thousand times the rest */
    ROWS_CONSTANT, /* most groups have scale 0 */
    ROWS_SUBNORMAL,
    ROWS_EXTREME,    /* the largest numbers of f16 among small ones */
    ROWS_OVERFLOW,   /* ranges beyond f16 */
    ROWS_TINY_RANGE, /* ranges whose scale rounds to 0, and a little above */
    ROWS_ZERO,       /* 0 and -0 */
    ROWS_BITS,       /* any finite bits */
    ROWS_FILLS
};
#define ROWS_RANDOM 2

/* Rows of queries, channels beyond `dim` 0. */
enum query_fill {
    QUERY_GAUSSIAN,
    QUERY_SCALED, /* the same, times the softmax scale */
    QUERY_THOUSAND,
    QUERY_ONE_HOT,
    QUERY_HUGE, /* 1e30 */
    QUERY_TINY, /* down to subnormals */
    QUERY_ZERO,
    QUERY_FILLS
};
#define QUERY_RANDOM 2

/* Weights of tokens, at least 0 and at most 1. */
enum weight_fill {
    WEIGHT_SOFTMAX,
    WEIGHT_SPARSE, /* half of them 0 */
    WEIGHT_ONES,
    WEIGHT_ONE, /* one token has all the weight but a millionth */
    WEIGHT_TINY,
    WEIGHT_ZERO,
    WEIGHT_FILLS
};
#define WEIGHT_RANDOM 3

void fill_rows(struct rng *rng, enum rows_fill fill, uint16_t *rows, size_t n, uint32_t dim,
               size_t stride);
/* Such rows, with NaN between them, at any address and between guard pages: until guard_release. */
const uint16_t *guarded_rows(struct rng *rng, enum rows_fill fill, size_t n, uint32_t dim,
                             size_t stride);

/* From row to row: `dim`, or some more. */
size_t any_stride(struct rng *rng, uint32_t dim);

void fill_query(struct rng *rng, enum query_fill fill, float *row, uint32_t dim, uint32_t dim_pad);
void fill_weights(struct rng *rng, enum weight_fill fill, float *weights, uint32_t n);

/* Any codes, and any finite scales (not below 0) and minima, for tokens from `first` on of one block. */
void scramble_keys(struct rng *rng, const struct kivi_layout *l, void *block);
void scramble_values(struct rng *rng, const struct kivi_layout *l, uint32_t first, void *block);

/*
 * A block in double: [token][dim] what it stands for, its magnitude (scale * code + |min|), and
 * some number that might have been quantized to it.
 */
struct unpacked {
    double *value, *magnitude, *original;
};

void unpacked_init(struct unpacked *u, size_t tokens, uint32_t dim);
void unpacked_free(struct unpacked *u);

/* Reads block `index` into tokens from index * l->tokens on. `original` is random. */
void unpack_keys(struct rng *rng, const struct kivi_layout *l, const void *blocks, uint32_t index,
                 struct unpacked *u);
void unpack_values(struct rng *rng, const struct kivi_layout *l, const void *blocks, uint32_t index,
                   struct unpacked *u);

#endif
