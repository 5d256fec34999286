/* Detection on AArch64 Windows. */
#if defined(_WIN32)

#include <windows.h>

#include "features.h"

/* Numbers of the system's ABI; older headers lack them. */
#define DOTPROD 43 /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
#define I8MM 66    /* PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE */

uint32_t kivi_cpu_features(void)
{
    return KIVI_CPU_NEON | (IsProcessorFeaturePresent(DOTPROD) ? KIVI_CPU_DOTPROD : 0)
           | (IsProcessorFeaturePresent(I8MM) ? KIVI_CPU_I8MM : 0);
}

#endif
