/*
 * Four-way dot products with Advanced SIMD's dot-product extension: sdot takes two signed operands,
 * udot two unsigned ones, so that codes of up to 4 bits are either.
 */
#ifndef KIVI_NEON_DOT_LANE_H
#define KIVI_NEON_DOT_LANE_H

#define ACCUMULATORS 16 /* what 32 registers hold beside the rest */
#define MOST_DIGITS(bits) 2u

/* Signed codes must not reach the sign. */
#ifdef KIVI_UNSIGNED_CODES
#define SHIFT_SIGNED(bits, place) 0
#else
#define SHIFT_SIGNED(bits, place) ((bits) < 8 && (bits) * ((place) + 1) == 8 ? (bits) : 0)
#endif
#define SHIFT_UNSIGNED(bits, place) 0

KIVI_INLINE VI vi_dot_signed(VI sum, VI codes, VQ digits)
{
    return IN_LANE(digits.lane, vdotq_laneq_s32, sum, vreinterpretq_s8_s32(codes),
                   vreinterpretq_s8_s32(digits.fours));
}

KIVI_INLINE VI vi_dot_unsigned(VI sum, VI codes, VQ digits)
{
    return vreinterpretq_s32_u32(IN_LANE(digits.lane, vdotq_laneq_u32, vreinterpretq_u32_s32(sum),
                                         vreinterpretq_u8_s32(codes),
                                         vreinterpretq_u8_s32(digits.fours)));
}

#endif
