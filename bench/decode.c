/* Decode: the attention of one step over a long context. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)16 << 20) /* of keys and values that are appended in one call */
#define GROWTH 128u                    /* tokens that a context grows by before it is cut back */

/* One contender: a subject, read with one precision. */
struct step {
    struct subject *subject;
    kivi_attention attention;
    uint64_t context;
    uint32_t queries;
    int appends;
    const float *q;
    float *out;
};

/* Before a step that appends: back to the context, where it has grown. */
static int keep_context(const struct step *s)
{
    const struct subject *subject = s->subject;

    return subject->lengths[subject->next] < s->context + GROWTH
           || subject_truncate(s->subject, s->context);
}

static double step_burst(void *context, uint64_t units)
{
    struct step *s = context;
    kivi_item item = {
        .n_q = s->queries, .q = {s->q, KIVI_F32, 0, 0}, .out = {s->out, KIVI_F32, 0, 0}};
    double seconds = 0, start;
    uint64_t i;

    if (s->appends)
        subject_input(s->subject, &item, s->queries);
    start = machine_now();
    for (i = 0; i < units; i++) {
        if (s->appends) {
            seconds += machine_now() - start;
            if (!keep_context(s))
                return -1;
            start = machine_now();
        }
        if (!subject_run(s->subject, &item, &s->attention))
            return -1;
    }
    return (seconds + machine_now() - start) / (double)units;
}

/* Everything that the rows of one shape have in common. */
struct decode {
    struct bench *bench;
    const struct scenario *scenario;
    struct shape shape;
    float *q, *out;
    struct subject subjects[LIST_MAX];
    struct step steps[ENTRIES_MAX];
    struct table table;
};

static void add_step(struct decode *d, struct subject *subject, kivi_precision precision,
                     struct row *row)
{
    struct step *step = &d->steps[d->table.n];

    *step = (struct step){.subject = subject,
                          .context = row->context,
                          .queries = row->queries,
                          .appends = row->appends,
                          .q = d->q,
                          .out = d->out};
    kivi_attention_init(&step->attention);
    step->attention.precision = precision;
    type_name(subject->type, row->cache, sizeof row->cache);
    row->precision = type_is_f16(subject->type)   ? ""
                     : precision == KIVI_STANDARD ? "standard"
                                                  : "precise";
    row->bytes =
        sequence_bytes(&d->shape, subject->type, row->context + (row->appends ? GROWTH / 2 : 0));
    row->footprint = row->bytes * subject->n_seqs;
    table_add(&d->table, step_burst, step, row);
}

/* Attends to every sequence once, before anything is timed: on a virtual machine the first reading of new memory by a
 * thread can take three times as long as those that follow. */
static int read_once(struct decode *d, struct subject *subject)
{
    struct step step = {.subject = subject, .queries = 1, .q = d->q, .out = d->out};

    kivi_attention_init(&step.attention);
    return step_burst(&step, subject->n_seqs) >= 0;
}

/* The rows of one context and one number of threads. */
static int run_threads(struct decode *d, uint32_t context, uint32_t threads)
{
    const struct scenario *s = d->scenario;
    struct row row = {.command = "decode",
                      .backend = d->bench->backend,
                      .shape = d->shape,
                      .threads = threads,
                      .queries = s->queries,
                      .context = context,
                      .in_cache = s->in_cache,
                      .appends = s->appends,
                      .host_threads = d->bench->settings->host_threads};
    size_t i;

    machine_set_threads(threads);
    for (i = 0; i < s->types.n; i++) {
        if (!read_once(d, &d->subjects[i]))
            return subject_failed(&d->subjects[i]);
    }
    d->table.n = 0;
    if (!s->in_cache) /* it would put other data in the caches */
        table_add_reader(&d->table, d->bench, threads, &row);
    row.operations =
        2.0 * s->queries * d->shape.q_heads * (d->shape.k_dim + d->shape.v_dim) * context;
    for (i = 0; i < s->types.n; i++) {
        const int f16 = type_is_f16(s->types.at[i]);

        if (f16 || (s->precisions & PRECISION_STANDARD))
            add_step(d, &d->subjects[i], KIVI_STANDARD, &row);
        if (!f16
            && ((s->precisions & PRECISION_PRECISE)
                || ((s->precisions & PRECISION_PRECISE_LAST) && i + 1 == s->types.n)))
            add_step(d, &d->subjects[i], KIVI_PRECISE, &row);
    }
    if (table_run(&d->table, d->bench))
        return 1;
    for (i = 0; i < s->types.n; i++) {
        if (d->subjects[i].error.status != KIVI_OK)
            return subject_failed(&d->subjects[i]);
    }
    fprintf(stderr, "kivi-bench: out of memory\n");
    return 0;
}

