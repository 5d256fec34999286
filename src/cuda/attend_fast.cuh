/*
 * Attention on tensor cores over packed codes, or pages of f16 rows in their place, for head dimensions and
 * bit widths known when compiling. A warp works on units of 32 tokens on its own; the warps of a block share
 * a segment (schedule.cuh) and merge at its end.
 *
 * fast_state.cuh has what a warp holds, fast_codes.cuh the products with codes, fast_rows.cuh those with
 * rows of f16, and this the order: units of codes that every row sees in full stream through shared
 * memory in several stages. What is left, follows one by one: units with rows of f16 or hidden tokens, and
 * those of codes that were not done, because they have to be done precisely.
 */
#ifndef KIVI_CUDA_ATTEND_FAST_CUH
#define KIVI_CUDA_ATTEND_FAST_CUH

#include "fast_rows.cuh"

/* Units of a warp in one round: those that it left out are bits of the lanes' words. */
#define KIVI_CUDA_ROUND 1024u

/* The results of a block's warps, `stride` floats apart, become one in `merged`; with `add`, together with
 * what is there. */
template <int WARPS>
__device__ __forceinline__ void kivi_cuda_merge_warps(const float *result, uint32_t stride,
                                                      uint32_t width, float *merged, bool add)
{
    const uint32_t unit_at = KIVI_CUDA_ROWS * width, sum_at = unit_at + KIVI_CUDA_ROWS;
    __shared__ float weight[WARPS + 1][KIVI_CUDA_ROWS];

    if (threadIdx.x < KIVI_CUDA_ROWS) {
        const uint32_t row = threadIdx.x;
        float unit[WARPS + 1], sum[WARPS + 1], max = -INFINITY, total = 0;

#pragma unroll
        for (int w = 0; w <= WARPS; w++) {
            const float *from = w < WARPS ? result + w * stride : merged;

            sum[w] = w < WARPS || add ? from[sum_at + row] : 0.0f;
            unit[w] = sum[w] > 0 ? from[unit_at + row] : -INFINITY;
            max = fmaxf(max, unit[w]);
        }
#pragma unroll
        for (int w = 0; w <= WARPS; w++) {
            const float f = sum[w] > 0 ? exp2f(unit[w] - max) : 0.0f;

            weight[w][row] = f;
            total += sum[w] * f;
        }
        merged[unit_at + row] = max;
        merged[sum_at + row] = total;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < unit_at / 4; i += blockDim.x) {
        float4 x = add ? ((float4 *)merged)[i] : make_float4(0, 0, 0, 0);
        const uint32_t row = i / (width / 4);
        const float keep = weight[WARPS][row];

        x = make_float4(x.x * keep, x.y * keep, x.z * keep, x.w * keep);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float4 y = ((const float4 *)(result + w * stride))[i];
            const float f = weight[w][row];

            x = make_float4(fmaf(y.x, f, x.x), fmaf(y.y, f, x.y), fmaf(y.z, f, x.z),
                            fmaf(y.w, f, x.w));
        }
        ((float4 *)merged)[i] = x;
    }
    __syncthreads();
}

