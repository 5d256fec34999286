/* Where the tokens of a task lie, its attention to some of them, and its rows in and out. */
#include <math.h>
#include <string.h>

#include "../core/half.h"
#include "attend.h"

/* ------------------------------------------------------------ where tokens lie */

struct kivi_staged kivi_staged_rows(const struct kivi_plan *plan, const struct kivi_part *part,
                                    size_t index, uint32_t head)
{
    const struct kivi_geometry *g = plan->step->geometry;
    const struct kivi_step_item *item = &plan->step->items[index];
    struct kivi_staged all = {.begin = item->before.n, .end = item->after.n};

    if (kivi_only_appends(item))
        return part->slab;
    all.k = plan->staged_k[index] + (size_t)head * item->io.n_new * g->k_dim;
    all.v = plan->staged_v[index] + (size_t)head * item->io.n_new * g->v_dim;
    return all;
}

/* Rows of the ring from `ring_row` on, or new ones: `rows` has those of `staged`. */
static struct kivi_run_of_tokens rows_at(const struct kivi_step_item *item, uint64_t position,
                                         const uint16_t *ring_row, uint32_t ring,
                                         const struct kivi_staged *staged, const uint16_t *rows,
                                         uint32_t dim)
{
    struct kivi_run_of_tokens run;

    run.stride = dim;
    if (position < item->before.n) {
        run.data = ring_row;
        run.n_tokens = min_u64(item->before.n - position, ring - position % ring);
    } else {
        run.data = rows + (size_t)(position - staged->begin) * dim;
        run.n_tokens = staged->end - position;
    }
    return run;
}

/* Blocks of a page; at 16 bits they are rows. */
static struct kivi_run_of_tokens blocks_at(const struct kivi_layout *l, const void *block,
                                           uint64_t position, uint64_t packed, uint32_t page_tokens)
{
    struct kivi_run_of_tokens run;

    run.n_tokens = min_u64(packed - position, page_tokens - position % page_tokens);
    run.stride = l->bits == 16 ? l->dim : 0;
    run.data =
        l->bits == 16 ? (const uint16_t *)block + (size_t)(position % l->tokens) * l->dim : block;
    return run;
}

struct kivi_run_of_tokens kivi_find_keys(const struct kivi_plan *plan, const struct kivi_part *part,
                                         size_t index, uint32_t head, uint64_t position)
{
    const struct kivi_geometry *g = plan->step->geometry;
    const struct kivi_layer_geometry *l = &g->layers[plan->step->layer];
    const struct kivi_step_item *item = &plan->step->items[index];
    struct kivi_staged staged;

    if (position < item->before.k_packed)
        return blocks_at(&l->k,
                         kivi_page_keys(l, item->pages[position / l->page_tokens], head, position),
                         position, item->before.k_packed, l->page_tokens);
    staged = kivi_staged_rows(plan, part, index, head);
    return rows_at(item, position, kivi_window_key(g, item->window, head, position), g->k_ring,
                   &staged, staged.k, g->k_dim);
}

struct kivi_run_of_tokens kivi_find_values(const struct kivi_plan *plan,
                                           const struct kivi_part *part, size_t index,
                                           uint32_t head, uint64_t position)
{
    const struct kivi_geometry *g = plan->step->geometry;
    const struct kivi_layer_geometry *l = &g->layers[plan->step->layer];
    const struct kivi_step_item *item = &plan->step->items[index];
    struct kivi_staged staged;

    if (position < item->before.v_packed)
        return blocks_at(
            &l->v, kivi_page_values(l, item->pages[position / l->page_tokens], head, position),
            position, item->before.v_packed, l->page_tokens);
    staged = kivi_staged_rows(plan, part, index, head);
    return rows_at(item, position, kivi_window_value(g, item->window, head, position), g->v_ring,
                   &staged, staged.v, g->v_dim);
}

/* ------------------------------------------------------------------ one chunk */

