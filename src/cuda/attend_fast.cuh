/*
 * Attention on tensor cores over packed codes, for head dimensions and bit widths known when compiling.
 * A warp works on units of 32 tokens on its own; the warps of a block share a segment (schedule.cuh) and
 * merge at its end.
 *
 * fast_state.cuh has what a warp holds, fast_codes.cuh the products with codes, fast_rows.cuh those with
 * rows of f16, and this the order: units of codes that every row sees in full stream through shared
 * memory in several stages; the others, few, follow one by one.
 */
#ifndef KIVI_CUDA_ATTEND_FAST_CUH
#define KIVI_CUDA_ATTEND_FAST_CUH

#include "fast_rows.cuh"

/* Adds the results of a block's warps, `stride` floats apart, into the first. */
__device__ __forceinline__ void kivi_cuda_merge_warps(float *result, uint32_t stride, uint32_t width,
                                                      uint32_t n_warps)
{
    const uint32_t quads = width / 4;
    const float *units = result + KIVI_CUDA_ROWS * width, *sums = units + KIVI_CUDA_ROWS;
    float max = 0, sum = 0;

    for (uint32_t i = threadIdx.x; i < KIVI_CUDA_ROWS * quads; i += blockDim.x) {
        const uint32_t row = i / quads;
        float4 x = make_float4(0, 0, 0, 0);

        max = -INFINITY;
        for (uint32_t w = 0; w < n_warps; w++)
            if (sums[w * stride + row] > 0)
                max = fmaxf(max, units[w * stride + row]);
        for (uint32_t w = 0; w < n_warps; w++) {
            const float4 y = ((const float4 *)(result + w * stride))[i];
            const float f = sums[w * stride + row] > 0
                                ? exp2f(units[w * stride + row] - max)
                                : 0.0f;

            x.x += y.x * f;
            x.y += y.y * f;
            x.z += y.z * f;
            x.w += y.w * f;
        }
        ((float4 *)result)[i] = x;
    }
    if (threadIdx.x < KIVI_CUDA_ROWS) {
        max = -INFINITY;
        for (uint32_t w = 0; w < n_warps; w++)
            if (sums[w * stride + threadIdx.x] > 0)
                max = fmaxf(max, units[w * stride + threadIdx.x]);
        for (uint32_t w = 0; w < n_warps; w++)
            if (sums[w * stride + threadIdx.x] > 0)
                sum += sums[w * stride + threadIdx.x]
                       * exp2f(units[w * stride + threadIdx.x] - max);
    }
    __syncthreads();
    if (threadIdx.x < KIVI_CUDA_ROWS) {
        result[KIVI_CUDA_ROWS * width + threadIdx.x] = max;
        result[KIVI_CUDA_ROWS * (width + 1) + threadIdx.x] = sum;
    }
    __syncthreads();
}

template <int D, int KB, int VB> struct kivi_cuda_fast_shape {
    static constexpr int BYTES = kivi_cuda_fast<D, KB, VB>::BYTES;
    static constexpr int RESULT = (int)(KIVI_CUDA_ROWS * (D + 2) * 4);
    /* All warps' units in flight, and their results, in the 99 KB that every device has. */
    static constexpr int WARPS = 16 * BYTES <= 98304 ? 8 : 4;
    static constexpr int ROOM = 92160 / WARPS / BYTES;
    static constexpr int STAGES = ROOM > 3 ? 3 : ROOM;
    static constexpr int WARP_BYTES = STAGES * BYTES > RESULT ? STAGES * BYTES
                                                              : (RESULT + 127) / 128 * 128;
    static constexpr int THREADS = 32 * WARPS, BLOCKS = 16 / WARPS; /* of an SM, at least */
};

/* The units of a segment that are codes and that all rows of the tile see in full: [begin, end). */
struct kivi_cuda_plain {
    uint32_t begin, end;
};

