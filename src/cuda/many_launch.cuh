/* The kernels of attend_many.cuh, and how they are launched. */
#ifndef KIVI_CUDA_MANY_LAUNCH_CUH
#define KIVI_CUDA_MANY_LAUNCH_CUH

#include "attend_many.cuh"
#include "bits.cuh"

/* What a block works on. */
struct kivi_cuda_many_task {
    kivi_cuda_segment segment; /* of the first of its tiles of KIVI_CUDA_ROWS rows; all units */
    uint32_t n_rows, split, partial;
};

/* Of block `block`. */
__device__ __forceinline__ kivi_cuda_many_task kivi_cuda_find_many_task(const kivi_cuda_step &s, uint32_t block)
{
    const kivi_cuda_item *item = kivi_cuda_items(s);
    kivi_cuda_many_task task;
    uint32_t n_tiles, at = block, n = 0, rows;

    task.segment.item = 0;
    for (;; item++, at -= n, task.segment.item++) {
        n_tiles = kivi_cuda_many_tiles(*item, s.heads_per_kv.by);
        n = n_tiles ? n_tiles * s.n_kv_heads * item->many.n_splits : 0;
        if (at < n)
            break;
    }
    task.split = at % item->many.n_splits;
    at /= item->many.n_splits;
    task.segment.head = at % s.n_kv_heads;
    at = n_tiles - 1 - at / s.n_kv_heads; /* those that see most come first */
    task.segment.tile = at * (KIVI_CUDA_MANY_ROWS / KIVI_CUDA_ROWS);
    rows = item->n_q * s.heads_per_kv.by - at * KIVI_CUDA_MANY_ROWS;
    task.n_rows = rows < KIVI_CUDA_MANY_ROWS ? rows : KIVI_CUDA_MANY_ROWS;
    task.partial = item->many.first_partial + (at * s.n_kv_heads + task.segment.head) * item->many.n_splits;
    return task;
}