/* Where the blocks of keys, or values, of n tokens from `t` on lie, if they are packed: what is read next. */
static struct kivi_next packed_at(const struct kivi_cpu_work *w, uint64_t t, uint64_t n, int is_key)
{
    const struct kivi_step_item *item = &w->plan->step->items[w->task->item];
    const struct kivi_layout *l = is_key ? &w->layer->k : &w->layer->v;
    struct kivi_next next = {.is_amd = w->plan->is_amd};

    if (t >= item->before.k_packed)
        return next;
    next.data = (is_key ? kivi_find_keys : kivi_find_values)(w->plan, w->part, w->task->item,
                                                             w->task->kv_head, t)
                    .data;
    next.bytes = (size_t)(n / l->tokens) * l->block_bytes;
    return next;
}

/* Scores of tokens [begin, end), begin a multiple of KIVI_UNIT, into part->scores. */
static void score_tokens(struct kivi_cpu_work *w, uint64_t begin, uint64_t end)
{
    const struct kivi_kernels *kernels = w->plan->kernels;
    const struct kivi_step *step = w->plan->step;
    const struct kivi_task *task = w->task;
    const struct kivi_step_item *item = &step->items[task->item];
    const struct kivi_layout *l = &w->layer->k;
    const uint64_t sinks = min_u64(step->geometry->n_sink, item->before.k_packed);
    const struct kivi_next unknown = {.is_amd = w->plan->is_amd};
    uint64_t t = begin;

    while (t < end) {
        const struct kivi_run_of_tokens run =
            kivi_find_keys(w->plan, w->part, task->item, task->kv_head, t);
        uint64_t n = min_u64(run.n_tokens, end - t);
        float *scores = w->part->scores + (t - begin);

        if (run.stride) {
            kernels->f16_scores(l->dim, w->q, l->dim_pad, task->n_rows, run.data, run.stride,
                                (uint32_t)n, packed_at(w, t, n, 0), scores, KIVI_CHUNK);
        } else {
            const int exact_values = w->layer->v.bits > 2 || t + n > item->before.v_packed;

            n = round_up(n, l->tokens); /* whole blocks; what is beyond `end` is not looked at */
            kernels->k_scores(l, w->q, task->n_rows, run.data, (uint32_t)(n / l->tokens),
                              packed_at(w, t, n, 0), scores, KIVI_CHUNK, exact_values,
                              step->attention.precision);
        }
        t += n;
    }
    if (begin < sinks) /* in full precision whatever their codes are */
        kernels->f16_scores(l->dim, w->q, l->dim_pad, task->n_rows,
                            kivi_sink_key(step->geometry, item->window, task->kv_head, begin),
                            l->dim, (uint32_t)(min_u64(sinks, end) - begin), unknown,
                            w->part->scores, KIVI_CHUNK);
}

/* Scores to unnormalized weights; tokens that a row does not see get 0. */
static void weigh_tokens(struct kivi_cpu_work *w, uint64_t begin, uint64_t end)
{
    const struct kivi_kernels *kernels = w->plan->kernels;
    const struct kivi_step *step = w->plan->step;
    const kivi_attention *attention = &step->attention;
    const uint32_t n = (uint32_t)(end - begin), padded = (uint32_t)round_up(n, KIVI_TILE);
    uint32_t r, t;

    for (r = 0; r < w->task->n_rows; r++) {
        const uint64_t position = step->items[w->task->item].q_position
                                  + (w->task->first_row + r) / step->geometry->heads_per_kv;
        const uint64_t first = attention->window && position >= attention->window
                                   ? position - attention->window + 1
                                   : 0;
        float *scores = w->part->scores + (size_t)r * KIVI_CHUNK;
        const uint32_t seen_from = first > begin ? (uint32_t)(min_u64(first, end) - begin) : 0;
        uint32_t seen_to =
            position < end ? (uint32_t)(position + 1 > begin ? position + 1 - begin : 0) : n;
        float max;

        seen_to = seen_to > seen_from ? seen_to : seen_from;
        for (t = 0; t < seen_from; t++)
            scores[t] = 0;
        for (t = seen_to; t < padded; t++)
            scores[t] = 0;
        if (seen_from == seen_to)
            continue;
        scores += seen_from;
        if (attention->softcap > 0)
            kernels->softcap(scores, seen_to - seen_from, attention->softcap);
        max = kernels->max(scores, seen_to - seen_from);
        if (max > w->stretch.max[r]) {
            const float shrink = expf(w->stretch.max[r] - max); /* 0 at the first chunk */

            if (w->stretch.sum[r] > 0) {
                w->stretch.sum[r] *= shrink;
                kernels->scale(w->stretch.out + (size_t)r * w->layer->v.dim_pad, w->layer->v.dim,
                               shrink);
            }
            w->stretch.max[r] = max;
        }
        w->stretch.sum[r] += kernels->exp_sum(scores, seen_to - seen_from, w->stretch.max[r]);
    }
}

