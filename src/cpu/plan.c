/* The plan of a step: its tasks, phases and scratch memory. */
#include <string.h>

#include "driver.h"

/* Staging and quantizing this many numbers costs less than waking a team for it. */
#define SMALL_STEP 65536u

/* The same for attention, in the unit of kivi_task.unit_cost: about 5 us. */
#define SMALL_SHARE 64u

/* More than there can be: sums stay there instead of wrapping. */
#define TOO_MUCH (SIZE_MAX / 2)

/* Hands out 64-byte aligned pieces of one allocation; with base NULL it only adds up. */
struct carver {
    char *base;
    uint64_t at;
};

static void *carve(struct carver *c, uint64_t n, uint64_t size)
{
    void *piece = c->base ? c->base + c->at : NULL;

    c->at = n < (TOO_MUCH - c->at) / size ? c->at + round_up(n * size, 64) : TOO_MUCH;
    return piece;
}

static uint64_t count_tasks(const struct kivi_step *step, uint32_t *task_rows)
{
    uint64_t n = 0;
    size_t i;

    *task_rows = 0;
    for (i = 0; i < step->n_items; i++) {
        const uint64_t rows = step->items[i].io.n_q * step->geometry->heads_per_kv;

        if (rows > *task_rows)
            *task_rows = rows < KIVI_ROW_BLOCK ? (uint32_t)rows : KIVI_ROW_BLOCK;
        n += (rows + KIVI_ROW_BLOCK - 1) / KIVI_ROW_BLOCK * step->geometry->n_kv_heads;
    }
    return n;
}

static void set_tokens(const struct kivi_step *step, struct kivi_task *task)
{
    const struct kivi_step_item *item = &step->items[task->item];
    const uint32_t per_kv = step->geometry->heads_per_kv;
    const uint64_t window = step->attention.window;
    const uint64_t first = item->q_position + task->first_row / per_kv;
    const uint64_t last = item->q_position + (task->first_row + task->n_rows - 1) / per_kv;
    const uint64_t n = item->after.n;

    task->begin = window && first >= window ? first - window + 1 : 0;
    task->end = last < n ? last + 1 : n;
    task->begin = task->begin < task->end ? task->begin / KIVI_UNIT * KIVI_UNIT : task->end;
    task->n_units = (task->end - task->begin + KIVI_UNIT - 1) / KIVI_UNIT;
    if (task->n_units == 0) /* sees nothing; somebody must write its zeros all the same */
        task->n_units = 1;
    task->unit_cost = task->n_rows + 4; /* reading a token costs about as much as four rows of it */
}

/* Heads are the outer loop: a part's share is then contiguous in few heads' memory. */
static void make_tasks(struct kivi_plan *plan)
{
    const struct kivi_step *step = plan->step;
    struct kivi_task *task = plan->tasks;
    uint32_t head, row;
    size_t i;

    plan->total_cost = 0;
    for (i = 0; i < step->n_items; i++) {
        const uint32_t rows = (uint32_t)(step->items[i].io.n_q * step->geometry->heads_per_kv);

        for (head = 0; head < step->geometry->n_kv_heads; head++) {
            for (row = 0; row < rows; row += KIVI_ROW_BLOCK, task++) {
                task->item = (uint32_t)i;
                task->kv_head = head;
                task->first_row = row;
                task->n_rows = rows - row < KIVI_ROW_BLOCK ? rows - row : KIVI_ROW_BLOCK;
                set_tokens(step, task);
                task->cost_before = plan->total_cost;
                plan->total_cost += task->n_units * task->unit_cost;
            }
        }
    }
}

/* Tokens of the largest slab of items that only append. */
static uint64_t slab_tokens(const struct kivi_step *step)
{
    uint64_t n = 0;
    size_t i;

    for (i = 0; i < step->n_items; i++) {
        if (kivi_only_appends(&step->items[i]))
            n = max_u64(n, min_u64(step->items[i].io.n_new, KIVI_SLAB));
    }
    return n;
}

static struct kivi_sums carve_sums(struct carver *c, uint64_t rows, uint32_t width)
{
    struct kivi_sums s;

    s.out = carve(c, rows * width, sizeof *s.out);
    s.max = carve(c, rows, sizeof *s.max);
    s.sum = carve(c, rows, sizeof *s.sum);
    return s;
}

