/*
 * Attention on tensor cores over packed codes, or pages of f16 rows in their place, for bit widths known when
 * compiling, and for a head dimension that is known as well or any up to one. A warp works on units of 32 tokens on its
 * own; the warps of a block share a segment (schedule.cuh) and merge at its end.
 *
 * fast_state.cuh has what a warp holds, fast_codes.cuh the products with codes, fast_rows.cuh those with
 * rows of f16, and this the order: units of codes that every row sees in full stream through shared
 * memory in several stages. What is left, follows one by one: units with rows of f16 or hidden tokens, and
 * those of codes that were not done, because they have to be done precisely.
 */
#ifndef KIVI_CUDA_ATTEND_FAST_CUH
#define KIVI_CUDA_ATTEND_FAST_CUH

#include "fast_rows.cuh"
#include "overlap.cuh"

/* Units of a warp in one round, at most: those that it left out are bits of the lanes' words. */
#define KIVI_CUDA_ROUND 1024u

template <int D, bool ANY, int KB, int VB> struct kivi_cuda_fast_shape {
    using state = kivi_cuda_fast<D, ANY, KB, VB>;
    static constexpr int BYTES = state::BYTES;
    static constexpr int RESULT = (int)(KIVI_CUDA_ROWS * (D + 2) * 4);
    /* A warp's memory holds its units in flight; then one unit's codes, those of keys and of values one after the
     * other if there is no room for both, and rows; in the end its result. That of all warps has to fit into the
     * 99 KB that every device has. */
    static constexpr int ALL = 90624;
    static constexpr int WARPS = 16 * BYTES <= ALL ? 8 : 8 * BYTES <= ALL ? 4 : 4 * BYTES <= ALL ? 2 : 1;
    static constexpr int ROOM = ALL / WARPS;
    static constexpr int STAGES = 2; /* more, asked for early, get into the way of the kernel before */
    static constexpr int KEYS = state::V_CODES, VALUES = BYTES - KEYS;
    static constexpr int ROWS = 64 * D; /* of keys or of values: 64 bytes to a channel */
    static constexpr int CODES = BYTES + ROWS <= ROOM ? BYTES : KEYS > VALUES ? KEYS : VALUES;
    static constexpr int LAST = CODES + ROWS > RESULT ? CODES + ROWS : RESULT;
    static_assert(STAGES * BYTES <= ROOM && LAST <= ROOM, "they fit");
    static constexpr int WARP_BYTES = (STAGES * BYTES > LAST ? STAGES * BYTES : LAST) + 127 & ~127;
    /* Of an SM, at least; of twice as many warps, half. A lane's sums of 256 channels take half of its registers. */
    static constexpr int BLOCKS = (D > 128 ? 8 : 16) / WARPS;
    static constexpr uint32_t ROUND = (KIVI_CUDA_ROUND - 64) * WARPS; /* no warp has 64 units more than others */
};

/* The units of a segment that are codes and that all rows of the tile see in full: [begin, end). */
struct kivi_cuda_plain {
    uint32_t begin, end;
};

/* The other units of a segment. */
__device__ __forceinline__ uint32_t kivi_cuda_n_edges(const kivi_cuda_segment &segment, const kivi_cuda_plain &plain)
{
    return segment.end - segment.begin - (plain.end - plain.begin);
}

/* A block's units of codes go in rounds, and nearly always in one: number i of them. Found where it is needed: carried
 * along, it takes registers that the loop over units needs. */
template <class shape> struct kivi_cuda_round {
    uint32_t begin, end; /* units */
    bool last;

    __device__ __forceinline__ kivi_cuda_round(const kivi_cuda_plain &plain, uint32_t i)
        : begin(plain.begin + i * shape::ROUND), last(plain.end - begin <= shape::ROUND)
    {
        end = last ? plain.end : begin + shape::ROUND;
    }
};

/* What a block works on, for all of its warps. */
struct kivi_cuda_task {
    kivi_cuda_item item;
    kivi_cuda_segment segment;
    kivi_cuda_plain plain;
};

