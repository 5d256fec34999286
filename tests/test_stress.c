/*
 * Random operations against a naive model of the cache: what every token should be, in double
 * precision. A world is one small cache of any kind. KIVI_TEST_SEED repeats one world;
 * KIVI_TEST_LONG=1 takes a million steps.
 */
#include <check.h>
#include <stdlib.h>

#include "support/stress.h"
#include "support/suite.h"

#define STEPS 250 /* of one world */

static void worlds(const char *what, uint64_t first, uint64_t n, int injects)
{
    struct stress_counts total = {0};
    uint64_t i;

    for (i = 0; i < n; i++) {
        struct stress_cache cache;
        struct stress_actor actor;

        stress_open(&cache, first + i, injects, 0);
        stress_actor_open(&actor, &cache, first + i);
        stress_run(&actor, STEPS);
        stress_actor_close(&actor, &total);
        stress_close(&cache);
    }
    stress_print(what, &total);
}

static uint64_t n_worlds(int usually)
{
    return getenv("KIVI_TEST_SEED") ? 1 : (uint64_t)test_rounds(usually, 500000 / STEPS);
}

START_TEST(random_operations)
{
    worlds("random operations", test_seed(0x57e55), n_worlds(40), 0);
}
END_TEST

START_TEST(under_allocation_failure)
{
    worlds("under allocation failure", test_seed(0xfa11), n_worlds(40), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("stress");
    TCase *stress = tcase_create("stress");

    tcase_add_test(stress, random_operations);
    tcase_add_test(stress, under_allocation_failure);
    tcase_set_timeout(stress, 0);
    suite_add_tcase(suite, stress);
    return test_main(suite);
}
