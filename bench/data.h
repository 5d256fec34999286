/* Keys, values and queries like those of a model. */
#ifndef BENCH_DATA_H
#define BENCH_DATA_H

#include <stddef.h>
#include <stdint.h>

/* A chunk of tokens, f16: k [tokens][heads][k_dim], v [tokens][heads][v_dim]. */
struct chunk {
    uint32_t tokens, heads, k_dim, v_dim;
    uint16_t *k, *v;
};

/* Gaussian values and keys; unless `gauss`, a few key channels of every head have an offset and
 * ten times the magnitude. Returns 0 if there is no memory. */
int chunk_make(struct chunk *chunk, uint32_t tokens, uint32_t heads, uint32_t k_dim, uint32_t v_dim,
               int gauss);
void chunk_free(struct chunk *chunk);

/* n Gaussian numbers. */
void gaussian(float *x, size_t n, uint64_t seed);

#endif