/* The block's segment number i, after number i - 1 there. By one warp. */
__device__ __forceinline__ void kivi_cuda_next_task(const kivi_cuda_step &s, uint32_t i, kivi_cuda_task &task)
{
    kivi_cuda_segment g = task.segment;
    kivi_cuda_plain plain;

    static_assert(sizeof(kivi_cuda_item) % 16 == 0, "items are copied 16 bytes at a time");
    kivi_cuda_next(s, blockIdx.x, i, g);
    if (threadIdx.x < sizeof(kivi_cuda_item) / 16)
        ((uint4 *)&task.item)[threadIdx.x] = ((const uint4 *)&kivi_cuda_items(s)[g.item])[threadIdx.x];
    __syncwarp();
    kivi_cuda_see(s, task.item, g, &plain.begin, &plain.end);
    if (threadIdx.x == 0) {
        task.segment = g;
        task.plain = plain;
    }
}

/* A warp's units of codes, on their way to shared memory. */
template <class shape, class F> struct kivi_cuda_stream {
    const F &f;
    const kivi_cuda_share &share;
    uint32_t mine; /* the warp's share of shared memory */
    unsigned char *const *pages;
    const unsigned char *page; /* of the next to be fetched, */
    uint32_t at;               /* and its place there */

    __device__ __forceinline__ kivi_cuda_stream(const F &state,
                                                const kivi_cuda_share &what, uint32_t begin,
                                                unsigned char *memory)
        : f(state), share(what), mine((uint32_t)__cvta_generic_to_shared(memory))
    {
        asm volatile("" : "+r"(mine)); /* one register: not what it is made of */

        const uint32_t unit = begin + share.unit(0), index = kivi_cuda_divide(unit, f.s.units_per_page);

        pages = kivi_cuda_pages(f.s, f.item) + index;
        at = unit - index * f.s.units_per_page.by;
        page = share.n ? kivi_cuda_page(f.s, f.item, index) : NULL; /* sooner than through a pointer */
    }

    __device__ __forceinline__ void start()
    {
        for (uint32_t i = 0; i + 1 < shape::STAGES; i++)
            fetch(i);
    }

    /* Where the warp's unit number i goes. Found each time: carried along, it takes registers that the loop needs. */
    __device__ __forceinline__ unsigned char *stage(uint32_t i) const
    {
        return (unsigned char *)__cvta_shared_to_generic(mine + i % shape::STAGES * F::BYTES);
    }

    /* Starts to copy unit number i of the warp; one after the other. */
    __device__ __forceinline__ void fetch(uint32_t i)
    {
        if (i < share.n)
            kivi_cuda_fetch(f, stage(i), page, at, KIVI_CUDA_UNIT, KIVI_CUDA_UNIT);
        kivi_cuda_copy_commit();
        for (at += i < share.lead ? share.n_warps : share.ahead; at >= f.s.units_per_page.by;
             at -= f.s.units_per_page.by)
            pages++;
        if (i + 1 < share.n)
            page = *pages; /* long before it is used */
    }
};

/* Returns the units that are left out, as bits of the lanes' words. */
template <class shape, bool precise, class F>
__device__ __forceinline__ uint32_t kivi_cuda_flow(F &f, kivi_cuda_stream<shape, F> &stream)
{
    uint32_t left_out = 0;

#pragma unroll 1
    for (uint32_t i = 0; i < stream.share.n; i++) {
        kivi_cuda_copy_wait<shape::STAGES - 2>();
        __syncwarp();
        stream.fetch(i + shape::STAGES - 1);
        if (!kivi_cuda_plain_unit<precise>(f, stream.stage(i)) && f.lane == i / 32)
            left_out |= 1u << i % 32;
    }
    kivi_cuda_copy_wait<0>();
    __syncwarp();
    return left_out;
}

