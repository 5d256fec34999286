/* The AVX2 table with AVX-VNNI. */
#include "ymm.h"

#define ACCUMULATORS 8 /* what 16 registers hold beside codes and digits */

KIVI_INLINE VI vi_dot(VI sum, VI u, VI s)
{
    return _mm256_dpbusd_avx_epi32(sum, u, s);
}

#include "../cpu/simd/dot_vnni.h"
#include "../cpu/simd/table.h"

KIVI_SIMD_TABLE(kivi_kernels_avx2_vnni, "avx2-vnni", "AVX2 with AVX-VNNI",
                KIVI_CPU_AVX2 | KIVI_CPU_AVX_VNNI);
