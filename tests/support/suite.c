#include "suite.h"

#include <kivi/kivi.h>
#include <stdio.h>
#include <stdlib.h>

#include "program.h"

#define MAX_BACKENDS 32

static const char *names[MAX_BACKENDS];
static int n_names = -1;

static void find(void)
{
    size_t i;

    n_names = 0;
    for (i = 0; i < kivi_backend_count() && n_names < MAX_BACKENDS; i++) {
        kivi_backend_info info;

        if (kivi_backend_get(i, &info, NULL) == KIVI_OK && info.available)
            names[n_names++] = info.name;
    }
}

int backend_count(void)
{
    if (n_names < 0)
        find();
    return n_names;
}

const char *backend_name(int i)
{
    return i < backend_count() ? names[i] : "none";
}

static void report(void)
{
    size_t i;
    int n;

    printf("backends that run here:");
    for (n = 0; n < backend_count(); n++)
        printf(" %s", backend_name(n));
    printf("\n");
    for (i = 0; i < kivi_backend_count(); i++) {
        kivi_backend_info info;

        if (kivi_backend_get(i, &info, NULL) == KIVI_OK && !info.available)
            printf("not tested: %s: %s\n", info.name, info.reason);
    }
    fflush(stdout);
}

int test_main(Suite *suite)
{
    report();
    return run_suite(suite, CK_NOFORK); /* thread teams and devices do not survive a fork */
}
