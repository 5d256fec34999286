/* f16 and bf16 for the tests, written from the formats' definition and not from the library. */
#ifndef KIVI_TESTS_NUMBERS_H
#define KIVI_TESTS_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The double of these bits, and back. */
static inline double number_of_bits(uint64_t bits)
{
    double x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint64_t number_bits(double x)
{
    uint64_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* 2^exponent, a normal double. */
static inline double number_power_of_two(int exponent)
{
    return number_of_bits((uint64_t)(exponent + 1023) << 52);
}

static inline double number_from_f16(uint16_t h)
{
    const int exponent = h >> 10 & 31;
    const double fraction = h & 1023;
    double x;

    if (exponent == 31)
        x = fraction > 0 ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        x = fraction * 0x1p-24;
    else
        x = (1024 + fraction) * number_power_of_two(exponent - 25);
    return h & 0x8000 ? -x : x;
}

/* Round to nearest, ties to even; from 65520 on to infinity. */
static inline uint16_t number_to_f16(double x)
{
    const uint16_t sign = (uint16_t)(number_bits(x) >> 48 & 0x8000);
    int last_place; /* its exponent */

    x = fabs(x);
    if (isnan(x))
        return sign | 0x7e00;
    if (x >= 65520)
        return sign | 0x7c00;
    last_place = (int)(number_bits(x) >> 52) - 1023 - 10;
    if (last_place < -24)
        last_place = -24;
    return sign
           | (uint16_t)(((last_place + 24) << 10)
                        + (int)rint(x * number_power_of_two(-last_place)));
}

static inline double number_round_f16(double x)
{
    return number_from_f16(number_to_f16(x));
}

static inline double number_from_bf16(uint16_t h)
{
    const uint32_t bits = (uint32_t)h << 16;
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rounded towards zero: which way does not matter to a test that decodes what it encoded. */
static inline uint16_t number_to_bf16(double x)
{
    const float narrow = (float)x;
    uint32_t bits;

    memcpy(&bits, &narrow, sizeof bits);
    return (uint16_t)(bits >> 16);
}

#endif
