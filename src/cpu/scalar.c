/* The scalar table. */
#include "scalar.h"

#include <string.h>

#include "../core/crc32c.h"
#include "../core/half.h"

static int f16_from_f32(uint16_t *dst, const void *src, size_t n)
{
    const float *from = src;
    int finite = 1;
    size_t i;

    for (i = 0; i < n; i++) {
        dst[i] = kivi_f16_from_f32(from[i]);
        finite &= kivi_f16_is_finite(dst[i]);
    }
    return finite;
}

static int f16_from_f16(uint16_t *dst, const void *src, size_t n)
{
    const uint16_t *from = src;
    int finite = 1;
    size_t i;

    for (i = 0; i < n; i++) {
        dst[i] = from[i];
        finite &= kivi_f16_is_finite(from[i]);
    }
    return finite;
}

static int f16_from_bf16(uint16_t *dst, const void *src, size_t n)
{
    const uint16_t *from = src;
    int finite = 1;
    size_t i;

    for (i = 0; i < n; i++) {
        dst[i] = kivi_f16_from_f32(kivi_f32_from_bf16(from[i]));
        finite &= kivi_f16_is_finite(dst[i]);
    }
    return finite;
}

const struct kivi_kernels kivi_kernels_scalar = {
    .name = "scalar",
    .description = "portable C, the reference",
    .required = 0,
    .to_f16 = {f16_from_f32, f16_from_f16, f16_from_bf16},
    .quantize_k = kivi_quantize_k_scalar,
    .quantize_v = kivi_quantize_v_scalar,
    .k_scores = kivi_k_scores_scalar,
    .v_accumulate = kivi_v_accumulate_scalar,
    .f16_scores = kivi_f16_scores_scalar,
    .f16_accumulate = kivi_f16_accumulate_scalar,
    .softcap = kivi_softcap_scalar,
    .max = kivi_max_scalar,
    .exp_sum = kivi_exp_sum_scalar,
    .scale = kivi_scale_scalar,
    .crc32c = kivi_crc32c,
};
