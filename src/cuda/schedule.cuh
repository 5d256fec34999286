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

/* Costs nearly always fit 32 bits, and dividing those takes a tenth of the instructions. */
__device__ __forceinline__ uint64_t kivi_cuda_divide(uint64_t a, uint64_t b)
{
    return (a | b) >> 32 ? a / b : (uint32_t)a / (uint32_t)b;
}

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
    cost = kivi_cuda_divide(cost - item.n_cheap + KIVI_CUDA_EDGE_COST - 1, KIVI_CUDA_EDGE_COST)
           + item.n_cheap;
    return cost < item.n_units ? (uint32_t)cost : item.n_units;
}

__device__ __forceinline__ uint64_t kivi_cuda_share_start(const kivi_cuda_step &s, uint32_t part)
{
    return kivi_cuda_divide(part * s.total_cost, s.n_parts);
}

/* The part whose share holds `cost`. */
__device__ __forceinline__ uint32_t kivi_cuda_part_at(const kivi_cuda_step &s, uint64_t cost)
{
    return (uint32_t)kivi_cuda_divide((cost + 1) * s.n_parts - 1, s.total_cost);
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

/* The item that has a task at `cost`: the last one, from item `from` on, that starts there or before. The
 * lanes of a warp look at 32 items at a time. */
__device__ __forceinline__ uint32_t kivi_cuda_item_at(const kivi_cuda_step &s, uint32_t from,
                                                      uint64_t cost)
{
    const kivi_cuda_item *items = kivi_cuda_items(s);

    for (;;) {
        const uint32_t i = from + threadIdx.x % 32;
        const bool before = i < s.n_items && items[i].cost_before <= cost;
        const uint32_t n = __popc(__ballot_sync(0xffffffffu, before));

        if (n < 32)
            return from + n - 1;
        from += 31;
    }
}

/* The next segment in which the part has a unit; false if there is none. All threads of a warp ask
 * together. */
__device__ __forceinline__ bool kivi_cuda_next(const kivi_cuda_step &s, kivi_cuda_cursor &c,
                                               kivi_cuda_segment &g)
{
    const kivi_cuda_item *items = kivi_cuda_items(s);

    while (c.at < c.end) {
        const kivi_cuda_item *item;
        uint64_t local, stop, first, last;
        uint32_t n, task;

        c.item = kivi_cuda_item_at(s, c.item, c.at);
        item = &items[c.item];
        task = (uint32_t)kivi_cuda_divide(c.at - item->cost_before, item->task_cost);
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
        union {
            __half half[4];
            uint2 all;
        } quad;
        __half *to = (__half *)item.out + at;

        for (int i = 0; i < 4; i++)
            quad.half[i] = kivi_cuda_output(y[i]);
        if (((uintptr_t)to & 7) == 0)
            *(uint2 *)to = quad.all;
        else
            for (int i = 0; i < 4; i++)
                to[i] = quad.half[i];
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

/* Part number j of those that share a task; each leaves the task that it begins in its second place, one
 * that it goes on with in its first. */
__device__ __forceinline__ float *kivi_cuda_partial(const kivi_cuda_step &s,
                                                          const kivi_cuda_segment &g, uint32_t j,
                                                          size_t size)
{
    return s.partials + (2 * (size_t)(g.first_part + j) + (j == 0)) * size;
}

/* Counts this part among those that are done: their number before. What the block wrote before its last
 * barrier is seen by whoever counts later. */
__device__ __forceinline__ uint32_t kivi_cuda_arrive(uint32_t *arrivals)
{
    uint32_t before;

    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
    return before;
}

/* Merges the partial results of all parts into `result`, in shared memory, 64 parts at a time: a warp finds
 * what the parts of a row count, then all threads add their outputs. If the tile has few rows, several threads
 * share the parts of a quad: number i / (n_rows * quads) of them adds to quad i of `result`. */
__device__ __forceinline__ void kivi_cuda_merge_parts(const kivi_cuda_step &s,
                                                      const kivi_cuda_segment &g, uint32_t n_parts,
                                                      uint32_t n_rows, float *result, uint32_t width)
{
    const uint32_t shares = KIVI_CUDA_ROWS / n_rows;
    const uint32_t quads = width / 4, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
    const size_t size = kivi_cuda_partial_floats(width);
    float *units = result + KIVI_CUDA_ROWS * width, *sums = units + KIVI_CUDA_ROWS;
    __shared__ float weight[KIVI_CUDA_ROWS][64], keep[KIVI_CUDA_ROWS];

    for (uint32_t from = 0; from < n_parts; from += 64) {
        const uint32_t n = n_parts - from < 64 ? n_parts - from : 64;

        __syncthreads();
        for (uint32_t row = threadIdx.x / 32; row < n_rows; row += n_warps) {
            const float old = from && sums[row] > 0 ? units[row] : -INFINITY;
            float unit[2], sum[2], max = old, total = 0;

#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t j = lane + 32 * i;
                const float *p = kivi_cuda_partial(s, g, from + (j < n ? j : 0), size)
                                 + KIVI_CUDA_ROWS * width + row;

                unit[i] = __ldcg(p);
                sum[i] = j < n ? __ldcg(p + KIVI_CUDA_ROWS) : 0.0f;
            }
#pragma unroll
            for (uint32_t i = 0; i < 2; i++)
                max = sum[i] > 0 ? fmaxf(max, unit[i]) : max;
            for (int i = 16; i > 0; i /= 2)
                max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, i));
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                const float f = sum[i] > 0 ? exp2f(unit[i] - max) : 0.0f;

                weight[row][lane + 32 * i] = f;
                total += sum[i] * f;
            }
            for (int i = 16; i > 0; i /= 2)
                total += __shfl_xor_sync(0xffffffffu, total, i);
            __syncwarp();
            if (lane == 0) {
                keep[row] = old > -INFINITY ? exp2f(old - max) : 0.0f;
                sums[row] = from ? fmaf(sums[row], keep[row], total) : total;
                units[row] = max;
            }
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < shares * n_rows * quads; i += blockDim.x) {
            const uint32_t share = i / (n_rows * quads), quad = i % (n_rows * quads);
            const uint32_t row = quad / quads;
            const float old = from ? keep[row] : 0.0f;
            float4 x = make_float4(0, 0, 0, 0);

            if (from) {
                x = ((float4 *)result)[i];
                x = make_float4(x.x * old, x.y * old, x.z * old, x.w * old);
            }
#pragma unroll 8
            for (uint32_t j = share; j < n; j += shares) {
                const float4 y =
                    __ldcg((const float4 *)kivi_cuda_partial(s, g, from + j, size) + quad);
                const float f = weight[row][j];

                x = make_float4(fmaf(y.x, f, x.x), fmaf(y.y, f, x.y), fmaf(y.z, f, x.z),
                                fmaf(y.w, f, x.w));
            }
            ((float4 *)result)[i] = x;
        }
    }
    __syncthreads();
}