__device__ __forceinline__ kivi_cuda_plain kivi_cuda_find_plain(const kivi_cuda_step &s,
                                                                const kivi_cuda_item &item,
                                                                const kivi_cuda_segment &g)
{
    const uint32_t n_rows = kivi_cuda_tile_rows(s, item, g.tile);
    const uint64_t first = kivi_cuda_position(s, item, g.tile, 0);
    const uint64_t last = kivi_cuda_position(s, item, g.tile, n_rows - 1);
    uint64_t begin = s.window && last >= s.window ? last - s.window + 1 : 0;
    uint64_t end = item.k_packed < item.v_packed ? item.k_packed : item.v_packed;
    kivi_cuda_plain plain;

    begin = ((begin > s.n_sink ? begin : s.n_sink) + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT;
    end = (first + 1 < end ? first + 1 : end) / KIVI_CUDA_UNIT;
    plain.begin = begin < g.begin ? g.begin : begin < g.end ? (uint32_t)begin : g.end;
    plain.end = end < plain.begin ? plain.begin : end < g.end ? (uint32_t)end : g.end;
    return plain;
}

template <int D, int KB, int VB, bool precise>
__global__ void __launch_bounds__(kivi_cuda_fast_shape<D, KB, VB>::THREADS,
                                  kivi_cuda_fast_shape<D, KB, VB>::BLOCKS)
    kivi_cuda_attend_fast(const __grid_constant__ kivi_cuda_step s)
{
    using shape = kivi_cuda_fast_shape<D, KB, VB>;
    using fast = kivi_cuda_fast<D, KB, VB>;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ kivi_cuda_queries<D> queries;
    const uint32_t warp = threadIdx.x / 32, per_page = s.page_tokens / KIVI_CUDA_UNIT;
    unsigned char *mine = shared + warp * shape::WARP_BYTES;
    kivi_cuda_cursor cursor = kivi_cuda_first(s, blockIdx.x);
    kivi_cuda_segment segment;

    while (kivi_cuda_next(s, cursor, segment)) {
        fast f(s, segment, queries);
        const kivi_cuda_plain plain = kivi_cuda_find_plain(s, f.item, segment);
        unsigned char *const *pages = kivi_cuda_pages(s, f.item);
        const uint32_t n_plain = plain.end - plain.begin;
        const uint32_t n_edges = segment.end - segment.begin - n_plain;
        uint32_t next = plain.begin + warp; /* to fetch */
        uint32_t page = next / per_page, at = next % per_page;
        uint32_t stage = 0;
        const auto fetch = [&](uint32_t slot) {
            if (next < plain.end)
                kivi_cuda_fetch(f, mine + slot * fast::BYTES, pages[page], at, true, true);
            kivi_cuda_copy_commit();
            next += shape::WARPS;
            for (at += shape::WARPS; at >= per_page; at -= per_page)
                page++;
        };

        for (uint32_t i = 0; i + 1 < shape::STAGES; i++)
            fetch(i);
        kivi_cuda_load_queries<D, KB>(s, segment, queries);
        __syncthreads();
        f.take_queries();
        for (uint32_t u = plain.begin + warp; u < plain.end; u += shape::WARPS) {
            const unsigned char *unit = mine + stage * fast::BYTES;
            float score[4][2];

            kivi_cuda_copy_wait<shape::STAGES - 2>();
            __syncwarp();
            fetch(stage == 0 ? shape::STAGES - 1 : stage - 1);
            kivi_cuda_scores<precise>(f, unit, score);
            f.template weigh<precise>(u, score, true);
            kivi_cuda_sum_rest<precise>(f, unit, true, NULL);
            kivi_cuda_sum_codes<precise>(f, unit, NULL);
            stage = stage + 1 < shape::STAGES ? stage + 1 : 0;
        }
        /* The warps that have had one unit less begin with the rest. */
        for (uint32_t i = (warp + shape::WARPS - n_plain % shape::WARPS) % shape::WARPS; i < n_edges;
             i += shape::WARPS) {
            const uint32_t before = plain.begin - segment.begin;
            const uint32_t u = i < before ? segment.begin + i : plain.end + (i - before);
            const bool keys = (uint64_t)u * KIVI_CUDA_UNIT < f.item.k_packed;
            const bool values = (uint64_t)u * KIVI_CUDA_UNIT < f.item.v_packed;

            __syncwarp();
            if (keys || values)
                kivi_cuda_fetch(f, mine, pages[u / per_page], u % per_page, keys, values);
            kivi_cuda_copy_commit();
            kivi_cuda_copy_wait<0>();
            __syncwarp();
            kivi_cuda_edge(f, mine, u, keys, values);
        }
        kivi_cuda_copy_wait<0>();
        __syncwarp();
        f.store((float *)mine);
        __syncthreads();
        kivi_cuda_merge_warps((float *)shared, shape::WARP_BYTES / 4, D, shape::WARPS);
        kivi_cuda_finish(s, segment, (float *)shared, D);
        __syncthreads();
    }
}

#endif
