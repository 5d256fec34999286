/*
 * One step as the kernels see it, and where the tokens of a sequence lie. Everything travels in
 * kernel arguments: a step needs no copy from the host, and can be captured in a CUDA graph.
 */
#ifndef KIVI_CUDA_STEP_CUH
#define KIVI_CUDA_STEP_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "../core/backend.h"

#define KIVI_CUDA_ROWS 8u        /* query rows of a tile: what one tensor core product takes */
#define KIVI_CUDA_UNIT 32u       /* tokens of a unit, the grain of the split over tokens */
#define KIVI_CUDA_EDGE_COST 8u   /* cost of a unit of f16 rows, in units of codes, at most: schedule.cu */
#define KIVI_CUDA_SLAB 128u      /* tokens that an append takes together; a page has whole slabs */
#define KIVI_CUDA_NOT_BAD UINT64_MAX

/* Bytes of tables that fit in a kernel's arguments, which have 4 KB, and 32764 bytes since CUDA 12.1. */
#if CUDART_VERSION >= 12010
#define KIVI_CUDA_INLINE 16896u
#else
#define KIVI_CUDA_INLINE 3328u
#endif

/* A number that what is below 2^31 can be divided by with a multiplication and a shift: times / 2^shift is
 * above 1 / by, by less than 2^-31 of it. */
struct kivi_cuda_divisor {
    uint32_t by, times, shift;
};

inline kivi_cuda_divisor kivi_cuda_make_divisor(uint32_t by)
{
    kivi_cuda_divisor d = {by, 0, 31};

    while (by > 1ull << (d.shift - 31))
        d.shift++;
    d.times = (uint32_t)((1ull << d.shift) / by + 1);
    return d;
}

__host__ __device__ __forceinline__ uint32_t kivi_cuda_divide(uint32_t a, const kivi_cuda_divisor &d)
{
    return (uint32_t)((uint64_t)a * d.times >> d.shift);
}

/* Slabs begin .. end - 1 of a sequence. */
struct kivi_cuda_slabs {
    uint32_t begin, end;
};

/* One item of a step. Strides count elements. */
struct alignas(16) kivi_cuda_item {
    const void *q, *k, *v;
    void *out;
    float *lse;
    int64_t q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head;
    unsigned char *window;
    uint64_t n_old, n;           /* tokens before and after the append */
    uint64_t k_packed, v_packed; /* before: what the attention reads as codes */
    uint64_t k_after, v_after;   /* what is codes when the step is done */
    uint64_t q_position;
    uint32_t n_new, n_q;
    uint32_t page; /* its first page in the table */
    uint32_t first_unit, n_units, n_cheap, n_tiles; /* see schedule.cuh; no tiles: it has no queries, or many */
    union {
        struct {
            uint32_t edge_cost; /* of each unit but the cheap ones, in units of codes */
            uint32_t settled; /* units before it were codes before the last call, which may still be at work */
        } few; /* queries, in tiles */
        struct {
            uint32_t n_splits; /* of the tokens that they see */
            uint32_t first_partial; /* where splits leave what they have, if there is more than one */
        } many; /* queries: no tiles */
    };
    kivi_cuda_slabs k_tiled, v_tiled; /* kivi_cuda_plan_append */
    uint8_t q_type, k_type, v_type, out_type; /* kivi_dtype */
};

/* Where a part of the attention begins: schedule.cuh. It ends where the next one begins. */
struct kivi_cuda_start {
    uint16_t item, head;
    uint32_t tile, unit;
    uint32_t n_tasks; /* of which the part has a share */
    uint16_t first_part, last_part; /* of those that share the task in which it begins */
};