static void clear_weights(struct kivi_cpu_work *w, uint64_t from, uint64_t to)
{
    uint32_t r;

    for (r = 0; from < to && r < w->task->n_rows; r++)
        memset(w->part->scores + (size_t)r * KIVI_CHUNK + from, 0,
               (size_t)(to - from) * sizeof *w->part->scores);
}

/* out += weights . values, over tokens [begin, end). */
static void sum_tokens(struct kivi_cpu_work *w, uint64_t begin, uint64_t end)
{
    const struct kivi_kernels *kernels = w->plan->kernels;
    const struct kivi_step *step = w->plan->step;
    const struct kivi_task *task = w->task;
    const struct kivi_step_item *item = &step->items[task->item];
    const struct kivi_layout *l = &w->layer->v;
    const uint64_t packed = min_u64(item->before.v_packed, end);
    const uint64_t sinks = min_u64(step->geometry->n_sink, packed);
    const struct kivi_next unknown = {.is_amd = w->plan->is_amd};
    struct kivi_part *part = w->part;
    uint64_t t, n;

    for (t = packed > begin ? packed : begin; t < end; t += n) {
        const struct kivi_run_of_tokens run =
            kivi_find_values(w->plan, w->part, task->item, task->kv_head, t);

        n = min_u64(run.n_tokens, end - t);
        kernels->f16_accumulate(l->dim, part->scores + (t - begin), KIVI_CHUNK, task->n_rows,
                                run.data, run.stride, (uint32_t)n, unknown, w->stretch.out,
                                l->dim_pad);
    }
    if (begin >= packed)
        return;
    /* Packed blocks are summed whole, so tokens of theirs that were summed above count no more. */
    clear_weights(w, packed - begin, min_u64(round_up(packed, KIVI_TILE) - begin, KIVI_CHUNK));
    if (begin < sinks) {
        kernels->f16_accumulate(l->dim, part->scores, KIVI_CHUNK, task->n_rows,
                                kivi_sink_value(step->geometry, item->window, task->kv_head, begin),
                                l->dim, (uint32_t)(sinks - begin), unknown, w->stretch.out,
                                l->dim_pad);
        clear_weights(w, 0, sinks - begin);
    }
    for (t = begin; t < packed; t += n) {
        const struct kivi_run_of_tokens run =
            kivi_find_values(w->plan, w->part, task->item, task->kv_head, t);
        const float *weights = part->scores + (t - begin);
        struct kivi_next next;

        n = min_u64(run.n_tokens, packed - t);
        next = packed_at(w->after, w->after > w ? t : t + KIVI_CHUNK, n, 1);
        if (run.stride)
            kernels->f16_accumulate(l->dim, weights, KIVI_CHUNK, task->n_rows, run.data, run.stride,
                                    (uint32_t)n, next, w->stretch.out, l->dim_pad);
        else
            kernels->v_accumulate(l, weights, KIVI_CHUNK, task->n_rows, run.data, (uint32_t)n, next,
                                  w->stretch.out, step->attention.precision);
    }
}

