/* f16 and bf16 for the tests, written from the formats' definition and not from the library. */
#ifndef KIVI_TESTS_NUMBERS_H
#define KIVI_TESTS_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline double number_from_f16(uint16_t h)
{
    const int exponent = h >> 10 & 31;
    const double fraction = h & 1023;
    double x;

    if (exponent == 31)
        x = fraction > 0 ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        x = ldexp(fraction, -24);
    else
        x = ldexp(1024 + fraction, exponent - 25);
    return h & 0x8000 ? -x : x;
}

/* Round to nearest, ties to even; from 65520 on to infinity. */
static inline uint16_t number_to_f16(double x)
{
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    int exponent;

    x = fabs(x);
    if (isnan(x))
        return sign | 0x7e00;
    if (x >= 65520)
        return sign | 0x7c00;
    (void)frexp(x, &exponent);
    exponent = exponent - 11 > -24 ? exponent - 11 : -24; /* of the last place */
    return sign | (uint16_t)(((exponent + 24) << 10) + (int)rint(ldexp(x, -exponent)));
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
