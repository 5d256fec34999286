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
 * weights (their exponents, base 2, are relative to it) and their sum.
 */
__device__ __forceinline__ uint32_t kivi_cuda_result_floats(uint32_t width)
{
    return KIVI_CUDA_ROWS * (width + 2);
}

/* Where a row's unit and sum are. */
__device__ __forceinline__ uint32_t kivi_cuda_ends(uint32_t width, uint32_t row)
{
    return KIVI_CUDA_ROWS * width + 2 * row;
}

/* The unit of weights of which there are none: less than any other, and finite. The least score there is, base 2, is
 * -1.44 * 512 * 65504 * 1e30, and differences of the two are finite as well. */
#define KIVI_CUDA_NO_UNIT (-1e38f)

/* A lane's channel quad of a row of a result. */
struct kivi_cuda_quad {
    float4 x;
    float unit, sum; /* of the row */
};

/* to += y * weight */
__device__ __forceinline__ void kivi_cuda_add(float4 &to, float4 y, float weight)
{
    to = make_float4(fmaf(y.x, weight, to.x), fmaf(y.y, weight, to.y), fmaf(y.z, weight, to.z),
                     fmaf(y.w, weight, to.w));
}

/* Takes more results into the scale and the sum of `to`, by one warp. Lane j has the units and the sums of results j and
 * 32 + j, sums of 0 of those that are not there, and gets in `sum` what their outputs count. */
__device__ __forceinline__ void kivi_cuda_weigh_results(kivi_cuda_quad &to, const float unit[2], float sum[2])
{
    float max = to.sum > 0 ? to.unit : -INFINITY, total = 0, keep;

#pragma unroll
    for (int i = 0; i < 2; i++)
        if (sum[i] > 0)
            max = fmaxf(max, unit[i]);
#pragma unroll
    for (int i = 16; i > 0; i /= 2)
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, i));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float weight = sum[i] > 0 ? kivi_cuda_exp2(unit[i] - max) : 0.0f;

        total = fmaf(weight, sum[i], total);
        sum[i] = weight;
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2)
        total += __shfl_xor_sync(0xffffffffu, total, i);
    keep = to.sum > 0 ? kivi_cuda_exp2(to.unit - max) : 0.0f;
    to.x = make_float4(to.x.x * keep, to.x.y * keep, to.x.z * keep, to.x.w * keep);
    to.sum = fmaf(to.sum, keep, total);
    to.unit = max;
}

/* Adds their outputs. `x` is the lane's quad in the first of them, the next one's is `stride` floats further. */
__device__ __forceinline__ void kivi_cuda_add_results(kivi_cuda_quad &to, uint32_t n, const float weight[2],
                                                      const float *x, uint32_t stride)
{
#pragma unroll 4
    for (uint32_t j = 0; j < n; j++, x += stride) {
        const float4 y = *(const float4 *)x;

        kivi_cuda_add(to.x, y, __shfl_sync(0xffffffffu, j < 32 ? weight[0] : weight[1], j));
    }
}

/* An output beyond f16, where a dequantized value may lie by a rounding, is the largest there is. */
__device__ __forceinline__ __half kivi_cuda_output(float x)
{
    return __float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f));
}

/* Stores of vectors are __stcg: as assignments compilers make them one for each number. */