/*
 * The end of a segment, by all threads of the block: `result` in shared memory is
 * [KIVI_CUDA_ROWS][width], then max and sum of each row. Writes the rows if the part did the whole
 * task; else leaves a partial result, and merges if it is the last to do so.
 */
__device__ __forceinline__ void kivi_cuda_finish(const kivi_cuda_step &s,
                                                 const kivi_cuda_item &item,
                                                 const kivi_cuda_segment &g, float *result,
                                                 uint32_t width)
{
    const uint32_t n_rows = kivi_cuda_tile_rows(s, item, g.tile), quads = width / 4;
    const uint32_t n_parts = g.last_part - g.first_part + 1;
    uint32_t shares = 1;
    __shared__ uint32_t turn;

    if (n_parts > 1) {
        const size_t size = kivi_cuda_partial_floats(width);
        float4 *mine = (float4 *)kivi_cuda_partial(s, g, blockIdx.x - g.first_part, size);
        const uint32_t rest = KIVI_CUDA_ROWS * quads; /* units and sums */

        for (uint32_t i = threadIdx.x; i < n_rows * quads; i += blockDim.x)
            mine[i] = ((const float4 *)result)[i];
        if (threadIdx.x < 2 * KIVI_CUDA_ROWS / 4)
            mine[rest + threadIdx.x] = ((const float4 *)result)[rest + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            turn = kivi_cuda_arrive(&s.arrivals[g.task]);
            if (turn == n_parts - 1)
                s.arrivals[g.task] = 0;
        }
        __syncthreads();
        if (turn != n_parts - 1)
            return;
        kivi_cuda_merge_parts(s, g, n_parts, n_rows, result, width);
        shares = KIVI_CUDA_ROWS / n_rows;
    }
    for (uint32_t i = threadIdx.x; i < n_rows * quads; i += blockDim.x) {
        const uint32_t row = i / quads, c = i % quads * 4;
        const uint32_t line = g.tile * KIVI_CUDA_ROWS + row;
        const uint32_t token = line / s.heads_per_kv;
        const uint32_t head = g.head * s.heads_per_kv + line % s.heads_per_kv;
        const float *end = result + KIVI_CUDA_ROWS * width + row;
        const float factor =
            kivi_cuda_close(s, item, token, head, end[0], end[KIVI_CUDA_ROWS], c == 0);
        float4 x = ((const float4 *)result)[i];

#pragma unroll 1
        for (uint32_t j = 1; j < shares; j++) {
            const float4 y = ((const float4 *)result)[i + j * n_rows * quads];

            x = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
        }
        kivi_cuda_write(item,
                        (int64_t)token * item.out_token + (int64_t)head * item.out_head + c, x,
                        factor);
    }
}

#endif
