/* The backends that this machine can run, and the program around a suite that runs on all of them. */
#ifndef KIVI_TESTS_SUITE_H
#define KIVI_TESTS_SUITE_H

#include <check.h>

/* The number of available backends: the bound of a loop test. */
int backend_count(void);

/* The name of available backend i. */
const char *backend_name(int i);

/* Whether a backend has memory of its own, and splits a call over parts of its own. */
int backend_is_device(const char *name);

/* Whether the long tier was asked for: KIVI_TEST_LONG is set and not 0. */
int test_is_long(void);
int test_is_short(void); /* KIVI_TEST_SHORT: under emulators and sanitizers */

/* Rounds of a random test: `rounds`, in the long tier `in_long`, and with KIVI_TEST_SHORT, for emulators and sanitizers,
 * an eighth of `rounds`. */
int test_rounds(int rounds, int in_long);

/* The seed of random tests: KIVI_TEST_SEED if set, else `seed`. */
unsigned long long test_seed(unsigned long long seed);

/* Says which backends run and which cannot, runs the suite, and gives main's result. */
int test_main(Suite *suite);

#endif
