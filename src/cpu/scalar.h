/* The scalar reference, function by function: kernels.h says what each does. */
#ifndef KIVI_SCALAR_H
#define KIVI_SCALAR_H

#include "kernels.h"

void kivi_quantize_k_scalar(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                            uint32_t skip, void *block);
void kivi_quantize_v_scalar(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                            uint32_t first, uint32_t count, void *block);

/* The inverse, on no hot path and so in no table: tokens first .. first + count - 1 of a block to
 * f32 rows [count][dim]. Any bits, 16 included. */
void kivi_dequantize_k(const struct kivi_layout *l, const void *block, uint32_t first,
                       uint32_t count, float *rows);
void kivi_dequantize_v(const struct kivi_layout *l, const void *block, uint32_t first,
                       uint32_t count, float *rows);

void kivi_k_scores_scalar(const struct kivi_layout *l, const float *q, uint32_t n_rows,
                          const void *blocks, uint32_t n_blocks, struct kivi_next next,
                          float *scores, size_t ld, int exact_values, kivi_precision precision);
void kivi_v_accumulate_scalar(const struct kivi_layout *l, const float *p, size_t ld,
                              uint32_t n_rows, const void *blocks, uint32_t n_tokens,
                              struct kivi_next next, float *out, kivi_precision precision);
void kivi_f16_scores_scalar(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                            const uint16_t *rows, size_t stride, uint32_t n_tokens,
                            struct kivi_next next, float *scores, size_t ld);
void kivi_f16_accumulate_scalar(uint32_t dim, const float *p, size_t ld, uint32_t n_rows,
                                const uint16_t *rows, size_t stride, uint32_t n_tokens,
                                struct kivi_next next, float *out, size_t out_stride);
void kivi_softcap_scalar(float *x, size_t n, float cap);
float kivi_max_scalar(const float *x, size_t n);
float kivi_exp_sum_scalar(float *x, size_t n, float max);
void kivi_scale_scalar(float *x, size_t n, float factor);

#endif
