/* Arrays [tokens][heads][dim] of any type and strides, as callers of the library have them. What
 * lies between the rows must be neither read (it is NaN) nor written. */
#ifndef KIVI_TESTS_TENSOR_H
#define KIVI_TESTS_TENSOR_H

#include <kivi/kivi.h>

#include "random.h"

struct tensor {
    kivi_dtype dtype;
    uint64_t tokens;
    uint32_t heads, dim;
    ptrdiff_t token_stride, head_stride;
    size_t elements; /* of memory, gaps included */
    ptrdiff_t start; /* element of memory that is (0, 0, 0) */
    void *memory;
};

/* Dense, every element NaN. */
struct tensor tensor_dense(kivi_dtype dtype, uint64_t tokens, uint32_t heads, uint32_t dim);

/* The same with strides at random: dense, with gaps, heads outermost, or tokens backwards. */
struct tensor tensor_strided(struct rng *rng, kivi_dtype dtype, uint64_t tokens, uint32_t heads,
                             uint32_t dim);

void tensor_free(struct tensor *t);

double tensor_get(const struct tensor *t, uint64_t token, uint32_t head, uint32_t channel);
void tensor_set(struct tensor *t, uint64_t token, uint32_t head, uint32_t channel, double x);

/* The elements, dense, in double; the caller frees them. Encodes the same numbers. */
double *tensor_decode(const struct tensor *t);
void tensor_encode(struct tensor *t, const double *dense);

/* Tokens from `first` on, as the library takes them. */
kivi_in tensor_in(const struct tensor *t, uint64_t first);
kivi_out tensor_out(const struct tensor *t);

/* Fails the test if something between the rows was written. */
void tensor_check_gaps(const struct tensor *t);

#endif
