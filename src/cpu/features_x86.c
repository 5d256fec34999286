/* x86: CPUID says what the CPU can do, XCR0 which registers the operating system saves. */
#include "features.h"

#if defined(_MSC_VER)
#include <intrin.h>

static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
    int out[4], i;

    __cpuidex(out, (int)leaf, (int)subleaf);
    for (i = 0; i < 4; i++)
        r[i] = (uint32_t)out[i];
}

static uint32_t xcr0(void)
{
    return (uint32_t)_xgetbv(0);
}
#else
#include <cpuid.h>

static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
    __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
}

static uint32_t xcr0(void)
{
    uint32_t low, high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}
#endif

enum { EAX, EBX, ECX, EDX };

static int has(uint32_t reg, uint32_t bits)
{
    return (reg & bits) == bits;
}

/* Intel's Software Developer's Manual, volume 2, CPUID, has the bits; volume 1, chapter 13, XCR0. */
#define VENDOR_AMD 0x68747541u /* "Auth", of AuthenticAMD */
#define LEAF1_ECX_FMA_OSXSAVE_AVX_F16C (1u << 12 | 1u << 27 | 1u << 28 | 1u << 29)
#define LEAF7_EBX_AVX2 (1u << 5)
#define LEAF7_EBX_AVX512 (1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) /* F, DQ, BW, VL */
#define LEAF7_ECX_AVX512_VNNI (1u << 11)
#define LEAF7_1_EAX_AVX_VNNI (1u << 4)
#define XCR0_YMM (1u << 1 | 1u << 2)
#define XCR0_ZMM (XCR0_YMM | 1u << 5 | 1u << 6 | 1u << 7)

uint32_t kivi_cpu_features(void)
{
    uint32_t r[4], state, features, n_leaves;
    int is_amd;

    cpuid(0, 0, r);
    n_leaves = r[EAX];
    is_amd = r[EBX] == VENDOR_AMD;
    if (n_leaves < 7)
        return 0;
    cpuid(1, 0, r);
    if (!has(r[ECX], LEAF1_ECX_FMA_OSXSAVE_AVX_F16C))
        return 0;
    state = xcr0();
    cpuid(7, 0, r);
    if (!has(state, XCR0_YMM) || !has(r[EBX], LEAF7_EBX_AVX2))
        return 0;
    features = KIVI_CPU_AVX2 | (is_amd ? KIVI_CPU_AMD : 0);
    if (has(state, XCR0_ZMM) && has(r[EBX], LEAF7_EBX_AVX512)) {
        features |= KIVI_CPU_AVX512;
        if (has(r[ECX], LEAF7_ECX_AVX512_VNNI))
            features |= KIVI_CPU_AVX512_VNNI;
    }
    if (r[EAX] >= 1) {
        cpuid(7, 1, r);
        if (has(r[EAX], LEAF7_1_EAX_AVX_VNNI))
            features |= KIVI_CPU_AVX_VNNI;
    }
    return features;
}
