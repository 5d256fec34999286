#define _POSIX_C_SOURCE 200809L

#include "eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "forward.h"
#include "report.h"
#include "team.h"
#include "text.h"

#define DEFAULT_CONTEXT 2048u
#define BATCH_ROWS 32u /* types x windows that advance together, if there are enough windows */

/* Windows that advance together. Row type * n_windows + window of a batch is one stream. */
struct batch {
    const struct lm_evaluation *evaluation;
    struct lm_store *stores[LM_MAX_TYPES];
    struct lm_forward *forward;
    size_t n_windows;
    const uint8_t **windows; /* where each begins */
    uint8_t *tokens;         /* [rows] */
    uint32_t *positions;
    float *logits; /* [rows][LM_VOCABULARY] */
    double *log_p; /* [rows][LM_VOCABULARY] */
};

/* ---------------------------------------------------------------- windows */

/* Where the windows of the text begin; each has context + 1 bytes, the last only to predict. */
static int choose_windows(struct lm_evaluation *e, const struct lm_text *text, uint64_t **offsets,
                          struct lm_error *error)
{
    const struct lm_options *o = e->options;
    const uint64_t stride = o->stride ? o->stride : e->context;
    uint64_t n = (text->size - e->context - 1) / stride + 1;

    if (o->n_offsets)
        n = o->n_offsets;
    if (o->windows && o->windows < n)
        n = o->windows;
    *offsets = n > SIZE_MAX / sizeof **offsets ? NULL : malloc((size_t)n * sizeof **offsets);
    if (!*offsets)
        return lm_fail(error, "out of memory for %llu windows", (unsigned long long)n);
    e->n_windows = (size_t)n;
    for (size_t i = 0; i < n; i++) {
        (*offsets)[i] = o->n_offsets ? o->offsets[i] : i * stride;
        if ((*offsets)[i] > text->size - e->context - 1)
            return lm_fail(error, "%s: a window of %u bytes does not fit at offset %llu", o->text,
                           e->context, (unsigned long long)(*offsets)[i]);
    }
    return 0;
}

static int choose_context(struct lm_evaluation *e, const struct lm_text *text,
                          struct lm_error *error)
{
    const struct lm_options *o = e->options;

    if (text->size < 2)
        return lm_fail(error, "%s: no text", o->text);
    e->context = o->context ? o->context : DEFAULT_CONTEXT;
    if (e->context > e->model->context)
        return lm_fail(error, "--ctx %u is beyond the model's context of %u", e->context,
                       e->model->context);
    if (text->size - 1 < e->context) {
        if (o->context)
            return lm_fail(error, "%s: %zu bytes are too few for --ctx %u", o->text, text->size,
                           o->context);
        e->context = (uint32_t)(text->size - 1);
    }
    return 0;
}

/* ---------------------------------------------------------------- scoring */

/* log softmax of one row. */
static void log_softmax(const float *logits, double *log_p)
{
    double largest = logits[0], sum = 0;

    for (size_t i = 1; i < LM_VOCABULARY; i++)
        largest = logits[i] > largest ? logits[i] : largest;
    for (size_t i = 0; i < LM_VOCABULARY; i++)
        sum += exp(logits[i] - largest);
    for (size_t i = 0; i < LM_VOCABULARY; i++)
        log_p[i] = logits[i] - largest - log(sum);
}

static double divergence(const double *log_p, const double *log_q)
{
    double sum = 0;

    for (size_t i = 0; i < LM_VOCABULARY; i++)
        sum += exp(log_p[i]) * (log_p[i] - log_q[i]);
    return sum;
}

/* Adds up what all streams predicted for the byte after `position`. */
static void score(const struct batch *b, uint32_t position, struct lm_result *results)
{
    const size_t n_types = b->evaluation->options->n_types;
    const size_t rows = n_types * b->n_windows;

#pragma omp parallel for schedule(static)                                                          \
    num_threads(lm_team(n_types * b->n_windows * LM_VOCABULARY * LM_EXP))
    for (size_t r = 0; r < rows; r++)
        log_softmax(b->logits + r * LM_VOCABULARY, b->log_p + r * LM_VOCABULARY);
    for (size_t t = 0; t < n_types; t++) {
        for (size_t w = 0; w < b->n_windows; w++) {
            const double *log_p = b->log_p + (t * b->n_windows + w) * LM_VOCABULARY;

            results[t].bits_per_byte -= log_p[b->windows[w][position + 1]] / log(2.0);
            if (t > 0)
                results[t].kl += divergence(b->log_p + w * LM_VOCABULARY, log_p);
        }
    }
}

/* ---------------------------------------------------------------- batches */

static void free_batch(struct batch *b)
{
    for (size_t t = 0; t < LM_MAX_TYPES; t++)
        lm_store_destroy(b->stores[t]);
    lm_forward_destroy(b->forward);
    free(b->windows);
    free(b->tokens);
    free(b->positions);
    free(b->logits);
    free(b->log_p);
}

