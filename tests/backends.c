/* Prints what this machine's run of the tests covered, and what it could not. */
#include <kivi/kivi.h>

#include <stdio.h>

int main(void)
{
    static const char *const names[] = {"scalar",       "avx2", "avx2-vnni",    "avx512",
                                        "avx512-vnni",  "neon", "neon-dotprod", "neon-i8mm",
                                        "cuda"};
    size_t i;

    puts("Backends:");
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        kivi_backend_info info;

        if (kivi_backend_find(names[i], &info, NULL) != KIVI_OK)
            printf("    %-14s not tested: not part of a build for this architecture\n", names[i]);
        else if (!info.available)
            printf("    %-14s not tested: %s\n", names[i], info.reason);
        else
            printf("    %-14s tested%s\n", names[i], info.recommended ? ", the default here" : "");
    }
    return 0;
}
