/*
 * The cache of one layer of one sequence in double precision, written from the paper and the rules
 * of docs/numerics.md without any of the library's code: what every backend is held against.
 */
#ifndef KIVI_TESTS_ORACLE_H
#define KIVI_TESTS_ORACLE_H

#include <kivi/kivi.h>

#include "contents.h"

struct oracle {
    uint32_t n_q_heads, residual_length;
    uint64_t
        k_base; /* remainder at which key flushes fall, at most n: 0 unless tokens were dropped */
    struct contents contents; /* k_row and v_row hold all tokens */
    double *k, *v; /* [token][head][dim]: what attention sees, dequantized where packed */
    double *exact_k, *exact_v; /* the same tokens, never quantized */
};

/* Results of attention: [query][head][v_dim] and [query][head]. */
struct oracle_result {
    uint64_t n_rows; /* queries times heads */
    uint32_t dim;
    double *out, *lse;             /* over the cache */
    double *exact_out, *exact_lse; /* over the f16 tokens that it was made from */
    double *score_size;            /* the largest |scale| * sum |q * k| of a row's tokens */
    double *value_size;            /* the largest L2 norm of a row's values, as they were */
};

void oracle_init(struct oracle *o, const kivi_config *config, uint32_t layer);
void oracle_free(struct oracle *o);

/* Appends n tokens, dense [token][head][dim]; they are rounded to f16 and seen as such. */
void oracle_append(struct oracle *o, uint64_t n, const double *k, const double *v);

/* Quantizes what has left the window: after the attention of the call that appended. */
void oracle_flush(struct oracle *o);

/* Attention of n_q queries, dense [query][head][k_dim], the first one at `position`. */
struct oracle_result oracle_attend(const struct oracle *o, uint64_t n_q, const double *q,
                                   uint64_t position, const kivi_attention *attention);

void oracle_result_free(struct oracle_result *result);

/* Quantizes n numbers, `stride` apart, and their codes, as far apart. */
void oracle_quantize(const double *x, uint64_t stride, uint32_t n, uint32_t bits, uint8_t *code,
                     uint16_t *scale, uint16_t *min);

#endif
