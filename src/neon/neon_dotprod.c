/* The table with the dot-product extension. */
#include "vector.h"

#include "dot_lane.h"

typedef VI VD;

/* 8-bit codes are unsigned and their digits signed, for which there is no instruction: 128 is taken from a code by
 * flipping its highest bit. */
#define CODE_OFFSET(bits) ((bits) == 8 ? 128.0f : 0.0f)

KIVI_INLINE VD vd_zero(void)
{
    return vi_zero();
}

KIVI_INLINE VD vd_signed(VD sum, VI codes, VQ digits, uint32_t bits)
{
    if (bits == 8)
        codes = veorq_s32(codes, vreinterpretq_s32_u8(vdupq_n_u8(128)));
    return vi_dot_signed(sum, codes, digits);
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

KIVI_SIMD_TABLE(kivi_kernels_neon_dotprod, "neon-dotprod", "Advanced SIMD with sdot, udot",
                KIVI_CPU_NEON | KIVI_CPU_DOTPROD);
