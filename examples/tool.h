/* What kivi-bench, kivi-inspect and kivi-lm do alike. Whoever includes this defines _POSIX_C_SOURCE first. */
#ifndef KIVI_TOOL_H
#define KIVI_TOOL_H

#include <kivi/kivi.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A file that is written when the work is done, opened before it: a bad path shows at once, and until
 * tool_begin the file keeps what it holds. NULL if it cannot be written. */
static inline FILE *tool_open(const char *path)
{
    return fopen(path, "ab");
}

/* Empties it; a pipe or a device has nothing to be emptied of. Returns 0 after a failure. */
static inline int tool_begin(FILE *file)
{
    return ftruncate(fileno(file), 0) == 0 || errno == EINVAL;
}

/* The names of all backends of this build, with commas between. */
static inline void tool_backends(char *text, size_t capacity)
{
    kivi_backend_info info;
    size_t i;

    *text = '\0';
    for (i = 0; i < kivi_backend_count() && kivi_backend_get(i, &info, NULL) == KIVI_OK; i++)
        snprintf(text + strlen(text), capacity - strlen(text), "%s%s", i ? ", " : "", info.name);
}

/* The exit status in place of `status`: what was printed has to have arrived. */
static inline int tool_end(const char *tool, int status)
{
    const int failed = fflush(stdout) != 0 || ferror(stdout);

    if (status != 0 || !failed)
        return status;
    fprintf(stderr, "%s: standard output cannot be written\n", tool);
    return 1;
}

#endif
