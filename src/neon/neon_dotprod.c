/* The table with the dot-product extension. */
#include "vector.h"

#include "dot_lane.h"

/* 8-bit codes are unsigned and their digits signed, for which there is no instruction: 128 is taken
 * from a code by flipping its highest bit, and given back as 128 times the sum of the digits. That sum
 * is the same for all vectors of codes, and compilers see it. */
typedef struct {
    VI codes, digits; /* digits: -128 times their sum, only at 8 bits */
} VD;

KIVI_INLINE VD vd_zero(void)
{
    return (VD){vi_zero(), vi_zero()};
}

KIVI_INLINE VD vd_signed(VD sum, VI codes, VI digits, uint32_t bits)
{
    if (bits == 8) {
        const VI high = vreinterpretq_s32_u8(vdupq_n_u8(128)); /* -128 as sdot reads it */

        sum.digits = vi_dot_signed(sum.digits, high, digits);
        codes = veorq_s32(codes, high);
    }
    sum.codes = vi_dot_signed(sum.codes, codes, digits);
    return sum;
}

KIVI_INLINE VD vd_unsigned(VD sum, VI codes, VI digits, uint32_t bits)
{
    (void)bits;
    sum.codes = vi_dot_unsigned(sum.codes, codes, digits);
    return sum;
}

KIVI_INLINE VI vd_sum(VD sum, uint32_t bits)
{
    return bits == 8 ? vsubq_s32(sum.codes, sum.digits) : sum.codes;
}

#include "../cpu/simd/table.h"

KIVI_SIMD_TABLE(kivi_kernels_neon_dotprod, "neon-dotprod", "Advanced SIMD with sdot, udot",
                KIVI_CPU_NEON | KIVI_CPU_DOTPROD);
