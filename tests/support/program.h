/* What every test program ends with. */
#ifndef KIVI_TESTS_PROGRAM_H
#define KIVI_TESTS_PROGRAM_H

#include <check.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Runs the suite and gives main's result. CK_FORK_GETENV: tests in processes of their own, unless CK_FORK says no. */
int run_suite(Suite *suite, enum fork_status how);

#ifdef __cplusplus
}
#endif
#endif