/* The task's share of the tokens that its rows see: [*begin, *end). */
__device__ __forceinline__ void kivi_cuda_find_many_tokens(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                                           const kivi_cuda_many_task &task, uint64_t *begin,
                                                           uint64_t *end)
{
    const uint64_t oldest = item.q_position + kivi_cuda_query(s, task.segment.tile, 0);
    const uint64_t newest = item.q_position + kivi_cuda_query(s, task.segment.tile, task.n_rows - 1);
    const uint64_t stop = newest < item.n ? newest + 1 : item.n;
    const uint64_t first = s.window && oldest >= s.window ? oldest - s.window + 1 : 0;
    const uint64_t from = (first < stop ? first : stop) / KIVI_CUDA_UNIT;
    const uint64_t units = (stop + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT - from;

    *begin = (from + units * task.split / item.many.n_splits) * KIVI_CUDA_UNIT;
    *end = (from + units * (task.split + 1) / item.many.n_splits) * KIVI_CUDA_UNIT;
    *end = *end < stop ? *end : stop;
}

template <int D, bool ANY, int KB, int VB, bool precise>
__global__ void __launch_bounds__(KIVI_CUDA_MANY_THREADS, precise || D > 128 ? 2 : 3)
    kivi_cuda_attend_many(const __grid_constant__ kivi_cuda_step s, float *partials)
{
    using shape = kivi_cuda_many_shape<D, KB, VB>;
    extern __shared__ __align__(shape::ALIGNMENT) unsigned char shared[];
    __shared__ float factors[KIVI_CUDA_MANY_ROWS];
    __shared__ kivi_cuda_item item;
    __shared__ kivi_cuda_many_task task;
    uint64_t token, end;

    if (threadIdx.x == 0)
        task = kivi_cuda_find_many_task(s, blockIdx.x);
    __syncthreads();
    if (threadIdx.x < sizeof item / 16)
        ((uint4 *)&item)[threadIdx.x] = ((const uint4 *)&kivi_cuda_items(s)[task.segment.item])[threadIdx.x];
    __syncthreads();

    kivi_cuda_many<D, ANY, KB, VB, precise> f(s, item, task.segment, shared);
    const bool has_rows = 16 * f.warp < task.n_rows;

    kivi_cuda_find_many_tokens(s, item, task, &token, &end);

    kivi_cuda_piece piece = f.find_piece(token, end);
    bool more = token < end;

    if (more)
        f.fetch(piece, 0);
    if (has_rows)
        f.load_queries(factors, task.n_rows);
    for (uint32_t stage = 0; more; stage = 1 - stage) {
        const kivi_cuda_piece now = piece;

        kivi_cuda_copy_wait<0>();
        __syncthreads();
        more = f.go_on(piece, end);
        if (more)
            f.fetch(piece, 1 - stage);
        if (now.is(kivi_cuda_piece::K_CODES | kivi_cuda_piece::V_CODES)) {
            f.template unpack<f.MIDDLE>(now, stage);
            __syncthreads();
        }
        if (has_rows)
            f.take(now, stage);
    }
    __syncthreads();
    if (!has_rows)
        return;
    f.store((float *)shared);
    __syncwarp();

    const float *result = (const float *)shared;

    for (uint32_t row = 16 * f.warp; row < 16 * f.warp + 16 && row < task.n_rows; row++)
        for (uint32_t c = 4 * f.lane; c < f.v_dim(); c += 128) {
            const float2 ends = *(const float2 *)&result[KIVI_CUDA_MANY_ROWS * D + 2 * row];
            const kivi_cuda_quad quad = {*(const float4 *)&result[row * D + c], ends.x, ends.y};

            if (item.many.n_splits == 1) {
                kivi_cuda_put(s, item, task.segment, row, c, quad);
            } else {
                float *to = partials + (task.partial + task.split) * kivi_cuda_many_floats(f.v_dim());

                *(float4 *)&to[row * f.v_dim() + c] = quad.x;
                if (c == 0)
                    *(float2 *)&to[KIVI_CUDA_MANY_ROWS * f.v_dim() + 2 * row] = ends;
            }
        }
}

/* What the splits of a task left, merged in their order. */
template <int D, bool ANY>
__global__ void __launch_bounds__(256)
    kivi_cuda_merge_many(const __grid_constant__ kivi_cuda_step s, const float *partials)
{
    const kivi_cuda_many_task task = kivi_cuda_find_many_task(s, blockIdx.x);
    const kivi_cuda_item &item = kivi_cuda_items(s)[task.segment.item];
    const uint32_t n = item.many.n_splits, width = ANY ? s.v.dim : D, per_row = D / 4;
    const uint32_t c = 4 * (threadIdx.x % per_row);
    const float *from = partials + task.partial * kivi_cuda_many_floats(width);

    if (task.split != 0 || n == 1 || c >= width)
        return;
    for (uint32_t row = threadIdx.x / per_row; row < task.n_rows; row += blockDim.x / per_row) {
        const float *ends = from + KIVI_CUDA_MANY_ROWS * width + 2 * row;
        kivi_cuda_quad quad = {{0, 0, 0, 0}, KIVI_CUDA_NO_UNIT, 0};

        for (uint32_t j = 0; j < n; j++)
            quad.unit = fmaxf(quad.unit, ends[j * kivi_cuda_many_floats(width)]);
#pragma unroll 4
        for (uint32_t j = 0; j < n; j++) {
            const float2 end = *(const float2 *)&ends[j * kivi_cuda_many_floats(width)];
            const float weight = kivi_cuda_exp2(end.x - quad.unit);

            quad.sum = fmaf(end.y, weight, quad.sum);
            kivi_cuda_add(quad.x, *(const float4 *)&from[j * kivi_cuda_many_floats(width) + row * width + c], weight);
        }
        kivi_cuda_put(s, item, task.segment, row, c, quad);
    }
}

template <int D, bool ANY, int KB, int VB> struct kivi_cuda_many_launch {
    /* Eight bits are precise always, as in fast_launch.cuh; rows of f16 are as they are. */
    static constexpr bool ALWAYS = KB == 8 || VB == 8, NEVER = KB == 16 && VB == 16;

    static uint32_t bytes(bool low_queries)
    {
        using shape = kivi_cuda_many_shape<D, KB, VB>;

        return low_queries ? shape::MOST : shape::BYTES;
    }

    static cudaError_t launch(const kivi_cuda_step *step, const kivi_cuda_many_plan *plan, float *partials,
                              cudaStream_t stream)
    {
        const bool precise = ALWAYS || (step->precise && !NEVER);
        const auto kernel = precise ? kivi_cuda_attend_many<D, ANY, KB, VB, !NEVER>
                                    : kivi_cuda_attend_many<D, ANY, KB, VB, ALWAYS>;
        cudaError_t code = kivi_cuda_launch(kernel, dim3(plan->n_blocks), KIVI_CUDA_MANY_THREADS,
                                            bytes(plan->low_queries), stream, false, *step, partials);

        if (code == cudaSuccess && plan->n_partials)
            code = kivi_cuda_launch(kivi_cuda_merge_many<D, ANY>, dim3(plan->n_blocks), 256, 0, stream, false, *step,
                                    (const float *)partials);
        return code;
    }

    /* Makes a kernel ready. Returns how many blocks a multiprocessor holds. */
    template <bool precise> static int prepare()
    {
        const auto kernel = kivi_cuda_attend_many<D, ANY, KB, VB, precise>;
        int n = 0;

        return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes(true))
                           == cudaSuccess
                       && cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, kernel, KIVI_CUDA_MANY_THREADS,
                                                                        bytes(false))
                              == cudaSuccess
                   ? n
                   : 0;
    }

    static kivi_cuda_attend_many_rows find(int *blocks)
    {
        const int precise = prepare<!NEVER>();

        *blocks = prepare<ALWAYS>();
        (void)cudaGetLastError();
        return precise && *blocks ? launch : NULL;
    }
};

#endif