/* The argument of every kernel of a step. */
struct kivi_cuda_step {
    struct kivi_layout k, v;
    uint64_t page_v_offset, page_head_stride, window_head_stride, window_sink_v, window_k, window_v;
    uint32_t page_tokens, n_sink, n_q_heads, n_kv_heads;
    kivi_cuda_divisor heads_per_kv, units_per_page, k_ring, v_ring;
    uint32_t n_items;
    bool precise, overlap; /* overlap: for kivi_cuda_launch */
    float scale, softcap;
    uint64_t window;
    const float *sink_logits;
    unsigned long long *bad;       /* the first input that is not finite: kivi_cuda_report */
    const unsigned long long *gate; /* if not NULL: append nothing unless it holds NOT_BAD */
    uint32_t n_parts;    /* blocks that share the attention, */
    uint32_t n_warps;    /* and the warps of each */
    float *partials;     /* two partial results to a part */
    uint32_t *arrivals;  /* [part][row]: parts done with the task that it begins. Zero between steps. */
    const void *tables;  /* items, starts and pages; NULL: they are in `in_place` */
    uint32_t starts_at, pages_at; /* offsets there */
    alignas(16) unsigned char in_place[KIVI_CUDA_INLINE];
};

#ifdef __CUDACC__

/* ------------------------------------------------------------------ tables */

__host__ __device__ __forceinline__ const unsigned char *kivi_cuda_tables(const kivi_cuda_step &s)
{
    return s.tables ? (const unsigned char *)s.tables : s.in_place;
}

__host__ __device__ __forceinline__ const kivi_cuda_item *kivi_cuda_items(const kivi_cuda_step &s)
{
    return (const kivi_cuda_item *)kivi_cuda_tables(s);
}

/* For all parts, and one for the end. */
__host__ __device__ __forceinline__ const kivi_cuda_start *kivi_cuda_starts(const kivi_cuda_step &s)
{
    return (const kivi_cuda_start *)(kivi_cuda_tables(s) + s.starts_at);
}

__device__ __forceinline__ unsigned char *const *kivi_cuda_pages(const kivi_cuda_step &s,
                                                                 const kivi_cuda_item &item)
{
    return (unsigned char *const *)(kivi_cuda_tables(s) + s.pages_at) + item.page;
}

/* Number i of the item's pages. Read from the arguments themselves, and not through a pointer that may be to
 * either, it comes from the constant cache. */
__device__ __forceinline__ unsigned char *kivi_cuda_page(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                                         uint32_t i)
{
    const uint32_t at = s.pages_at + (item.page + i) * (uint32_t)sizeof(void *);

    return s.tables ? *(unsigned char *const *)((const unsigned char *)s.tables + at)
                    : *(unsigned char *const *)(s.in_place + at);
}

/* Notes that token `token` of array `which` (0 q, 1 k, 2 v) is not finite; the first one is kept. */
__device__ __forceinline__ void kivi_cuda_report(const kivi_cuda_step &s, uint32_t item,
                                                 uint32_t token, uint32_t which)
{
    atomicMin(s.bad, (unsigned long long)item << 34 | (unsigned long long)token << 2 | which);
}

/* ------------------------------------------------------------------- f16 rows */

/* Inputs are read once, and by kernels that may not have waited for all before them: from the L2 cache, where what
 * kernels wrote that are done is found. */

/* Eight f16 as they are moved: one 16-byte access. */
union kivi_cuda_half8 {
    uint4 vector;
    uint2 quad[2];
    uint32_t pair[4];
    __half half[8];
};

__device__ __forceinline__ float kivi_cuda_element(const void *data, uint32_t type, int64_t at)
{
    if (type == KIVI_F32)
        return __ldcg((const float *)data + at);
    if (type == KIVI_F16)
        return __half2float(__ldcg((const __half *)data + at));
    return __uint_as_float((uint32_t)__ldcg((const unsigned short *)data + at) << 16);
}

