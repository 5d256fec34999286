/* One run of the bench: what the sub-commands share. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <stdio.h>

#include "bandwidth.h"
#include "measure.h"
#include "report.h"

#define ENTRIES_MAX (1 + 2 * LIST_MAX)

struct bench {
    const struct settings *settings;
    const char *backend;
    uint32_t threads;   /* for what is not measured */
    uint64_t footprint; /* bytes of each cache type */
    struct reader reader;
    struct report report;
};

/* Things that are measured in turns, each with the row to fill in. */
struct table {
    size_t n;
    struct contender contenders[ENTRIES_MAX];
    struct row rows[ENTRIES_MAX];
};

/* Adds an entry; `row` says all but the results. */
void table_add(struct table *table, burst_function *burst, void *context, const struct row *row);

/* Adds the reader, with so many threads. */
void table_add_reader(struct table *table, struct bench *bench, uint32_t threads,
                      const struct row *row);

/* Measures all entries and reports their rows. Returns 0 after a failure. */
int table_run(struct table *table, struct bench *bench);

/* A subject for each cache type of the scenario with `n_seqs` sequences, or as many as the
 * footprint needs for `context` tokens if 0. Returns 0 if one cannot be made, and prints why. */
int open_subjects(struct subject *subjects, const struct bench *bench,
                  const struct scenario *scenario, const struct shape *shape,
                  const struct chunk *chunk, uint64_t context, uint32_t n_seqs);
void close_subjects(struct subject *subjects, size_t n);

/* subject_fill, with all threads; says so if the backend is too slow to fill all sequences. */
int fill_subject(struct subject *subject, struct bench *bench, uint64_t n_tokens, int stagger);

/* Prints what the library said, and returns 0. */
int subject_failed(const struct subject *subject);

/* The sub-commands. They return 0 after a failure, which they have printed. */
int decode_run(struct bench *bench, const struct scenario *scenario);
int append_run(struct bench *bench, const struct scenario *scenario);
int prefill_run(struct bench *bench, const struct scenario *scenario);
int save_run(struct bench *bench, const struct scenario *scenario);
int bandwidth_run(struct bench *bench, const struct scenario *scenario);
int standard_run(struct bench *bench, const struct scenario *scenario);

/* The same on a GPU, from device memory; only in a build with KIVI_CUDA. */
int cuda_decode_run(struct bench *bench, const struct scenario *scenario);
int cuda_append_run(struct bench *bench, const struct scenario *scenario);
int cuda_prefill_run(struct bench *bench, const struct scenario *scenario);

/* Whether all of the standard table is done, or, as with the reference, only its shortest context. */
int standard_has_contexts(const char *backend);

/* Draws the decode rows with two or more contexts, and closes the file. Returns 0 after a failure. */
int plot_write(FILE *file, const char *path, const struct report *report);

#endif
