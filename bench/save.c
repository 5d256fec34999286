/* Saving and loading: a sequence to memory and back, beside memcpy of the same bytes. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEQUENCES 2u /* saved and loaded in turns */

/* A saved sequence in memory. */
struct file {
    char *data;
    size_t bytes, at;
};

struct saving {
    struct subject subject;
    struct file file;
    char *copy;
    struct table table;
};

static int write_file(void *context, const void *data, size_t bytes)
{
    struct file *f = context;

    if (bytes > f->bytes - f->at)
        return 1;
    memcpy(f->data + f->at, data, bytes);
    f->at += bytes;
    return 0;
}

static int read_file(void *context, void *data, size_t bytes)
{
    struct file *f = context;

    if (bytes > f->bytes - f->at)
        return 1;
    memcpy(data, f->data + f->at, bytes);
    f->at += bytes;
    return 0;
}

static double copy_burst(void *context, uint64_t units)
{
    struct saving *s = context;
    const double start = machine_now();
    uint64_t i;

    for (i = 0; i < units; i++)
        memcpy(s->copy, s->file.data, s->file.bytes);
    return (machine_now() - start) / (double)units;
}

static double save_burst(void *context, uint64_t units)
{
    struct saving *s = context;
    struct subject *subject = &s->subject;
    const double start = machine_now();
    uint64_t i;

    for (i = 0; i < units; i++) {
        s->file.at = 0;
        if (kivi_seq_save(subject->cache, subject->seqs[i % SEQUENCES], write_file, &s->file,
                          &subject->error)
            != KIVI_OK)
            return -1;
    }
    return (machine_now() - start) / (double)units;
}

static double load_burst(void *context, uint64_t units)
{
    struct saving *s = context;
    struct subject *subject = &s->subject;
    const double start = machine_now();
    uint64_t i;

    for (i = 0; i < units; i++) {
        kivi_seq seq;

        s->file.at = 0;
        if (kivi_seq_load(subject->cache, read_file, &s->file, &seq, &subject->error) != KIVI_OK
            || kivi_seq_destroy(subject->cache, seq, &subject->error) != KIVI_OK)
            return -1;
    }
    return (machine_now() - start) / (double)units;
}

/* A row of the table; `cache` is what is done. */
static void add(struct saving *s, struct row *row, const char *what, burst_function *burst)
{
    snprintf(row->cache, sizeof row->cache, "%s", what);
    table_add(&s->table, burst, s, row);
}

static int run_type(struct saving *s, struct bench *bench, uint64_t context)
{
    struct subject *subject = &s->subject;
    char text[160], type[12];
    uint64_t bytes;

    if (kivi_seq_save_size(subject->cache, subject->seqs[0], &bytes, &subject->error) != KIVI_OK)
        return subject_failed(subject);
    type_name(subject->type, type, sizeof type);
    snprintf(text, sizeof text, "save: cache %s, %llu tokens, %u kv heads, dimension %u/%u", type,
             (unsigned long long)context, subject->shape.kv_heads, subject->shape.k_dim,
             subject->shape.v_dim);
    report_heading(&bench->report, text);
    s->file = (struct file){.data = malloc((size_t)bytes), .bytes = (size_t)bytes};
    s->copy = malloc((size_t)bytes);
    if (s->file.data && s->copy) {
        struct row row = {.command = "save",
                          .backend = bench->backend,
                          .shape = subject->shape,
                          .precision = "",
                          .threads = 1,
                          .context = context,
                          .bytes = bytes,
                          .footprint = bytes * SEQUENCES};

        memset(s->copy, 0, (size_t)bytes);
        s->table.n = 0;
        if (save_burst(s, SEQUENCES) < 0) /* what is copied and loaded */
            return subject_failed(subject);
        add(s, &row, "copy", copy_burst);
        add(s, &row, "save", save_burst);
        add(s, &row, "load", load_burst);
        if (table_run(&s->table, bench))
            return 1;
    }
    if (subject->error.status != KIVI_OK)
        return subject_failed(subject);
    fprintf(stderr, "kivi-bench: out of memory\n");
    return 0;
}

/* The last sequence makes way for the one that is loaded. */
static int make_room(struct subject *s)
{
    s->n_seqs = SEQUENCES;
    return kivi_seq_destroy(s->cache, s->seqs[SEQUENCES], &s->error) == KIVI_OK
           || subject_failed(s);
}

static int run_shape(struct saving *s, struct bench *bench, const struct scenario *scenario,
                     uint32_t kv_heads, uint64_t context)
{
    const struct shape shape = {scenario->q_heads, kv_heads, scenario->k_dim, scenario->v_dim,
                                scenario->group};
    struct chunk chunk;
    size_t i;
    int ok = 1;

    if (!chunk_make(&chunk, 1024, kv_heads, scenario->k_dim, scenario->v_dim,
                    bench->settings->gauss)) {
        fprintf(stderr, "kivi-bench: out of memory\n");
        return 0;
    }
    for (i = 0; i < scenario->types.n && ok; i++) {
        struct scenario one = *scenario;

        one.types = (struct type_list){1, {scenario->types.at[i]}};
        ok = open_subjects(&s->subject, bench, &one, &shape, &chunk, context, SEQUENCES + 1);
        if (!ok)
            break;
        ok = make_room(&s->subject) && fill_subject(&s->subject, bench, context, 0)
             && run_type(s, bench, context);
        close_subjects(&s->subject, 1);
        free(s->file.data);
        free(s->copy);
        s->file.data = s->copy = NULL;
    }
    chunk_free(&chunk);
    return ok;
}

int save_run(struct bench *bench, const struct scenario *scenario)
{
    struct saving *s = calloc(1, sizeof *s);
    size_t i, j;
    int ok = s != NULL;

    for (i = 0; i < scenario->kv_heads.n && ok; i++)
        for (j = 0; j < scenario->contexts.n && ok; j++)
            ok = run_shape(s, bench, scenario, scenario->kv_heads.at[i], scenario->contexts.at[j]);
    free(s);
    return ok;
}
