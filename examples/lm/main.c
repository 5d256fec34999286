/* kivi-lm: a small language model on the library's public API alone. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../tool.h"
#include "eval.h"
#include "generate.h"
#include "options.h"

static int run(const struct lm_options *options, struct lm_error *error)
{
    struct lm_error detail;
    struct lm_model model;
    int result;

    if (lm_model_load(&model, options->model, &detail))
        return lm_fail(error, "%s: %s", options->model, detail.text);
    result = options->command == LM_EVAL ? lm_eval(&model, options, error)
                                         : lm_generate(&model, options, error);
    lm_model_free(&model);
    return result;
}

int main(int argc, char **argv)
{
    struct lm_options options;
    struct lm_error error;

    if (lm_options_parse(argc, argv, &options, &error)) {
        fprintf(stderr, "kivi-lm: %s\n", error.text);
        return 2;
    }
    if (options.command == LM_HELP) {
        fputs(lm_help, stdout);
        return tool_end("kivi-lm", 0);
    }
    if (options.command == LM_VERSION) {
        printf("kivi-lm, libkivi %s\n", kivi_version());
        return tool_end("kivi-lm", 0);
    }
#if defined(_OPENMP)
    if (options.cache.n_threads)
        omp_set_num_threads((int)options.cache.n_threads);
#endif
    if (run(&options, &error)) {
        fflush(stdout);
        fprintf(stderr, "kivi-lm: %s\n", error.text);
        return 1;
    }
    return tool_end("kivi-lm", 0);
}
