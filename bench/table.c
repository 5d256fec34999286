/* Tables: entries measured in turns, and the caches that they need. */
#include "bench.h"

#include <stdio.h>
#include <string.h>

#define FILL_SECONDS 6.0 /* for one cache; one with kernels for this CPU takes about a second */

void table_add(struct table *t, burst_function *burst, void *context, const struct row *row)
{
    t->contenders[t->n] = (struct contender){.burst = burst, .context = context};
    t->rows[t->n] = *row;
    t->n++;
}

void table_add_reader(struct table *t, struct bench *b, uint32_t threads, const struct row *row)
{
    reader_set_threads(&b->reader, threads);
    table_add(t, reader_burst, &b->reader, row);
    snprintf(t->rows[t->n - 1].cache, sizeof t->rows->cache, "read");
    t->rows[t->n - 1].precision = "";
    t->rows[t->n - 1].bytes = b->reader.pass_bytes;
    t->rows[t->n - 1].operations = 0;
}

static const struct contender *find(const struct table *t, const char *cache,
                                    const struct row **row)
{
    size_t i;

    for (i = 0; i < t->n; i++) {
        if (strcmp(t->rows[i].cache, cache) == 0) {
            *row = &t->rows[i];
            return &t->contenders[i];
        }
    }
    return NULL;
}

int table_run(struct table *t, struct bench *b)
{
    const struct row *read_row = NULL, *f16_row = NULL;
    const struct contender *read, *f16;
    size_t i, rounds;

    machine_set_threads(t->rows[0].threads);
    rounds = measure(t->contenders, t->n, b->settings->seconds);
    read = find(t, "read", &read_row);
    if (!read)
        read = find(t, "copy", &read_row);
    f16 = find(t, "f16", &f16_row);
    for (i = 0; i < t->n && rounds; i++) {
        struct row *row = &t->rows[i];
        const double *samples = t->contenders[i].samples;

        row->rounds = rounds;
        row->median = median(samples, rounds);
        row->min = minimum(samples, rounds);
        if (read && row->bytes)
            row->of_read = (double)row->bytes / (double)read_row->bytes
                           * median_ratio(read->samples, samples, rounds);
        if (f16 && row != read_row)
            row->of_f16 = median_ratio(f16->samples, samples, rounds);
        if (!report_row(&b->report, row))
            rounds = 0;
    }
    measure_free(t->contenders, t->n);
    return rounds > 0;
}

int subject_failed(const struct subject *s)
{
    char name[12];

    type_name(s->type, name, sizeof name);
    fprintf(stderr, "kivi-bench: cache %s, backend %s: %s\n", name, s->backend, s->error.message);
    return 0;
}

int open_subjects(struct subject *subjects, const struct bench *b, const struct scenario *s,
                  const struct shape *shape, const struct chunk *chunk, uint64_t context,
                  uint32_t n_seqs)
{
    size_t i;

    memset(subjects, 0, s->types.n * sizeof *subjects);
    for (i = 0; i < s->types.n; i++) {
        struct subject *subject = &subjects[i];

        subject->shape = *shape;
        subject->type = s->types.at[i];
        subject->backend = b->backend;
        subject->chunk = chunk;
        subject->host_threads = b->settings->host_threads;
        subject->n_seqs =
            n_seqs ? n_seqs : sequences_for(shape, subject->type, context, b->footprint);
        if (!subject_open(subject)) {
            subject_failed(subject);
            close_subjects(subjects, s->types.n);
            return 0;
        }
    }
    return 1;
}

int fill_subject(struct subject *s, struct bench *b, uint64_t n_tokens, int stagger)
{
    const uint32_t wanted = s->n_seqs;
    char name[12], text[96];

    machine_set_threads(b->threads);
    if (!subject_fill(s, n_tokens, stagger, FILL_SECONDS))
        return subject_failed(s);
    if (s->n_seqs < wanted) {
        type_name(s->type, name, sizeof name);
        snprintf(
            text, sizeof text, "cache %s: filled slowly, so only %llu MB of data are rotated", name,
            (unsigned long long)(sequence_bytes(&s->shape, s->type, n_tokens) * s->n_seqs >> 20));
        report_note(&b->report, text);
    }
    return 1;
}

void close_subjects(struct subject *subjects, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++)
        subject_close(&subjects[i]);
}
