/*
 * The reader: what plain reading of memory reaches, on as many threads as the work that it is held
 * against, and shared out to them in the same way: an equal, contiguous part for each.
 */
#ifndef BENCH_BANDWIDTH_H
#define BENCH_BANDWIDTH_H

#include <stddef.h>
#include <stdint.h>

#define READER_FORMS 16

/* A form of reading: interleaved streams, and how many bytes ahead each prefetches. */
struct reader_form {
    unsigned threads, streams, ahead;
};

struct reader {
    char *buffer;
    size_t bytes, pass_bytes, cursor;
    struct reader_form form;                /* in use */
    struct reader_form tuned[READER_FORMS]; /* the best so far for each number of threads */
    size_t n_tuned;
    const char *instructions;
    uint64_t sum; /* of what was read: keeps the reading from being optimized away */
};

/* Allocates a buffer of `bytes` and touches it. Returns 0 if there is no memory. */
int reader_open(struct reader *reader, size_t bytes);
void reader_close(struct reader *reader);

/* Sets the number of threads, and the fastest form of reading with so many. */
void reader_set_threads(struct reader *reader, unsigned threads);

/* Reads the next pass_bytes of the buffer, `passes` times; seconds a pass. A burst_function
 * of measure.h. */
double reader_burst(void *reader, uint64_t passes);

#endif
