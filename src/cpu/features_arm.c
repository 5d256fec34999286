/* Detection on AArch64 but for Windows, which has a file of its own. Advanced SIMD is part of the
 * architecture; the rest is what the kernel says it has found and enabled. */
#if !defined(_WIN32)

#include "features.h"

#if defined(__linux__)
#include <sys/auxv.h>

/* Bits of the kernel's ABI; older headers lack the last one. */
#define ASIMDDP (1ul << 20) /* of AT_HWCAP */
#define I8MM (1ul << 13)    /* of AT_HWCAP2 */

static uint32_t optional_features(void)
{
    uint32_t features = 0;

    if (getauxval(AT_HWCAP) & ASIMDDP)
        features |= KIVI_CPU_DOTPROD;
    if (getauxval(AT_HWCAP2) & I8MM)
        features |= KIVI_CPU_I8MM;
    return features;
}

#elif defined(__APPLE__)
#include <sys/sysctl.h>

static int has(const char *name)
{
    int value = 0;
    size_t size = sizeof value;

    return sysctlbyname(name, &value, &size, 0, 0) == 0 && value;
}

static uint32_t optional_features(void)
{
    return (has("hw.optional.arm.FEAT_DotProd") ? KIVI_CPU_DOTPROD : 0)
           | (has("hw.optional.arm.FEAT_I8MM") ? KIVI_CPU_I8MM : 0);
}

#else

/* A system that we do not know how to ask. */
static uint32_t optional_features(void)
{
    return 0;
}

#endif

uint32_t kivi_cpu_features(void)
{
    return KIVI_CPU_NEON | optional_features();
}

#endif