void kivi_attend_chunk(struct kivi_cpu_work *w, uint64_t begin, uint64_t end)
{
    score_tokens(w, begin, end);
    weigh_tokens(w, begin, end);
    sum_tokens(w, begin, end);
}

/* ---------------------------------------------------------------- rows in and out */

/* Queries times the softmax scale, at most: no score of 512 channels of f16 then overflows f32. */
#define MAX_QUERY 1e30f

int kivi_load_queries(struct kivi_cpu_work *w)
{
    const struct kivi_step *step = w->plan->step;
    const struct kivi_geometry *g = step->geometry;
    const kivi_in *q = &step->items[w->task->item].io.q;
    const struct kivi_layout *l = &w->layer->k;
    uint32_t r, c;

    for (r = 0; r < w->task->n_rows; r++) {
        const uint64_t row = w->task->first_row + r;
        const uint64_t token = row / g->heads_per_kv;
        const uint32_t head =
            w->task->kv_head * g->heads_per_kv + (uint32_t)(row % g->heads_per_kv);
        const ptrdiff_t at = (ptrdiff_t)token * q->token_stride + (ptrdiff_t)head * q->head_stride;
        float *to = w->q + (size_t)r * l->dim_pad;
        int finite = 1;

        for (c = 0; c < l->dim; c++) {
            float x;

            if (q->dtype == KIVI_F32)
                x = ((const float *)q->data)[at + (ptrdiff_t)c];
            else if (q->dtype == KIVI_F16)
                x = kivi_f32_from_f16(((const uint16_t *)q->data)[at + (ptrdiff_t)c]);
            else
                x = kivi_f32_from_bf16(((const uint16_t *)q->data)[at + (ptrdiff_t)c]);
            to[c] = x * step->attention.scale;
            finite &= fabsf(to[c]) <= MAX_QUERY; /* false for NaN */
        }
        for (; c < l->dim_pad; c++)
            to[c] = 0;
        if (!finite) {
            w->part->bad_name = "q";
            w->part->bad_item = w->task->item;
            w->part->bad_token = token;
            w->part->bad_head = head;
            return 0;
        }
    }
    return 1;
}

/* A dequantized value may lie a rounding above the largest f16: no infinity comes of it. */
static uint16_t f16_of_output(float x)
{
    return kivi_f16_from_f32(x > KIVI_F16_MAX    ? KIVI_F16_MAX
                             : x < -KIVI_F16_MAX ? -KIVI_F16_MAX
                                                 : x);
}

void kivi_write_row(const struct kivi_plan *plan, const struct kivi_task *task, uint32_t r,
                    const float *row, float max, float sum)
{
    const struct kivi_step *step = plan->step;
    const struct kivi_geometry *g = step->geometry;
    const kivi_item *io = &step->items[task->item].io;
    const uint64_t token = (task->first_row + r) / g->heads_per_kv;
    const uint32_t head = task->kv_head * g->heads_per_kv + (task->first_row + r) % g->heads_per_kv;
    const ptrdiff_t at =
        (ptrdiff_t)token * io->out.token_stride + (ptrdiff_t)head * io->out.head_stride;
    float factor = 1, lse;
    uint32_t c;

    if (step->attention
            .sink_logits) { /* joins the denominator; the larger logit becomes the unit */
        const float sink = step->attention.sink_logits[head];

        if (sink > max) {
            factor = sum > 0 ? expf(max - sink) : 0;
            sum = 1 + sum * factor;
            max = sink;
        } else if (sum > 0) {
            sum += expf(sink - max);
        }
    }
    factor = sum > 0 ? factor / sum : 0;
    lse = sum > 0 ? max + logf(sum) : -INFINITY;
    if (io->lse)
        io->lse[token * g->n_q_heads + head] = lse;
    for (c = 0; c < g->v_dim; c++) {
        if (io->out.dtype == KIVI_F32)
            ((float *)io->out.data)[at + (ptrdiff_t)c] = row[c] * factor;
        else
            ((uint16_t *)io->out.data)[at + (ptrdiff_t)c] = f16_of_output(row[c] * factor);
    }
}
