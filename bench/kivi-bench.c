/*
 * kivi-bench: how fast the cache is on this machine, and how much of the memory's bandwidth it
 * uses.
 *
 * Sources: kivi-bench.c (this: the run as a whole), options.c (the command line), standard.c (the
 * standard table), decode.c, prompt.c (append and prefill), save.c, cuda.cu (decode, append and prefill on a
 * GPU), table.c (rows measured in turns), subject.c (a cache under measurement), measure.c (rounds and
 * medians), bandwidth.c (the reader), data.c (keys and values), machine.c (what it runs on), report.c
 * (tables and JSON), svg.c (the plot); examples/tool.h (what all tools do alike).
 *
 * Only the public interface of the library is used.
 */
#define _POSIX_C_SOURCE 200809L

#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../examples/tool.h"

#define LEAST_FOOTPRINT ((uint64_t)1 << 30)

/* What a run ends with. */
enum { DONE = 0, FAILED = 1, MISUSED = 2 };

/* The name of the backend that the library would take, or of the one asked for. Returns an exit status. */
static int resolve_backend(const char **name, const char **description)
{
    const char *wanted = *name ? *name : getenv("KIVI_BACKEND");
    char names[128];
    kivi_backend_info info;
    kivi_error error;
    size_t i;

    if (wanted && *wanted) {
        if (kivi_backend_find(wanted, &info, &error) != KIVI_OK) {
            tool_backends(names, sizeof names);
            fprintf(stderr, "kivi-bench: %s; it has %s\n", error.message, names);
            return MISUSED;
        }
        if (!info.available) {
            fprintf(stderr, "kivi-bench: backend %s: %s\n", info.name, info.reason);
            return FAILED;
        }
        *name = info.name;
        *description = info.description;
        return DONE;
    }
    for (i = 0; i < kivi_backend_count(); i++) {
        if (kivi_backend_get(i, &info, &error) == KIVI_OK && info.recommended) {
            *name = info.name;
            *description = info.description;
            return DONE;
        }
    }
    fprintf(stderr, "kivi-bench: no backend is available\n");
    return FAILED;
}

static int is_gpu(const char *backend)
{
    return backend && strcmp(backend, "cuda") == 0;
}

/* An option or a command that the backend would ignore is an error. */
static int check_meaning(const struct options *o, const char *backend)
{
    const char *option = is_gpu(backend) ? o->cpu_only : o->gpu_only;

    if (is_gpu(backend) && !(o->command & (COMMAND_DECODE | COMMAND_APPEND | COMMAND_PREFILL))) {
        fprintf(stderr,
                "kivi-bench: decode, append and prefill can be measured on the cuda backend\n");
        return MISUSED;
    }
    if (option) {
        fprintf(stderr, "kivi-bench: %s means nothing with the backend %s\n", option, backend);
        return MISUSED;
    }
#if !defined(KIVI_HAVE_CUDA)
    if (is_gpu(backend)) {
        fprintf(stderr,
                "kivi-bench: built without KIVI_CUDA, so it cannot measure the cuda backend\n");
        return FAILED;
    }
#endif
    return DONE;
}

/* Names the backends, and checks all that can be before anything is measured. Returns an exit status. */
static int prepare(struct options *o, const char **descriptions)
{
    int status = DONE, plots = 0;
    size_t i;

    if (o->command == COMMAND_BANDWIDTH)
        return DONE;
    for (i = 0; i < o->backends.n && status == DONE; i++) {
        status = resolve_backend(&o->backends.at[i], &descriptions[i]);
        if (status == DONE)
            status = check_meaning(o, o->backends.at[i]);
        if (status == DONE)
            plots |= o->command != COMMAND_ALL || standard_has_contexts(o->backends.at[i]);
    }
    if (status == DONE && o->settings.plot && !plots) {
        fprintf(stderr, "kivi-bench: --plot needs two contexts or more, and all has one with %s\n",
                o->backends.at[0]);
        return MISUSED;
    }
    return status;
}

