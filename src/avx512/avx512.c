/* The AVX-512 table. */
#include "zmm.h"

#include "../cpu/simd/dot_pairs.h"
#include "../cpu/simd/table.h"

KIVI_SIMD_TABLE(kivi_kernels_avx512, "avx512", "AVX-512 F, BW, DQ, VL",
                KIVI_CPU_AVX2 | KIVI_CPU_AVX512);
