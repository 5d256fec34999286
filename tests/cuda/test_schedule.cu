/*
 * How attention is divided into parts, and units between the warps of a block: schedule.cu divides, schedule.cuh goes
 * through a part's tasks. Both run here on the host, so this needs no GPU.
 */
#include <check.h>
#include <string.h>
#include <vector>

#include "cuda/context.cuh"
#include "cuda/schedule.cuh"
#include "support/program.h"

namespace {

uint64_t random_state = 1;

uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

/* Items of a step, and what becomes of them. */
struct plan {
    std::vector<kivi_cuda_item> items;
    std::vector<unsigned char> tables; /* the items, and starts */
    kivi_cuda_step step;
    kivi_cuda_work work;
    kivi_cuda_split split;
    uint32_t n_parts;

    plan(uint32_t n_kv_heads, kivi_cuda_split how) : step(), work{0, 0}, split(how), n_parts(0)
    {
        step.n_kv_heads = n_kv_heads;
    }

    /* `units` units, the last `edges` of which cost `edge_cost` each. */
    void add(uint32_t units, uint32_t edges, uint32_t edge_cost, uint32_t n_tiles)
    {
        kivi_cuda_item item = {};

        item.n_units = units;
        item.n_cheap = units - edges;
        item.few.edge_cost = edge_cost;
        item.n_tiles = n_tiles;
        items.push_back(item);
        work.n_tasks += (uint64_t)n_tiles * step.n_kv_heads;
        work.cost += (uint64_t)n_tiles * step.n_kv_heads * (item.n_cheap + edges * edge_cost);
    }

