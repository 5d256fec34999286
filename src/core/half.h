/* f16 and bf16 in portable C: exact conversions, round to nearest even. */
#ifndef KIVI_HALF_H
#define KIVI_HALF_H

#include <stdint.h>
#include <string.h>

#define KIVI_F16_MAX 65504.0f

static inline uint32_t kivi_bits_of_f32(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float kivi_f32_of_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Selections, not branches: compilers turn loops over this into vector code. A subnormal is made by
 * conversion, because as an f32 bit pattern it would be one that the host may flush to 0. */
static inline float kivi_f32_from_f16(uint16_t h)
{
    const uint32_t magnitude = h & 0x7fffu;
    const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00u ? 224u << 23 : 112u << 23);
    const uint32_t subnormal = kivi_bits_of_f32((float)(int32_t)magnitude * 0x1p-24f);

    return kivi_f32_of_bits((uint32_t)(h & 0x8000u) << 16 | (magnitude < 0x400u ? subnormal : normal));
}

static inline uint16_t kivi_f16_from_f32(float x)
{
    const uint32_t u = kivi_bits_of_f32(x);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    const uint32_t magnitude = u & 0x7fffffffu;

    if (magnitude > 0x7f800000u)
        return sign | 0x7e00u;
    if (magnitude >= 0x477ff000u) /* 65520 and above round to infinity */
        return sign | 0x7c00u;
    if (magnitude < 0x38800000u) /* subnormal in f16: the adder rounds at bit 2^-24 */
        return sign | (uint16_t)(kivi_bits_of_f32(kivi_f32_of_bits(magnitude) + 0.5f) - 0x3f000000u);
    return sign | (uint16_t)((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}

static inline float kivi_f32_from_bf16(uint16_t h)
{
    return kivi_f32_of_bits((uint32_t)h << 16);
}

static inline int kivi_f16_is_finite(uint16_t h)
{
    return (h & 0x7c00u) != 0x7c00u;
}

/* The result of an f16 operation whose exact result was rounded to f32 first: for one sum,
 * product or quotient of f16 numbers the two roundings give what one would (24 >= 2 * 11 + 2). */
static inline float kivi_round_to_f16(float x)
{
    return kivi_f32_from_f16(kivi_f16_from_f32(x));
}

#endif
