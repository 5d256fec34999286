/* support/suite.c for the GPU: the CUDA backend alone. Where it is not available, a test says why and
 * ends with 77. */
#include "support/suite.h"

#include <kivi/kivi.h>
#include <stdio.h>
#include <stdlib.h>

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
    SRunner *runner = srunner_create(suite);
    kivi_backend_info info;
    int failed;

    if (!is_available(&info)) {
        printf("not run: cuda: %s\n", info.reason);
        srunner_free(runner);
        return 77;
    }
    printf("backends that run here: cuda\n");
    fflush(stdout);
    /* In one process: devices do not survive a fork. */
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
