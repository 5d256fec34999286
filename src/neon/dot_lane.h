/*
 * Four-way dot products with Advanced SIMD's dot-product extension: sdot takes two signed operands,
 * udot two unsigned ones, so that codes of up to 4 bits are either. The digits are those of lane 0.
 */
#ifndef KIVI_NEON_DOT_LANE_H
#define KIVI_NEON_DOT_LANE_H

#define DOTS_SIGNED(bits) 1024 /* more than there are */
#define DOTS_UNSIGNED(bits) 1024

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
