/*
 * After the attention: what leaves the windows is quantized into pages, and the new rows enter the windows. A
 * block takes slabs of 128 tokens of the keys or of the values of one kv head, in slices of 128 channels. Whole
 * slabs of a prompt are left to append_tiles.cu: kivi_cuda_plan_append, at the end, says which.
 */
#include "append.cuh"
#include "kernels.cuh"
#include "mma.cuh"

namespace {

constexpr uint32_t THREADS = 256, SLICE = 128, CHUNKS = 4; /* of 32 tokens or channels */
constexpr uint32_t PITCH = SLICE + 8; /* halves from row to row: no bank conflicts by column or row */

struct alignas(16) slab_state {
    __half x[SLAB][PITCH];
    __half2 ends[CHUNKS][SLAB]; /* least and largest number: [chunk of tokens][channel] of keys, */
                                /* [chunk of channels][token] of values; then */
    union {
        struct {
            __half2 min[CHUNKS][SLAB], above[3][CHUNKS][SLAB]; /* twice the same: values of 2 bits */
        } twin;
        struct {
            __half min[CHUNKS][SLAB], above[3][CHUNKS][SLAB]; /* keys of 2 bits */
        } single;
        struct {
            float min[CHUNKS][SLAB], scale[CHUNKS][SLAB], inverse[CHUNKS][SLAB];
        } any; /* inverse is negative for a wide group */
    };
};

__device__ __half threshold(__half scale, int i)
{
    return __float2half_rd(__half2float(scale) * threshold_of(i));
}

/* Codes of 2 bits, as f16 numbers. */
__device__ __half2 codes_of(__half2 x, __half2 min, __half2 a, __half2 b, __half2 c)
{
    const __half2 above = __hsub2(x, min);

    return __hadd2(__hadd2(__hgt2(above, a), __hgt2(above, b)), __hgt2(above, c));
}

/* Pairs from shared memory, four in one access. */
struct four {
    uint4 v;

    __device__ explicit four(const void *from) : v(*(const uint4 *)from) {}
    __device__ __half2 operator[](uint32_t i) const
    {
        return kivi_cuda_half2(i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w);
    }
};

/* Eight of them. */
struct eight {
    four low, high;

