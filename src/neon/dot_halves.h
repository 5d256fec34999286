/*
 * Four-way dot products for Advanced SIMD without the dot-product extension: products of bytes are
 * added up in 16 bits, those of one half of the vector in each of two sums, and before they can
 * overflow in 32.
 */
#ifndef KIVI_NEON_DOT_HALVES_H
#define KIVI_NEON_DOT_HALVES_H

#define ACCUMULATORS 8 /* of two registers each: what 32 hold beside the rest */

typedef struct {
    int16x8_t low, high; /* of the halves */
} VD;

/* Two are coarser than floats, for few instructions less. */
#define MOST_DIGITS(bits) ((bits) == 2 ? 1u : 0u)

/* A place adds 4 products to a sum, 128 * 12 each, or 255 * 12 of unsigned digits: codes of place 1 stay where they
 * are. */
#define SHIFT_SIGNED(bits, place) ((place) < 2 ? 0 : (bits) * (place))
#define SHIFT_UNSIGNED(bits, place) SHIFT_SIGNED(bits, place)

KIVI_INLINE VD vd_zero(void)
{
    const int16x8_t zero = vdupq_n_s16(0);

    return (VD){zero, zero};
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
    const int8x16_t four = repeated(digits);

    (void)bits;
    sum.low = add_low(sum.low, bytes, four);
    sum.high = add_high(sum.high, bytes, four);
    return sum;
}

KIVI_INLINE VD vd_unsigned(VD sum, VI codes, VQ digits)
{
    const uint8x16_t bytes = vreinterpretq_u8_s32(codes);
    const uint8x16_t four = vreinterpretq_u8_s8(repeated(digits));

    sum.low = vreinterpretq_s16_u16(
        vmlal_u8(vreinterpretq_u16_s16(sum.low), vget_low_u8(bytes), vget_low_u8(four)));
    sum.high = vreinterpretq_s16_u16(vmlal_high_u8(vreinterpretq_u16_s16(sum.high), bytes, four));
    return sum;
}

KIVI_INLINE VI vd_sum(VD sum)
{
    return vpaddq_s32(vpaddlq_s16(sum.low), vpaddlq_s16(sum.high));
}

#endif
