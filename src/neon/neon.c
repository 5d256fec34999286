/* The table for every AArch64. */
#include "vector.h"

#include "dot_halves.h"

#include "../cpu/simd/table.h"

KIVI_SIMD_TABLE(kivi_kernels_neon, "neon", "AArch64 Advanced SIMD", KIVI_CPU_NEON);