    __device__ explicit eight(const __half *from) : low(from), high(from + 8) {}
    __device__ __half2 operator[](uint32_t i) const { return i < 4 ? low[i] : high[i - 4]; }
};

/* The low bytes of four integers below 256 that are in f16: a word of codes. */
__device__ uint32_t bytes_of(__half2 a, __half2 b)
{
    const __half2 magic = __floats2half2_rn(1024.0f, 1024.0f);

    return __byte_perm(kivi_cuda_bits(__hadd2(a, magic)), kivi_cuda_bits(__hadd2(b, magic)), 0x6420);
}

/* The thresholds or factors of one group's range, for entry [chunk][at]. */
__device__ void store_range(slab_state &m, const range &r, uint32_t chunk, uint32_t at, bool quick,
                            bool twin)
{
    if (quick && twin) {
        m.twin.min[chunk][at] = __half2half2(r.min);
        for (int i = 0; i < 3; i++)
            m.twin.above[i][chunk][at] = __half2half2(threshold(r.scale, i));
    } else if (quick) {
        m.single.min[chunk][at] = r.min;
        for (int i = 0; i < 3; i++)
            m.single.above[i][chunk][at] = threshold(r.scale, i);
    } else {
        m.any.min[chunk][at] = __half2float(r.min);
        m.any.scale[chunk][at] = __half2float(r.scale);
        m.any.inverse[chunk][at] = inverse_of(r);
    }
}

/* One row's channels c .. c + 7 as f16; what is not finite is reported. */
__device__ uint4 load_any(const kivi_cuda_step &s, const kivi_cuda_rows &rows, uint64_t token,
                          uint32_t c, uint32_t item, uint32_t which)
{
    const kivi_cuda_row row = kivi_cuda_find_row(rows, token);
    bool finite = true;
    const uint4 x = kivi_cuda_load8(row.data, row.type, row.at + c, &finite);

    if (!finite)
        kivi_cuda_report(s, item, (uint32_t)(token - rows.n_old), which);
    return x;
}

/* Rows from .. to - 1 of a slab as f16, channels c0 .. c0 + SLICE - 1; zeros beyond. Rows of aligned f16 are
 * all asked for before the first is looked at. */
__device__ void load_slab(const kivi_cuda_step &s, slab_state &m, const kivi_cuda_rows &rows,
                          uint64_t slab, uint32_t from, uint32_t to, uint32_t c0, uint32_t item,
                          uint32_t which)
{
    constexpr uint32_t PER_ROW = SLICE / 8, COUNT = SLAB * PER_ROW / THREADS, STEP = THREADS / PER_ROW;
    const uint64_t start = slab * SLAB;
    const bool aligned = kivi_cuda_rows_are_f16(rows, start + to);
    const uint32_t c = threadIdx.x % PER_ROW * 8, first = threadIdx.x / PER_ROW;
    /* Tokens of the slab before `old` are in the ring, the others new. */
    const uint32_t old = rows.n_old <= start        ? 0
                         : rows.n_old - start < SLAB ? (uint32_t)(rows.n_old - start)
                                                     : SLAB;
    const uint32_t ring_at = old ? (uint32_t)(start % rows.ring_length.by) : 0;
    const __half *fresh = (const __half *)rows.fresh + rows.fresh_at
                          + ((int64_t)start - (int64_t)rows.n_old) * rows.fresh_token + c0 + c;
    const __half *ring = (const __half *)rows.ring + c0 + c;
    __half2 top = __half2half2(__ushort_as_half(0));
    uint4 x[COUNT];

#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) {
        const uint32_t t = first + i * STEP;

        x[i] = make_uint4(0, 0, 0, 0);
        if (t < from || t >= to || c0 + c >= rows.dim)
            continue;
        if (!aligned)
            x[i] = load_any(s, rows, start + t, c0 + c, item, which);
        else if (t >= old)
            x[i] = *(const uint4 *)(fresh + (int64_t)t * rows.fresh_token);
        else
            x[i] = *(const uint4 *)(ring + (size_t)((ring_at + t) % rows.ring_length.by) * rows.dim);
    }
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) {
        const kivi_cuda_half8 y = {x[i]};

        for (int j = 0; j < 4; j++)
            top = __hmax2_nan(top, __habs2(kivi_cuda_half2(y.pair[j])));
        *(uint4 *)&m.x[first + i * STEP][c] = x[i];
    }
    if (!(__half2float(__low2half(top)) <= 65504.0f && __half2float(__high2half(top)) <= 65504.0f))
#pragma unroll 1
        for (uint32_t t = first; t < SLAB; t += STEP) /* which one: new, so it is reported */
            if (t >= from && t < to && c0 + c < rows.dim)
                *(uint4 *)&m.x[t][c] = load_any(s, rows, start + t, c0 + c, item, which);
}

/* Least and largest of chunks first .. first + n - 1 at one place. */
__device__ __half2 merge_ends(const slab_state &m, uint32_t first, uint32_t n, uint32_t at)
{
    __half2 e = m.ends[first][at];

    for (uint32_t i = 1; i < n; i++) {
        const __half2 o = m.ends[first + i][at];

        e = __halves2half2(__hmin(__low2half(e), __low2half(o)),
                           __hmax(__high2half(e), __high2half(o)));
    }
    return e;
}

/* --------------------------------------------------------------------- keys */

