/* What belongs to a part of a step: its share of the attention, and the merge of what several parts share. */
#include <math.h>
#include <string.h>

#include "attend.h"

/* ------------------------------------------------------------------ shares */

static uint64_t cost_at(const struct kivi_plan *plan, uint32_t part)
{
    const uint64_t n = plan->step->n_parts;

    /* Without overflow for costs up to 2^64 / 1024. */
    return plan->total_cost / n * part + plan->total_cost % n * part / n;
}

/* Units [*from, *to) of the task belong to the part. */
static void share_of(const struct kivi_plan *plan, const struct kivi_task *task, uint32_t part,
                     uint64_t *from, uint64_t *to)
{
    const uint64_t begin = cost_at(plan, part), end = cost_at(plan, part + 1);
    const uint64_t cost = task->unit_cost;

    *from = begin > task->cost_before
                ? min_u64((begin - task->cost_before + cost - 1) / cost, task->n_units)
                : 0;
    *to = end > task->cost_before
              ? min_u64((end - task->cost_before + cost - 1) / cost, task->n_units)
              : 0;
}

/* The first task that ends after `cost`. */
static size_t task_at(const struct kivi_plan *plan, uint64_t cost)
{
    size_t low = 0, high = plan->n_tasks;

    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const struct kivi_task *task = &plan->tasks[middle];

        if (task->cost_before + task->n_units * task->unit_cost <= cost)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static float *partial_of(const struct kivi_plan *plan, uint32_t part, int begun_earlier)
{
    return plan->parts[part].partial + (begun_earlier ? 0 : plan->partial_floats);
}

/* Units [from, to) of a part's task are attended to: writes their rows, or leaves a partial result. */
static void leave(const struct kivi_work *w, uint64_t from, uint64_t to, uint32_t part)
{
    const struct kivi_task *task = w->task;
    const uint32_t width = w->layer->v.dim_pad;
    uint32_t r;

    if (from == 0 && to == task->n_units) {
        for (r = 0; r < task->n_rows; r++)
            kivi_write_row(w->plan, task, r, w->out + (size_t)r * width, w->max[r], w->sum[r]);
    } else {
        float *partial = partial_of(w->plan, part, from > 0);

        memcpy(partial, w->out, (size_t)task->n_rows * width * sizeof *partial);
        partial += (size_t)w->plan->task_rows * width;
        memcpy(partial, w->max, task->n_rows * sizeof *partial);
        memcpy(partial + w->plan->task_rows, w->sum, task->n_rows * sizeof *partial);
    }
}

/* The tasks from this one on that go together, whose share of units is the same: of neighbouring heads, as many as the
 * part has rows for. */
static uint32_t count_together(const struct kivi_plan *plan, const struct kivi_task *task,
                               uint32_t part)
{
    const struct kivi_task *end = plan->tasks + plan->n_tasks;
    const uint32_t room = plan->part_rows / task->n_rows;
    uint64_t from, to;
    uint32_t n = 0;

    do {
        share_of(plan, task + n, part, &from, &to);
        if (from > 0 || to < task->n_units)
            break;
        n++;
    } while (n < room && task + n < end && task[n].item == task->item
             && task[n].first_row == task->first_row);
    return n > 0 ? n : 1;
}

/*
 * Units [from, to) of n tasks that go together, some tokens of all before the next ones: pages have them next to each
 * other, and memory is read fastest in the order of addresses.
 */
static void attend_together(struct kivi_plan *plan, const struct kivi_task *tasks, uint32_t n,
                            uint64_t from, uint64_t to, uint32_t part)
{
    const struct kivi_layer_geometry *layer = &plan->step->geometry->layers[plan->step->layer];
    const uint64_t end = min_u64(tasks->begin + to * KIVI_UNIT, tasks->end);
    struct kivi_part *p = &plan->parts[part];
    struct kivi_work works[KIVI_ROW_BLOCK];
    uint64_t t = tasks->begin + from * KIVI_UNIT, next;
    uint32_t i;

    for (i = 0; i < n; i++) {
        const size_t row = (size_t)i * tasks->n_rows;
        struct kivi_work *w = &works[i];

        w->plan = plan;
        w->task = &tasks[i];
        w->part = p;
        w->layer = layer;
        w->q = p->q + row * layer->k.dim_pad;
        w->out = p->out + row * layer->v.dim_pad;
        w->max = p->max + row;
        w->sum = p->sum + row;
        w->after = &works[(i + 1) % n];
        if (!kivi_begin_work(w))
            return;
    }
    for (; t < end; t = next) {
        next = min_u64((t / KIVI_CHUNK + 1) * KIVI_CHUNK, end);
        for (i = 0; i < n; i++)
            kivi_attend_chunk(&works[i], t, next);
    }
    for (i = 0; i < n; i++)
        leave(&works[i], from, to, part);
}

void kivi_attend_part(struct kivi_plan *plan, uint32_t part)
{
    const uint64_t end = cost_at(plan, part + 1);
    size_t i = task_at(plan, cost_at(plan, part));

    while (i < plan->n_tasks && plan->tasks[i].cost_before < end) {
        const struct kivi_task *tasks = &plan->tasks[i];
        const uint32_t n = count_together(plan, tasks, part);
        uint64_t from, to;

        share_of(plan, tasks, part, &from, &to);
        if (from < to)
            attend_together(plan, tasks, n, from, to, part);
        i += n;
    }
}

/* Adds the partial result of a later part to the row: the log-sum-exp merge. */
static void merge_row(float *out, float *max, float *sum, const float *other, float other_max,
                      float other_sum, uint32_t n)
{
    float keep, add;
    uint32_t c;

    if (other_sum == 0)
        return;
    keep = *max >= other_max ? 1.0f : expf(*max - other_max);
    add = other_max >= *max ? 1.0f : expf(other_max - *max);
    for (c = 0; c < n; c++)
        out[c] = out[c] * keep + other[c] * add;
    *sum = *sum * keep + other_sum * add;
    *max = *max >= other_max ? *max : other_max;
}

/* Merges into the result of the first part that has a share of the task. */
static void merge_task(const struct kivi_plan *plan, const struct kivi_task *task, uint32_t first)
{
    const struct kivi_layout *l = &plan->step->geometry->layers[plan->step->layer].v;
    const uint32_t width = l->dim_pad;
    float *result = partial_of(plan, first, 0);
    float *max = result + (size_t)plan->task_rows * width, *sum = max + plan->task_rows;
    uint64_t from, to;
    uint32_t r, p;

    for (p = first + 1; p < plan->step->n_parts; p++) {
        const float *other = partial_of(plan, p, 1);
        const float *other_max = other + (size_t)plan->task_rows * width;

        share_of(plan, task, p, &from, &to);
        if (from == to && from == task->n_units)
            break;
        if (from == to)
            continue;
        for (r = 0; r < task->n_rows; r++)
            merge_row(result + (size_t)r * width, &max[r], &sum[r], other + (size_t)r * width,
                      other_max[r], other_max[plan->task_rows + r], l->dim);
    }
    for (r = 0; r < task->n_rows; r++)
        kivi_write_row(plan, task, r, result + (size_t)r * width, max[r], sum[r]);
}

void kivi_finish_part(struct kivi_plan *plan, uint32_t part)
{
    kivi_merge_part(plan, part);
    kivi_quantize_part(plan, part);
}

void kivi_merge_part(struct kivi_plan *plan, uint32_t part)
{
    const uint64_t cost = cost_at(plan, part + 1);
    uint64_t from, to;
    size_t i;

    /* A shared task is merged by the part that began it: the last task of its share. */
    if (plan->n_tasks == 0 || cost == 0)
        return;
    i = task_at(plan, cost - 1);
    if (i == plan->n_tasks)
        return;
    share_of(plan, &plan->tasks[i], part, &from, &to);
    if (from == 0 && to > 0 && to < plan->tasks[i].n_units)
        merge_task(plan, &plan->tasks[i], part);
}
