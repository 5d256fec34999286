/*
 * How the attention of a step is split over thread blocks ("parts"), and how partial results become
 * one. A task is one tile of query rows of one kv head of one item; its tokens are cut in units of
 * KIVI_CUDA_UNIT. All units of all tasks stand in one line by cost, of which every part takes an equal
 * share; a unit belongs to the part in whose share it starts. The last part to finish a task merges
 * what all of its parts left, in their order: results do not depend on timing.
 */
#ifndef KIVI_CUDA_SCHEDULE_CUH
#define KIVI_CUDA_SCHEDULE_CUH

#include "step.cuh"

/* A part's share of one task. */
struct kivi_cuda_segment {
    uint32_t item, head, tile, task;
    uint32_t begin, end; /* units that it works on, those out of every row's sight left out */
    uint32_t first_part, last_part;
};

struct kivi_cuda_cursor {
    uint64_t at, end; /* cost */
    uint32_t item;
};

/* Cost at which a unit of a task starts: codes first, then rows. */
__device__ __forceinline__ uint64_t kivi_cuda_unit_start(const kivi_cuda_item &item, uint32_t unit)
{
    return unit <= item.n_cheap ? unit
                                : item.n_cheap
                                      + (uint64_t)(unit - item.n_cheap) * KIVI_CUDA_EDGE_COST;
}

/* The first unit that starts at `cost` or later. */
__device__ __forceinline__ uint32_t kivi_cuda_unit_at(const kivi_cuda_item &item, uint64_t cost)
{
    if (cost <= item.n_cheap)
        return (uint32_t)cost;
    cost = (cost - item.n_cheap + KIVI_CUDA_EDGE_COST - 1) / KIVI_CUDA_EDGE_COST + item.n_cheap;
    return cost < item.n_units ? (uint32_t)cost : item.n_units;
}

__device__ __forceinline__ uint64_t kivi_cuda_share_start(const kivi_cuda_step &s, uint32_t part)
{
    return part * s.total_cost / s.n_parts;
}

/* The part whose share holds `cost`. */
__device__ __forceinline__ uint32_t kivi_cuda_part_at(const kivi_cuda_step &s, uint64_t cost)
{
    return (uint32_t)(((cost + 1) * s.n_parts - 1) / s.total_cost);
}

__device__ __forceinline__ kivi_cuda_cursor kivi_cuda_first(const kivi_cuda_step &s, uint32_t part)
{
    kivi_cuda_cursor c;

    c.at = kivi_cuda_share_start(s, part);
    c.end = kivi_cuda_share_start(s, part + 1);
    c.item = 0;
    return c;
}

/* Rows of a tile. */
__device__ __forceinline__ uint32_t kivi_cuda_tile_rows(const kivi_cuda_step &s,
                                                        const kivi_cuda_item &item, uint32_t tile)
{
    const uint32_t rows = item.n_q * s.heads_per_kv - tile * KIVI_CUDA_ROWS;

    return rows < KIVI_CUDA_ROWS ? rows : KIVI_CUDA_ROWS;
}

/* Position of a row's query. */
__device__ __forceinline__ uint64_t kivi_cuda_position(const kivi_cuda_step &s,
                                                       const kivi_cuda_item &item, uint32_t tile,
                                                       uint32_t row)
{
    return item.q_position + (tile * KIVI_CUDA_ROWS + row) / s.heads_per_kv;
}

/* The next segment in which the part has a unit; false if there is none. */
__device__ __forceinline__ bool kivi_cuda_next(const kivi_cuda_step &s, kivi_cuda_cursor &c,
                                               kivi_cuda_segment &g)
{
    const kivi_cuda_item *items = kivi_cuda_items(s);

    while (c.at < c.end) {
        const kivi_cuda_item *item = &items[c.item];
        uint64_t local, stop, first, last;
        uint32_t n, task;

        while (c.at - item->cost_before
               >= item->task_cost * ((uint64_t)item->n_tiles * s.n_kv_heads)) {
            c.item++;
            item++;
        }
        task = (uint32_t)((c.at - item->cost_before) / item->task_cost);
        local = c.at - item->cost_before - task * item->task_cost;
        stop = c.end - c.at < item->task_cost - local ? local + (c.end - c.at) : item->task_cost;
        g.begin = kivi_cuda_unit_at(*item, local);
        g.end = kivi_cuda_unit_at(*item, stop);
        c.at += stop - local;
        if (g.begin == g.end)
            continue;
        g.item = c.item;
        g.head = task / item->n_tiles;
        g.tile = task % item->n_tiles;
        g.task = item->tasks_before + task;
        local = item->cost_before + task * item->task_cost;
        g.first_part = kivi_cuda_part_at(s, local);
        g.last_part = kivi_cuda_part_at(s, local + kivi_cuda_unit_start(*item, item->n_units - 1));
        /* What the tile sees of them. */
        first = kivi_cuda_position(s, *item, g.tile, 0);
        last = kivi_cuda_position(s, *item, g.tile, kivi_cuda_tile_rows(s, *item, g.tile) - 1);
        first = s.window && first >= s.window ? first - s.window + 1 : 0;
        first /= KIVI_CUDA_UNIT;
        last = (last < item->n ? last + KIVI_CUDA_UNIT : item->n + KIVI_CUDA_UNIT - 1)
               / KIVI_CUDA_UNIT;
        g.begin += item->first_unit;
        g.end += item->first_unit;
        n = g.end;
        g.begin = first > g.begin ? (uint32_t)(first < n ? first : n) : g.begin;
        g.end = last < g.end ? (uint32_t)last : g.end;
        if (g.end < g.begin)
            g.end = g.begin;
        return true;
    }
    return false;
}