__device__ void key_ends(const kivi_cuda_step &s, slab_state &m, uint64_t slab, uint32_t from,
                         uint32_t to)
{
    const uint32_t chunk = threadIdx.x / 64, pair = threadIdx.x % 64;
    const __half inf = __ushort_as_half(0x7c00);
    __half2 low = __half2half2(inf), high = __hneg2(low);

    if (slab * SLAB < s.n_sink) { /* sinks are left out */
        const uint64_t sinks = s.n_sink - slab * SLAB;

        from = sinks > from ? (uint32_t)(sinks < SLAB ? sinks : SLAB) : from;
    }
    from = from > chunk * 32 ? from : chunk * 32;
    to = to < chunk * 32 + 32 ? to : chunk * 32 + 32;
#pragma unroll 8
    for (uint32_t t = from; t < to; t++) {
        const __half2 x = *(const __half2 *)&m.x[t][2 * pair];

        low = __hmin2(low, x);
        high = __hmax2(high, x);
    }
    m.ends[chunk][2 * pair] = __lows2half2(low, high);
    m.ends[chunk][2 * pair + 1] = __highs2half2(low, high);
}

template <uint32_t bits>
__device__ uint32_t key_word(const slab_state &m, uint32_t chunk, uint32_t t, uint32_t c, bool quick)
{
    constexpr uint32_t n = 32 / bits;
    const float levels = (float)((1u << bits) - 1u);
    uint32_t word = 0;

    if (bits == 2 && quick) {
        const eight x(&m.x[t][c]), min(&m.single.min[chunk][c]);
        const eight a(&m.single.above[0][chunk][c]);
        const eight b(&m.single.above[1][chunk][c]);
        const eight d(&m.single.above[2][chunk][c]);
        __half2 sum[2];

#pragma unroll
        for (uint32_t j = 0; j < n / 2; j++) {
            const __half2 code = codes_of(x[j], min[j], a[j], b[j], d[j]);

            /* Codes 4 i + 0,1 and 4 i + 2,3 stand i codes up in bytes 0,1 and 2,3. */
            sum[j % 2] = j < 2 ? code
                               : __hfma2(code, __half2half2(__float2half((float)(1 << (j / 2 * 2)))),
                                         sum[j % 2]);
        }
        return bytes_of(sum[0], sum[1]);
    }
#pragma unroll
    for (uint32_t i = 0; i < n; i++)
        word |= code_of(m.x[t][c + i], m.any.min[chunk][c + i], m.any.scale[chunk][c + i],
                        m.any.inverse[chunk][c + i], levels)
                << code_shift(bits, i);
    return word;
}

template <uint32_t bits>
__device__ void quantize_keys(const kivi_cuda_step &s, slab_state &m, unsigned char *blocks,
                              uint64_t slab, uint32_t from, uint32_t to, uint32_t c0)
{
    constexpr uint32_t n = 32 / bits;
    const uint32_t width = s.k.dim_pad - c0 < SLICE ? s.k.dim_pad - c0 : SLICE;
    const uint32_t chunk = threadIdx.x / 64, pair = threadIdx.x % 64;
    const uint32_t chunks = s.k.tokens / 32, first = chunk / chunks * chunks; /* of the group */
    const bool used = 2 * pair < width && chunk * 32 >= from && chunk * 32 < to;
    range r[2] = {};
    bool quick;

    __syncthreads();
    key_ends(s, m, slab, from, to);
    __syncthreads();
    for (uint32_t i = 0; i < 2; i++) {
        const __half2 ends = merge_ends(m, first, chunks, 2 * pair + i);

        /* Padding, and a group of sinks alone, have no range. */
        if (used && c0 + 2 * pair < s.k.dim && __hle(__low2half(ends), __high2half(ends)))
            r[i] = range_of(ends, bits);
    }
    quick = !__syncthreads_or(r[0].wide || r[1].wide) && bits == 2;
    for (uint32_t i = 0; i < 2; i++)
        store_range(m, r[i], chunk, 2 * pair + i, quick, false);
    if (used && chunk == first) {
        unsigned char *block = blocks + chunk / chunks * s.k.block_bytes + s.k.code_bytes;

        *(__half2 *)(block + 2 * (c0 + 2 * pair)) = __halves2half2(r[0].scale, r[1].scale);
        *(__half2 *)(block + s.k.scale_bytes + 2 * (c0 + 2 * pair)) =
            __halves2half2(r[0].min, r[1].min);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < SLAB * (width / n); i += THREADS) {
        const uint32_t t = i % 32 + i / 32 % CHUNKS * 32, w = i / SLAB, tile = t / 32;
        uint32_t *codes = (uint32_t *)(blocks + tile / chunks * s.k.block_bytes);

        if (t < from || t >= to)
            continue;
        codes[(tile % chunks * (s.k.dim_pad / n) + c0 / n + w) * 32 + t % 32] =
            slab * SLAB + t < s.n_sink ? 0 : key_word<bits>(m, tile, t, w * n, quick);
    }
}

