#include "measure.h"

#include <stdlib.h>
#include <string.h>

#include "machine.h"

/* Long against the clock and a thread's start, short against the drift of a shared machine. */
#define TURN_SECONDS 0.006
#define MIN_ROUNDS 5u
#define PATIENCE 8 /* times the seconds asked for, before fewer rounds have to do */
#define MAX_ROUNDS 2048u
#define MAX_UNITS 65536u

/* Warms up, and finds how many units make a turn. Returns 0 if the work failed. */
static int prepare(struct contender *c)
{
    double seconds;
    uint64_t units = 1;

    c->samples = malloc(MAX_ROUNDS * sizeof *c->samples);
    if (!c->samples)
        return 0;
    for (;;) {
        seconds = c->burst(c->context, units);
        if (seconds < 0)
            return 0;
        if (seconds * (double)units >= TURN_SECONDS / 2 || units >= MAX_UNITS)
            break;
        units *= 2;
    }
    units = (uint64_t)(TURN_SECONDS / (seconds > 0 ? seconds : 1e-9));
    c->units = units < 1 ? 1 : units > MAX_UNITS ? MAX_UNITS : units;
    return 1;
}

size_t measure(struct contender *c, size_t n, double seconds)
{
    size_t rounds, i;
    double start;

    for (i = 0; i < n; i++)
        c[i].samples = NULL;
    for (i = 0; i < n; i++) {
        if (!prepare(&c[i]))
            return 0;
    }
    start = machine_now();
    for (rounds = 0; rounds < MAX_ROUNDS; rounds++) {
        const double share = (machine_now() - start) / (double)n;

        if (share >= seconds && (rounds >= MIN_ROUNDS || share >= PATIENCE * seconds))
            break;
        for (i = 0; i < n; i++) {
            c[i].samples[rounds] = c[i].burst(c[i].context, c[i].units);
            if (c[i].samples[rounds] < 0)
                return 0;
        }
    }
    return rounds;
}

void measure_free(struct contender *c, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        free(c[i].samples);
        c[i].samples = NULL;
    }
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double median(const double *samples, size_t n)
{
    double sorted[MAX_ROUNDS];

    memcpy(sorted, samples, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

double minimum(const double *samples, size_t n)
{
    double least = samples[0];
    size_t i;

    for (i = 1; i < n; i++)
        least = samples[i] < least ? samples[i] : least;
    return least;
}

double median_ratio(const double *a, const double *b, size_t n)
{
    double ratios[MAX_ROUNDS];
    size_t i;

    for (i = 0; i < n; i++)
        ratios[i] = a[i] / b[i];
    return median(ratios, n);
}