template <int D, int KB, int VB> struct kivi_cuda_fast_shape {
    static constexpr int BYTES = kivi_cuda_fast<D, KB, VB>::BYTES;
    static constexpr int RESULT = (int)(KIVI_CUDA_ROWS * (D + 2) * 4);
    /* A warp's memory holds its units in flight; then one unit and a slice of its rows; in the end its result.
     * That of all warps has to fit into the 99 KB that every device has. */
    static constexpr int WARPS = 16 * BYTES <= 98304 ? 8 : 8 * BYTES <= 98304 ? 4 : 2;
    static constexpr int ROOM = 90624 / WARPS;
    static constexpr int STAGES = ROOM / BYTES > 3 ? 3 : ROOM / BYTES;
    static constexpr int SLICE = BYTES + 64 * D <= ROOM ? D : 64; /* channels; 64 bytes to a channel */
    static constexpr int LAST = BYTES + 64 * SLICE > RESULT ? BYTES + 64 * SLICE : RESULT;
    static constexpr int WARP_BYTES = (STAGES * BYTES > LAST ? STAGES * BYTES : LAST) + 127 & ~127;
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

/*
 * What a warp does in a round of units begin .. end - 1 of codes, and of edges. Edges are dealt out from the
 * last warp on; to those that have one less, the first `ahead`, go so many more units of codes: the first
 * `lead` are dealt to all in turn, the rest to these.
 */
template <int WARPS> struct kivi_cuda_share {
    uint32_t begin, warp, ahead, lead, n; /* n: units of codes of this warp */

    __device__ __forceinline__ kivi_cuda_share(uint32_t from, uint32_t to, uint32_t n_edges)
        : begin(from), warp(threadIdx.x / 32), ahead(WARPS - n_edges % WARPS)
    {
        const uint32_t n_units = to - from, extra = ahead < WARPS ? ahead * KIVI_CUDA_EDGE_COST : 0;
        uint32_t rest;

        lead = n_units > extra ? (n_units - extra) / WARPS : 0;
        rest = n_units - lead * WARPS;
        n = lead + (warp < ahead && warp < rest ? (rest - warp + ahead - 1) / ahead : 0);
    }

    /* The warp's unit number i. */
    __device__ __forceinline__ uint32_t unit(uint32_t i) const
    {
        return begin + warp + (i < lead ? i * WARPS : lead * WARPS + (i - lead) * ahead);
    }
};

/* A warp's units of codes, on their way to shared memory. */
template <class shape, class F> struct kivi_cuda_stream {
    const F &f;
    const kivi_cuda_share<shape::WARPS> &share;
    unsigned char *const mine;
    unsigned char *const *pages;
    const unsigned char *page; /* of the next to be fetched, */
    uint32_t at, next;         /* its place there, and its number */
    const uint32_t per_page;

    __device__ __forceinline__ kivi_cuda_stream(const F &state,
                                                const kivi_cuda_share<shape::WARPS> &what,
                                                unsigned char *memory)
        : f(state), share(what), mine(memory), next(0), per_page(f.s.page_tokens / KIVI_CUDA_UNIT)
    {
        const uint32_t unit = share.unit(0);

        pages = kivi_cuda_pages(f.s, f.item) + unit / per_page;
        at = unit % per_page;
        page = share.n ? *pages : NULL;
    }

    __device__ __forceinline__ void start()
    {
        for (uint32_t i = 0; i + 1 < shape::STAGES; i++)
            fetch(i);
    }

    __device__ __forceinline__ void fetch(uint32_t stage)
    {
        if (next < share.n)
            kivi_cuda_fetch(f, mine + stage * F::BYTES, page, at, KIVI_CUDA_UNIT,
                            KIVI_CUDA_UNIT);
        kivi_cuda_copy_commit();
        for (at += next < share.lead ? shape::WARPS : share.ahead; at >= per_page; at -= per_page)
            pages++;
        next++;
        if (next < share.n)
            page = *pages; /* long before it is used */
    }
};

/* Returns the units that are left out, as bits of the lanes' words. */
template <class shape, bool precise, class F>
__device__ __forceinline__ uint32_t kivi_cuda_flow(F &f, kivi_cuda_stream<shape, F> &stream)
{
    uint32_t stage = 0, left_out = 0;

#pragma unroll 1
    for (uint32_t i = 0; i < stream.share.n; i++) {
        kivi_cuda_copy_wait<shape::STAGES - 2>();
        __syncwarp();
        stream.fetch(stage == 0 ? shape::STAGES - 1 : stage - 1);
        if (!kivi_cuda_plain_unit<precise>(f, stream.mine + stage * F::BYTES) && f.lane == i / 32)
            left_out |= 1u << i % 32;
        stage = stage + 1 < shape::STAGES ? stage + 1 : 0;
    }
    kivi_cuda_copy_wait<0>();
    __syncwarp();
    return left_out;
}

/* One unit after the other: those that the stream left out, then the warp's edges of n_edges. */
template <class shape, class F>
__device__ __forceinline__ void kivi_cuda_trickle(F &f, unsigned char *mine,
                                                  const kivi_cuda_share<shape::WARPS> &share,
                                                  uint32_t left_out, uint32_t n_edges,
                                                  const kivi_cuda_segment &segment,
                                                  const kivi_cuda_plain &plain)
{
    const uint32_t per_page = f.s.page_tokens / KIVI_CUDA_UNIT;
    const uint32_t before = plain.begin - segment.begin;
    unsigned char *const *pages = kivi_cuda_pages(f.s, f.item);
    uint32_t edge = shape::WARPS - 1 - share.warp;
    uint32_t words = __ballot_sync(0xffffffffu, left_out != 0), word = 0, bits = 0;

#pragma unroll 1
    for (;;) {
        uint32_t u;

        if (bits == 0 && words) {
            word = __ffs(words) - 1;
            words &= words - 1;
            bits = __shfl_sync(0xffffffffu, left_out, word);
        }
        if (bits) {
            u = share.unit(32 * word + __ffs(bits) - 1);
            bits &= bits - 1;
        } else if (edge < n_edges) {
            u = edge < before ? segment.begin + edge : plain.end + (edge - before);
            edge += shape::WARPS;
        } else {
            break;
        }
        const bool codes = (uint64_t)u * KIVI_CUDA_UNIT < f.item.k_packed
                           || (uint64_t)u * KIVI_CUDA_UNIT < f.item.v_packed;

        kivi_cuda_any_unit<shape::SLICE>(f, mine, codes ? pages[u / per_page] : NULL, u % per_page, u);
    }
}

template <int D, int KB, int VB, bool precise>
__global__ void __launch_bounds__(kivi_cuda_fast_shape<D, KB, VB>::THREADS,
                                  kivi_cuda_fast_shape<D, KB, VB>::BLOCKS)
    kivi_cuda_attend_fast(const __grid_constant__ kivi_cuda_step s)
{
    using shape = kivi_cuda_fast_shape<D, KB, VB>;
    constexpr uint32_t ROUND = (KIVI_CUDA_ROUND - 64) * shape::WARPS; /* none has 64 more than others */
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ kivi_cuda_queries<D> queries;
    __shared__ __align__(16) float merged[shape::RESULT / 4];
    __shared__ kivi_cuda_item item;
    unsigned char *mine = shared + threadIdx.x / 32 * shape::WARP_BYTES;
    kivi_cuda_cursor cursor = kivi_cuda_first(s, blockIdx.x);
    kivi_cuda_segment segment;
    bool waited = s.tables != NULL; /* which may still be on their way */

    if (waited)
        kivi_cuda_wait_for_stream();
    while (kivi_cuda_next(s, cursor, segment)) {
        static_assert(sizeof item % 16 == 0, "items are copied 16 bytes at a time");
        if (threadIdx.x < sizeof item / 16)
            ((uint4 *)&item)[threadIdx.x] =
                ((const uint4 *)&kivi_cuda_items(s)[segment.item])[threadIdx.x];
        __syncthreads();
        const kivi_cuda_plain plain = kivi_cuda_find_plain(s, item, segment);
        const uint32_t n_edges = segment.end - segment.begin - (plain.end - plain.begin);
        uint32_t begin = plain.begin, end;

        do { /* a round; nearly always the only one */
            end = plain.end - begin < ROUND ? plain.end : begin + ROUND;
            const uint32_t edges = end < plain.end ? 0 : n_edges; /* the last round has them */
            const kivi_cuda_share<shape::WARPS> share(begin, end, edges);
            kivi_cuda_fast<D, KB, VB> f(s, item, segment, queries);
            kivi_cuda_stream<shape, decltype(f)> stream(f, share, mine);
            uint32_t left_out;

            if (!waited) {
                kivi_cuda_wait_for_stream();
                waited = true;
            }
            stream.start();
            if (begin == plain.begin) {
                kivi_cuda_load_queries<D, KB>(s, item, segment, queries);
                __syncthreads();
            }
            f.take_queries();
            left_out = kivi_cuda_flow<shape, precise>(f, stream);
            kivi_cuda_trickle<shape>(f, mine, share, left_out, edges, segment, plain);
            __syncwarp();
            f.store((float *)mine);
            __syncthreads();
            kivi_cuda_merge_warps<shape::WARPS>((float *)shared, shape::WARP_BYTES / 4, D, merged,
                                                begin != plain.begin);
            begin = end;
        } while (end < plain.end);
        kivi_cuda_finish(s, item, segment, merged, D);
        __syncthreads();
    }
    if (!waited)
        kivi_cuda_wait_for_stream();
}

#endif