/* ------------------------------------------------------------------ results */

/* A result: for each row of a tile the unnormalized output, the unit of its weights (their exponents,
 * base 2, are relative to it) and their sum. */
__device__ __forceinline__ size_t kivi_cuda_partial_floats(uint32_t width)
{
    return KIVI_CUDA_ROWS * (width + 2);
}

/* An output beyond f16, where a dequantized value may lie by a rounding, is the largest there is. */
__device__ __forceinline__ __half kivi_cuda_output(float x)
{
    return __float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f));
}

/* Writes one channel quad of one row, normalized. */
__device__ __forceinline__ void kivi_cuda_write(const kivi_cuda_item &item, int64_t at, float4 x,
                                                float factor)
{
    const float y[4] = {x.x * factor, x.y * factor, x.z * factor, x.w * factor};

    if (item.out_type == KIVI_F32) {
        float *to = (float *)item.out + at;

        if (((uintptr_t)to & 15) == 0)
            *(float4 *)to = make_float4(y[0], y[1], y[2], y[3]);
        else
            for (int i = 0; i < 4; i++)
                to[i] = y[i];
    } else {
        for (int i = 0; i < 4; i++)
            ((__half *)item.out)[at + i] = kivi_cuda_output(y[i]);
    }
}

/* The factor that normalizes a row whose weights have unit `max` and sum `sum`; also writes its
 * log-sum-exp. The learned sink joins here. */
__device__ __forceinline__ float kivi_cuda_close(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                                 uint32_t token, uint32_t head, float max, float sum,
                                                 bool write_lse)
{
    const float sink = s.sink_logits ? s.sink_logits[head] * 1.44269504f : -INFINITY;
    float factor = 0;

    if (sum > 0 && sink <= max) {
        sum += exp2f(sink - max);
        factor = 1.0f / sum;
    } else if (sum > 0 || sink > -INFINITY) {
        factor = sum > 0 ? exp2f(max - sink) : 0.0f;
        sum = sum * factor + 1.0f;
        factor /= sum;
        max = sink;
    }
    if (write_lse && item.lse)
        item.lse[(uint64_t)token * s.n_q_heads + head] = sum > 0 ? (max + log2f(sum)) * 0.69314718f
                                                                 : -INFINITY;
    return factor;
}

/*
 * The end of a segment, by all threads of the block: `result` in shared memory is
 * [KIVI_CUDA_ROWS][width], then max and sum of each row. Writes the rows if the part did the whole
 * task; else leaves a partial result, and merges if it is the last to do so.
 */
__device__ __forceinline__ void kivi_cuda_finish(const kivi_cuda_step &s, const kivi_cuda_segment &g,
                                                 float *result, uint32_t width)
{
    const kivi_cuda_item &item = kivi_cuda_items(s)[g.item];
    const uint32_t n_rows = kivi_cuda_tile_rows(s, item, g.tile), quads = width / 4;
    const uint32_t part = blockIdx.x, n_parts = g.last_part - g.first_part + 1;
    const size_t size = kivi_cuda_partial_floats(width);
    __shared__ uint32_t turn;
    const float *first = NULL, *rest = NULL;

    if (n_parts > 1) {
        float *mine = s.partials + (2 * (size_t)part + (part == g.first_part)) * size;

        for (uint32_t i = threadIdx.x; i < size / 4; i += blockDim.x)
            ((float4 *)mine)[i] = ((const float4 *)result)[i];
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            turn = atomicAdd(&s.arrivals[g.task], 1);
            if (turn == n_parts - 1)
                s.arrivals[g.task] = 0;
        }
        __syncthreads();
        if (turn != n_parts - 1)
            return;
        __threadfence();
        first = s.partials + (2 * (size_t)g.first_part + 1) * size;
        rest = s.partials + 2 * (size_t)(g.first_part + 1) * size;
    }
    for (uint32_t i = threadIdx.x; i < n_rows * quads; i += blockDim.x) {
        const uint32_t row = i / quads, c = i % quads * 4;
        const uint32_t line = g.tile * KIVI_CUDA_ROWS + row;
        const uint32_t token = line / s.heads_per_kv;
        const uint32_t head = g.head * s.heads_per_kv + line % s.heads_per_kv;
        const uint32_t max_at = KIVI_CUDA_ROWS * width + row, sum_at = max_at + KIVI_CUDA_ROWS;
        float4 x = ((const float4 *)result)[row * quads + i % quads];
        float max = result[max_at], sum = result[sum_at], factor;

        if (first) {
            const float *p = first;

            max = -INFINITY;
            for (uint32_t j = 0; j < n_parts; j++, p = j == 1 ? rest : p + 2 * size)
                if (__ldcg(p + sum_at) > 0)
                    max = fmaxf(max, __ldcg(p + max_at));
            x = make_float4(0, 0, 0, 0);
            sum = 0;
            p = first;
            for (uint32_t j = 0; j < n_parts; j++, p = j == 1 ? rest : p + 2 * size) {
                const float more = __ldcg(p + sum_at);
                const float weight = more > 0 ? exp2f(__ldcg(p + max_at) - max) : 0.0f;
                const float4 y = __ldcg((const float4 *)p + row * quads + i % quads);

                sum += more * weight;
                x.x += y.x * weight;
                x.y += y.y * weight;
                x.z += y.z * weight;
                x.w += y.w * weight;
            }
        }
        factor = kivi_cuda_close(s, item, token, head, max, sum, c == 0);
        kivi_cuda_write(item,
                        (int64_t)token * item.out_token + (int64_t)head * item.out_head + c, x,
                        factor);
    }
}

#endif