/* One unit after the other: those that the stream left out, then, if it was the last round, the warp's edges. */
template <class shape, class F>
__device__ __forceinline__ void kivi_cuda_trickle(F &f, unsigned char *mine,
                                                  const kivi_cuda_share &share,
                                                  uint32_t left_out, const kivi_cuda_round<shape> &round,
                                                  const kivi_cuda_segment &segment,
                                                  const kivi_cuda_plain &plain)
{
    const uint32_t before = plain.begin - segment.begin;
    const uint32_t n_edges = round.last ? kivi_cuda_n_edges(segment, plain) : 0;
    uint32_t edge = share.n_warps - 1 - share.warp;
    uint32_t words = __ballot_sync(0xffffffffu, left_out != 0), word = 0, bits = 0;

    if (!words && edge >= n_edges)
        return;
#pragma unroll 1
    for (;;) {
        uint32_t u;

        if (bits == 0 && words) {
            word = __ffs(words) - 1;
            words &= words - 1;
            bits = __shfl_sync(0xffffffffu, left_out, word);
        }
        if (bits) {
            u = round.begin + share.unit(32 * word + __ffs(bits) - 1);
            bits &= bits - 1;
        } else if (edge < n_edges) {
            u = edge < before ? segment.begin + edge : plain.end + (edge - before);
            edge += share.n_warps;
        } else {
            break;
        }
        const bool codes = (uint64_t)u * KIVI_CUDA_UNIT < f.item.k_packed
                           || (uint64_t)u * KIVI_CUDA_UNIT < f.item.v_packed;

        const uint32_t index = kivi_cuda_divide(u, f.s.units_per_page);

        kivi_cuda_any_unit<shape::CODES>(f, mine, codes ? kivi_cuda_page(f.s, f.item, index) : NULL,
                                         u - index * f.s.units_per_page.by, u);
    }
}

template <int D, bool ANY, int KB, int VB, bool precise>
__global__ void __launch_bounds__(64 * kivi_cuda_fast_shape<D, ANY, KB, VB>::WARPS,
                                  kivi_cuda_fast_shape<D, ANY, KB, VB>::BLOCKS / 2)
    kivi_cuda_attend_fast(const __grid_constant__ kivi_cuda_step s)
{
    using shape = kivi_cuda_fast_shape<D, ANY, KB, VB>;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ kivi_cuda_queries<D> queries;
    __shared__ kivi_cuda_task task;
    const kivi_cuda_item &item = task.item;
    const kivi_cuda_segment &segment = task.segment;
    const kivi_cuda_plain &plain = task.plain;
    unsigned char *mine = shared + threadIdx.x / 32 * shape::WARP_BYTES;
    bool waited = s.tables != NULL; /* which may still be on their way */

    if (waited)
        kivi_cuda_wait_for_stream();
    for (uint32_t i = 0; i < kivi_cuda_starts(s)[blockIdx.x].n_tasks; i++) {
        if (threadIdx.x < 32)
            kivi_cuda_next_task(s, i, task);
        __syncthreads();
        typename shape::state f(s, item, segment, queries);
        uint32_t n_done = 0;

        do {
            const kivi_cuda_round<shape> round(plain, n_done);
            const kivi_cuda_share share(round.end - round.begin, round.last ? kivi_cuda_n_edges(segment, plain) : 0,
                                        item.few.edge_cost, threadIdx.x / 32, blockDim.x / 32);
            kivi_cuda_stream<shape, decltype(f)> stream(f, share, round.begin, mine);
            uint32_t left_out;

            if (!waited && plain.end > item.few.settled) {
                kivi_cuda_wait_for_stream();
                waited = true;
            }
            stream.start();
            if (!waited) {
                kivi_cuda_wait_for_stream();
                waited = true;
            }
            if (n_done == 0) {
                kivi_cuda_load_queries<D, ANY, KB>(s, item, segment, queries);
                __syncthreads();
                f.take_queries();
            }
            left_out = kivi_cuda_flow<shape, precise>(f, stream);
            kivi_cuda_trickle<shape>(f, mine, share, left_out, kivi_cuda_round<shape>(plain, n_done), segment, plain);
        } while (!kivi_cuda_round<shape>(plain, n_done++).last);
        __syncwarp();
        f.store((float *)mine, kivi_cuda_tile_rows(s, item, segment.tile));
        __syncthreads();
        kivi_cuda_finish(s, item, segment, {(const float *)shared, blockDim.x / 32, shape::WARP_BYTES / 4, f.v_dim()},
                         (float4 *)shared, blockDim.x / 32 * (shape::WARP_BYTES / 16));
        __syncthreads();
    }
    if (!waited)
        kivi_cuda_wait_for_stream();
}

#endif
