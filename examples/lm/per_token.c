#include "per_token.h"

#include <math.h>
#include <stdlib.h>

#include "half.h"
#include "team.h"

/* Rows of one kv head of one layer of one sequence, as attention sees them. */
struct head {
    float *keys, *values; /* [max_tokens][k_dim], [max_tokens][v_dim] */
};

struct lm_per_token {
    const struct lm_model *model;
    struct lm_cache_options options;
    uint32_t k_bits, v_bits;
    size_t n_sequences;
    uint32_t max_tokens;
    uint32_t *lengths; /* [n_layers] */
    float *rows;       /* all heads: [layer][sequence][kv head] of keys, then values */
    float *scores;     /* [sequence][kv head][max_tokens] */
    char *packed;      /* [sequence][kv head][packed_bytes] */
    size_t packed_bytes;
};

static kivi_packing packing_of(const struct lm_per_token *c, uint32_t bits, uint32_t dim,
                               uint64_t n_tokens)
{
    const kivi_packing packing = {.size = sizeof packing,
                                  .axis = KIVI_PER_TOKEN,
                                  .bits = bits,
                                  .group_size = c->options.group_size,
                                  .dim = dim,
                                  .n_tokens = n_tokens};
    return packing;
}

static size_t head_floats(const struct lm_per_token *c)
{
    return (size_t)c->max_tokens * (c->model->k_dim + c->model->v_dim);
}

int lm_per_token_create(const struct lm_model *model, const struct lm_cache_type *type,
                        const struct lm_cache_options *options, size_t n_sequences,
                        uint32_t max_tokens, struct lm_per_token **cache, struct lm_error *error)
{
    const size_t heads = n_sequences * model->n_kv_heads;
    struct lm_per_token *c = calloc(1, sizeof *c);
    kivi_packing keys, values;
    uint64_t k_bytes, v_bytes;

    *cache = NULL;
    if (!c)
        return lm_fail(error, "out of memory");
    c->model = model;
    c->options = *options;
    c->k_bits = type->k_bits;
    c->v_bits = type->v_bits;
    c->n_sequences = n_sequences;
    c->max_tokens = max_tokens;
    keys = packing_of(c, c->k_bits, model->k_dim, options->residual_length);
    values = packing_of(c, c->v_bits, model->v_dim, 1);
    k_bytes = kivi_packed_size(&keys);
    v_bytes = kivi_packed_size(&values);
    if (k_bytes == 0 || v_bytes == 0) {
        lm_per_token_destroy(c);
        return lm_fail(error,
                       "%s: groups of %u, windows of %u and heads of %u and %u cannot be "
                       "packed",
                       type->name, options->group_size, options->residual_length, model->k_dim,
                       model->v_dim);
    }
    c->packed_bytes = (size_t)(k_bytes > v_bytes ? k_bytes : v_bytes);
    c->lengths = calloc(model->n_layers, sizeof *c->lengths);
    c->rows = malloc(heads * model->n_layers * head_floats(c) * sizeof *c->rows);
    c->scores = malloc(heads * max_tokens * sizeof *c->scores);
    c->packed = malloc(heads * c->packed_bytes);
    if (!c->lengths || !c->rows || !c->scores || !c->packed) {
        lm_per_token_destroy(c);
        return lm_fail(error, "out of memory for %zu sequences of %u tokens", n_sequences,
                       max_tokens);
    }
    *cache = c;
    return 0;
}

void lm_per_token_destroy(struct lm_per_token *cache)
{
    if (!cache)
        return;
    free(cache->lengths);
    free(cache->rows);
    free(cache->scores);
    free(cache->packed);
    free(cache);
}

/* ---------------------------------------------------------- quantization */

/* Replaces rows [begin, end) by what quantization leaves of them, but for the sinks. */
static kivi_status requantize(const struct lm_per_token *c, uint32_t bits, uint32_t dim,
                              float *rows, uint32_t begin, uint32_t end, char *packed,
                              kivi_error *error)
{
    const uint32_t first = begin < c->options.n_sink ? c->options.n_sink : begin;
    kivi_packing packing;
    kivi_in in;
    kivi_status status;

    if (first >= end)
        return KIVI_OK;
    packing = packing_of(c, bits, dim, end - first);
    rows += (size_t)first * dim;
    in = (kivi_in){rows, KIVI_F32, dim, 0};
    status = kivi_pack(&packing, in, packed, error);
    return status ? status : kivi_unpack(&packing, packed, rows, error);
}

/* After the attention of token n - 1: the window rule of the library's cache. */
static kivi_status flush(const struct lm_per_token *c, struct head head, uint32_t n, char *packed,
                         kivi_error *error)
{
    const uint32_t residual = c->options.residual_length;
    kivi_status status = KIVI_OK;

    if (n % residual == 0)
        status =
            requantize(c, c->k_bits, c->model->k_dim, head.keys, n - residual, n, packed, error);
    if (!status && n > residual)
        status = requantize(c, c->v_bits, c->model->v_dim, head.values, n - residual - 1,
                            n - residual, packed, error);
    return status;
}

/* ------------------------------------------------------------- attention */