static void lay_out(struct kivi_plan *plan, struct carver *c, uint64_t n_tasks)
{
    const struct kivi_step *step = plan->step;
    const struct kivi_geometry *g = step->geometry;
    const struct kivi_layer_geometry *l = &g->layers[step->layer];
    const uint64_t slab = slab_tokens(step);
    uint32_t p;
    size_t i;

    plan->n_tasks = (size_t)n_tasks;
    plan->tasks = carve(c, n_tasks, sizeof *plan->tasks);
    plan->parts = carve(c, step->n_parts, sizeof *plan->parts);
    plan->staged_k = carve(c, step->n_items, sizeof *plan->staged_k);
    plan->staged_v = carve(c, step->n_items, sizeof *plan->staged_v);
    for (p = 0; p < step->n_parts; p++) {
        struct kivi_part part = {0};

        if (n_tasks) {
            part.q = carve(c, plan->part_rows * l->k.dim_pad, sizeof *part.q);
            part.scores = carve(c, plan->task_rows * KIVI_CHUNK, sizeof *part.scores);
            part.stretch = carve_sums(c, plan->part_rows, l->v.dim_pad);
            part.total = carve_sums(c, plan->part_rows, l->v.dim_pad);
            part.partial[0] = carve_sums(c, plan->task_rows, l->v.dim_pad);
            part.partial[1] = carve_sums(c, plan->task_rows, l->v.dim_pad);
        }
        part.group = carve(c, (uint64_t)g->group_size * g->k_dim, sizeof *part.group);
        part.slab.k = carve(c, slab * g->k_dim, sizeof *part.slab.k);
        part.slab.v = carve(c, slab * g->v_dim, sizeof *part.slab.v);
        if (c->base)
            plan->parts[p] = part;
    }
    for (i = 0; i < step->n_items; i++) {
        const struct kivi_step_item *item = &step->items[i];
        const uint64_t n = kivi_only_appends(item) ? 0 : item->io.n_new * g->n_kv_heads;
        uint16_t *k = carve(c, n * g->k_dim, sizeof *k);
        uint16_t *v = carve(c, n * g->v_dim, sizeof *v);

        if (c->base) {
            plan->staged_k[i] = k;
            plan->staged_v[i] = v;
        }
    }
}

/* Numbers that a step converts, and quantizes or stores. */
static uint64_t n_numbers(const struct kivi_step *step)
{
    const struct kivi_geometry *g = step->geometry;
    uint64_t n = 0;
    size_t i;

    for (i = 0; i < step->n_items; i++) {
        const struct kivi_step_item *item = &step->items[i];

        n += item->io.n_new * (g->k_dim + g->v_dim);
        n += (item->after.k_packed - item->before.k_packed) * g->k_dim;
        n += (item->after.v_packed - item->before.v_packed) * g->v_dim;
    }
    return n * g->n_kv_heads;
}

/* Parts with less to do than waking them costs are left out; the rest is a rule of the shapes. Small
 * work before and after the attention is done by one thread in begin and end. */
static void number_phases(struct kivi_plan *plan)
{
    struct kivi_step *step = plan->step;
    const uint64_t numbers = n_numbers(step);
    const uint64_t useful = 1 + plan->total_cost / SMALL_SHARE + numbers / SMALL_STEP;
    uint32_t n = 0;
    int small;

    if (step->n_parts > useful)
        step->n_parts = (uint32_t)useful;
    small = step->n_parts == 1 || numbers <= SMALL_STEP;
    plan->stage_phase = small ? UINT32_MAX : n++;
    plan->attend_phase = plan->n_tasks ? n++ : UINT32_MAX;
    plan->finish_phase = small ? UINT32_MAX : n++;
    step->n_phases = n;
}

struct kivi_plan *kivi_plan_make(const struct kivi_kernels *kernels, uint32_t features,
                                 struct kivi_step *step, const kivi_allocator *allocator)
{
    struct kivi_plan sizes = {.kernels = kernels, .step = step}, *plan;
    const uint64_t n_tasks = count_tasks(step, &sizes.task_rows);
    const uint64_t rows = (uint64_t)sizes.task_rows * step->geometry->n_kv_heads;
    struct carver carver = {NULL, 0};

    sizes.is_amd = (features & KIVI_CPU_AMD) != 0;
    sizes.part_rows = rows < KIVI_ROW_BLOCK ? (uint32_t)rows : KIVI_ROW_BLOCK;
    carve(&carver, 1, sizeof sizes);
    lay_out(&sizes, &carver, n_tasks);
    if (carver.at >= TOO_MUCH)
        return NULL;
    sizes.bytes = (size_t)carver.at;
    carver.base = allocator->alloc(allocator->context, sizes.bytes, 64);
    if (!carver.base)
        return NULL;
    carver.at = 0;
    plan = carve(&carver, 1, sizeof *plan);
    *plan = sizes;
    lay_out(plan, &carver, n_tasks);
    make_tasks(plan);
    number_phases(plan);
    return plan;
}
