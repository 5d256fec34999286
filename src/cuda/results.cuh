/*
 * What blocks make of their results. Parts that share a task leave partial results; the last of them to finish
 * merges what all of them left, in their order: results do not depend on timing.
 */
#ifndef KIVI_CUDA_RESULTS_CUH
#define KIVI_CUDA_RESULTS_CUH

#include "mma.cuh"
#include "schedule.cuh"

/*
 * A result, `width` channels wide: [rows of a tile][width] unnormalized outputs; of each row the unit of its
 * weights (their exponents, base 2, are relative to it); of each row their sum.
 */
__device__ __forceinline__ uint32_t kivi_cuda_result_floats(uint32_t width)
{
    return KIVI_CUDA_ROWS * (width + 2);
}

/* A lane's channel quad of a row of a result. */
struct kivi_cuda_quad {
    float4 x;
    float unit, sum; /* of the row */
};

/* Adds n results of a row, at most 32, to `to`, by one warp. Lane j has the unit and the sum of result number
 * j. `x` is the lane's quad in the first of them, the next one's is `stride` floats further. */
__device__ __forceinline__ void kivi_cuda_add(kivi_cuda_quad &to, uint32_t n, float unit, float sum,
                                              const float *x, uint32_t stride)
{
    const bool is_one = threadIdx.x % 32 < n && sum > 0;
    float max = fmaxf(is_one ? unit : -INFINITY, to.sum > 0 ? to.unit : -INFINITY), keep, weight, total;

#pragma unroll
    for (int i = 16; i > 0; i /= 2)
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, i));
    weight = is_one ? kivi_cuda_exp2(unit - max) : 0.0f;
    total = is_one ? weight * sum : 0.0f;
#pragma unroll
    for (int i = 16; i > 0; i /= 2)
        total += __shfl_xor_sync(0xffffffffu, total, i);
    keep = to.sum > 0 ? kivi_cuda_exp2(to.unit - max) : 0.0f;
    to.x = make_float4(to.x.x * keep, to.x.y * keep, to.x.z * keep, to.x.w * keep);
    to.sum = fmaf(to.sum, keep, total);
    to.unit = max;
#pragma unroll 4
    for (uint32_t j = 0; j < n; j++, x += stride) {
        const float4 y = *(const float4 *)x;
        const float f = __shfl_sync(0xffffffffu, weight, j);

        to.x = make_float4(fmaf(y.x, f, to.x.x), fmaf(y.y, f, to.x.y), fmaf(y.z, f, to.x.z),
                           fmaf(y.w, f, to.x.w));
    }
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

/* Channels c .. c + 3 of a row of a task's output. */
__device__ __forceinline__ void kivi_cuda_put(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                              const kivi_cuda_segment &g, uint32_t row, uint32_t c,
                                              const kivi_cuda_quad &q)
{
    const uint32_t token = kivi_cuda_query(s, g.tile, row), head = kivi_cuda_query_head(s, g, row, token);
    const float factor = kivi_cuda_close(s, item, token, head, q.unit, q.sum, c == 0);

    kivi_cuda_write(item, (int64_t)token * item.out_token + (int64_t)head * item.out_head + c, q.x, factor);
}

/* Part number j of those that share a task; each leaves the task that it begins in its second place, one
 * that it goes on with in its first. */
__device__ __forceinline__ float *kivi_cuda_partial(const kivi_cuda_step &s, const kivi_cuda_segment &g,
                                                    uint32_t j, uint32_t width)
{
    return s.partials + (2 * (size_t)(g.first_part + j) + (j == 0)) * kivi_cuda_result_floats(width);
}

/* Counts this part among those that are done with a row: their number before. What the block wrote before its
 * last barrier is seen by whoever counts later. */
__device__ __forceinline__ uint32_t kivi_cuda_arrive(uint32_t *arrivals)
{
    uint32_t before;

    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
    return before;
}

/* Merges what the parts of a task left of a row, by one warp. `room`, in shared memory, takes the lanes' quads
 * of `fit` parts. */
