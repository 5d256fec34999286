/* Conversion to f16, for any vector length: the same bits as the scalar table. */
#ifndef KIVI_SIMD_CONVERT_H
#define KIVI_SIMD_CONVERT_H

#include "../../core/half.h"

/* 0 for finite numbers, else NaN: adds up. */
KIVI_INLINE VF not_finite(VF x, VF sum)
{
    return vf_fma(x, vf_zero(), sum);
}

KIVI_INLINE int all_finite(VF sum)
{
    const float x = vf_sum(sum);

    return x == x;
}

/* From f32 or bf16; `type` is a constant. */
KIVI_INLINE int round_to_f16(uint16_t *dst, const void *src, size_t n, kivi_dtype type)
{
    const float *floats = src;
    const uint16_t *halves = src;
    VF sum = vf_zero();
    int finite = 1;
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES) {
        const VF x = type == KIVI_F32 ? vf_load(floats + i) : vf_load_bf16(halves + i);

        vf_store_half(dst + i, x);
        sum = not_finite(vf_round_half(x), sum);
    }
    for (; i < n; i++) {
        dst[i] = kivi_f16_from_f32(type == KIVI_F32 ? floats[i] : kivi_f32_from_bf16(halves[i]));
        finite &= kivi_f16_is_finite(dst[i]);
    }
    return finite & all_finite(sum);
}

static int f16_from_f32(uint16_t *dst, const void *src, size_t n)
{
    return round_to_f16(dst, src, n, KIVI_F32);
}

static int f16_from_bf16(uint16_t *dst, const void *src, size_t n)
{
    return round_to_f16(dst, src, n, KIVI_BF16);
}

/* Two f16 numbers to a lane: has the bits of their signs where their exponent is the largest one. */
KIVI_INLINE VI next_exponent(VI x)
{
    return vi_add(vi_and(x, vi_set(0x7fff7fff)), vi_set(0x04000400));
}

static int f16_from_f16(uint16_t *dst, const void *src, size_t n)
{
    const uint16_t *from = src;
    uint32_t lane[LANES], all = 0;
    VI any = vi_zero();
    size_t i;

    for (i = 0; i + 2 * LANES <= n; i += 2 * LANES) {
        const VI x = vi_load(from + i);

        vi_store(dst + i, x);
        any = vi_or(any, next_exponent(x));
    }
    vi_store(lane, any);
    for (; i < n; i++) {
        dst[i] = from[i];
        all |= kivi_f16_is_finite(from[i]) ? 0 : 0x8000;
    }
    for (i = 0; i < LANES; i++)
        all |= lane[i];
    return (all & 0x80008000) == 0;
}

#endif