/* ------------------------------------------------------------------- values */

__device__ void value_ends(slab_state &m, uint32_t dim, uint32_t c0)
{
    for (uint32_t i = threadIdx.x; i < CHUNKS * SLAB; i += THREADS) {
        const uint32_t chunk = i / SLAB, t = i % SLAB;
        __half2 low = __half2half2(__ushort_as_half(0x7c00)), high = __hneg2(low);

        for (uint32_t c = 32 * chunk; c < 32 * chunk + 32 && c0 + c < dim; c += 8) {
            kivi_cuda_half8 x;

            x.vector = *(const uint4 *)&m.x[t][c];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                low = __hmin2(low, kivi_cuda_half2(x.pair[j]));
                high = __hmax2(high, kivi_cuda_half2(x.pair[j]));
            }
        }
        m.ends[chunk][t] = __halves2half2(__hmin(__low2half(low), __high2half(low)),
                                          __hmax(__low2half(high), __high2half(high)));
    }
}

/* Codes of n tokens from t on, in channels c and c + 1: two words. */
template <uint32_t bits>
__device__ void value_words(const slab_state &m, uint32_t t, uint32_t c, bool quick,
                            uint32_t word[2])
{
    constexpr uint32_t n = 32 / bits;
    const float levels = (float)((1u << bits) - 1u);
    const uint32_t chunk = c / 32;

    word[0] = word[1] = 0;
    if (bits == 2 && quick) {
        __half2 sum[4];

#pragma unroll
        for (uint32_t i = 0; i < n; i += 4) {
            const four min(&m.twin.min[chunk][t + i]), a(&m.twin.above[0][chunk][t + i]);
            const four b(&m.twin.above[1][chunk][t + i]), d(&m.twin.above[2][chunk][t + i]);

#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                const __half2 code =
                    codes_of(*(const __half2 *)&m.x[t + i + j][c], min[j], a[j], b[j], d[j]);

                sum[j] = i == 0 ? code
                                : __hfma2(code, __half2half2(__float2half((float)(1 << (i / 2)))),
                                          sum[j]);
            }
        }
        word[0] = bytes_of(__lows2half2(sum[0], sum[1]), __lows2half2(sum[2], sum[3]));
        word[1] = bytes_of(__highs2half2(sum[0], sum[1]), __highs2half2(sum[2], sum[3]));
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < n; i++)
#pragma unroll
        for (uint32_t j = 0; j < 2; j++)
            word[j] |= code_of(m.x[t + i][c + j], m.any.min[chunk][t + i],
                               m.any.scale[chunk][t + i], m.any.inverse[chunk][t + i], levels)
                       << code_shift(bits, i);
}

/* Bits of a word of n codes that belong to its codes begin .. end - 1. */
__device__ uint32_t code_mask(uint32_t bits, uint32_t begin, uint32_t end)
{
    uint32_t mask = 0;

    for (uint32_t i = begin; i < end; i++)
        mask |= ((1u << bits) - 1u) << code_shift(bits, i);
    return mask;
}

