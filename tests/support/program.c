#include "program.h"

#include <stdlib.h>

int run_suite(Suite *suite, enum fork_status how)
{
    SRunner *runner = srunner_create(suite);
    int failed;

    srunner_set_fork_status(runner, how);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
