/* The AVX-512 table with VNNI. */
#include "zmm.h"

KIVI_INLINE VI vi_dot(VI sum, VI u, VI s)
{
    return _mm512_dpbusd_epi32(sum, u, s);
}

#include "../cpu/simd/dot_vnni.h"
#include "../cpu/simd/table.h"

KIVI_SIMD_TABLE(kivi_kernels_avx512_vnni, "avx512-vnni", "AVX-512 with VNNI",
                KIVI_CPU_AVX2 | KIVI_CPU_AVX512 | KIVI_CPU_AVX512_VNNI);
