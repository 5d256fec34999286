/* The AVX2 table. */
#include "ymm.h"

#include "../cpu/simd/dot_pairs.h"
#include "../cpu/simd/table.h"

KIVI_SIMD_TABLE(kivi_kernels_avx2, "avx2", "AVX2, FMA, F16C", KIVI_CPU_AVX2);
