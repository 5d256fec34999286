/* Architectures without kernels of their own. */
#include "features.h"

uint32_t kivi_cpu_features(void)
{
    return 0;
}
