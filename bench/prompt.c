/* Prompts: append alone, and prefill, which attends in the same call. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>

#define PREFILL_SEQUENCES 4u /* bound by arithmetic: a few are enough */

/* One contender: calls of `tokens` tokens, until a sequence holds `context` of them. */
struct call {
    struct subject *subject;
    uint64_t tokens, context;
    const float *q; /* NULL: append only */
    float *out;
    kivi_attention attention;
};

static double call_burst(void *context, uint64_t units)
{
    struct call *c = context;
    kivi_item item = {0};
    double seconds = 0, start;
    uint64_t i;

    subject_input(c->subject, &item, c->tokens);
    if (c->q) {
        item.n_q = c->tokens;
        item.q = (kivi_in){c->q, KIVI_F32, 0, 0};
        item.out = (kivi_out){c->out, KIVI_F32, 0, 0};
    }
    start = machine_now();
    for (i = 0; i < units; i++) {
        if (c->subject->lengths[c->subject->next] + c->tokens > c->context) {
            seconds += machine_now() - start;
            if (!subject_truncate(c->subject, 0))
                return -1;
            start = machine_now();
        }
        if (!subject_run(c->subject, &item, &c->attention))
            return -1;
    }
    return (seconds + machine_now() - start) / (double)units;
}

struct prompt {
    struct bench *bench;
    const struct scenario *scenario;
    int attends;
    struct shape shape;
    float *q, *out;
    struct subject subjects[LIST_MAX];
    struct call calls[ENTRIES_MAX];
    struct table table;
};

static void add_call(struct prompt *p, struct subject *subject, kivi_precision precision,
                     struct row *row)
{
    const struct shape *shape = &p->shape;
    struct call *call = &p->calls[p->table.n];
    const int choice = p->attends && !type_is_f16(subject->type);

    *call = (struct call){.subject = subject,
                          .tokens = row->tokens,
                          .context = row->context,
                          .q = p->q,
                          .out = p->out};
    kivi_attention_init(&call->attention);
    call->attention.precision = precision;
    type_name(subject->type, row->cache, sizeof row->cache);
    row->precision = !choice ? "" : precision == KIVI_STANDARD ? "standard" : "precise";
    row->footprint = sequence_bytes(shape, subject->type, row->context) * subject->n_seqs;
    row->bytes = (uint64_t)row->tokens * shape->kv_heads * (shape->k_dim + shape->v_dim) * 2;
    if (p->attends)
        row->operations = (double)row->tokens * (row->tokens + 1.0) * shape->q_heads
                          * (shape->k_dim + shape->v_dim);
    table_add(&p->table, call_burst, call, row);
}

static int run_threads(struct prompt *p, uint32_t context, uint32_t threads)
{
    const struct scenario *s = p->scenario;
    struct row row = {.command = p->attends ? "prefill" : "append",
                      .backend = p->bench->backend,
                      .shape = p->shape,
                      .threads = threads,
                      .tokens = s->tokens,
                      .context = context,
                      .host_threads = p->bench->settings->host_threads};
    size_t i;

    p->table.n = 0;
    if (!p->attends)
        table_add_reader(&p->table, p->bench, threads, &row);
    for (i = 0; i < s->types.n; i++) {
        const int f16 = type_is_f16(s->types.at[i]);

        if (f16 || !p->attends || (s->precisions & PRECISION_STANDARD))
            add_call(p, &p->subjects[i], KIVI_STANDARD, &row);
        if (!f16 && p->attends && (s->precisions & PRECISION_PRECISE))
            add_call(p, &p->subjects[i], KIVI_PRECISE, &row);
    }
    if (table_run(&p->table, p->bench))
        return 1;
    for (i = 0; i < s->types.n; i++) {
        if (p->subjects[i].error.status != KIVI_OK)
            return subject_failed(&p->subjects[i]);
    }
    fprintf(stderr, "kivi-bench: out of memory\n");
    return 0;
}

/* Empties all sequences; with `stagger` leaves a few tokens, differently many. */
static int empty_subject(struct subject *s, int stagger)
{
    uint32_t i;

    for (i = 0; i < s->n_seqs; i++) {
        s->next = i;
        if (!subject_truncate(s, 0))
            return 0;
    }
    return subject_fill(s, 0, stagger, 60);
}

static int run_context(struct prompt *p, const struct chunk *chunk, uint32_t context)
{
    const struct scenario *s = p->scenario;
    const uint32_t n_seqs = p->attends ? PREFILL_SEQUENCES : 0;
    size_t i;
    int ok = open_subjects(p->subjects, p->bench, s, &p->shape, chunk, context, n_seqs);

    if (!ok)
        return 0;
    /* Filled once: from then on pages come from the cache's own store, and not from the system. */
    for (i = 0; i < s->types.n && ok; i++)
        ok = fill_subject(&p->subjects[i], p->bench, context, 0)
             && (empty_subject(&p->subjects[i], !p->attends) || subject_failed(&p->subjects[i]));
    for (i = 0; i < s->threads.n && ok; i++)
        ok = run_threads(p, context, s->threads.at[i]);
    close_subjects(p->subjects, s->types.n);
    return ok;
}

static int run_shape(struct prompt *p)
{
    const struct scenario *s = p->scenario;
    const struct shape *shape = &p->shape;
    const size_t rows = p->attends ? (size_t)s->tokens * shape->q_heads : 0;
    struct chunk chunk;
    char text[160];
    size_t i;
    int ok = 1;

    if (p->attends) {
        p->q = malloc(rows * shape->k_dim * sizeof *p->q);
        p->out = malloc(rows * shape->v_dim * sizeof *p->out);
        if (p->q)
            gaussian(p->q, rows * shape->k_dim, 4);
    }
    if ((p->attends && (!p->q || !p->out))
        || !chunk_make(&chunk, s->tokens, shape->kv_heads, shape->k_dim, shape->v_dim,
                       p->bench->settings->gauss)) {
        fprintf(stderr, "kivi-bench: out of memory\n");
        ok = 0;
    } else {
        snprintf(text, sizeof text, "%s: %u query heads, %u kv heads, dimension %u/%u, group %u",
                 p->attends ? "prefill" : "append", shape->q_heads, shape->kv_heads, shape->k_dim,
                 shape->v_dim, shape->group);
        report_heading(&p->bench->report, text);
        if (p->attends)
            ok = run_context(p, &chunk, s->tokens);
        for (i = 0; i < s->contexts.n && ok && !p->attends; i++)
            ok = run_context(p, &chunk, s->contexts.at[i]);
        chunk_free(&chunk);
    }
    free(p->q);
    free(p->out);
    p->q = p->out = NULL;
    return ok;
}

static int prompt_run(struct bench *bench, const struct scenario *s, int attends)
{
    struct prompt *p = calloc(1, sizeof *p);
    size_t i;
    int ok = p != NULL;

    for (i = 0; i < s->kv_heads.n && ok; i++) {
        p->bench = bench;
        p->scenario = s;
        p->attends = attends;
        p->shape = (struct shape){s->q_heads, s->kv_heads.at[i], s->k_dim, s->v_dim, s->group};
        ok = run_shape(p);
    }
    free(p);
    return ok;
}

int append_run(struct bench *bench, const struct scenario *scenario)
{
    return prompt_run(bench, scenario, 0);
}

int prefill_run(struct bench *bench, const struct scenario *scenario)
{
    return prompt_run(bench, scenario, 1);
}