template <uint32_t bits>
__device__ void quantize_values(const kivi_cuda_step &s, slab_state &m, unsigned char *blocks,
                                uint32_t from, uint32_t to, uint32_t c0)
{
    constexpr uint32_t n = 32 / bits;
    const uint32_t width = s.v.dim_pad - c0 < SLICE ? s.v.dim_pad - c0 : SLICE;
    const uint32_t chunks = s.v.group_size / 32;
    range r[2] = {};
    bool quick;

    __syncthreads();
    value_ends(m, s.v.dim, c0);
    __syncthreads();
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t at = threadIdx.x + i * THREADS, chunk = at / SLAB, t = at % SLAB;

        if (t >= from && t < to && c0 + 32 * chunk < s.v.dim)
            r[i] = range_of(merge_ends(m, chunk / chunks * chunks, chunks, t), bits);
    }
    quick = !__syncthreads_or(r[0].wide || r[1].wide) && bits == 2;
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t at = threadIdx.x + i * THREADS, chunk = at / SLAB, t = at % SLAB;
        unsigned char *block = blocks + t / 32 * s.v.block_bytes + s.v.code_bytes;
        const uint32_t entry = 2 * ((c0 / 32 + chunk) / chunks * KIVI_TILE + t % 32);
        /* A block that is begun here is written whole. */
        const bool write = t / 32 * 32 >= from ? t / 32 * 32 < to : t >= from && t < to;

        store_range(m, r[i], chunk, t, quick, true);
        if (write && chunk % chunks == 0 && c0 + 32 * chunk < s.v.dim) {
            *(__half *)(block + entry) = r[i].scale;
            *(__half *)(block + s.v.scale_bytes + entry) = r[i].min;
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < SLAB / n * (width / 2); i += THREADS) {
        const uint32_t c = i % (width / 2) * 2, t = i / (width / 2) * n, start = t / 32 * 32;
        const uint32_t begin = from > t ? from - t : 0, end = to > t ? to - t : 0;
        const uint32_t mask = code_mask(bits, begin, end < n ? end : n);
        const bool whole = start >= from && start < to;
        uint32_t *codes = (uint32_t *)(blocks + t / 32 * s.v.block_bytes)
                          + t % 32 / n * s.v.dim_pad + c0 + c;
        uint32_t word[2] = {0, 0};

        if (!whole && !mask)
            continue;
        if (mask && c0 + c < s.v.dim)
            value_words<bits>(m, t, c, quick, word);
        for (uint32_t j = 0; j < 2; j++)
            codes[j] = (word[j] & mask) | (whole ? 0 : codes[j] & ~mask);
    }
}

/* --------------------------------------------------------------------- both */

/* 16 bits: rows as they are. */
__device__ void copy_rows(const slab_state &m, const kivi_layout &l, unsigned char *blocks,
                          uint32_t from, uint32_t to, uint32_t c0)
{
    const uint32_t width = l.dim - c0 < SLICE ? l.dim - c0 : SLICE;

    __syncthreads();
    for (uint32_t i = threadIdx.x; i < (to - from) * (width / 8); i += THREADS) {
        const uint32_t t = from + i / (width / 8), c = i % (width / 8) * 8;
        unsigned char *block = blocks + t / l.tokens * l.block_bytes;

        *(uint4 *)(block + ((size_t)(t % l.tokens) * l.dim + c0 + c) * 2) = *(const uint4 *)&m.x[t][c];
    }
}

