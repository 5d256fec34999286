/* Weights times a batch of activations. */
#ifndef LM_MATMUL_H
#define LM_MATMUL_H

#include "model.h"

/* Floats of scratch that a batch of `rows` of at most n_in elements takes. */
size_t lm_matmul_scratch(size_t rows, size_t n_in);

/* y[row][o] = sum over i of matrix[o][i] * x[row][i], for all rows. Each weight is read once for
 * eight rows. */
void lm_matmul(const struct lm_matrix *matrix, const float *x, size_t rows, float *y,
               float *scratch);

#endif
