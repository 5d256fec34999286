/*
 * kivi-bench: how fast the cache is on this machine, and how much of the memory's bandwidth it
 * uses.
 *
 * Sources: kivi-bench.c (this: the run as a whole), options.c (the command line), standard.c (the
 * standard table), decode.c, prompt.c (append and prefill), save.c, cuda.cu (decode, append and prefill on a
 * GPU), table.c (rows measured in turns), subject.c (a cache under measurement), measure.c (rounds and
 * medians), bandwidth.c (the reader), data.c (keys and values), machine.c (what it runs on), report.c
 * (tables and JSON), svg.c (the plot).
 *
 * Only the public interface of the library is used.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEAST_FOOTPRINT ((uint64_t)1 << 30)

/* The name of the backend that the library would take, or of the one asked for. */
static int resolve_backend(const char **name, const char **description)
{
    const char *wanted = *name ? *name : getenv("KIVI_BACKEND");
    kivi_backend_info info;
    kivi_error error;
    size_t i;

    if (wanted && *wanted) {
        if (kivi_backend_find(wanted, &info, &error) != KIVI_OK) {
            fprintf(stderr, "kivi-bench: %s\n", error.message);
            return 0;
        }
        if (!info.available) {
            fprintf(stderr, "kivi-bench: backend %s: %s\n", info.name, info.reason);
            return 0;
        }
        *name = info.name;
        *description = info.description;
        return 1;
    }
    for (i = 0; i < kivi_backend_count(); i++) {
        if (kivi_backend_get(i, &info, &error) == KIVI_OK && info.recommended) {
            *name = info.name;
            *description = info.description;
            return 1;
        }
    }
    fprintf(stderr, "kivi-bench: no backend is available\n");
    return 0;
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

/* A GPU's arrays are not the host's, and its time is not the host's clock. */
static int run_on_gpu(struct bench *bench, const struct options *options)
{
#if defined(KIVI_HAVE_CUDA)
    if (options->command == COMMAND_DECODE)
        return cuda_decode_run(bench, &options->scenario);
    if (options->command == COMMAND_APPEND)
        return cuda_append_run(bench, &options->scenario);
    if (options->command == COMMAND_PREFILL)
        return cuda_prefill_run(bench, &options->scenario);
    fprintf(stderr, "kivi-bench: decode, append and prefill can be measured on the cuda backend\n");
#else
    (void)bench;
    (void)options;
    fprintf(stderr, "kivi-bench: built without KIVI_CUDA, so it cannot measure the cuda backend\n");
#endif
    return 0;
}

/* An option that the backend would ignore is an error. */
static int has_meaning(const char *option, const char *backend)
{
    if (!option)
        return 1;
    fprintf(stderr, "kivi-bench: %s means nothing with the backend %s\n", option, backend);
    return 0;
}

static int run_command(struct bench *bench, const struct options *options)
{
    const struct scenario *s = &options->scenario;

    if (bench->backend && strcmp(bench->backend, "cuda") == 0)
        return has_meaning(options->cpu_only, bench->backend) && run_on_gpu(bench, options);
    if (!has_meaning(options->gpu_only, bench->backend))
        return 0;
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

static int run_backends(struct bench *bench, const struct options *options)
{
    size_t i;

    if (options->command == COMMAND_BANDWIDTH)
        return run_command(bench, options);
    for (i = 0; i < options->backends.n; i++) {
        const char *description = "";

        bench->backend = options->backends.at[i];
        if (!resolve_backend(&bench->backend, &description))
            return 0;
        report_backend(&bench->report, bench->backend, description);
        if (!run_command(bench, options))
            return 0;
    }
    return 1;
}

int main(int argc, char **argv)
{
    struct options options;
    struct machine machine;
    struct bench bench = {.settings = &options.settings};
    uint64_t footprint;
    int status = options_parse(&options, argc, argv);

    if (status <= 0)
        return status < 0 ? 2 : 0;
    machine_read(&machine);
    choose_threads(&options.scenario.threads);
    bench.threads = machine_threads();
    bench.report = (struct report){.machine = &machine, .settings = &options.settings};
    footprint = choose_footprint(&machine, options.scenario.types.n + 1);
    bench.footprint = options.settings.footprint ? options.settings.footprint : footprint;
    report_begin(&bench.report);
    status = 1;
    if (!reader_open(&bench.reader, footprint))
        fprintf(stderr, "kivi-bench: out of memory\n");
    else if (run_backends(&bench, &options))
        status = 0;
    report_end(&bench.report);
    if (status == 0 && options.settings.plot && !plot_write(options.settings.plot, &bench.report))
        status = 1;
    reader_close(&bench.reader);
    free(bench.report.rows);
    return status;
}