__device__ void quantize_slab(const kivi_cuda_step &s, slab_state &m, const kivi_cuda_item &item,
                              const kivi_cuda_rows &rows, uint32_t index, uint32_t head,
                              bool is_value, uint32_t slab, uint32_t from, uint32_t to)
{
    const kivi_layout &l = is_value ? s.v : s.k;
    unsigned char *blocks = slab_blocks(s, item, head, is_value, slab);

    for (uint32_t c0 = 0; c0 < l.dim; c0 += SLICE) {
        __syncthreads();
        load_slab(s, m, rows, slab, from, to, c0, index, is_value ? 2 : 1);
        if (l.bits == 16)
            copy_rows(m, l, blocks, from, to, c0);
        else if (is_value && l.bits == 2)
            quantize_values<2>(s, m, blocks, from, to, c0);
        else if (is_value && l.bits == 4)
            quantize_values<4>(s, m, blocks, from, to, c0);
        else if (is_value)
            quantize_values<8>(s, m, blocks, from, to, c0);
        else if (l.bits == 2)
            quantize_keys<2>(s, m, blocks, slab, from, to, c0);
        else if (l.bits == 4)
            quantize_keys<4>(s, m, blocks, slab, from, to, c0);
        else
            quantize_keys<8>(s, m, blocks, slab, from, to, c0);
    }
}

/* Grid: (slabs at a time, keys and values of each head, items). */
__global__ void __launch_bounds__(THREADS, 3)
    append(const __grid_constant__ kivi_cuda_step s, bool quantize, bool store)
{
    __shared__ slab_state m;
    const uint32_t head = blockIdx.y / 2, index = blockIdx.z;
    const bool is_value = blockIdx.y % 2;
    const kivi_cuda_item &item = kivi_cuda_items(s)[index];

    kivi_cuda_wait_for_stream();
    if (item.n_new == 0 || (s.gate && *s.gate != KIVI_CUDA_NOT_BAD))
        return;
    const kivi_cuda_rows rows = rows_of(s, item, head, is_value);
    if (quantize) {
        const uint64_t begin = rows.packed, end = is_value ? item.v_after : item.k_after;

        for (uint32_t i = (uint32_t)(begin / SLAB) + blockIdx.x;; i += gridDim.x) {
            const kivi_cuda_slabs &tiled = is_value ? item.v_tiled : item.k_tiled;
            const uint32_t slab = i < tiled.begin ? i : i + (tiled.end - tiled.begin);
            const uint64_t start = (uint64_t)slab * SLAB;

            if (start >= end)
                break;
            quantize_slab(s, m, item, rows, index, head, is_value, slab,
                          begin > start ? (uint32_t)(begin - start) : 0,
                          end - start < SLAB ? (uint32_t)(end - start) : SLAB);
        }
    }
    if (store) {
        __syncthreads();
        store_rows(s, rows, index, is_value, blockIdx.x * THREADS + threadIdx.x, gridDim.x * THREADS);
    }
}

__global__ void __launch_bounds__(THREADS) check(const __grid_constant__ kivi_cuda_step s)
{
    kivi_cuda_wait_for_stream();

    const uint32_t head = blockIdx.y / 2, index = blockIdx.z, which = 1 + blockIdx.y % 2;
    const kivi_cuda_item &item = kivi_cuda_items(s)[index];
    const kivi_cuda_rows rows = which == 2 ? kivi_cuda_value_rows(s, item, head)
                                           : kivi_cuda_key_rows(s, item, head);
    const uint64_t n = (uint64_t)item.n_new * (rows.dim / 8);

    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (uint64_t)gridDim.x * THREADS) {
        const uint32_t token = (uint32_t)(i / (rows.dim / 8));
        bool finite = true;

        kivi_cuda_load8(rows.fresh, rows.type,
                        (int64_t)token * rows.fresh_token + rows.fresh_at
                            + (int64_t)(i % (rows.dim / 8)) * 8,
                        &finite);
        if (!finite)
            kivi_cuda_report(s, index, token, which);
    }
}

/* Grids have at most 65535 blocks in y and z; items beyond go into further launches by the caller. */
dim3 grid(const kivi_cuda_step *step, uint32_t blocks)
{
    return dim3(blocks, 2 * step->n_kv_heads, step->n_items);
}

/* Slabs that hold the tokens before `end`. */
uint64_t slabs_below(uint64_t end)
{
    return (end + SLAB - 1) / SLAB;
}

} // namespace

