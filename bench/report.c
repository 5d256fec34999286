#include "report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_bytes(uint64_t bytes)
{
    if (bytes >> 20 && bytes % ((uint64_t)1 << 20) == 0)
        printf("%llu MB", (unsigned long long)(bytes >> 20));
    else
        printf("%llu KB", (unsigned long long)(bytes >> 10));
}

static void print_machine(const struct machine *m)
{
    size_t i;

    printf("CPU       %s, %u cores", m->cpu, m->cores);
    for (i = 0; i < m->n_caches; i++) {
        if (strcmp(m->caches[i].type, "Instruction") == 0)
            continue;
        printf(", L%u ", m->caches[i].level);
        print_bytes(m->caches[i].bytes);
        if (m->caches[i].sharers > 1)
            printf(" for %u cores", m->caches[i].sharers);
    }
    printf("\nmemory    %.1f GB, transparent huge pages %s\n", (double)m->memory_bytes * 1e-9,
           m->huge_pages);
    printf("OpenMP    %s\n", m->openmp);
    printf("library   %s, bench compiled by %s\n", kivi_version(), m->compiler);
}

void report_begin(struct report *r)
{
    if (r->settings->json)
        return;
    print_machine(r->machine);
    printf("data      %s%s\n",
           r->settings->gauss ? "Gaussian" : "Gaussian, keys with outlier channels",
           r->settings->host_threads ? "; driven by the host's threads (kivi_work_*)" : "");
}

void report_backend(struct report *r, const char *name, const char *description)
{
    if (!r->settings->json)
        printf("\nbackend   %s: %s\n", name, description);
}

void report_gpu(struct report *r, const char *description)
{
    snprintf(r->gpu, sizeof r->gpu, "%s", description);
    if (!r->settings->json)
        printf("\nGPU       %s\n", description);
}

void report_heading(struct report *r, const char *heading)
{
    r->last_command = NULL;
    if (!r->settings->json)
        printf("\n%s\n", heading);
    fflush(stdout); /* before what may go wrong and be said on stderr */
}

void report_note(struct report *r, const char *note)
{
    if (!r->settings->json)
        printf("%s\n", note);
}

static int is_command(const struct row *row, const char *command)
{
    return strcmp(row->command, command) == 0;
}

static int has_context(const struct row *row)
{
    return is_command(row, "decode") || is_command(row, "save");
}

/* A GPU has tables of its own: threads are not the host's. */
static void print_gpu_columns(const struct row *w)
{
    if (has_context(w))
        printf("%-24s %-5s %-9s %6s %8s %8s %8s %8s %8s %7s %7s\n", "batch, q, kv, tokens", "cache",
               "precision", "layers", "MB", "reading", "graph", "queued", "append", "GB/s",
               "of read");
    else if (is_command(w, "prefill"))
        printf("%8s %-5s %-9s %8s %8s %8s\n", "kv heads", "cache", "precision", "tokens", "us",
               "TFLOP/s");
    else
        printf("%8s %-5s %8s %8s %7s %7s\n", "kv heads", "cache", "tokens", "us", "GB/s",
               "of copy");
}

static void print_gpu_row(const struct row *w)
{
    const double rate = (double)w->bytes / w->median * 1e-9;
    char shape[64], shortest[24] = "";

    if (has_context(w)) {
        if (w->shortest)
            snprintf(shortest, sizeof shortest, "%llu-", (unsigned long long)w->shortest);
        snprintf(shape, sizeof shape, "%u, %u, %u, %s%llu", w->batch, w->shape.q_heads,
                 w->shape.kv_heads, shortest, (unsigned long long)w->context);
        printf("%-24s %-5s %-9s %6u %8.2f %8.1f %8.1f %8.1f %8.1f %7.0f %7.2f\n", shape, w->cache,
               w->precision, w->layers, (double)w->bytes * 1e-6, w->reading * 1e6, w->median * 1e6,
               w->queued * 1e6, w->with_append * 1e6, rate, w->of_read);
    } else if (is_command(w, "prefill")) {
        printf("%8u %-5s %-9s %8u %8.1f %8.1f\n", w->shape.kv_heads, w->cache, w->precision, w->tokens,
               w->median * 1e6, w->operations / w->median * 1e-12);
    } else {
        printf("%8u %-5s %8u %8.1f %7.0f %7.2f\n", w->shape.kv_heads, w->cache, w->tokens,
               w->median * 1e6, rate, w->of_read);
    }
    fflush(stdout);
}

static void print_columns(const struct row *w)
{
    if (w->batch > 0) {
        print_gpu_columns(w);
        return;
    }
    if (is_command(w, "bandwidth")) {
        printf("%7s %11s %11s %9s %7s %10s\n", "threads", "median us", "min us", "MB", "GB/s",
               "best GB/s");
        return;
    }
    printf("%8s %7s  %-5s %-9s %11s %11s", has_context(w) ? "context" : "tokens", "threads",
           is_command(w, "save") ? "what" : "cache", "precision", "median us", "min us");
    if (is_command(w, "prefill"))
        printf(" %10s", "GFLOP/s");
    else
        printf(" %9s %7s %8s", "MB", "GB/s", is_command(w, "save") ? "of copy" : "of read");
    printf(" %7s\n", "x f16");
}

static void print_number(int width, int decimals, double number)
{
    if (number > 0)
        printf(" %*.*f", width, decimals, number);
    else
        printf(" %*s", width, "-");
}

