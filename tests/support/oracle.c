#include "oracle.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

void oracle_init(struct oracle *o, const kivi_config *config, uint32_t layer)
{
    memset(o, 0, sizeof *o);
    contents_init(&o->contents, config, layer);
    o->n_q_heads = config->n_q_heads;
    o->residual_length = config->residual_length;
}

void oracle_free(struct oracle *o)
{
    contents_free(&o->contents);
    free(o->k);
    free(o->v);
    free(o->exact_k);
    free(o->exact_v);
    memset(o, 0, sizeof *o);
}

/* ----------------------------------------------------- quantization */

void oracle_quantize(const double *x, uint64_t stride, uint32_t n, uint32_t bits, uint8_t *code,
                     uint16_t *scale, uint16_t *min)
{
    const double levels = (double)((1u << bits) - 1);
    double low = x[0], high = x[0], width, range, step;
    int wide;
    uint32_t i;

    for (i = 1; i < n; i++) {
        low = fmin(low, x[i * stride]);
        high = fmax(high, x[i * stride]);
    }
    low += 0.0; /* fmin and fmax may take either zero: what is stored is never -0 */
    width = high - low + 0.0;
    /* Every operation is in f16, unless the range overflows there: then in f32. */
    wide = isinf(number_round_f16(width));
    range = wide ? (float)width : number_round_f16(width);
    *scale = number_to_f16((float)(range / levels));
    *min = number_to_f16(low);
    step = number_from_f16(*scale);
    for (i = 0; i < n; i++) {
        const double above = x[i * stride] - low;
        double quotient;

        if (above == 0) {
            quotient = 0;
        } else if (step == 0) {
            quotient = levels;
        } else {
            quotient = (wide ? (float)above : number_round_f16(above)) / step;
            quotient = fmin(number_round_f16((float)quotient), levels);
        }
        code[i * stride] = (uint8_t)rint(quotient);
    }
}

static double dequantize(uint8_t code, uint16_t scale, uint16_t min)
{
    return code * number_from_f16(scale) + number_from_f16(min);
}

/* Tokens [begin, end) of one group of one channel; sinks stay out of it. */
static void pack_key_group(struct oracle *o, uint64_t begin, uint32_t head, uint32_t channel)
{
    struct contents *c = &o->contents;
    const uint64_t stride = (uint64_t)c->heads * c->k_dim;
    const uint64_t column = (uint64_t)head * c->k_dim + channel;
    const uint64_t group = begin / c->group_size * stride + column;
    const uint64_t end = begin + c->group_size;
    uint64_t t;

    if (begin < c->n_sink)
        begin = c->n_sink;
    if (begin >= end)
        return;
    oracle_quantize(o->k + begin * stride + column, stride, (uint32_t)(end - begin), c->k_bits,
                    c->k_code + begin * stride + column, c->k_scale + group, c->k_min + group);
    for (t = begin; t < end; t++)
        o->k[t * stride + column] =
            dequantize(c->k_code[t * stride + column], c->k_scale[group], c->k_min[group]);
}

static void pack_value(struct oracle *o, uint64_t token, uint32_t head)
{
    struct contents *c = &o->contents;
    const uint64_t row = (token * c->heads + head) * c->v_dim;
    const uint64_t groups = (token * c->heads + head) * c->v_groups;
    uint32_t g, i;

    for (g = 0; g < c->v_groups; g++) {
        const uint32_t begin = g * c->group_size;
        const uint32_t n = c->v_dim - begin < c->group_size ? c->v_dim - begin : c->group_size;

        oracle_quantize(o->v + row + begin, 1, n, c->v_bits, c->v_code + row + begin,
                        c->v_scale + groups + g, c->v_min + groups + g);
        for (i = begin; i < begin + n; i++)
            o->v[row + i] =
                dequantize(c->v_code[row + i], c->v_scale[groups + g], c->v_min[groups + g]);
    }
}

/* Rounds n numbers to f16, and keeps them as such and in double. */
static void take_rows(const double *x, uint64_t n, uint16_t *row, double *held, double *exact)
{
    uint64_t i;

    for (i = 0; i < n; i++) {
        row[i] = number_to_f16(x[i]);
        held[i] = exact[i] = number_from_f16(row[i]);
    }
}

static double *grow(double *array, uint64_t n)
{
    array = realloc(array, (size_t)n * sizeof *array);
    ck_assert_ptr_nonnull(array);
    return array;
}

void oracle_append(struct oracle *o, uint64_t n, const double *k, const double *v)
{
    struct contents *c = &o->contents;
    const uint64_t k_stride = (uint64_t)c->heads * c->k_dim, k_at = c->n * k_stride;
    const uint64_t v_stride = (uint64_t)c->heads * c->v_dim, v_at = c->n * v_stride;

    if (c->n + n > c->room) {
        contents_reserve(c, c->n + n);
        o->k = grow(o->k, c->room * k_stride);
        o->v = grow(o->v, c->room * v_stride);
        o->exact_k = grow(o->exact_k, c->room * k_stride);
        o->exact_v = grow(o->exact_v, c->room * v_stride);
    }
    take_rows(k, n * k_stride, c->k_row + k_at, o->k + k_at, o->exact_k + k_at);
    take_rows(v, n * v_stride, c->v_row + v_at, o->v + v_at, o->exact_v + v_at);
    c->n += n;
}