/* Writes one channel quad of one row, normalized. */
__device__ __forceinline__ void kivi_cuda_write(const kivi_cuda_item &item, int64_t at, float4 x,
                                                float factor)
{
    const float y[4] = {x.x * factor, x.y * factor, x.z * factor, x.w * factor};

    if (item.out_type == KIVI_F32) {
        float *to = (float *)item.out + at;

        if (((uintptr_t)to & 15) == 0)
            __stcg((float4 *)to, make_float4(y[0], y[1], y[2], y[3]));
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
            __stcg((uint2 *)to, quad.all);
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

/* Channels c .. c + 3 of a row of what the block's part leaves of a task. */
__device__ __forceinline__ void kivi_cuda_leave(const kivi_cuda_step &s, const kivi_cuda_segment &g, uint32_t width,
                                                uint32_t row, uint32_t c, const kivi_cuda_quad &q)
{
    float *partial = kivi_cuda_partial(s, g, blockIdx.x - g.first_part, width);

    __stcg((float4 *)&partial[row * width + c], q.x);
    if (c == 0)
        __stcg((float2 *)&partial[kivi_cuda_ends(width, row)], make_float2(q.unit, q.sum));
}

/* Counts this part among those that are done with a row: their number before. What the block wrote before its
 * last barrier is seen by whoever counts later. */
__device__ __forceinline__ uint32_t kivi_cuda_arrive(uint32_t *arrivals)
{
    uint32_t before;

    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
    return before;
}

/* What a block has of a task: results of its own, n of them, `stride` floats apart in shared memory, each `width`
 * channels wide. */
struct kivi_cuda_own {
    const float *results;
    uint32_t n, stride, width;
};

/* A lane's quad at channel c of a row of the sum of the block's own results. Every lane looks at all units: to find
 * their largest over lanes takes longer. */
__device__ __forceinline__ kivi_cuda_quad kivi_cuda_sum_own(const kivi_cuda_own &own, uint32_t row, uint32_t c)
{
    const float *x = own.results + row * own.width + (c < own.width ? c : 0);
    const float *ends = own.results + kivi_cuda_ends(own.width, row);
    kivi_cuda_quad quad = {{0, 0, 0, 0}, KIVI_CUDA_NO_UNIT, 0};

#pragma unroll 8
    for (uint32_t j = 0; j < own.n; j++)
        quad.unit = fmaxf(quad.unit, ends[j * own.stride]);
#pragma unroll 8
    for (uint32_t j = 0; j < own.n; j++) {
        const float2 end = *(const float2 *)&ends[j * own.stride];
        const float4 y = *(const float4 *)&x[j * own.stride];
        const float weight = kivi_cuda_exp2(end.x - quad.unit);

        quad.sum = fmaf(end.y, weight, quad.sum);
        kivi_cuda_add(quad.x, y, weight);
    }
    return quad;
}

/* A lane's quad at channel c of a row, by one warp: merged from what all parts of the task left, as many at a time as
 * `room`, in shared memory, takes: a quad to a lane and part. */
__device__ __forceinline__ kivi_cuda_quad kivi_cuda_merge(const kivi_cuda_step &s, const kivi_cuda_segment &g,
                                                          uint32_t width, uint32_t row, uint32_t c, float4 *room,
                                                          uint32_t fit)
{
    const uint32_t n_results = g.last_part - g.first_part + 1, lane = threadIdx.x % 32;
    const uint32_t most = fit < 64 ? fit : 64, ends_at = kivi_cuda_ends(width, row);
    const uint32_t from = row * width + (c < width ? c : 0); /* all lanes take part */
    kivi_cuda_quad quad = {};

#pragma unroll 1
    for (uint32_t begin = 0; begin < n_results; begin += most) {
        const uint32_t n = n_results - begin < most ? n_results - begin : most;
        float unit[2], sum[2]; /* of results `lane` and 32 + lane */

#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t j = lane + 32 * i;
            float2 ends = {0, 0};

            if (j < n)
                ends = __ldcg((const float2 *)(kivi_cuda_partial(s, g, begin + j, width) + ends_at));
            unit[i] = ends.x;
            sum[i] = ends.y;
        }
        const float *x = kivi_cuda_partial(s, g, begin, width) + from;

#pragma unroll 4
        for (uint32_t j = 0; j < n; j++) {
            kivi_cuda_copy16(&room[32 * j + lane], x);
            x += (begin + j == 0 ? 1 : 2) * kivi_cuda_result_floats(width); /* kivi_cuda_partial */
        }
        kivi_cuda_copy_commit();
        kivi_cuda_weigh_results(quad, unit, sum); /* while copies are on their way */
        kivi_cuda_copy_wait<0>();
        kivi_cuda_add_results(quad, n, sum, (const float *)&room[lane], 128);
    }
    return quad;
}

/* Counts this part among those that are done with a row. Whether it is the last. By one warp. */
__device__ __forceinline__ bool kivi_cuda_is_last(const kivi_cuda_step &s, const kivi_cuda_segment &g, uint32_t row)
{
    uint32_t *arrivals = &s.arrivals[g.first_part * KIVI_CUDA_ROWS + row];
    bool last = false;

    if (threadIdx.x % 32 == 0) {
        last = kivi_cuda_arrive(arrivals) == g.last_part - g.first_part;
        if (last)
            *arrivals = 0;
    }
    last = __shfl_sync(0xffffffffu, last, 0);
    __syncwarp(); /* orders memory, too */
    return last;
}

/*
 * The end of a segment, by all warps of the block, a row to a warp at a time. Writes the rows if the part did the
 * whole task; else leaves a partial result, and merges if it is the last to do so. The own results are done with when
 * all warps have been here. `room` is shared memory of the block as well, `quads` float4, and may be where they are.
 */
__device__ __forceinline__ void kivi_cuda_finish(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                                 const kivi_cuda_segment &g, const kivi_cuda_own &own, float4 *room,
                                                 uint32_t quads)
{
    const uint32_t n_rows = kivi_cuda_tile_rows(s, item, g.tile), n_warps = blockDim.x / 32;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t at_once = n_rows < n_warps ? n_rows : n_warps;
    const uint32_t piece = quads >> (32 - __clz(at_once - 1)); /* a division takes long */
    const bool shared = g.first_part != g.last_part;

    /* First the block's own results; then, if it is the last to be done with a row, those of all parts. */
#pragma unroll 1
    for (bool merge = false;; merge = true) {
#pragma unroll 1
        for (uint32_t row = warp; row < n_rows; row += n_warps) {
            if (merge && !kivi_cuda_is_last(s, g, row))
                continue;
#pragma unroll 1
            for (uint32_t c = 4 * lane; c - 4 * lane < own.width; c += 128) {
                const kivi_cuda_quad quad =
                    merge ? kivi_cuda_merge(s, g, own.width, row, c, room + warp * piece, piece / 32)
                          : kivi_cuda_sum_own(own, row, c);

                if (c >= own.width)
                    continue;
                if (merge || !shared)
                    kivi_cuda_put(s, item, g, row, c, quad);
                else
                    kivi_cuda_leave(s, g, own.width, row, c, quad);
            }
        }
        if (merge || !shared)
            return;
        __syncthreads();
    }
}

#endif
