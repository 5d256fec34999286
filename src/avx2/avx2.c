/* The AVX2 table. */
#include "ymm.h"

#define ACCUMULATORS 6 /* what 16 registers hold beside codes, digits and products */

#include "../cpu/simd/dot_pairs.h"
#include "../cpu/simd/table.h"

KIVI_SIMD_TABLE(kivi_kernels_avx2, "avx2", "AVX2, FMA, F16C", KIVI_CPU_AVX2);
