/* Measuring several things in turns: A B C A B C, so that what disturbs one disturbs all. */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include <stddef.h>
#include <stdint.h>

/* Does the work `units` times. Returns seconds a unit, negative if the work failed. */
typedef double burst_function(void *context, uint64_t units);

struct contender {
    burst_function *burst;
    void *context;
    uint64_t units;  /* of one turn: set by measure */
    double *samples; /* of each round, seconds a unit: set by measure, released by measure_free */
};

/* Gives every contender `seconds` seconds on average, and at least a few rounds. Returns the number
 * of rounds, 0 after a failure. */
size_t measure(struct contender *contenders, size_t n, double seconds);
void measure_free(struct contender *contenders, size_t n);

/* Of n > 0 samples. */
double median(const double *samples, size_t n);
double minimum(const double *samples, size_t n);

/* The median over rounds of a[i] / b[i]. */
double median_ratio(const double *a, const double *b, size_t n);

#endif