static int create_batch(struct batch *b, const struct lm_evaluation *e, size_t n_windows,
                        struct lm_error *error)
{
    const struct lm_options *o = e->options;
    const size_t rows = o->n_types * n_windows;

    memset(b, 0, sizeof *b);
    b->evaluation = e;
    b->n_windows = n_windows;
    b->windows = calloc(n_windows, sizeof *b->windows);
    b->tokens = calloc(rows, sizeof *b->tokens);
    b->positions = calloc(rows, sizeof *b->positions);
    b->logits = calloc(rows * LM_VOCABULARY, sizeof *b->logits);
    b->log_p = calloc(rows * LM_VOCABULARY, sizeof *b->log_p);
    if (!b->windows || !b->tokens || !b->positions || !b->logits || !b->log_p)
        return lm_fail(error, "out of memory for %zu streams", rows);
    for (size_t t = 0; t < o->n_types; t++) {
        if (lm_store_create(e->model, &o->types[t], &o->cache, n_windows, e->context, &b->stores[t],
                            error))
            return -1;
    }
    return lm_forward_create(e->model, rows, e->context, &b->forward, error);
}

static int attend_batch(void *context, uint32_t layer, const struct lm_heads *heads,
                        struct lm_error *error)
{
    struct batch *b = context;
    const struct lm_model *m = b->evaluation->model;

    for (size_t t = 0; t < b->evaluation->options->n_types; t++) {
        const size_t row = t * b->n_windows;
        const size_t at = row * heads->stride;
        const struct lm_heads part = {heads->q + at, heads->k + at, heads->v + at, heads->stride,
                                      heads->out + row * m->n_heads * m->v_dim};

        if (lm_store_attend(b->stores[t], layer, &part, 1, error))
            return -1;
    }
    return 0;
}

static int run_batch(struct batch *b, struct lm_evaluation *e, uint64_t done,
                     struct lm_progress *progress, struct lm_error *error)
{
    const size_t n_types = e->options->n_types;
    const size_t rows = n_types * b->n_windows;

    for (uint32_t p = 0; p < e->context; p++) {
        for (size_t r = 0; r < rows; r++) {
            b->tokens[r] = b->windows[r % b->n_windows][p];
            b->positions[r] = p;
        }
        if (lm_forward_run(b->forward, b->tokens, b->positions, rows, attend_batch, b, b->logits,
                           error))
            return -1;
        score(b, p, e->results);
        lm_progress_show(progress, done + (p + 1) * b->n_windows, e->n_windows * e->context);
    }
    lm_store_describe(b->stores[0], e->backend, sizeof e->backend);
    for (size_t t = 0; t < n_types; t++) {
        if (lm_store_usage(b->stores[t], &e->results[t].usage, error))
            return -1;
        e->results[t].seconds += lm_store_seconds(b->stores[t]);
    }
    return 0;
}

static int run(struct lm_evaluation *e, const struct lm_text *text, const uint64_t *offsets,
               struct lm_error *error)
{
    const size_t most = e->options->n_types < BATCH_ROWS ? BATCH_ROWS / e->options->n_types : 1;
    struct lm_progress progress;
    int result = 0;

    lm_progress_begin(&progress);
    for (size_t first = 0; !result && first < e->n_windows; first += most) {
        const size_t left = e->n_windows - first;
        struct batch b;

        result = create_batch(&b, e, left < most ? left : most, error);
        for (size_t w = 0; !result && w < b.n_windows; w++)
            b.windows[w] = text->bytes + offsets[first + w];
        if (!result)
            result = run_batch(&b, e, first * e->context, &progress, error);
        free_batch(&b);
    }
    lm_progress_end(&progress);
    return result;
}

int lm_eval(const struct lm_model *model, const struct lm_options *options, struct lm_error *error)
{
    const double start = lm_seconds();
    struct lm_evaluation e = {.options = options, .model = model};
    struct lm_text text;
    uint64_t *offsets = NULL;
    int result;

    if (lm_text_read(&text, options->text, error))
        return -1;
    result = choose_context(&e, &text, error);
    if (!result)
        result = choose_windows(&e, &text, &offsets, error);
    if (!result)
        result = run(&e, &text, offsets, error);
    if (!result) {
        e.positions = (uint64_t)e.n_windows * e.context;
        for (size_t t = 0; t < options->n_types; t++) {
            e.results[t].bits_per_byte /= (double)e.positions;
            e.results[t].kl /= (double)e.positions;
        }
        e.seconds = lm_seconds() - start;
        (options->json ? lm_print_json : lm_print_table)(&e);
    }
    free(offsets);
    lm_text_free(&text);
    return result;
}