/* N elements, 2 or 4: as one if they are aligned f16. */
template <int N>
__device__ __forceinline__ void kivi_cuda_load_floats(const void *data, uint32_t type, int64_t at, float x[N])
{
    const __half *half = (const __half *)data + at;

    if (type == KIVI_F16 && (uintptr_t)half % (2 * N) == 0) {
        union {
            uint2 four;
            uint32_t pair[2];
        } y = {};

        if (N == 4)
            y.four = __ldcg((const uint2 *)half);
        else
            y.pair[0] = __ldcg((const uint32_t *)half);
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float2 f = __half22float2(*(const __half2 *)&y.pair[i]);

            x[2 * i] = f.x;
            x[2 * i + 1] = f.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            x[i] = kivi_cuda_element(data, type, at + i);
    }
}

/* A key or value rounded to f16. What f16 cannot hold is reported and stored as the nearest finite
 * number (NaN as 0), so that one bad input never turns into a silent NaN. */
__device__ __forceinline__ __half kivi_cuda_to_f16(float x, bool *finite)
{
    const float limit = 65519.996f; /* the largest float that rounds to 65504 */

    if (!(fabsf(x) <= limit)) {
        *finite = false;
        x = isnan(x) ? 0.0f : copysignf(65504.0f, x);
    }
    return __float2half_rn(x);
}

__device__ __forceinline__ bool kivi_cuda_is_finite8(uint4 vector)
{
    const kivi_cuda_half8 x = {vector};
    bool all = true;

#pragma unroll
    for (int i = 0; i < 4; i++)
        all = all && (x.pair[i] & 0x7c00u) != 0x7c00u && (x.pair[i] & 0x7c000000u) != 0x7c000000u;
    return all;
}

