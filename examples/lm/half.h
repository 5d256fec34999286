/* f16, as GGUF files and the cache's window hold it. */
#ifndef LM_HALF_H
#define LM_HALF_H

#include <stdint.h>
#include <string.h>

static inline float lm_float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float lm_float_of_half(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half >> 15) << 31;
    const uint32_t exponent = half >> 10 & 31u;
    const uint32_t fraction = half & 1023u;

    if (exponent == 31)
        return lm_float_of_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0)
        return (sign ? -0x1p-24f : 0x1p-24f) * (float)fraction;
    return lm_float_of_bits(sign | (exponent + 112u) << 23 | fraction << 13);
}

/* The f16 number nearest to x, ties to even. |x| must be in the range of f16. */
static inline float lm_round_to_half(float x)
{
    uint32_t bits;

    if (x > -0x1p-14f && x < 0x1p-14f) /* 0.5 has the spacing of f16's subnormals, 2^-24 */
        return x < 0 ? (x - 0.5f) + 0.5f : (x + 0.5f) - 0.5f;
    memcpy(&bits, &x, sizeof bits);
    bits += 0xfffu + (bits >> 13 & 1u);
    return lm_float_of_bits(bits & ~0x1fffu);
}

#endif
