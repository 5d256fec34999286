/* Rows of results, as tables and as JSON. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "machine.h"
#include "subject.h"

struct row {
    const char *command, *backend;
    struct shape shape;
    char cache[12];        /* type_name, or "read" for the reader; "copy", "save", "load" */
    const char *precision; /* "standard", "precise", or "" where there is no choice */
    uint32_t threads, queries, tokens;
    uint32_t batch, layers; /* on a GPU: sequences of a step, and layers in turn; else 0 */
    uint64_t context,
        shortest; /* of a batch's longest and shortest sequence; the latter 0: of one length */
    int in_cache, appends, host_threads;
    size_t rounds;
    double median, min; /* seconds of one call */
    uint64_t bytes;     /* of one call */
    uint64_t footprint; /* bytes that are rotated */
    double operations;  /* of one call; 0 if they are not counted */
    /* Share of the bandwidth of "read" or "copy", median over rounds; 0: not measured. */
    double of_read;
    double of_f16; /* how many times as fast as the f16 cache, likewise */
    /* On a GPU, seconds: a kernel that reads as many bytes, a call without a graph, one with a token's append. */
    double reading, queued, with_append;
};

struct report {
    const struct machine *machine;
    const struct settings *settings;
    char gpu[320]; /* empty if none is measured */
    struct row *rows;
    size_t n_rows, capacity;
    const char *last_command; /* whose columns were printed last; NULL: print them again */
};

void report_begin(struct report *report);
void report_backend(struct report *report, const char *name, const char *description);
void report_gpu(struct report *report, const char *description);
void report_heading(struct report *report, const char *heading);
void report_note(struct report *report, const char *note);

/* Keeps a copy of the row, and prints it. Returns 0 if there is no memory. */
int report_row(struct report *report, const struct row *row);
void report_end(struct report *report);

#endif
