/* What the CPU can do and the operating system lets it do. */
#ifndef KIVI_FEATURES_H
#define KIVI_FEATURES_H

#include <stdint.h>

enum {
    KIVI_CPU_AVX2 = 1u << 0,        /* AVX2, FMA and F16C, ymm state enabled in XCR0 */
    KIVI_CPU_AVX_VNNI = 1u << 1,    /* the VEX-encoded vpdpbusd */
    KIVI_CPU_AVX512 = 1u << 2,      /* F, BW, DQ, VL, zmm state enabled in XCR0 */
    KIVI_CPU_AVX512_VNNI = 1u << 3, /* vpdpbusd on zmm */
    KIVI_CPU_NEON = 1u << 4,        /* AArch64 Advanced SIMD */
    KIVI_CPU_DOTPROD = 1u << 5,     /* sdot, udot */
    KIVI_CPU_I8MM = 1u << 6,        /* usdot, smmla */
    KIVI_CPU_AMD = 1u << 7          /* whose memory likes to be asked in its own way (kernels.h) */
};

/* The features of this machine. One file per architecture: features_x86.c, features_arm.c, and
 * features_none.c for the rest. Thread-safe, and the same answer at every call. */
uint32_t kivi_cpu_features(void);

#endif