/* Elements at .. at + 7 of an input as f16. */
__device__ __forceinline__ uint4 kivi_cuda_load8(const void *data, uint32_t type, int64_t at,
                                                 bool *finite)
{
    kivi_cuda_half8 x;

    if (type == KIVI_F16 && ((uintptr_t)((const __half *)data + at) & 15) == 0) {
        x.vector = __ldcg((const uint4 *)((const __half *)data + at));
        if (kivi_cuda_is_finite8(x.vector))
            return x.vector;
    }
    if (type == KIVI_F32 && ((uintptr_t)((const float *)data + at) & 15) == 0) {
        const float4 a = __ldcg((const float4 *)((const float *)data + at));
        const float4 b = __ldcg((const float4 *)((const float *)data + at) + 1);
        const float y[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};

#pragma unroll
        for (int i = 0; i < 8; i++)
            x.half[i] = kivi_cuda_to_f16(y[i], finite);
        return x.vector;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        x.half[i] = kivi_cuda_to_f16(kivi_cuda_element(data, type, at + i), finite);
    return x.vector;
}

/* --------------------------------------------------------- where tokens lie */

/* Where the f16 row of a token is: in the window, or among the new tokens of the step. */
struct kivi_cuda_row {
    const void *data; /* NULL: the token has no row */
    uint32_t type;
    int64_t at; /* of its first element */
};

/* Keys of one kv head of one item, or its values: all that is needed to find a row. */
struct kivi_cuda_rows {
    const unsigned char *ring, *sink;
    const void *fresh;
    int64_t fresh_token, fresh_at; /* stride, and the head's offset */
    uint64_t packed, n_old, n;
    kivi_cuda_divisor ring_length;
    uint32_t dim, n_sink, type;
};

__host__ __device__ __forceinline__ kivi_cuda_rows
kivi_cuda_key_rows(const kivi_cuda_step &s, const kivi_cuda_item &item, uint32_t head)
{
    kivi_cuda_rows r;
    const unsigned char *window = item.window + head * s.window_head_stride;

    r.sink = window;
    r.ring = window + s.window_k;
    r.fresh = item.k;
    r.fresh_token = item.k_token;
    r.fresh_at = (int64_t)head * item.k_head;
    r.packed = item.k_packed;
    r.n_old = item.n_old;
    r.n = item.n;
    r.ring_length = s.k_ring;
    r.dim = s.k.dim;
    r.n_sink = s.n_sink;
    r.type = item.k_type;
    return r;
}

__host__ __device__ __forceinline__ kivi_cuda_rows
kivi_cuda_value_rows(const kivi_cuda_step &s, const kivi_cuda_item &item, uint32_t head)
{
    kivi_cuda_rows r;
    const unsigned char *window = item.window + head * s.window_head_stride;

    r.sink = window + s.window_sink_v;
    r.ring = window + s.window_v;
    r.fresh = item.v;
    r.fresh_token = item.v_token;
    r.fresh_at = (int64_t)head * item.v_head;
    r.packed = item.v_packed;
    r.n_old = item.n_old;
    r.n = item.n;
    r.ring_length = s.v_ring;
    r.dim = s.v.dim;
    r.n_sink = s.n_sink;
    r.type = item.v_type;
    return r;
}

/* The ring's row of the first token of unit u. */
__device__ __forceinline__ uint32_t kivi_cuda_unit_row(const kivi_cuda_divisor &ring_length, uint32_t u)
{
    const uint32_t at = (u - kivi_cuda_divide(u, ring_length) * ring_length.by) * KIVI_CUDA_UNIT;

    return at - kivi_cuda_divide(at, ring_length) * ring_length.by;
}

/* Whether the token is read as a row: what is not codes, and the sinks whatever their codes are. */
__device__ __forceinline__ bool kivi_cuda_is_row(const kivi_cuda_rows &r, uint64_t token)
{
    return token < r.n && (token >= r.packed || token < r.n_sink);
}

__device__ __forceinline__ kivi_cuda_row kivi_cuda_find_row(const kivi_cuda_rows &r, uint64_t token)
{
    kivi_cuda_row row = {NULL, KIVI_F16, 0};

    if (!kivi_cuda_is_row(r, token))
        return row;
    if (token >= r.n_old) {
        row.data = r.fresh;
        row.type = r.type;
        row.at = (int64_t)(token - r.n_old) * r.fresh_token + r.fresh_at;
    } else if (token >= r.packed) {
        row.data = r.ring;
        row.at = (int64_t)(token % r.ring_length.by) * r.dim;
    } else {
        row.data = r.sink;
        row.at = (int64_t)token * r.dim;
    }
    return row;
}

/* Whether every row of a token before `end` can be read as aligned f16: all but new tokens of another type
 * or stride. */
__host__ __device__ __forceinline__ bool kivi_cuda_rows_are_f16(const kivi_cuda_rows &r,
                                                                uint64_t end)
{
    return end <= r.n_old
           || (r.type == KIVI_F16
               && ((uintptr_t)r.fresh % 16 | (r.fresh_token % 8) | (r.fresh_at % 8)) == 0);
}

/* Row of token first + i if it is one of aligned f16; NULL if there is none. `at` is first modulo the
 * ring's length. */
__device__ __forceinline__ const __half *kivi_cuda_f16_row(const kivi_cuda_rows &r, uint64_t first,
                                                           uint32_t at, uint32_t i)
{
    const uint64_t token = first + i;

    if (!kivi_cuda_is_row(r, token))
        return NULL;
    if (token >= r.n_old)
        return (const __half *)r.fresh + (int64_t)(token - r.n_old) * r.fresh_token + r.fresh_at;
    if (token < r.packed)
        return (const __half *)r.sink + token * r.dim;
    for (at += i; at >= r.ring_length.by;)
        at -= r.ring_length.by;
    return (const __half *)r.ring + (size_t)at * r.dim;
}

/* Channels c .. c + 7 of a row; zeros if there is none. */
__device__ __forceinline__ uint4 kivi_cuda_row8(const kivi_cuda_row &row, uint32_t c)
{
    bool finite = true;

    if (!row.data)
        return make_uint4(0, 0, 0, 0);
    return kivi_cuda_load8(row.data, row.type, row.at + c, &finite);
}

#endif
#endif