void oracle_flush(struct oracle *o)
{
    struct contents *c = &o->contents;
    const uint64_t k_packed =
        o->k_base + (c->n - o->k_base) / o->residual_length * o->residual_length;
    const uint64_t v_packed = c->n > o->residual_length ? c->n - o->residual_length : 0;
    uint32_t head, channel;

    for (; c->k_packed < k_packed; c->k_packed += c->group_size)
        for (head = 0; c->k_bits < 16 && head < c->heads; head++)
            for (channel = 0; channel < c->k_dim; channel++)
                pack_key_group(o, c->k_packed, head, channel);
    for (; c->v_packed < v_packed; c->v_packed++)
        for (head = 0; c->v_bits < 16 && head < c->heads && c->v_packed >= c->n_sink; head++)
            pack_value(o, c->v_packed, head);
}

/* -------------------------------------------------------- attention */

/* One query head over tokens [begin, end) of the keys and values. `weights` has room for them. */
static void attend_row(const struct oracle *o, const double *keys, const double *values,
                       const double *q, uint32_t q_head, uint64_t begin, uint64_t end,
                       const kivi_attention *a, double *weights, double *out, double *lse,
                       double *score_size, double *value_size)
{
    const struct contents *c = &o->contents;
    const uint32_t head = q_head / (o->n_q_heads / c->heads);
    const double scale = a->scale != 0 ? (double)a->scale : 1 / sqrt((double)c->k_dim);
    const double sink = a->sink_logits ? (double)a->sink_logits[q_head] : (double)-INFINITY;
    double max = sink, sum = 0;
    uint64_t t;
    uint32_t i;

    for (t = begin; t < end; t++) {
        const double *key = keys + (t * c->heads + head) * c->k_dim;
        double score = 0, sum_of_sizes = 0;

        for (i = 0; i < c->k_dim; i++) {
            score += q[i] * key[i];
            sum_of_sizes += fabs(q[i] * key[i]);
        }
        score *= scale;
        *score_size = fmax(*score_size, sum_of_sizes * fabs(scale));
        if (a->softcap > 0)
            score = a->softcap * tanh(score / a->softcap);
        weights[t - begin] = score;
        max = fmax(max, score);
    }
    memset(out, 0, c->v_dim * sizeof *out);
    *lse = -INFINITY;
    if (isinf(max))
        return;
    sum = exp(sink - max);
    for (t = begin; t < end; t++) {
        const double *value = values + (t * c->heads + head) * c->v_dim;
        const double weight = exp(weights[t - begin] - max);
        double square = 0;

        sum += weight;
        for (i = 0; i < c->v_dim; i++) {
            out[i] += weight * value[i];
            square += value[i] * value[i];
        }
        *value_size = fmax(*value_size, sqrt(square));
    }
    for (i = 0; i < c->v_dim; i++)
        out[i] /= sum;
    *lse = max + log(sum);
}

static double *doubles(uint64_t n)
{
    double *x = calloc((size_t)n + 1, sizeof *x);

    ck_assert_ptr_nonnull(x);
    return x;
}

struct oracle_result oracle_attend(const struct oracle *o, uint64_t n_q, const double *q,
                                   uint64_t position, const kivi_attention *a)
{
    const struct contents *c = &o->contents;
    const uint64_t n_rows = n_q * o->n_q_heads;
    struct oracle_result r = {
        .n_rows = n_rows,
        .dim = c->v_dim,
        .out = doubles(n_rows * c->v_dim),
        .lse = doubles(n_rows),
        .exact_out = doubles(n_rows * c->v_dim),
        .exact_lse = doubles(n_rows),
        .score_size = doubles(n_rows),
        .value_size = doubles(n_rows),
    };
    double *weights = doubles(c->n);
    uint64_t row;

    for (row = 0; row < n_rows; row++) {
        const uint64_t query = row / o->n_q_heads;
        const uint64_t own = position > UINT64_MAX - query ? UINT64_MAX : position + query;
        const uint64_t end = own < c->n ? own + 1 : c->n;
        const uint64_t first = a->window && own >= a->window ? own - a->window + 1 : 0;
        const uint64_t begin = first < end ? first : end;
        const uint32_t q_head = (uint32_t)(row % o->n_q_heads);

        attend_row(o, o->k, o->v, q + row * c->k_dim, q_head, begin, end, a, weights,
                   r.out + row * c->v_dim, &r.lse[row], &r.score_size[row], &r.value_size[row]);
        attend_row(o, o->exact_k, o->exact_v, q + row * c->k_dim, q_head, begin, end, a, weights,
                   r.exact_out + row * c->v_dim, &r.exact_lse[row], &r.score_size[row],
                   &r.value_size[row]);
    }
    free(weights);
    return r;
}

void oracle_result_free(struct oracle_result *r)
{
    free(r->out);
    free(r->lse);
    free(r->exact_out);
    free(r->exact_lse);
    free(r->score_size);
    free(r->value_size);
    memset(r, 0, sizeof *r);
}