static void print_times_and_bytes(const struct row *w)
{
    printf(" %11.1f %11.1f", w->median * 1e6, w->min * 1e6);
    if (is_command(w, "prefill"))
        return;
    print_number(9, 2, (double)w->bytes * 1e-6);
    print_number(7, 2, (double)w->bytes / w->median * 1e-9);
}

static void print_row(const struct row *w)
{
    if (w->batch > 0) {
        print_gpu_row(w);
        return;
    }
    if (is_command(w, "bandwidth")) {
        printf("%7u", w->threads);
        print_times_and_bytes(w);
        print_number(10, 2, (double)w->bytes / w->min * 1e-9);
    } else {
        printf("%8llu %7u  %-5s %-9s",
               (unsigned long long)(has_context(w) ? w->context : w->tokens), w->threads, w->cache,
               w->precision);
        print_times_and_bytes(w);
        if (is_command(w, "prefill"))
            print_number(10, 1, w->operations / w->median * 1e-9);
        else
            print_number(8, 2, w->of_read);
        print_number(7, 2, w->of_f16);
    }
    printf("\n");
    fflush(stdout);
}

int report_row(struct report *r, const struct row *row)
{
    if (r->n_rows == r->capacity) {
        const size_t capacity = r->capacity ? 2 * r->capacity : 64;
        struct row *rows = realloc(r->rows, capacity * sizeof *rows);

        if (!rows)
            return 0;
        r->rows = rows;
        r->capacity = capacity;
    }
    r->rows[r->n_rows++] = *row;
    if (!r->settings->json) {
        if (!r->last_command || strcmp(r->last_command, row->command) != 0)
            print_columns(row);
        r->last_command = row->command;
        print_row(row);
    }
    return 1;
}

/* ------------------------------------------------------------------- JSON */

static void json_string(const char *name, const char *text, const char *end)
{
    printf("\"%s\": \"", name);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            printf("\\u%04x", (unsigned)(unsigned char)*text);
        else
            putchar(*text);
    }
    printf("\"%s", end);
}

static void json_machine(const struct machine *m)
{
    size_t i;

    printf("\"machine\": {");
    json_string("cpu", m->cpu, ", ");
    printf("\"cores\": %u, \"memory_bytes\": %llu, \"caches\": [", m->cores,
           (unsigned long long)m->memory_bytes);
    for (i = 0; i < m->n_caches; i++) {
        printf("%s{\"level\": %u, ", i ? ", " : "", m->caches[i].level);
        json_string("type", m->caches[i].type, ", ");
        printf("\"bytes\": %llu, \"sharers\": %u}", (unsigned long long)m->caches[i].bytes,
               m->caches[i].sharers);
    }
    printf("], ");
    json_string("huge_pages", m->huge_pages, ", ");
    json_string("openmp", m->openmp, ", ");
    json_string("compiler", m->compiler, "},\n");
}

static void json_row(const struct row *w, const char *end)
{
    printf("  {");
    json_string("command", w->command, ", ");
    json_string("backend", w->backend, ", ");
    printf("\"q_heads\": %u, \"kv_heads\": %u, \"k_dim\": %u, \"v_dim\": %u, \"group\": %u, ",
           w->shape.q_heads, w->shape.kv_heads, w->shape.k_dim, w->shape.v_dim, w->shape.group);
    json_string("cache", w->cache, ", ");
    json_string("precision", w->precision, ", ");
    printf("\"threads\": %u, \"context\": %llu, \"queries\": %u, \"tokens\": %u, ", w->threads,
           (unsigned long long)w->context, w->queries, w->tokens);
    printf("\"in_cache\": %s, \"appends\": %s, \"host_threads\": %s, ",
           w->in_cache ? "true" : "false", w->appends ? "true" : "false",
           w->host_threads ? "true" : "false");
    if (w->batch > 0)
        printf("\"batch\": %u, \"shortest\": %llu, \"layers\": %u, \"reading_s\": %.9g, "
               "\"queued_s\": %.9g, \"with_append_s\": %.9g, ",
               w->batch, (unsigned long long)(w->shortest ? w->shortest : w->context), w->layers,
               w->reading, w->queued, w->with_append);
    printf("\"rounds\": %zu, \"median_s\": %.9g, \"min_s\": %.9g, \"bytes\": %llu, ", w->rounds,
           w->median, w->min, (unsigned long long)w->bytes);
    printf("\"footprint\": %llu, \"gb_per_s\": %.6g, \"operations\": %.9g, ",
           (unsigned long long)w->footprint, (double)w->bytes / w->median * 1e-9, w->operations);
    printf("\"of_read\": %.6g, \"of_f16\": %.6g}%s\n", w->of_read, w->of_f16, end);
}

void report_end(struct report *r)
{
    size_t i;

    if (!r->settings->json)
        return;
    printf("{");
    json_string("version", kivi_version(), ", ");
    json_string("data", r->settings->gauss ? "gauss" : "outlier", ",\n");
    json_machine(r->machine);
    if (r->gpu[0] != '\0')
        json_string("gpu", r->gpu, ",\n");
    printf("\"rows\": [\n");
    for (i = 0; i < r->n_rows; i++)
        json_row(&r->rows[i], i + 1 < r->n_rows ? "," : "");
    printf("]}\n");
}
