#define _POSIX_C_SOURCE 200809L

#include "generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "../tool.h"
#include "forward.h"

/* One sequence, which grows by `n` tokens a call. */
struct stream {
    struct lm_store *store;
    size_t n;
};

static int attend_stream(void *context, uint32_t layer, const struct lm_heads *heads,
                         struct lm_error *error)
{
    const struct stream *stream = context;

    return lm_store_attend(stream->store, layer, heads, stream->n, error);
}

/* Uniform in [0, 1): splitmix64. */
static double random_unit(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static uint8_t choose(const float *logits, double temperature, uint64_t *state)
{
    double weights[LM_VOCABULARY], sum = 0, left;
    size_t best = 0;

    for (size_t i = 1; i < LM_VOCABULARY; i++)
        best = logits[i] > logits[best] ? i : best;
    if (temperature == 0)
        return (uint8_t)best;
    for (size_t i = 0; i < LM_VOCABULARY; i++)
        sum += weights[i] = exp((logits[i] - logits[best]) / temperature);
    left = random_unit(state) * sum;
    for (size_t i = 0; i < LM_VOCABULARY; i++) {
        left -= weights[i];
        if (left < 0)
            return (uint8_t)i;
    }
    return (uint8_t)best;
}

/* Memory of a run. */
struct buffers {
    struct lm_forward *forward;
    uint8_t *tokens;
    uint32_t *positions;
    float *logits; /* [prompt][LM_VOCABULARY] */
};

static int write_text(struct stream *stream, struct buffers *b, const struct lm_options *options,
                      size_t n_prompt, size_t n_bytes, struct lm_error *error)
{
    uint64_t state = options->seed;
    size_t length = 0;

    stream->n = n_prompt;
    for (size_t i = 0; i < n_prompt; i++) {
        b->tokens[i] = (uint8_t)options->prompt[i];
        b->positions[i] = (uint32_t)i;
    }
    fwrite(options->prompt, 1, n_prompt, stdout);
    for (size_t i = 0; i < n_bytes; i++) {
        if (lm_forward_run(b->forward, b->tokens, b->positions, stream->n, attend_stream, stream,
                           b->logits, error))
            return -1;
        length += stream->n;
        b->tokens[0] =
            choose(b->logits + (stream->n - 1) * LM_VOCABULARY, options->temperature, &state);
        b->positions[0] = (uint32_t)length;
        stream->n = 1;
        if (putchar(b->tokens[0]) == EOF || fflush(stdout))
            return lm_fail(error, "standard output cannot be written");
    }
    putchar('\n');
    return 0;
}

static int report(const struct lm_store *store, const struct lm_options *options, size_t n_bytes,
                  double seconds, struct lm_error *error)
{
    struct lm_usage usage;
    uint64_t bytes;

    if (lm_store_usage(store, &usage, error))
        return -1;
    bytes = usage.code_bytes + usage.scale_bytes + usage.window_bytes;
    fprintf(stderr,
            "%zu bytes in %.2f s; the %s cache of %llu tokens takes %llu bytes, f16 would "
            "take %llu\n",
            n_bytes, seconds, options->types[0].name, (unsigned long long)usage.tokens,
            (unsigned long long)bytes, (unsigned long long)usage.f16_bytes);
    return 0;
}

/* Closes the file in any case. */
static int save(const struct lm_store *store, FILE *file, const char *path, struct lm_error *error)
{
    struct lm_error detail = {"cannot be written"};
    int result = tool_begin(file) ? lm_store_save(store, file, &detail) : -1;

    if (fclose(file) != 0)
        result = -1;
    return result ? lm_fail(error, "%s: %s", path, detail.text) : 0;
}

int lm_generate(const struct lm_model *model, const struct lm_options *options,
                struct lm_error *error)
{
    const size_t n_prompt = strlen(options->prompt);
    const double start = lm_seconds();
    struct stream stream = {NULL, 0};
    struct buffers b = {NULL, NULL, NULL, NULL};
    size_t n_bytes = options->n_bytes;
    FILE *file = NULL;
    int result;

    if (n_prompt > model->context)
        return lm_fail(error, "the prompt's %zu bytes are beyond the model's context of %u",
                       n_prompt, model->context);
    if (n_bytes > model->context - n_prompt + 1) /* the last byte need not be read again */
        n_bytes = model->context - n_prompt + 1;
    b.tokens = malloc(n_prompt);
    b.positions = malloc(n_prompt * sizeof *b.positions);
    b.logits = malloc(n_prompt * LM_VOCABULARY * sizeof *b.logits);
    if (!b.tokens || !b.positions || !b.logits)
        result = lm_fail(error, "out of memory for a prompt of %zu bytes", n_prompt);
    else
        result = lm_forward_create(model, n_prompt, model->context, &b.forward, error);
    if (!result)
        result = lm_store_create(model, &options->types[0], &options->cache, 1, model->context,
                                 &stream.store, error);
    if (!result && options->save && (file = tool_open(options->save)) == NULL)
        result = lm_fail(error, "%s: cannot be written", options->save);
    if (!result)
        result = write_text(&stream, &b, options, n_prompt, n_bytes, error);
    if (!result)
        result = report(stream.store, options, n_bytes, lm_seconds() - start, error);
    if (!result && file)
        result = save(stream.store, file, options->save, error);
    else if (file)
        fclose(file);
    lm_store_destroy(stream.store);
    lm_forward_destroy(b.forward);
    free(b.tokens);
    free(b.positions);
    free(b.logits);
    return result;
}