    void add_sequence(uint32_t tokens)
    {
        const uint32_t units = (tokens + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT;

        add(units, units < 4 ? units : 4, 4, 1);
    }

    void divide()
    {
        const size_t bytes = items.size() * sizeof(kivi_cuda_item);

        tables.assign(bytes + (split.max_parts + 1) * sizeof(kivi_cuda_start), 0);
        memcpy(tables.data(), items.data(), bytes);
        step.n_items = (uint32_t)items.size();
        step.tables = tables.data();
        step.starts_at = (uint32_t)bytes;
        n_parts = kivi_cuda_divide_work(&step, items.data(), &work, &split,
                                        (kivi_cuda_start *)(tables.data() + bytes));
    }

    uint64_t cost(uint32_t item, uint32_t begin, uint32_t end) const
    {
        const uint64_t cheap = items[item].n_cheap, edge = items[item].few.edge_cost;

        return (end < cheap ? end : cheap + (end - cheap) * edge)
               - (begin < cheap ? begin : cheap + (begin - cheap) * edge);
    }
};

/* What a part does. */
struct share {
    uint64_t cost;
    bool straddles; /* ends a task that it did not begin, or begins one that it does not end, and does more */
};

/* Goes through all parts as the device does: every unit of every task has to come once, in order. */
std::vector<share> check_parts(const plan &p)
{
    std::vector<share> shares;
    std::vector<kivi_cuda_segment> task; /* the segments of the one that is not yet done */
    uint32_t item = 0, head = 0, tile = 0;

    ck_assert_uint_ge(p.n_parts, 1);
    ck_assert_uint_le(p.n_parts, p.split.max_parts);
    for (uint32_t part = 0; part < p.n_parts; part++) {
        const uint32_t n_tasks = kivi_cuda_starts(p.step)[part].n_tasks;
        share s = {0, false};
        kivi_cuda_segment g = {};

        ck_assert_uint_ge(n_tasks, 1);
        for (uint32_t i = 0; i < n_tasks; i++) {
            kivi_cuda_next(p.step, part, i, g);
            while (p.items[item].n_tiles == 0)
                item++;
            ck_assert_uint_eq(g.item, item);
            ck_assert_uint_eq(g.head, head);
            ck_assert_uint_eq(g.tile, tile);
            ck_assert_uint_eq(g.begin, task.empty() ? 0 : task.back().end);
            ck_assert_uint_gt(g.end, g.begin);
            ck_assert_uint_le(g.end, p.items[item].n_units);
            s.cost += p.cost(item, g.begin, g.end);
            s.straddles = s.straddles || (n_tasks > 1 && (g.begin > 0 || g.end < p.items[item].n_units));
            task.push_back(g);
            if (g.end < p.items[item].n_units) {
                ck_assert_uint_eq(i + 1, n_tasks);
                continue;
            }
            for (const kivi_cuda_segment &segment : task) {
                ck_assert_uint_eq(segment.first_part, part + 1 - task.size());
                ck_assert_uint_eq(segment.last_part, part);
            }
            task.clear();
            if (++tile == p.items[item].n_tiles) {
                tile = 0;
                if (++head == p.step.n_kv_heads) {
                    head = 0;
                    item++;
                }
            }
        }
        shares.push_back(s);
    }
    ck_assert(task.empty() && tile == 0 && head == 0);
    for (; item < p.items.size(); item++)
        ck_assert_uint_eq(p.items[item].n_tiles, 0);
    return shares;
}

START_TEST(random_steps)
{
    const kivi_cuda_split splits[] = {{16, 132, 16}, {8, 264, 8}, {4, 264, 8}, {4, 792, 24},
                                      {8, 1, 8},     {2, 7, 8},   {1, 396, 8}};

    random_state = (uint64_t)_i + 1;
    for (int round = 0; round < 400; round++) {
        kivi_cuda_split split = splits[below(sizeof splits / sizeof *splits)];
        plan p(1u << below(6), split);
        const uint32_t n = 1 + below(below(10) == 0 ? 100 : 12), most = 1u << below(12), all = below(3);

        for (uint32_t i = 0; i < n; i++) {
            const uint32_t units = all == 0 ? most : 1 + below(most);

            p.add(units, below(units < 8 ? units + 1 : 8), 4 + below(5), below(8) == 0 ? below(4) : 1);
        }
        if (p.work.n_tasks == 0)
            continue;
        p.divide();
        /* More than an equal share has: a unit that begins in it, and what it costs to end two tasks. */
        const uint64_t most_parts = p.work.cost / split.least_cost;
        const uint64_t n_shares = most_parts < 1 ? 1 : most_parts < split.max_parts ? most_parts : split.max_parts;
        const uint64_t equal = (p.work.cost + n_shares - 1) / n_shares;

        for (const share &s : check_parts(p))
            ck_assert_uint_le(s.cost, equal + 5 * split.n_warps + KIVI_CUDA_EDGE_COST);
    }
}
END_TEST

/* Sequences and their kv heads for which parts can end with tasks at little cost: then all do. */
struct batch {
    uint32_t n_kv_heads, n_sequences, shortest, longest;
};

const batch batches[] = {{8, 1, 256, 256},   {8, 1, 1024, 1024},  {8, 1, 131072, 131072}, {8, 3, 1000, 8000},
                         {8, 5, 200, 4000},  {8, 7, 500, 8000},   {8, 7, 4096, 4096},     {8, 32, 4096, 4096},
                         {8, 40, 1024, 1024}, {4, 40, 1000, 3000}, {32, 16, 4096, 4096}};

START_TEST(parts_end_with_tasks)
{
    const batch &b = batches[_i];
    const uint32_t n_tasks = b.n_kv_heads * b.n_sequences;
    plan p(b.n_kv_heads, n_tasks <= 16 ? kivi_cuda_split{16, 132, 16} : kivi_cuda_split{8, 264, 8});

    for (uint32_t i = 0; i < b.n_sequences; i++)
        p.add_sequence(b.shortest + (b.longest - b.shortest) * (i * 7 % b.n_sequences) / b.n_sequences);
    p.divide();
    for (const share &s : check_parts(p))
        ck_assert_msg(!s.straddles, "of %u tasks of %u to %u tokens a part straddles", n_tasks, b.shortest, b.longest);
}
END_TEST

/* The warps of a block do every unit of codes once, each warp in order and in the steps in which it fetches them, and
 * with edges all have about as much to do. */
START_TEST(warps_share_units)
{
    random_state = (uint64_t)_i + 1;
    for (int round = 0; round < 4000; round++) {
        const uint32_t n_warps = 1u << below(5), n_units = below(1u << below(13)), n_edges = below(1u << below(7));
        const uint32_t edge_cost = 4 + below(5), ahead = n_warps - n_edges % n_warps; /* warps without one edge more */
        /* What is left of units where all have as much to do: to each of those, at most. Else there are too few. */
        const uint32_t spread = n_units > ahead * edge_cost ? (n_warps - 1 + ahead - 1) / ahead : edge_cost;
        std::vector<int> done(n_units);
        uint32_t least = UINT32_MAX, most = 0, n_done = 0, wrong = 0;

        for (uint32_t warp = 0; warp < n_warps; warp++) {
            const kivi_cuda_share share(n_units, n_edges, edge_cost, warp, n_warps);
            const uint32_t edges = (n_edges + warp) / n_warps, cost = share.n + edges * edge_cost;

            for (uint32_t i = 0; i < share.n; i++) {
                const uint32_t unit = share.unit(i), step = i < share.lead ? n_warps : share.ahead;

                wrong += unit >= n_units || done[unit]++ > 0 || (i + 1 < share.n && share.unit(i + 1) != unit + step);
                n_done++;
            }
            least = cost < least ? cost : least;
            most = cost > most ? cost : most;
        }
        ck_assert_msg(n_done == n_units && wrong == 0,
                      "%u warps do %u of %u units, %u of them wrongly, beside %u edges", n_warps, n_done, n_units,
                      wrong, n_edges);
        ck_assert_msg(most - least <= spread, "%u units and %u edges of cost %u: %u warps have %u to %u to do", n_units,
                      n_edges, edge_cost, n_warps, least, most);
    }
}
END_TEST

} // namespace

int main()
{
    Suite *suite = suite_create("schedule");
    TCase *cases = tcase_create("parts");

    tcase_set_timeout(cases, 300);
    tcase_add_loop_test(cases, random_steps, 0, 8);
    tcase_add_loop_test(cases, parts_end_with_tasks, 0, (int)(sizeof batches / sizeof *batches));
    tcase_add_loop_test(cases, warps_share_units, 0, 4);
    suite_add_tcase(suite, cases);
    return run_suite(suite, CK_FORK_GETENV);
}
