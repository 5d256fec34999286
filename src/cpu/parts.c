/* What belongs to a part of a step: its share of the attention, and the merge of what several parts share. */
#include <math.h>
#include <string.h>

#include "attend.h"

/* -------------------------------------------------------------------- sums */

static struct kivi_sums sums_from(const struct kivi_sums *s, size_t row, uint32_t width)
{
    return (struct kivi_sums){s->out + row * width, s->max + row, s->sum + row};
}

static void clear_sums(const struct kivi_sums *s, uint32_t n_rows, uint32_t width)
{
    uint32_t r;

    memset(s->out, 0, (size_t)n_rows * width * sizeof *s->out);
    for (r = 0; r < n_rows; r++) {
        s->max[r] = -INFINITY;
        s->sum[r] = 0;
    }
}

static void copy_sums(const struct kivi_sums *to, const struct kivi_sums *from, uint32_t n_rows,
                      uint32_t width)
{
    memcpy(to->out, from->out, (size_t)n_rows * width * sizeof *to->out);
    memcpy(to->max, from->max, n_rows * sizeof *to->max);
    memcpy(to->sum, from->sum, n_rows * sizeof *to->sum);
}

/* Adds what was attended to later: the log-sum-exp merge. */
static void merge_sums(const struct kivi_sums *to, const struct kivi_sums *from, uint32_t n_rows,
                       const struct kivi_layout *l)
{
    uint32_t r, c;

    for (r = 0; r < n_rows; r++) {
        float *out = to->out + (size_t)r * l->dim_pad;
        const float *other = from->out + (size_t)r * l->dim_pad;
        float keep, add;

        if (from->sum[r] == 0)
            continue;
        keep = to->max[r] >= from->max[r] ? 1.0f : expf(to->max[r] - from->max[r]);
        add = from->max[r] >= to->max[r] ? 1.0f : expf(from->max[r] - to->max[r]);
        for (c = 0; c < l->dim; c++)
            out[c] = out[c] * keep + other[c] * add;
        to->sum[r] = to->sum[r] * keep + from->sum[r] * add;
        to->max[r] = to->max[r] >= from->max[r] ? to->max[r] : from->max[r];
    }
}

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

/* The partial result of a part: of a task that an earlier part began, or of one that it begins. */
static const struct kivi_sums *partial_of(const struct kivi_plan *plan, uint32_t part,
                                          int begun_earlier)
{
    return &plan->parts[part].partial[begun_earlier];
}

static void write_rows(const struct kivi_plan *plan, const struct kivi_task *task,
                       const struct kivi_sums *result, uint32_t width)
{
    uint32_t r;

    for (r = 0; r < task->n_rows; r++)
        kivi_write_row(plan, task, r, result->out + (size_t)r * width, result->max[r],
                       result->sum[r]);
}

/* Units [from, to) of a part's task are attended to: writes their rows, or leaves a partial result. */
static void leave(const struct kivi_cpu_work *w, uint64_t from, uint64_t to, uint32_t part)
{
    const uint32_t width = w->layer->v.dim_pad;

    if (from == 0 && to == w->task->n_units)
        write_rows(w->plan, w->task, &w->total, width);
    else
        copy_sums(partial_of(w->plan, part, from > 0), &w->total, w->task->n_rows, width);
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

static void end_stretch(const struct kivi_cpu_work *w)
{
    merge_sums(&w->total, &w->stretch, w->task->n_rows, &w->layer->v);
    clear_sums(&w->stretch, w->task->n_rows, w->layer->v.dim_pad);
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
    struct kivi_cpu_work works[KIVI_ROW_BLOCK];
    uint64_t t = tasks->begin + from * KIVI_UNIT, next;
    uint32_t i;

    for (i = 0; i < n; i++) {
        const size_t row = (size_t)i * tasks->n_rows;
        struct kivi_cpu_work *w = &works[i];

        w->plan = plan;
        w->task = &tasks[i];
        w->part = p;
        w->layer = layer;
        w->q = p->q + row * layer->k.dim_pad;
        w->stretch = sums_from(&p->stretch, row, layer->v.dim_pad);
        w->total = sums_from(&p->total, row, layer->v.dim_pad);
        w->after = &works[(i + 1) % n];
        clear_sums(&w->stretch, w->task->n_rows, layer->v.dim_pad);
        clear_sums(&w->total, w->task->n_rows, layer->v.dim_pad);
        if (!kivi_load_queries(w))
            return;
    }
    for (; t < end; t = next) {
        next = min_u64((t / KIVI_CHUNK + 1) * KIVI_CHUNK, end);
        for (i = 0; i < n; i++)
            kivi_attend_chunk(&works[i], t, next);
        if (next % KIVI_STRETCH == 0 || next == end)
            for (i = 0; i < n; i++)
                end_stretch(&works[i]);
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

/* Merges into the result of the first part that has a share of the task. */
static void merge_task(const struct kivi_plan *plan, const struct kivi_task *task, uint32_t first)
{
    const struct kivi_layout *l = &plan->step->geometry->layers[plan->step->layer].v;
    const struct kivi_sums *result = partial_of(plan, first, 0);
    uint64_t from, to;
    uint32_t p;

    for (p = first + 1; p < plan->step->n_parts; p++) {
        share_of(plan, task, p, &from, &to);
        if (from == to && from == task->n_units)
            break;
        if (from < to)
            merge_sums(result, partial_of(plan, p, 1), task->n_rows, l);
    }
    write_rows(plan, task, result, l->dim_pad);
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