static void append(float *row, const float *x, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++)
        row[i] = lm_round_to_half(x[i]);
}

static float dot(const float *a, const float *b, uint32_t n)
{
    float sum = 0;

#pragma omp simd reduction(+ : sum)
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* softmax(q . keys / sqrt(k_dim)) . values over n tokens. */
static void attend(const struct lm_model *m, struct head head, uint32_t n, const float *q,
                   float *scores, float *out)
{
    const float scale = 1.0f / sqrtf((float)m->k_dim);
    float largest = -INFINITY, sum = 0;

    for (uint32_t t = 0; t < n; t++) {
        scores[t] = scale * dot(q, head.keys + (size_t)t * m->k_dim, m->k_dim);
        largest = scores[t] > largest ? scores[t] : largest;
    }
    for (uint32_t i = 0; i < m->v_dim; i++)
        out[i] = 0;
    for (uint32_t t = 0; t < n; t++) {
        const float weight = expf(scores[t] - largest);
        const float *value = head.values + (size_t)t * m->v_dim;

        sum += weight;
        for (uint32_t i = 0; i < m->v_dim; i++)
            out[i] += weight * value[i];
    }
    for (uint32_t i = 0; i < m->v_dim; i++)
        out[i] /= sum;
}

/* Everything that one kv head of one sequence does in a step. */
static kivi_status step(const struct lm_per_token *c, uint32_t layer, size_t index,
                        const struct lm_heads *heads, kivi_error *error)
{
    const struct lm_model *m = c->model;
    const size_t sequence = index / m->n_kv_heads, kv_head = index % m->n_kv_heads;
    const size_t shared = m->n_heads / m->n_kv_heads;
    const size_t at = layer * c->n_sequences * m->n_kv_heads + index;
    const struct head head = {c->rows + at * head_floats(c),
                              c->rows + at * head_floats(c) + (size_t)c->max_tokens * m->k_dim};
    const uint32_t n = c->lengths[layer] + 1;

    append(head.keys + (size_t)(n - 1) * m->k_dim,
           heads->k + sequence * heads->stride + kv_head * m->k_dim, m->k_dim);
    append(head.values + (size_t)(n - 1) * m->v_dim,
           heads->v + sequence * heads->stride + kv_head * m->v_dim, m->v_dim);
    for (size_t h = kv_head * shared; h < (kv_head + 1) * shared; h++)
        attend(m, head, n, heads->q + sequence * heads->stride + h * m->k_dim,
               c->scores + index * c->max_tokens,
               heads->out + (sequence * m->n_heads + h) * m->v_dim);
    return flush(c, head, n, c->packed + index * c->packed_bytes, error);
}

int lm_per_token_attend(struct lm_per_token *c, uint32_t layer, const struct lm_heads *heads,
                        struct lm_error *error)
{
    const struct lm_model *m = c->model;
    const size_t n_heads = c->n_sequences * m->n_kv_heads;
    kivi_error first = {.status = KIVI_OK};

    if (c->lengths[layer] >= c->max_tokens)
        return lm_fail(error, "more than %u tokens", c->max_tokens);
#pragma omp parallel for schedule(static) num_threads(                                             \
    lm_team(c->n_sequences * m->n_heads * (c->lengths[layer] + 1) * (m->k_dim + m->v_dim)))
    for (size_t i = 0; i < n_heads; i++) {
        kivi_error detail;

        if (step(c, layer, i, heads, &detail)) {
#pragma omp critical
            first = detail;
        }
    }
    if (first.status)
        return lm_fail(error, "layer %u: %s", layer, first.message);
    c->lengths[layer]++;
    return 0;
}

/* ---------------------------------------------------------------- memory */

/* Bytes of n packed tokens: a block holds 32, and the last may not be full. */
static void count_packed(const struct lm_per_token *c, uint32_t bits, uint32_t dim, uint64_t n,
                         uint64_t heads, struct lm_usage *usage)
{
    const kivi_packing block = packing_of(c, bits, dim, 32);
    const uint64_t groups = (dim + c->options.group_size - 1) / c->options.group_size;
    const uint64_t scale_bytes = groups * 4;

    usage->scale_bytes += heads * n * scale_bytes;
    usage->code_bytes += heads * n * (kivi_packed_size(&block) / 32 - scale_bytes);
}

void lm_per_token_usage(const struct lm_per_token *c, struct lm_usage *usage)
{
    const struct lm_model *m = c->model;
    const uint32_t residual = c->options.residual_length, n_sink = c->options.n_sink;
    const uint64_t heads = c->n_sequences * m->n_kv_heads;

    usage->tokens = c->n_sequences * (uint64_t)c->lengths[0];
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const uint32_t n = c->lengths[i];

        count_packed(c, c->k_bits, m->k_dim, n / residual * residual, heads, usage);
        count_packed(c, c->v_bits, m->v_dim, n > residual ? n - residual : 0, heads, usage);
        usage->window_bytes += heads * 2
                               * ((uint64_t)(n_sink + residual) * m->k_dim
                                  + (uint64_t)(n_sink + 2 * residual) * m->v_dim);
        usage->f16_bytes += heads * n * 2 * ((uint64_t)m->k_dim + m->v_dim);
    }
}
