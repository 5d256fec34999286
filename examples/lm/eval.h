/* kivi-lm eval. */
#ifndef LM_EVAL_H
#define LM_EVAL_H

#include "options.h"

/* What one cache type came to. */
struct lm_result {
    double bits_per_byte;
    double kl; /* mean, nats, of the f16 prediction from this one */
    double seconds;
    struct lm_usage usage; /* at the end of the last windows */
};

/* A whole run. */
struct lm_evaluation {
    const struct lm_options *options;
    const struct lm_model *model;
    uint32_t context; /* bytes of a window */
    size_t n_windows;
    uint64_t positions; /* predicted, for each type */
    double seconds;     /* of the run */
    char backend[256];  /* in words */
    struct lm_result results[LM_MAX_TYPES];
};

/* Runs it and prints the result. */
int lm_eval(const struct lm_model *model, const struct lm_options *options, struct lm_error *error);

#endif
