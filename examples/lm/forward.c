#include "forward.h"

#include <math.h>
#include <stdlib.h>

#include "matmul.h"
#include "team.h"

struct lm_forward {
    const struct lm_model *model;
    float *memory; /* what all of the below point into */
    float *x;      /* [rows][dim]: the residual stream */
    float *normed; /* [rows][dim] */
    float *qkv;    /* [rows][queries, keys, values] */
    float *heads;  /* [rows][n_heads][v_dim] */
    float *ffn;    /* [rows][gate, up] */
    float *hidden; /* [rows][n_ffn] */
    float *added;  /* [rows][dim]: what a block adds to x */
    float *turns;  /* [positions][n_rot / 2][cos, sin] */
    float *scratch;
};

static size_t largest_input(const struct lm_model *m)
{
    size_t n = m->dim;

    n = m->n_ffn > n ? m->n_ffn : n;
    return m->layers[0].attention_out.n_in > n ? m->layers[0].attention_out.n_in : n;
}

/* Angles in double: at position 4095 a float has lost a third of its digits. */
static void fill_turns(float *turns, const struct lm_model *m, uint32_t positions)
{
    for (uint32_t p = 0; p < positions; p++) {
        for (uint32_t i = 0; i < m->n_rot; i += 2) {
            const double angle = p * pow(m->rope_base, -(double)i / m->n_rot);

            *turns++ = (float)cos(angle);
            *turns++ = (float)sin(angle);
        }
    }
}

int lm_forward_create(const struct lm_model *model, size_t max_rows, uint32_t max_positions,
                      struct lm_forward **forward, struct lm_error *error)
{
    const struct lm_layer *layer = &model->layers[0];
    struct lm_forward *f = calloc(1, sizeof *f);
    const size_t sizes[] = {max_rows * model->dim,
                            max_rows * model->dim,
                            max_rows * layer->qkv.n_out,
                            max_rows * layer->attention_out.n_in,
                            max_rows * layer->gate_up.n_out,
                            max_rows * model->n_ffn,
                            max_rows * model->dim,
                            (size_t)max_positions * model->n_rot,
                            lm_matmul_scratch(max_rows, largest_input(model))};
    float **const parts[] = {&f->x,      &f->normed, &f->qkv,   &f->heads,  &f->ffn,
                             &f->hidden, &f->added,  &f->turns, &f->scratch};
    size_t total = 0, used = 0;

    *forward = NULL;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        total += sizes[i];
    if (f)
        f->memory = malloc(total * sizeof *f->memory);
    if (!f || !f->memory) {
        free(f);
        return lm_fail(error, "out of memory for a batch of %zu", max_rows);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *parts[i] = f->memory + used;
        used += sizes[i];
    }
    f->model = model;
    fill_turns(f->turns, model, max_positions);
    *forward = f;
    return 0;
}

void lm_forward_destroy(struct lm_forward *forward)
{
    if (!forward)
        return;
    free(forward->memory);
    free(forward);
}

/* RMSNorm: out = x / sqrt(mean(x^2) + epsilon) * weight, for each row. */
static void normalize(const struct lm_model *m, const float *x, const float *weight, size_t rows,
                      float *out)
{
    for (size_t r = 0; r < rows; r++, x += m->dim, out += m->dim) {
        float sum = 0, factor;

#pragma omp simd reduction(+ : sum)
        for (size_t i = 0; i < m->dim; i++)
            sum += x[i] * x[i];
        factor = 1.0f / sqrtf(sum / (float)m->dim + m->norm_epsilon);
        for (size_t i = 0; i < m->dim; i++)
            out[i] = x[i] * factor * weight[i];
    }
}

/* Rotates the pairs (2i, 2i + 1) of every head. */
static void rotate(const struct lm_model *m, const float *turns, float *heads, uint32_t n_heads)
{
    for (uint32_t h = 0; h < n_heads; h++, heads += m->k_dim) {
        for (uint32_t i = 0; i < m->n_rot; i += 2) {
            const float a = heads[i], b = heads[i + 1];

            heads[i] = a * turns[i] - b * turns[i + 1];
            heads[i + 1] = a * turns[i + 1] + b * turns[i];
        }
    }
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static int attend(struct lm_forward *f, uint32_t index, const uint32_t *positions, size_t rows,
                  lm_attend_fn attend_layer, void *context, struct lm_error *error)
{
    const struct lm_model *m = f->model;
    const struct lm_layer *layer = &m->layers[index];
    const size_t n_q = (size_t)m->n_heads * m->k_dim;
    const size_t n_k = (size_t)m->n_kv_heads * m->k_dim;
    const struct lm_heads heads = {f->qkv, f->qkv + n_q, f->qkv + n_q + n_k, layer->qkv.n_out,
                                   f->heads};

    normalize(m, f->x, layer->attention_norm, rows, f->normed);
    lm_matmul(&layer->qkv, f->normed, rows, f->qkv, f->scratch);
    for (size_t r = 0; r < rows; r++) /* keys follow the queries */
        rotate(m, f->turns + (size_t)positions[r] * m->n_rot, f->qkv + r * layer->qkv.n_out,
               m->n_heads + m->n_kv_heads);
    if (attend_layer(context, index, &heads, error))
        return -1;
    lm_matmul(&layer->attention_out, f->heads, rows, f->added, f->scratch);
    add(f->x, f->added, rows * m->dim);
    return 0;
}

/* SwiGLU: down(silu(gate(x)) * up(x)). */
static void feed_forward(struct lm_forward *f, const struct lm_layer *layer, size_t rows)
{
    const struct lm_model *m = f->model;

    normalize(m, f->x, layer->ffn_norm, rows, f->normed);
    lm_matmul(&layer->gate_up, f->normed, rows, f->ffn, f->scratch);
#pragma omp parallel for schedule(static) num_threads(lm_team(rows * m->n_ffn * LM_EXP))
    for (size_t r = 0; r < rows; r++) {
        const float *gate = f->ffn + r * 2 * m->n_ffn;
        const float *up = gate + m->n_ffn;

        for (size_t i = 0; i < m->n_ffn; i++)
            f->hidden[r * m->n_ffn + i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
    lm_matmul(&layer->ffn_down, f->hidden, rows, f->added, f->scratch);
    add(f->x, f->added, rows * m->dim);
}

int lm_forward_run(struct lm_forward *f, const uint8_t *tokens, const uint32_t *positions,
                   size_t rows, lm_attend_fn attend_layer, void *context, float *logits,
                   struct lm_error *error)
{
    const struct lm_model *m = f->model;

    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < m->dim; i++)
            f->x[r * m->dim + i] = m->embedding.data[tokens[r] * m->embedding.n_in + i];
    }
    for (uint32_t i = 0; i < m->n_layers; i++) {
        if (attend(f, i, positions, rows, attend_layer, context, error))
            return -1;
        feed_forward(f, &m->layers[i], rows);
    }
    normalize(m, f->x, m->output_norm, rows, f->normed);
    lm_matmul(&m->output, f->normed, rows, logits, f->scratch);
    for (size_t i = 0; i < rows * LM_VOCABULARY; i++) {
        if (!isfinite(logits[i]))
            return lm_fail(error, "the model's output is not finite");
    }
    return 0;
}