__device__ __forceinline__ void kivi_cuda_merge(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                                const kivi_cuda_segment &g, uint32_t row, uint32_t width,
                                                float4 *room, uint32_t fit)
{
    const uint32_t n_parts = g.last_part - g.first_part + 1, lane = threadIdx.x % 32;
    const uint32_t most = fit < 64 ? fit : 64;

#pragma unroll 1
    for (uint32_t c = 4 * lane; c - 4 * lane < width; c += 128) {
        const uint32_t from = row * width + (c < width ? c : 0); /* all lanes take part */
        kivi_cuda_quad quad = {};

#pragma unroll 1
        for (uint32_t begin = 0; begin < n_parts; begin += most) {
            const uint32_t n = n_parts - begin < most ? n_parts - begin : most;
            float unit[2], sum[2]; /* of parts `lane` and 32 + lane */

#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t j = lane + 32 * i < n ? lane + 32 * i : 0;
                const float *ends = kivi_cuda_partial(s, g, begin + j, width) + KIVI_CUDA_ROWS * width + row;

                unit[i] = __ldcg(ends);
                sum[i] = __ldcg(ends + KIVI_CUDA_ROWS);
            }
#pragma unroll 4
            for (uint32_t j = 0; j < n; j++)
                kivi_cuda_copy16(&room[32 * j + lane], kivi_cuda_partial(s, g, begin + j, width) + from);
            kivi_cuda_copy_commit();
            kivi_cuda_copy_wait<0>();
#pragma unroll 1
            for (uint32_t j = 0; j < n; j += 32) {
                kivi_cuda_add(quad, n - j < 32 ? n - j : 32, unit[0], sum[0],
                              (const float *)&room[32 * j + lane], 128);
                unit[0] = unit[1];
                sum[0] = sum[1];
            }
        }
        if (c < width)
            kivi_cuda_put(s, item, g, row, c, quad);
    }
}

/*
 * The end of a segment, by all warps of the block, a row to a warp at a time: `own` are its results, n of them,
 * `stride` floats apart in shared memory; they are done with when all warps have been here. Writes the rows if
 * the part did the whole task; else leaves a partial result, and merges if it is the last to do so. `room` is
 * shared memory of the block as well, `quads` float4, and may be where the results are.
 */
__device__ __forceinline__ void kivi_cuda_finish(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                                 const kivi_cuda_segment &g, const float *own, uint32_t n,
                                                 uint32_t stride, uint32_t width, float4 *room,
                                                 uint32_t quads)
{
    const uint32_t n_rows = kivi_cuda_tile_rows(s, item, g.tile), lane = threadIdx.x % 32;
    const uint32_t n_parts = g.last_part - g.first_part + 1, n_warps = blockDim.x / 32;
    const uint32_t piece = quads / (n_rows < n_warps ? n_rows : n_warps);
    float *partial = kivi_cuda_partial(s, g, blockIdx.x - g.first_part, width);

#pragma unroll 1
    for (uint32_t row = threadIdx.x / 32; row < n_rows; row += n_warps) {
        const float *ends = own + (lane < n ? lane * stride : 0) + KIVI_CUDA_ROWS * width + row;

#pragma unroll 1
        for (uint32_t c = 4 * lane; c - 4 * lane < width; c += 128) {
            kivi_cuda_quad quad = {};

            kivi_cuda_add(quad, n, ends[0], ends[KIVI_CUDA_ROWS],
                          own + row * width + (c < width ? c : 0), stride);
            if (c >= width)
                continue;
            if (n_parts == 1)
                kivi_cuda_put(s, item, g, row, c, quad);
            else
                *(float4 *)&partial[row * width + c] = quad.x;
            if (n_parts > 1 && c == 0) {
                partial[KIVI_CUDA_ROWS * width + row] = quad.unit;
                partial[KIVI_CUDA_ROWS * (width + 1) + row] = quad.sum;
            }
        }
    }
    if (n_parts == 1)
        return;
    __syncthreads();
#pragma unroll 1
    for (uint32_t row = threadIdx.x / 32; row < n_rows; row += n_warps) {
        uint32_t *arrivals = &s.arrivals[g.first_part * KIVI_CUDA_ROWS + row];
        uint32_t turn = 0;

        if (lane == 0)
            turn = kivi_cuda_arrive(arrivals);
        turn = __shfl_sync(0xffffffffu, turn, 0);
        __syncwarp(); /* orders memory, too */
        if (turn != n_parts - 1)
            continue;
        if (lane == 0)
            *arrivals = 0;
        kivi_cuda_merge(s, item, g, row, width, room + threadIdx.x / 32 * piece, piece / 32);
    }
}

#endif
