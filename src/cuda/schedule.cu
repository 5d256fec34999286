/* The host's side of schedule.cuh: the work of a step, and how it becomes that of parts. */
#include "context.cuh"

namespace {

/* A place in the line of all units: one of task number `task` of an item, which starts at cost `task_starts`. */
struct place {
    uint32_t item, unit;
    uint64_t task, task_starts;
    uint32_t begun_by; /* the part that began the task */
};

/* Codes come first, then rows. */
uint64_t unit_start(const kivi_cuda_item &item, uint32_t unit)
{
    return unit <= item.n_cheap ? unit
                                : item.n_cheap + (uint64_t)(unit - item.n_cheap) * item.few.edge_cost;
}

/* The first unit of a task that starts at `cost` or later. */
uint32_t unit_at(const kivi_cuda_item &item, uint64_t cost)
{
    if (cost <= item.n_cheap)
        return (uint32_t)cost;
    cost = (cost - item.n_cheap + item.few.edge_cost - 1) / item.few.edge_cost + item.n_cheap;
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

uint64_t divide_up(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

/*
 * Whether an item of so many query rows to a kv head is attend_many.cuh's. As measured, 64 rows take as long there for
 * a unit of codes as so many tiles of 8 do that are divided as schedule.cuh says, and for a unit of rows as 6 do for
 * one of codes; for tiles such units are edges. Of new tokens rows see half.
 */
bool is_many(const kivi_layer_geometry *l, const kivi_cuda_item &item, uint64_t rows)
{
    const uint32_t bits = l->k.bits > l->v.bits ? l->k.bits : l->v.bits;
    const uint64_t codes_cost = bits < 8 ? 10 : bits == 8 ? 6 : 2, rows_cost = 6;
    const uint64_t codes = item.n_cheap, edges = item.n_units - codes, half = item.n_new / KIVI_CUDA_UNIT / 2;
    const uint64_t of_rows = edges > half ? edges - half : edges, blocks = divide_up(rows, KIVI_CUDA_MANY_ROWS);

    return rows >= KIVI_CUDA_MANY
           && blocks * (codes_cost * codes + rows_cost * of_rows)
                  <= item.n_tiles * (codes + item.few.edge_cost * of_rows);
}

/* Items of attend_many.cuh: splits of their tokens, as many as its blocks run at a time, and each item's blocks. False
 * if they are too many. */
bool divide_many(const kivi_step *step, kivi_cuda_item *items, uint32_t many_blocks, uint64_t cost,
                 kivi_cuda_many_plan *plan)
{
    uint64_t blocks = 0, partials = 0;

    for (size_t i = 0; i < step->n_items; i++) {
        const uint64_t tiles = kivi_cuda_many_tiles(items[i], step->geometry->heads_per_kv);
        const uint64_t tasks = tiles * step->geometry->n_kv_heads, units = items[i].n_units;
        const uint64_t share = units * many_blocks / cost, most = units / KIVI_CUDA_MANY_LEAST;
        const uint64_t splits = share < most ? share : most;

        if (tasks == 0)
            continue;
        items[i].many.n_splits = (uint32_t)(splits < 1 ? 1 : splits);
        items[i].many.first_partial = (uint32_t)partials;
        blocks += tasks * items[i].many.n_splits;
        partials += items[i].many.n_splits > 1 ? tasks * items[i].many.n_splits : 0;
        if (blocks > INT32_MAX)
            return false;
    }
    plan->n_blocks = (uint32_t)blocks;
    plan->n_partials = (uint32_t)partials;
    return true;
}

/* What is divided, and how: in equal shares, wherever they end, or so that none ends one task and begins another
 * that it does not end. */
struct division {
    const kivi_cuda_item *items;
    uint32_t n_items, n_kv_heads;
    uint64_t cost;
    uint32_t n;     /* shares, if equal */
    uint64_t share; /* what one has at most, if they end with tasks; else 0 */
};

/* Goes on to the item that has the next task; false if there is none. */
bool find_task(const division &d, place &at)
{
    while (at.task == n_tasks(d.items[at.item], d.n_kv_heads)) {
        if (at.item + 1 == d.n_items)
            return false;
        at = {at.item + 1, 0, 0, at.task_starts, at.begun_by};
    }
    return true;
}

/* How many shares there are of at most `share`, if they end with tasks: a larger task has shares of its own, all
 * alike; of others there are in one as many as fit, in their order. */
uint64_t count_shares(const division &d, uint64_t share)
{
    uint64_t n = 0, room = 0; /* in the last one */

    for (uint32_t i = 0; i < d.n_items; i++) {
        const uint64_t cost = task_cost(d.items[i]);
        uint64_t left = n_tasks(d.items[i], d.n_kv_heads);

        if (cost > share) {
            n += left * divide_up(cost, share);
            room = left ? 0 : room;
            continue;
        }
        const uint64_t at_once = share / cost, fit = room / cost < left ? room / cost : left;

        left -= fit;
        room -= fit * cost;
        if (left) {
            n += divide_up(left, at_once);
            room = share - ((left - 1) % at_once + 1) * cost;
        }
    }
    return n;
}

/* The smallest shares that end with tasks, if they are `n` at most; 0 if equal ones take less, which end wherever
 * they do: as measured, to end one task and begin another costs a part 5 units for each of its warps. */
uint64_t find_share(const division &d, uint32_t n_warps)
{
    uint64_t low = divide_up(d.cost, d.n), high = low + 5 * n_warps;

    if (count_shares(d, high) > d.n)
        return 0;
    while (low < high) {
        const uint64_t share = (low + high) / 2;

        if (count_shares(d, share) <= d.n)
            high = share;
        else
            low = share + 1;
    }
    return high;
}

/* Where the share ends that begins at `at`, number i of all, and number `of_task` of its task. */
uint64_t share_end(const division &d, const place &at, uint32_t i, uint32_t of_task)
{
    uint64_t end = at.task_starts, cost = task_cost(d.items[at.item]), task = at.task, room = d.share;

    if (d.share == 0)
        return (uint64_t)(i + 1) * d.cost / d.n;
    if (cost > d.share)
        return end + (uint64_t)(of_task + 1) * cost / divide_up(cost, d.share);
    for (uint32_t item = at.item; item < d.n_items; item++, task = 0) {
        const uint64_t left = n_tasks(d.items[item], d.n_kv_heads) - task;
        uint64_t fit;

        cost = task_cost(d.items[item]);
        fit = room / cost < left ? room / cost : left;
        end += fit * cost;
        room -= fit * cost;
        if (fit < left)
            break;
    }
    return end;
}

} // namespace

bool kivi_cuda_find_work(const kivi_step *step, kivi_cuda_item *items, uint32_t many_blocks, kivi_cuda_work *work)
{
    const uint64_t window = step->attention.window;
    uint64_t many_cost = 0;

    *work = {};
    for (size_t i = 0; i < step->n_items; i++) {
        const kivi_step_item *from = &step->items[i];
        const uint64_t n = from->after.n, rows = from->io.n_q * step->geometry->heads_per_kv;
        const uint64_t packed = from->before.k_packed < from->before.v_packed ? from->before.k_packed
                                                                              : from->before.v_packed;
        const uint64_t last = from->q_position + (from->io.n_q ? from->io.n_q - 1 : 0);
        const uint64_t end = last < n ? last + 1 : n, cheap = packed / KIVI_CUDA_UNIT;
        uint64_t first = window && from->q_position >= window ? from->q_position - window + 1 : 0;
        uint64_t units = (end + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT, tasks;

        if (from->io.n_q > INT32_MAX || rows > INT32_MAX - KIVI_CUDA_MANY_ROWS)
            return false;
        first = (first < end ? first : end) / KIVI_CUDA_UNIT;
        units = units > first ? units - first : 1; /* what sees nothing is written all the same */
        items[i].first_unit = (uint32_t)first;
        items[i].n_units = (uint32_t)units;
        items[i].n_cheap = (uint32_t)(cheap <= first ? 0 : cheap - first < units ? cheap - first : units);
        items[i].n_tiles = (uint32_t)((rows + KIVI_CUDA_ROWS - 1) / KIVI_CUDA_ROWS);
        items[i].few.edge_cost = edge_cost(&step->geometry->layers[step->layer], n > from->before.k_packed);
        if (many_blocks && is_many(&step->geometry->layers[step->layer], items[i], rows)) {
            items[i].n_tiles = 0;
            many_cost += divide_up(rows, KIVI_CUDA_MANY_ROWS) * step->geometry->n_kv_heads * units;
            work->many.low_queries = work->many.low_queries || from->io.q.dtype == KIVI_F32;
        }
        tasks = n_tasks(items[i], step->geometry->n_kv_heads);
        work->n_tasks += tasks;
        work->cost += tasks * task_cost(items[i]);
    }
    return work->n_tasks <= INT32_MAX
           && (!many_cost || divide_many(step, items, many_blocks, many_cost, &work->many));
}

const kivi_cuda_split *kivi_cuda_choose_split(const kivi_cuda_path *path, const kivi_cuda_work *work)
{
    return work->n_tasks <= path->few_tasks ? &path->large : &path->small;
}

uint32_t kivi_cuda_divide_work(const kivi_cuda_step *s, const kivi_cuda_item *items, const kivi_cuda_work *work,
                               const kivi_cuda_split *split, kivi_cuda_start *starts)
{
    const uint64_t most = work->cost / split->least_cost;
    division d = {items, s->n_items, s->n_kv_heads, work->cost, 0, 0};
    place at = {0, 0, 0, 0, 0};
    uint32_t n_parts = 0, of_task = 0; /* parts that have a unit; shares of the task at `at`, until now */

    d.n = (uint32_t)(most < 1 ? 1 : most < split->max_parts ? most : split->max_parts);
    d.share = find_share(d, split->n_warps);
    for (uint32_t i = 0; find_task(d, at); i++) {
        const uint64_t end = share_end(d, at, i, of_task);
        kivi_cuda_start *start = &starts[n_parts];

        start->n_tasks = 0;
        while (find_task(d, at) && at.task_starts + unit_start(items[at.item], at.unit) < end) {
            const kivi_cuda_item &item = items[at.item];
            const uint64_t tasks = n_tasks(item, s->n_kv_heads), cost = task_cost(item);

            if (at.unit == 0)
                at.begun_by = n_parts;
            if (start->n_tasks == 0) {
                start->item = (uint16_t)at.item;
                start->head = (uint16_t)(at.task / item.n_tiles);
                start->tile = (uint32_t)(at.task % item.n_tiles);
                start->unit = at.unit;
                start->first_part = (uint16_t)at.begun_by;
            }

            const uint32_t unit = unit_at(item, end - at.task_starts);

            if (unit < item.n_units) {
                at.unit = unit;
                start->n_tasks++;
            } else { /* the task ends here, and perhaps some more */
                uint64_t whole = (end - at.task_starts) / cost;

                whole = whole < 1 ? 1 : whole < tasks - at.task ? whole : tasks - at.task;
                for (uint32_t j = at.begun_by + 1; j <= n_parts; j++)
                    starts[j].last_part = (uint16_t)n_parts;
                start->n_tasks += (uint32_t)whole;
                at = {at.item, 0, at.task + whole, at.task_starts + whole * cost, n_parts};
            }
        }
        of_task = at.unit > 0 ? of_task + 1 : 0;
        n_parts += start->n_tasks > 0;
    }
    starts[n_parts].unit = 0; /* the last part ends with a task */
    return n_parts;
}
