#include "suite.h"

#include <stdlib.h>
#include <string.h>

int backend_is_device(const char *name)
{
    return strcmp(name, "cuda") == 0;
}

static int is_set(const char *variable)
{
    const char *value = getenv(variable);

    return value && *value && *value != '0';
}

int test_is_long(void)
{
    return is_set("KIVI_TEST_LONG");
}

int test_is_short(void)
{
    return is_set("KIVI_TEST_SHORT") && !test_is_long();
}

int test_rounds(int rounds, int in_long)
{
    if (test_is_long())
        return in_long;
    return test_is_short() ? (rounds + 7) / 8 : rounds;
}

unsigned long long test_seed(unsigned long long seed)
{
    const char *value = getenv("KIVI_TEST_SEED");

    return value && *value ? strtoull(value, NULL, 0) : seed;
}
