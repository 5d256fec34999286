/*
 * Attention over packed blocks and f16 rows in scalar C: the specification. Sums are in double, so
 * the reference is precise whatever precision is asked for.
 */
#include <math.h>

#include "../core/half.h"
#include "scalar.h"

void kivi_k_scores_scalar(const struct kivi_layout *l, const float *q, uint32_t n_rows,
                          const void *blocks, uint32_t n_blocks, struct kivi_next next,
                          float *scores, size_t ld, int exact_values, kivi_precision precision)
{
    const uint32_t n = 32 / l->bits, mask = (1u << l->bits) - 1u, words = l->dim_pad / n;
    double folded[KIVI_MAX_DIM];
    uint32_t b, r, t, w, i;

    (void)next;
    (void)exact_values;
    (void)precision;
    for (b = 0; b < n_blocks; b++) {
        const char *block = (const char *)blocks + (size_t)b * l->block_bytes;
        const uint32_t *codes = (const uint32_t *)(const void *)block;
        const uint16_t *scales = kivi_scales_const(l, block), *minima = kivi_minima_const(l, block);

        for (r = 0; r < n_rows; r++) {
            const float *row = q + (size_t)r * l->dim_pad;
            double bias = 0;

            /* q . (code * scale + min) = (q * scale) . code + q . min */
            for (i = 0; i < l->dim_pad; i++) {
                folded[i] = (double)row[i] * kivi_f32_from_f16(scales[i]);
                bias += (double)row[i] * kivi_f32_from_f16(minima[i]);
            }
            for (t = 0; t < l->tokens; t++) {
                const uint32_t *word =
                    codes + (size_t)(t / KIVI_TILE) * words * KIVI_TILE + t % KIVI_TILE;
                double sum = bias;

                for (w = 0; w < words; w++, word += KIVI_TILE)
                    for (i = 0; i < n; i++)
                        sum += folded[w * n + i] * (*word >> kivi_code_shift(l->bits, i) & mask);
                scores[r * ld + (size_t)b * l->tokens + t] = (float)sum;
            }
        }
    }
}

void kivi_v_accumulate_scalar(const struct kivi_layout *l, const float *p, size_t ld,
                              uint32_t n_rows, const void *blocks, uint32_t n_tokens,
                              struct kivi_next next, float *out, kivi_precision precision)
{
    const uint32_t n = 32 / l->bits, mask = (1u << l->bits) - 1u;
    uint32_t b, r, t, c, i;

    (void)next;
    (void)precision;
    for (b = 0; b * KIVI_TILE < n_tokens; b++) {
        const char *block = (const char *)blocks + (size_t)b * l->block_bytes;
        const uint32_t *codes = (const uint32_t *)(const void *)block;
        const uint16_t *scales = kivi_scales_const(l, block), *minima = kivi_minima_const(l, block);

        for (r = 0; r < n_rows; r++) {
            const float *weights = p + r * ld + (size_t)b * KIVI_TILE;
            double folded[KIVI_TILE], bias = 0;

            for (c = 0; c < l->dim; c++) {
                double sum;

                /* sum p * (code * scale + min) = sum (p * scale) * code + sum p * min */
                if (c % l->group_size == 0) {
                    const uint32_t at = c / l->group_size * KIVI_TILE;

                    bias = 0;
                    for (t = 0; t < KIVI_TILE; t++) {
                        folded[t] = (double)weights[t] * kivi_f32_from_f16(scales[at + t]);
                        bias += (double)weights[t] * kivi_f32_from_f16(minima[at + t]);
                    }
                }
                sum = bias;
                for (t = 0; t < KIVI_TILE; t += n) {
                    const uint32_t word = codes[(size_t)(t / n) * l->dim_pad + c];

                    for (i = 0; i < n; i++)
                        sum += folded[t + i] * (word >> kivi_code_shift(l->bits, i) & mask);
                }
                out[(size_t)r * l->dim_pad + c] += (float)sum;
            }
        }
    }
}

void kivi_f16_scores_scalar(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                            const uint16_t *rows, size_t stride, uint32_t n_tokens,
                            struct kivi_next next, float *scores, size_t ld)
{
    uint32_t r, t, c;

    (void)next;
    for (t = 0; t < n_tokens; t++, rows += stride) {
        for (r = 0; r < n_rows; r++) {
            double sum = 0;

            for (c = 0; c < dim; c++)
                sum += (double)q[r * q_stride + c] * kivi_f32_from_f16(rows[c]);
            scores[r * ld + t] = (float)sum;
        }
    }
}

void kivi_f16_accumulate_scalar(uint32_t dim, const float *p, size_t ld, uint32_t n_rows,
                                const uint16_t *rows, size_t stride, uint32_t n_tokens,
                                struct kivi_next next, float *out, size_t out_stride)
{
    double sum[KIVI_MAX_DIM];
    uint32_t r, t, c;

    (void)next;
    for (r = 0; r < n_rows; r++) {
        for (c = 0; c < dim; c++)
            sum[c] = 0;
        for (t = 0; t < n_tokens; t++)
            for (c = 0; c < dim; c++)
                sum[c] += (double)p[r * ld + t] * kivi_f32_from_f16(rows[t * stride + c]);
        for (c = 0; c < dim; c++)
            out[r * out_stride + c] += (float)sum[c];
    }
}

void kivi_softcap_scalar(float *x, size_t n, float cap)
{
    size_t i;

    for (i = 0; i < n; i++)
        x[i] = cap * tanhf(x[i] / cap);
}

float kivi_max_scalar(const float *x, size_t n)
{
    float max = x[0];
    size_t i;

    for (i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

float kivi_exp_sum_scalar(float *x, size_t n, float max)
{
    double sum = 0;
    size_t i;

    for (i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    return (float)sum;
}

void kivi_scale_scalar(float *x, size_t n, float factor)
{
    size_t i;

    for (i = 0; i < n; i++)
        x[i] *= factor;
}
