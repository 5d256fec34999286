/* Wall-clock time. Whoever includes this defines _POSIX_C_SOURCE first. */
#ifndef LM_CLOCK_H
#define LM_CLOCK_H

#include <time.h>

/* Seconds since some moment in the past. */
static inline double lm_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
