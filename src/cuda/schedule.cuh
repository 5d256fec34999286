/*
 * How the attention of a step is split over thread blocks ("parts"). A task is one tile of query rows of one
 * kv head of one item; its tokens are cut in units of KIVI_CUDA_UNIT. All units of all tasks stand in one line
 * by cost, of which every part takes an equal share; a unit belongs to the part in whose share it starts.
 * schedule.cu finds the parts, on the host; here a block goes through the tasks of its part, and its warps share them.
 */
#ifndef KIVI_CUDA_SCHEDULE_CUH
#define KIVI_CUDA_SCHEDULE_CUH

#include "step.cuh"

/* A part's share of one task. */
struct kivi_cuda_segment {
    uint32_t item, head, tile;
    uint32_t begin, end; /* units */
    uint32_t first_part, last_part;
};

/* Segment number i of a part, after number i - 1 in `g`. Its units count from the item's first. */
__host__ __device__ __forceinline__ void kivi_cuda_next(const kivi_cuda_step &s, uint32_t part, uint32_t i,
                                                        kivi_cuda_segment &g)
{
    const kivi_cuda_item *items = kivi_cuda_items(s);
    const kivi_cuda_start start = kivi_cuda_starts(s)[part], next = kivi_cuda_starts(s)[part + 1];
    const bool goes_on = i + 1 == start.n_tasks && next.unit > 0; /* in the next part */

    if (i == 0) {
        g.item = start.item;
        g.head = start.head;
        g.tile = start.tile;
    } else if (++g.tile == items[g.item].n_tiles) {
        g.tile = 0;
        if (++g.head == s.n_kv_heads) {
            g.head = 0;
            do
                g.item++;
            while (items[g.item].n_tiles == 0);
        }
    }
    g.begin = i == 0 ? start.unit : 0;
    g.end = goes_on ? next.unit : items[g.item].n_units;
    g.first_part = i == 0 ? start.first_part : part;
    g.last_part = goes_on ? next.last_part : part;
}

/*
 * What a warp of a block does of units of codes and of edges, which are all others. Edges are dealt out from the last
 * warp on; to those that have one less, the first `ahead`, go so many more units of codes: the first `lead` are dealt
 * to all in turn, the rest to these. A block has a power of 2 of warps.
 */
struct kivi_cuda_share {
    uint32_t warp, n_warps, ahead, lead, n; /* n: units of codes of this warp */

    __host__ __device__ __forceinline__ kivi_cuda_share(uint32_t n_units, uint32_t n_edges, uint32_t edge_cost,
                                                        uint32_t at, uint32_t of)
        : warp(at), n_warps(of), ahead(of - (n_edges & (of - 1)))
    {
        const uint32_t extra = ahead < n_warps ? ahead * edge_cost : 0;
        uint32_t rest;

        lead = n_units > extra ? (n_units - extra) >> log2(n_warps) : 0;
        rest = n_units - lead * n_warps;
        n = lead + (warp < ahead && warp < rest ? (rest - warp + ahead - 1) / ahead : 0);
    }

    /* Of a power of 2: a division takes long. */
    static __host__ __device__ __forceinline__ uint32_t log2(uint32_t x)
    {
#ifdef __CUDA_ARCH__
        return 31 - __clz(x);
#else
        return 31 - (uint32_t)__builtin_clz(x);
#endif
    }

    /* The warp's unit number i, of all units of codes. */
    __host__ __device__ __forceinline__ uint32_t unit(uint32_t i) const
    {
        return warp + (i < lead ? i * n_warps : lead * n_warps + (i - lead) * ahead);
    }
};

/* Rows of a tile. */
__device__ __forceinline__ uint32_t kivi_cuda_tile_rows(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                                        uint32_t tile)
{
    const uint32_t rows = item.n_q * s.heads_per_kv.by - tile * KIVI_CUDA_ROWS;

    return rows < KIVI_CUDA_ROWS ? rows : KIVI_CUDA_ROWS;
}

/* The query that a row of a tile is of. */
__device__ __forceinline__ uint32_t kivi_cuda_query(const kivi_cuda_step &s, uint32_t tile, uint32_t row)
{
    return kivi_cuda_divide(tile * KIVI_CUDA_ROWS + row, s.heads_per_kv);
}

/* Its query head. */
__device__ __forceinline__ uint32_t kivi_cuda_query_head(const kivi_cuda_step &s, const kivi_cuda_segment &g,
                                                         uint32_t row, uint32_t query)
{
    return (g.head - query) * s.heads_per_kv.by + g.tile * KIVI_CUDA_ROWS + row;
}

/* Units begin .. end - 1, cut down to first .. last - 1. */
__device__ __forceinline__ void kivi_cuda_cut(uint32_t &begin, uint32_t &end, uint64_t first, uint64_t last)
{
    if (last < end)
        end = last > begin ? (uint32_t)last : begin;
    if (first > begin)
        begin = first < end ? (uint32_t)first : end;
}

/* The segment becomes what rows of its tile see, its units those of the sequence. [*begin, *end), if asked for,
 * are those of them that all rows see in full, and codes. */
__device__ __forceinline__ void kivi_cuda_see(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                              kivi_cuda_segment &g, uint32_t *begin, uint32_t *end)
{
    const uint32_t n_rows = kivi_cuda_tile_rows(s, item, g.tile);
    const uint64_t oldest = item.q_position + kivi_cuda_query(s, g.tile, 0);
    const uint64_t newest = item.q_position + kivi_cuda_query(s, g.tile, n_rows - 1);
    const uint64_t some = s.window && oldest >= s.window ? oldest - s.window + 1 : 0;
    const uint64_t stop = newest < item.n ? newest + 1 : item.n;

    g.begin += item.first_unit;
    g.end += item.first_unit;
    kivi_cuda_cut(g.begin, g.end, some / KIVI_CUDA_UNIT, (stop + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT);
    if (begin) {
        const uint64_t all = s.window && newest >= s.window ? newest - s.window + 1 : 0;
        const uint64_t from = all > s.n_sink ? all : s.n_sink;
        const uint64_t packed = item.k_packed < item.v_packed ? item.k_packed : item.v_packed;

        *begin = g.begin;
        *end = g.end;
        kivi_cuda_cut(*begin, *end, (from + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT,
                      (oldest + 1 < packed ? oldest + 1 : packed) / KIVI_CUDA_UNIT);
    }
}

#endif
