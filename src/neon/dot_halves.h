/*
 * Four-way dot products for Advanced SIMD without the dot-product extension: products of bytes are
 * added up in 16 bits, those of one half of the vector in each of two sums, and before they can
 * overflow in 32. 8-bit codes go as two nibbles.
 */
#ifndef KIVI_NEON_DOT_HALVES_H
#define KIVI_NEON_DOT_HALVES_H

#define ACCUMULATORS 8 /* of two registers each: what 32 hold beside the rest */

typedef struct {
    int16x8_t low, high;         /* of the halves */
    int16x8_t low_top, high_top; /* of the upper nibbles, only at 8 bits */
} VD;

/* A sum takes 17 products of signed digits, 128 * 15 each, and as many of unsigned ones at 2 bits, 255 * 3: more
 * than those of a place. */
#define SHIFT_SIGNED(bits, place) ((bits) * (place))
#define SHIFT_UNSIGNED(bits, place) ((bits) * (place))

KIVI_INLINE VD vd_zero(void)
{
    const int16x8_t zero = vdupq_n_s16(0);

    return (VD){zero, zero, zero, zero};
}

KIVI_INLINE int8x16_t repeated(VQ digits)
{
    return vreinterpretq_s8_s32(IN_LANE(digits.lane, vdupq_laneq_s32, digits.fours));
}

KIVI_INLINE int16x8_t add_low(int16x8_t sum, uint8x16_t codes, int8x16_t digits)
{
    return vmlal_s8(sum, vget_low_s8(vreinterpretq_s8_u8(codes)), vget_low_s8(digits));
}

KIVI_INLINE int16x8_t add_high(int16x8_t sum, uint8x16_t codes, int8x16_t digits)
{
    return vmlal_high_s8(sum, vreinterpretq_s8_u8(codes), digits);
}

KIVI_INLINE VD vd_signed(VD sum, VI codes, VQ digits, uint32_t bits)
{
    const uint8x16_t bytes = vreinterpretq_u8_s32(codes);
    const uint8x16_t low = bits < 8 ? bytes : vandq_u8(bytes, vdupq_n_u8(15));
    const int8x16_t four = repeated(digits);

    sum.low = add_low(sum.low, low, four);
    sum.high = add_high(sum.high, low, four);
    if (bits == 8) {
        const uint8x16_t top = vshrq_n_u8(bytes, 4);

        sum.low_top = add_low(sum.low_top, top, four);
        sum.high_top = add_high(sum.high_top, top, four);
    }
    return sum;
}

KIVI_INLINE VD vd_unsigned(VD sum, VI codes, VQ digits, uint32_t bits)
{
    const uint8x16_t bytes = vreinterpretq_u8_s32(codes);
    const uint8x16_t four = vreinterpretq_u8_s8(repeated(digits));

    (void)bits;
    sum.low = vreinterpretq_s16_u16(
        vmlal_u8(vreinterpretq_u16_s16(sum.low), vget_low_u8(bytes), vget_low_u8(four)));
    sum.high = vreinterpretq_s16_u16(vmlal_high_u8(vreinterpretq_u16_s16(sum.high), bytes, four));
    return sum;
}

/* Numbers of two digits are not cut: 16-bit products of the even bytes of a word, and of its odd ones. */
#define WIDE(n_digits, bits) ((n_digits) == 2)

KIVI_INLINE VD vd_wide(VD sum, VI codes, VQ numbers, uint32_t odd)
{
    const uint16x8_t words = vreinterpretq_u16_s32(codes);
    const int16x8_t bytes =
        vreinterpretq_s16_u16(odd ? vshrq_n_u16(words, 8) : vandq_u16(words, vdupq_n_u16(255)));
    const int16x8_t pair = vreinterpretq_s16_s8(repeated(numbers));

    sum.low = vreinterpretq_s16_s32(
        vmlal_s16(vreinterpretq_s32_s16(sum.low), vget_low_s16(bytes), vget_low_s16(pair)));
    sum.high = vreinterpretq_s16_s32(vmlal_high_s16(vreinterpretq_s32_s16(sum.high), bytes, pair));
    return sum;
}

KIVI_INLINE VI vd_sum_wide(VD sum)
{
    return vpaddq_s32(vreinterpretq_s32_s16(sum.low), vreinterpretq_s32_s16(sum.high));
}

KIVI_INLINE VI lanes_of(int16x8_t low, int16x8_t high)
{
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}

KIVI_INLINE VI vd_sum(VD sum, uint32_t bits)
{
    const VI low = lanes_of(sum.low, sum.high);

    return bits < 8 ? low : vaddq_s32(low, vshlq_n_s32(lanes_of(sum.low_top, sum.high_top), 4));
}

#endif
