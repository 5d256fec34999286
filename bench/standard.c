/* The standard table, and the bandwidth that all of it is held against. */
#include "bench.h"

#include <stdio.h>
#include <string.h>

int bandwidth_run(struct bench *bench, const struct scenario *s)
{
    struct reader *reader = &bench->reader;
    char text[160];
    size_t i;

    report_heading(&bench->report, "bandwidth: reading plain memory");
    for (i = 0; i < s->threads.n; i++) {
        const struct row row = {
            .command = "bandwidth", .backend = "", .precision = "", .threads = s->threads.at[i]};
        struct table table = {.n = 0};

        table_add_reader(&table, bench, s->threads.at[i], &row);
        if (!table_run(&table, bench)) {
            fprintf(stderr, "kivi-bench: out of memory\n");
            return 0;
        }
        snprintf(text, sizeof text, "        %s, %u stream%s a thread, prefetch %u bytes ahead",
                 reader->instructions, reader->form.streams, reader->form.streams == 1 ? "" : "s",
                 reader->form.ahead);
        report_note(&bench->report, text);
    }
    return 1;
}

/* The types of which only the extremes are of interest. */
static const struct type_list extremes = {2, {{16, 16}, {2, 2}}};

static struct number_list one(uint32_t number)
{
    const struct number_list list = {1, {number}};

    return list;
}

int standard_has_contexts(const char *backend)
{
    return strcmp(backend, "scalar") != 0;
}

/* The reference is for comparing results with: at the sizes of the others it would take hours. */
static int is_reference(const struct bench *bench)
{
    return !standard_has_contexts(bench->backend);
}

static int decode_tables(struct bench *bench, const struct scenario *base)
{
    struct scenario s = *base;

    s.kv_heads = (struct number_list){3, {32, 8, 4}};
    s.precisions = PRECISION_STANDARD | PRECISION_PRECISE_LAST;
    if (is_reference(bench))
        s.contexts = one(4096);
    else if (!bench->settings->quick)
        s.contexts = (struct number_list){5, {4096, 8192, 16384, 32768, 65536}};
    if (!decode_run(bench, &s))
        return 0;

    /* One long sequence with one kv head: split over tokens, or left to one core. */
    s = *base;
    s.q_heads = 8;
    s.kv_heads = one(1);
    s.contexts = one(is_reference(bench) ? 4096 : 65536);
    s.types = extremes;
    if (!decode_run(bench, &s))
        return 0;

    s = *base;
    s.kv_heads = one(8);
    s.contexts = one(1024);
    s.in_cache = 1;
    s.precisions = PRECISION_STANDARD | PRECISION_PRECISE_LAST;
    return decode_run(bench, &s);
}

static int shape_tables(struct bench *bench, const struct scenario *base)
{
    static const struct {
        uint32_t dim, group;
    } shapes[] = {{64, 32}, {128, 64}, {128, 128}};
    size_t i;

    for (i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct scenario s = *base;

        s.kv_heads = (struct number_list){2, {32, 8}};
        s.contexts = one(is_reference(bench) ? 4096 : 16384);
        s.types = extremes;
        s.k_dim = s.v_dim = shapes[i].dim;
        s.group = shapes[i].group;
        if (!decode_run(bench, &s))
            return 0;
    }
    return 1;
}

static int prompt_tables(struct bench *bench, const struct scenario *base)
{
    struct scenario s = *base;

    s.kv_heads = one(8);
    s.contexts = one(4096);
    s.tokens = 512;
    if (!append_run(bench, &s))
        return 0;
    s.tokens = 1;
    if (!append_run(bench, &s))
        return 0;
    s.tokens = is_reference(bench) ? 256 : 2048;
    s.threads = one(base->threads.at[base->threads.n - 1]);
    return prefill_run(bench, &s);
}

int standard_run(struct bench *bench, const struct scenario *base)
{
    return bandwidth_run(bench, base) && decode_tables(bench, base) && shape_tables(bench, base)
           && prompt_tables(bench, base);
}
