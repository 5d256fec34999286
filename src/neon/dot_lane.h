/*
 * Four-way dot products with Advanced SIMD's dot-product extension: sdot takes two signed operands,
 * udot two unsigned ones, so that codes of up to 4 bits are either. The digits are those of lane 0.
 */
#ifndef KIVI_NEON_DOT_LANE_H
#define KIVI_NEON_DOT_LANE_H

/* Signed codes must not reach the sign. */
#ifdef KIVI_UNSIGNED_CODES
#define SHIFT_SIGNED(bits, place) 0
#else
#define SHIFT_SIGNED(bits, place) ((bits) < 8 && (bits) * ((place) + 1) == 8 ? (bits) : 0)
#endif
#define SHIFT_UNSIGNED(bits, place) 0

KIVI_INLINE VI vi_dot_signed(VI sum, VI codes, VI digits)
{
    return vdotq_lane_s32(sum, vreinterpretq_s8_s32(codes),
                          vreinterpret_s8_s32(vget_low_s32(digits)), 0);
}

KIVI_INLINE VI vi_dot_unsigned(VI sum, VI codes, VI digits)
{
    return vreinterpretq_s32_u32(vdotq_lane_u32(vreinterpretq_u32_s32(sum),
                                                vreinterpretq_u8_s32(codes),
                                                vreinterpret_u8_s32(vget_low_s32(digits)), 0));
}

#endif