static int run_context(struct decode *d, const struct chunk *chunk, uint32_t context)
{
    const struct scenario *s = d->scenario;
    size_t i;
    int ok;

    ok = open_subjects(d->subjects, d->bench, s, &d->shape, chunk, context, s->in_cache ? 1 : 0);
    if (!ok)
        return 0;
    machine_set_threads(d->bench->threads);
    for (i = 0; i < s->types.n && ok; i++)
        ok = fill_subject(&d->subjects[i], d->bench, context, s->appends);
    for (i = 0; i < s->threads.n && ok; i++)
        ok = run_threads(d, context, s->threads.at[i]);
    close_subjects(d->subjects, s->types.n);
    return ok;
}

static void print_heading(const struct decode *d)
{
    const struct scenario *s = d->scenario;
    char text[256], dims[32];

    if (d->shape.k_dim == d->shape.v_dim)
        snprintf(dims, sizeof dims, "%u", d->shape.k_dim);
    else
        snprintf(dims, sizeof dims, "%u/%u", d->shape.k_dim, d->shape.v_dim);
    snprintf(text, sizeof text,
             "decode: %u query heads, %u kv heads, dimension %s, group %u; %u quer%s a step, %s%s",
             d->shape.q_heads, d->shape.kv_heads, dims, d->shape.group, s->queries,
             s->queries == 1 ? "y" : "ies", s->appends ? "appended first" : "attention only",
             s->in_cache ? "; data in cache" : "");
    report_heading(&d->bench->report, text);
}

static int run_shape(struct decode *d)
{
    const struct scenario *s = d->scenario;
    const struct shape *shape = &d->shape;
    const size_t token_bytes = (size_t)shape->kv_heads * (shape->k_dim + shape->v_dim) * 2;
    const size_t tokens = CHUNK_BYTES / token_bytes < 128 ? 128 : CHUNK_BYTES / token_bytes;
    const size_t rows = (size_t)s->queries * shape->q_heads;
    struct chunk chunk;
    size_t i;
    int ok = 1;

    d->q = malloc(rows * shape->k_dim * sizeof *d->q);
    d->out = malloc(rows * shape->v_dim * sizeof *d->out);
    if (!d->q || !d->out
        || !chunk_make(&chunk, (uint32_t)tokens, shape->kv_heads, shape->k_dim, shape->v_dim,
                       d->bench->settings->gauss)) {
        fprintf(stderr, "kivi-bench: out of memory\n");
        ok = 0;
    } else {
        gaussian(d->q, rows * shape->k_dim, 4);
        print_heading(d);
        for (i = 0; i < s->contexts.n && ok; i++)
            ok = run_context(d, &chunk, s->contexts.at[i]);
        chunk_free(&chunk);
    }
    free(d->q);
    free(d->out);
    return ok;
}

int decode_run(struct bench *bench, const struct scenario *s)
{
    struct decode *d = calloc(1, sizeof *d);
    size_t i;
    int ok = d != NULL;

    for (i = 0; i < s->kv_heads.n && ok; i++) {
        d->bench = bench;
        d->scenario = s;
        d->shape = (struct shape){s->q_heads, s->kv_heads.at[i], s->k_dim, s->v_dim, s->group};
        ok = run_shape(d);
    }
    free(d);
    return ok;
}
