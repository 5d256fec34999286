/* The random operations of test_stress.c by several threads on one cache, each with its own sequences,
 * some of them forks of one prompt. Made to run under ThreadSanitizer. */
#include <check.h>
#include <pthread.h>

#include "support/stress.h"
#include "support/suite.h"

#define THREADS 4

struct thread {
    pthread_t id;
    struct stress_actor actor;
    uint64_t steps;
};

static void *act(void *argument)
{
    struct thread *thread = argument;

    stress_run(&thread->actor, thread->steps);
    return NULL;
}

static void worlds(const char *what, uint64_t first, uint64_t n, uint64_t steps, int injects)
{
    static struct thread threads[THREADS];
    struct stress_counts total = {0};
    uint64_t i, j;

    for (i = 0; i < n; i++) {
        struct stress_cache cache;

        stress_open(&cache, first + i, injects, 1);
        for (j = 0; j < THREADS; j++) {
            stress_actor_open(&threads[j].actor, &cache, first + i + 0x1000 * (j + 1));
            threads[j].steps = steps;
            ck_assert_int_eq(pthread_create(&threads[j].id, NULL, act, &threads[j]), 0);
        }
        for (j = 0; j < THREADS; j++)
            ck_assert_int_eq(pthread_join(threads[j].id, NULL), 0);
        for (j = 0; j < THREADS; j++)
            stress_actor_close(&threads[j].actor, &total);
        ck_assert_int_eq(kivi_seq_destroy(cache.cache, cache.prompt.id, NULL), KIVI_OK);
        stress_close(&cache);
    }
    stress_print(what, &total);
}

START_TEST(threads_on_one_cache)
{
    worlds("four threads", test_seed(0x7ead5), test_rounds(6, 100), 120, 0);
}
END_TEST

START_TEST(threads_under_allocation_failure)
{
    worlds("four threads under allocation failure", test_seed(0x7fa11), test_rounds(6, 100), 120,
           1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("stress_threads");
    TCase *stress = tcase_create("threads");

    tcase_add_test(stress, threads_on_one_cache);
    tcase_add_test(stress, threads_under_allocation_failure);
    tcase_set_timeout(stress, 0);
    suite_add_tcase(suite, stress);
    return test_main(suite);
}
