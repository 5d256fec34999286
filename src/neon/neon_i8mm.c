/* The table with the int8 matrix extension, of which it takes the mixed-sign dot product. */
#include "vector.h"

#define KIVI_UNSIGNED_CODES /* beside signed digits */
#include "dot_lane.h"

typedef VI VD;

KIVI_INLINE VD vd_zero(void)
{
    return vi_zero();
}

KIVI_INLINE VD vd_signed(VD sum, VI codes, VQ digits, uint32_t bits)
{
    (void)bits;
    return IN_LANE(digits.lane, vusdotq_laneq_s32, sum, vreinterpretq_u8_s32(codes),
                   vreinterpretq_s8_s32(digits.fours));
}

KIVI_INLINE VD vd_unsigned(VD sum, VI codes, VQ digits)
{
    return vi_dot_unsigned(sum, codes, digits);
}

KIVI_INLINE VI vd_sum(VD sum)
{
    return sum;
}

#include "../cpu/simd/table.h"

KIVI_SIMD_TABLE(kivi_kernels_neon_i8mm, "neon-i8mm", "Advanced SIMD with usdot, udot",
                KIVI_CPU_NEON | KIVI_CPU_DOTPROD | KIVI_CPU_I8MM);
