/* support/suite.c for the GPU: the CUDA backend alone. Where it is not available, a test says why and
 * ends with 77. */
#include "support/program.h"
#include "support/suite.h"

#include <kivi/kivi.h>
#include <stdio.h>

static int is_available(kivi_backend_info *info)
{
    return kivi_backend_find("cuda", info, NULL) == KIVI_OK && info->available;
}

int backend_count(void)
{
    kivi_backend_info info;

    return is_available(&info);
}

const char *backend_name(int i)
{
    return i < backend_count() ? "cuda" : "none";
}

int test_main(Suite *suite)
{
    kivi_backend_info info;

    if (!is_available(&info)) {
        printf("not run: cuda: %s\n", info.reason);
        return 77;
    }
    printf("backends that run here: cuda\n");
    fflush(stdout);
    return run_suite(suite, CK_NOFORK); /* devices do not survive a fork */
}