/* Far more than the caches hold; less where that would not fit with `n` of them at once. */
static uint64_t choose_footprint(const struct machine *machine, size_t n)
{
    const uint64_t room = machine_available_bytes() / 10 * 7 / n;
    uint64_t footprint = 4 * machine->last_level_bytes;

    if (footprint < LEAST_FOOTPRINT)
        footprint = LEAST_FOOTPRINT;
    if (room && footprint > room) {
        footprint = room;
        fprintf(stderr, "kivi-bench: little memory: %llu MB of data for each row\n",
                (unsigned long long)(footprint >> 20));
    }
    return footprint;
}

/* One thread and all of them, unless the user says otherwise. */
static void choose_threads(struct number_list *threads)
{
    const unsigned all = machine_threads();

    if (threads->n == 0) {
        threads->at[threads->n++] = 1;
        if (all > 1)
            threads->at[threads->n++] = all;
    }
#if !defined(_OPENMP)
    if (threads->n > 1 || threads->at[0] > 1) {
        fprintf(stderr, "kivi-bench: built without OpenMP, so with one thread only\n");
        *threads = (struct number_list){1, {1}};
    }
#endif
}

static int run_command(struct bench *bench, const struct options *options)
{
    const struct scenario *s = &options->scenario;

#if defined(KIVI_HAVE_CUDA)
    /* A GPU's arrays are not the host's, and its time is not the host's clock. */
    if (is_gpu(bench->backend))
        return options->command == COMMAND_DECODE   ? cuda_decode_run(bench, s)
               : options->command == COMMAND_APPEND ? cuda_append_run(bench, s)
                                                    : cuda_prefill_run(bench, s);
#endif
    switch (options->command) {
    case COMMAND_DECODE:
        return decode_run(bench, s);
    case COMMAND_APPEND:
        return append_run(bench, s);
    case COMMAND_PREFILL:
        return prefill_run(bench, s);
    case COMMAND_SAVE:
        return save_run(bench, s);
    case COMMAND_BANDWIDTH:
        return bandwidth_run(bench, s);
    case COMMAND_ALL:
        return standard_run(bench, s);
    }
    return 0;
}

static int run_backends(struct bench *bench, const struct options *options,
                        const char *const *descriptions)
{
    size_t i;

    if (options->command == COMMAND_BANDWIDTH)
        return run_command(bench, options);
    for (i = 0; i < options->backends.n; i++) {
        bench->backend = options->backends.at[i];
        report_backend(&bench->report, bench->backend, descriptions[i]);
        if (!run_command(bench, options))
            return 0;
    }
    return 1;
}

/* Measures; the plot, if there is to be one, is closed. Returns an exit status. */
static int run(struct options *options, const char *const *descriptions, FILE *plot)
{
    struct machine machine;
    struct bench bench = {.settings = &options->settings};
    uint64_t footprint;
    int ok = 0;

    machine_read(&machine);
    choose_threads(&options->scenario.threads);
    bench.threads = machine_threads();
    bench.report = (struct report){.machine = &machine, .settings = &options->settings};
    footprint = choose_footprint(&machine, options->scenario.types.n + 1);
    bench.footprint = options->settings.footprint ? options->settings.footprint : footprint;
    report_begin(&bench.report);
    if (!reader_open(&bench.reader, footprint))
        fprintf(stderr, "kivi-bench: out of memory\n");
    else
        ok = run_backends(&bench, options, descriptions);
    report_end(&bench.report);
    if (plot && ok)
        ok = plot_write(plot, options->settings.plot, &bench.report);
    else if (plot)
        fclose(plot);
    reader_close(&bench.reader);
    free(bench.report.rows);
    return ok ? DONE : FAILED;
}

int main(int argc, char **argv)
{
    struct options options;
    const char *descriptions[LIST_MAX] = {0};
    FILE *plot = NULL;
    int status = options_parse(&options, argc, argv);

    if (status <= 0)
        return status < 0 ? MISUSED : tool_end("kivi-bench", DONE);
    status = prepare(&options, descriptions);
    if (status != DONE)
        return status;
    if (options.settings.plot && (plot = tool_open(options.settings.plot)) == NULL) {
        fprintf(stderr, "kivi-bench: %s cannot be written\n", options.settings.plot);
        return FAILED;
    }
    return tool_end("kivi-bench", run(&options, descriptions, plot));
}
