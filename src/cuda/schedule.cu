/* The host's side of schedule.cuh: the work of a step, and how it becomes that of parts. */
#include "context.cuh"

namespace {

/* A place in the line of all units: one of task number `task` of an item, which starts at cost `task_starts`. */
struct place {
    uint32_t item, unit;
    uint64_t task, task_starts;
};

/* Codes come first, then rows. */
uint64_t unit_start(const kivi_cuda_item &item, uint32_t unit)
{
    return unit <= item.n_cheap ? unit
                                : item.n_cheap + (uint64_t)(unit - item.n_cheap) * item.edge_cost;
}

/* The first unit of a task that starts at `cost` or later. */
uint32_t unit_at(const kivi_cuda_item &item, uint64_t cost)
{
    if (cost <= item.n_cheap)
        return (uint32_t)cost;
    cost = (cost - item.n_cheap + item.edge_cost - 1) / item.edge_cost + item.n_cheap;
    return cost < item.n_units ? (uint32_t)cost : item.n_units;
}

uint64_t task_cost(const kivi_cuda_item &item)
{
    return unit_start(item, item.n_units);
}

/* As measured. Right after a flush of keys the rows are those of values alone. */
uint32_t edge_cost(const kivi_layer_geometry *l, bool has_rows_of_keys)
{
    if (!has_rows_of_keys)
        return 4;
    return l->k.bits == 2 && l->v.bits == 2 ? 5 : KIVI_CUDA_EDGE_COST;
}

uint64_t n_tasks(const kivi_cuda_item &item, uint32_t n_kv_heads)
{
    return (uint64_t)item.n_tiles * n_kv_heads;
}

} // namespace

bool kivi_cuda_find_work(const kivi_step *step, kivi_cuda_item *items, kivi_cuda_work *work)
{
    const uint64_t window = step->attention.window;
    bool first_one = true;

    *work = {0, 0, 0};
    for (size_t i = 0; i < step->n_items; i++) {
        const kivi_step_item *from = &step->items[i];
        const uint64_t n = from->after.n, rows = from->io.n_q * step->geometry->heads_per_kv;
        const uint64_t packed = from->before.k_packed < from->before.v_packed ? from->before.k_packed
                                                                              : from->before.v_packed;
        const uint64_t last = from->io.q_position + (from->io.n_q ? from->io.n_q - 1 : 0);
        const uint64_t end = last < n ? last + 1 : n, cheap = packed / KIVI_CUDA_UNIT;
        uint64_t first = window && from->io.q_position >= window ? from->io.q_position - window + 1 : 0;
        uint64_t units = (end + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT, tasks;

        if (from->io.n_q > INT32_MAX || rows > INT32_MAX - KIVI_CUDA_ROWS)
            return false;
        first = (first < end ? first : end) / KIVI_CUDA_UNIT;
        units = units > first ? units - first : 1; /* what sees nothing is written all the same */
        items[i].first_unit = (uint32_t)first;
        items[i].n_units = (uint32_t)units;
        items[i].n_cheap = (uint32_t)(cheap <= first ? 0 : cheap - first < units ? cheap - first : units);
        items[i].n_tiles = (uint32_t)((rows + KIVI_CUDA_ROWS - 1) / KIVI_CUDA_ROWS);
        items[i].edge_cost = edge_cost(&step->geometry->layers[step->layer], n > from->before.k_packed);
        tasks = n_tasks(items[i], step->geometry->n_kv_heads);
        if (tasks == 0)
            continue;
        if (first_one || work->task_cost == task_cost(items[i]))
            work->task_cost = task_cost(items[i]);
        else
            work->task_cost = 0;
        first_one = false;
        work->n_tasks += tasks;
        work->cost += tasks * task_cost(items[i]);
    }
    return work->n_tasks <= INT32_MAX;
}

const kivi_cuda_split *kivi_cuda_choose_split(const kivi_cuda_path *path, const kivi_cuda_work *work)
{
    return work->n_tasks <= path->few_tasks ? &path->large : &path->small;
}

uint32_t kivi_cuda_choose_parts(const kivi_cuda_split *split, const kivi_cuda_work *work)
{
    const uint64_t tasks = work->n_tasks, most = work->cost / split->least_cost;
    const uint64_t n = most < 1 ? 1 : most < split->max_parts ? most : split->max_parts;
    uint64_t even = n;

    if (work->task_cost && tasks > n)
        even = tasks / ((tasks + n - 1) / n);
    else if (work->task_cost && tasks)
        even = n / tasks * tasks;
    if (tasks > n && tasks % even)
        even = n;
    return (uint32_t)(even * 8 >= n * 7 ? even : n);
}

uint32_t kivi_cuda_divide_work(const kivi_cuda_step *s, const kivi_cuda_item *items, const kivi_cuda_work *work,
                               uint32_t n, kivi_cuda_start *starts)
{
    place at = {0, 0, 0, 0};
    uint32_t begun_by = 0, n_parts = 0; /* the part that began the task at `at`; parts that have a unit */

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t share_ends = (uint64_t)(i + 1) * work->cost / n;
        kivi_cuda_start *start = &starts[n_parts];

        start->n_tasks = 0;
        for (;;) {
            const kivi_cuda_item &item = items[at.item];
            const uint64_t tasks = n_tasks(item, s->n_kv_heads), cost = task_cost(item);

            if (at.task == tasks && at.item + 1 < s->n_items) {
                at = {at.item + 1, 0, 0, at.task_starts};
                continue;
            }
            if (at.task == tasks || at.task_starts + unit_start(item, at.unit) >= share_ends)
                break;
            if (at.unit == 0)
                begun_by = n_parts;
            if (start->n_tasks == 0) {
                start->item = (uint16_t)at.item;
                start->head = (uint16_t)(at.task / item.n_tiles);
                start->tile = (uint32_t)(at.task % item.n_tiles);
                start->unit = at.unit;
                start->first_part = (uint16_t)begun_by;
            }

            const uint32_t end = unit_at(item, share_ends - at.task_starts);

            if (end < item.n_units) {
                at.unit = end;
                start->n_tasks++;
            } else { /* the task ends here, and perhaps some more */
                uint64_t whole = (share_ends - at.task_starts) / cost;

                whole = whole < 1 ? 1 : whole < tasks - at.task ? whole : tasks - at.task;
                for (uint32_t j = begun_by + 1; j <= n_parts; j++)
                    starts[j].last_part = (uint16_t)n_parts;
                start->n_tasks += (uint32_t)whole;
                at = {at.item, 0, at.task + whole, at.task_starts + whole * cost};
            }
        }
        n_parts += start->n_tasks > 0;
    }
    starts[n_parts].unit = 0; /* the last part ends with a task */
    return n_parts;
}
