/* How many threads a loop is worth. */
#ifndef LM_TEAM_H
#define LM_TEAM_H

#include <stddef.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

/* Multiply-adds that a thread has to get: some 0.4 ms. A team meets at the end of its loop, where who is
 * done waits for the rest, and beside other busy processes those may have to wait for a core. */
#define LM_GRAIN ((size_t)1 << 21)

#define LM_EXP 16u /* an exponential, in multiply-adds */

/* For num_threads: as many as get a grain each of `work` multiply-adds, at least one. */
static inline int lm_team(size_t work)
{
#if defined(_OPENMP)
    const size_t most = (size_t)omp_get_max_threads(), wanted = work / LM_GRAIN;

    return (int)(wanted < 1 ? 1 : wanted < most ? wanted : most);
#else
    (void)work;
    return 1;
#endif
}

#endif