/*
 * Who quantizes what. Slabs of new rows alone, all of whose tokens leave the window in this step, go to
 * append_tiles.cu if rows and groups fit its tiles; slabs with a token of the window or with sinks, and those
 * that the packed tokens end in, are left to the kernel above. Both ends of a prompt may be such. A step of a
 * few tokens, most of decoding, is one for append_tokens.cu.
 */
kivi_cuda_append_plan kivi_cuda_plan_append(const kivi_cuda_step *step, kivi_cuda_item *items)
{
    kivi_cuda_append_plan plan = {0, 0, false, true, false};

    for (uint32_t i = 0; i < step->n_items; i++)
        for (uint32_t is_value = 0; is_value < 2; is_value++) {
            kivi_cuda_item *item = &items[i];
            const kivi_cuda_rows rows = is_value ? kivi_cuda_value_rows(*step, *item, 0)
                                                 : kivi_cuda_key_rows(*step, *item, 0);
            const uint64_t end = is_value ? item->v_after : item->k_after;
            const int64_t head_stride = is_value ? item->v_head : item->k_head;
            const uint64_t sinks = is_value ? 0 : step->n_sink;
            const uint64_t all = end > rows.packed ? slabs_below(end) - rows.packed / SLAB : 0;
            uint64_t first = slabs_below(rows.n_old > sinks ? rows.n_old : sinks);
            kivi_cuda_slabs tiled = {0, 0};

            if (first * SLAB < rows.packed)
                first = slabs_below(rows.packed);
            if (kivi_cuda_fits_tiles(is_value ? &step->v : &step->k) && head_stride % 8 == 0
                && kivi_cuda_rows_are_f16(rows, end) && first < end / SLAB)
                tiled = {(uint32_t)first, (uint32_t)(end / SLAB)};
            (is_value ? item->v_tiled : item->k_tiled) = tiled;

            const uint32_t others = (uint32_t)all - (tiled.end - tiled.begin);

            plan.tiled = plan.tiled > tiled.end - tiled.begin ? plan.tiled : tiled.end - tiled.begin;
            plan.others = plan.others > others ? plan.others : others;
            plan.replaces_rows = plan.replaces_rows || rows.n - rows.packed > rows.ring_length.by;
            plan.read_windows = plan.read_windows || (others && rows.packed < rows.n_old);
            plan.few = plan.few && item->n_new <= KIVI_CUDA_FEW
                       && (!all
                           || (is_value && step->v.bits < 16 && end <= rows.n_old
                               && end - rows.packed <= KIVI_CUDA_FEW));
        }
    return plan;
}

cudaError_t kivi_cuda_append(const kivi_cuda_step *step, const kivi_cuda_append_plan *plan, bool attended,
                             cudaStream_t stream)
{
    /* Rows must not be stored by one block before another has read what they replace. */
    const bool one_block = !plan->tiled && plan->others <= 2;
    const bool at_once = one_block || (!plan->tiled && !plan->read_windows);
    cudaError_t status = cudaSuccess;

    if (plan->few)
        return kivi_cuda_append_tokens(step, plan, attended, stream);
    if (plan->others || at_once)
        status = kivi_cuda_launch(append, grid(step, one_block ? 1 : plan->others), THREADS, 0,
                                  stream, step->overlap, *step, true, at_once);
    if (status != cudaSuccess || at_once)
        return status;
    if (plan->tiled)
        return kivi_cuda_append_tiles(step, plan->tiled, stream);
    return kivi_cuda_launch(append, grid(step, 4), THREADS, 0, stream, step->overlap, *step, false,
                            true);
}

cudaError_t kivi_cuda_check(const kivi_cuda_step *step, uint32_t max_new, cudaStream_t stream)
{
    const uint32_t blocks = max_new / 64 + 1;

    return kivi_cuda_launch(check, grid(step, blocks < 256 ? blocks : 256), THREADS, 0, stream,
                            step->overlap, *step);
}
