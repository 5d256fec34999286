/*
 * Attention on tensor cores: the tokens that are rows of f16, in the window or new in this step, and
 * units in which rows of the tile do not see all tokens. Always precise: where nothing is quantized,
 * there is no error to hide behind. Lanes hold what fast_codes.cuh says.
 *
 * Beside codes this is done once in many units, but by a block that others wait for: what counts is that its
 * instructions are few. Pages of the f16 cache type stream through the same products.
 */
#ifndef KIVI_CUDA_FAST_ROWS_CUH
#define KIVI_CUDA_FAST_ROWS_CUH

#include "fast_codes.cuh"

/* Where 16 bytes of a row are in shared memory, permuted so that few lanes of an access meet in a bank. */
template <int DIM, int SHIFT = 2>
__device__ __forceinline__ uint32_t kivi_cuda_row_chunk(uint32_t row, uint32_t chunk)
{
    return row * (DIM / 8) + (chunk ^ (row >> SHIFT & 7));
}

/* Four channels from c on. */
template <int DIM>
__device__ __forceinline__ uint2 kivi_cuda_row_quad(const uint4 *rows, uint32_t row, uint32_t c)
{
    return ((const uint2 *)&rows[kivi_cuda_row_chunk<DIM>(row, c / 8)])[c / 4 % 2];
}

/* Starts to copy the unit's rows, by a warp or more threads; tokens that are none are zeros, and, if ANY, channels
 * from the rows' dimension on. */
template <int DIM, bool ANY, int THREADS = 32, int SHIFT = 2>
__device__ __forceinline__ void kivi_cuda_fetch_rows(uint4 *to, const kivi_cuda_rows &rows, uint32_t u,
                                                     uint32_t thread)
{
    constexpr uint32_t PER_ROW = DIM / 8, STEP = THREADS / PER_ROW;
    const uint64_t unit = (uint64_t)u * KIVI_CUDA_UNIT;
    const uint32_t at = kivi_cuda_unit_row(rows.ring_length, u);
    const uint32_t chunk = thread % PER_ROW, first = thread / PER_ROW;
    const uint64_t last = unit + KIVI_CUDA_UNIT < rows.n ? unit + KIVI_CUDA_UNIT : rows.n;
    const bool aligned = kivi_cuda_rows_are_f16(rows, last);

    if (ANY && 8 * chunk >= rows.dim) {
        for (uint32_t row = first; row < KIVI_CUDA_UNIT; row += STEP)
            to[kivi_cuda_row_chunk<DIM, SHIFT>(row, chunk)] = make_uint4(0, 0, 0, 0);
        return;
    }
    if (unit >= rows.packed && unit >= rows.n_sink && unit + KIVI_CUDA_UNIT <= rows.n_old
        && at + KIVI_CUDA_UNIT <= rows.ring_length.by) { /* all of them, and one after the other */
        const __half *from = (const __half *)rows.ring + (size_t)(at + first) * rows.dim + 8 * chunk;

#pragma unroll 4
        for (uint32_t row = first; row < KIVI_CUDA_UNIT; row += STEP, from += STEP * rows.dim)
            kivi_cuda_copy16(&to[kivi_cuda_row_chunk<DIM, SHIFT>(row, chunk)], from);
        return;
    }
    if (aligned && unit >= rows.n_sink && rows.ring_length.by >= KIVI_CUDA_UNIT) { /* the window's ends */
        const uint32_t begin = kivi_cuda_in_unit(u, rows.packed), end = kivi_cuda_in_unit(u, rows.n);
        const uint32_t old = kivi_cuda_in_unit(u, rows.n_old); /* before it they are in the ring */
        const __half *ring = (const __half *)rows.ring + 8 * chunk;
        const __half *fresh = (const __half *)rows.fresh + rows.fresh_at + 8 * chunk
                              + (int64_t)(unit - rows.n_old) * rows.fresh_token;

#pragma unroll 4
        for (uint32_t row = first; row < KIVI_CUDA_UNIT; row += STEP) {
            const uint32_t slot = at + row < rows.ring_length.by ? at + row : at + row - rows.ring_length.by;
            const bool copy = row >= begin && row < end;

            kivi_cuda_copy16_or_zero(&to[kivi_cuda_row_chunk<DIM, SHIFT>(row, chunk)],
                                     !copy || row < old ? ring + (size_t)slot * rows.dim
                                                        : fresh + (int64_t)row * rows.fresh_token,
                                     copy ? 16 : 0);
        }
        return;
    }
#pragma unroll 1
    for (uint32_t row = first; row < KIVI_CUDA_UNIT; row += STEP) {
        const bool known = aligned || unit + row < rows.n_old; /* where it is, if anywhere */
        const __half *from = known ? kivi_cuda_f16_row(rows, unit, at, row) : NULL;
        uint4 *slot = &to[kivi_cuda_row_chunk<DIM, SHIFT>(row, chunk)];

        if (from)
            kivi_cuda_copy16(slot, from + 8 * chunk);
        else
            *slot = known ? make_uint4(0, 0, 0, 0)
                          : kivi_cuda_row8(kivi_cuda_find_row(rows, unit + row), 8 * chunk);
    }
}

/* Tokens of the unit that are rows, as the lane's masks over pairs of weights. */
template <class F>
__device__ __forceinline__ void kivi_cuda_row_mask(const F &f, uint32_t u, uint32_t mask[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint64_t token = (uint64_t)u * KIVI_CUDA_UNIT + 8 * f.t + 2 * i;
        const bool low = token >= f.item.v_packed || token < f.s.n_sink;
        const bool high = token + 1 >= f.item.v_packed || token + 1 < f.s.n_sink;

        mask[i] = (low ? 0xffffu : 0u) | (high ? 0xffff0000u : 0u);
    }
}

/* Adds to score[i][j]: token 4 g + i, row 2 t + j. */
template <class F>
__device__ __forceinline__ void kivi_cuda_score_rows(const F &f, const uint4 *rows, float score[4][2])
{
#pragma unroll
    for (int m = 0; m < 2; m++) {
        float sum[2][4] = {};

#pragma unroll 1
        for (uint32_t w = 0; w < F::KW; w++) {
            if (F::ANY_DIM && 4 * w * F::KN >= f.k_dim())
                break;
#pragma unroll
            for (int j = 0; j < F::KJ; j++) {
                const uint32_t c = (4 * w + f.t) * F::KN + 4 * j;
                const uint4 q = f.query(w, j);
                const uint2 x = kivi_cuda_row_quad<F::DIM>(rows, 4 * f.g + 2 * m, c);
                const uint2 y = kivi_cuda_row_quad<F::DIM>(rows, 4 * f.g + 2 * m + 1, c);

                kivi_cuda_mma(sum[0], x.x, y.x, x.y, y.y, q.x, q.z);
                kivi_cuda_mma(sum[1], x.x, y.x, x.y, y.y, q.y, q.w);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            score[2 * m + i / 2][i % 2] = fmaf(sum[0][i] + sum[1][i], f.from_q[i % 2],
                                               score[2 * m + i / 2][i % 2]);
    }
}

/* The part of the tokens that are rows, those that `keep` has. */
template <class F>
__device__ __forceinline__ void kivi_cuda_sum_rows(F &f, const uint4 *rows, const uint32_t keep[4])
{
#pragma unroll
    for (int i = 0; i < F::CHUNKS; i++) {
        if (F::ANY_DIM && 32 * i >= f.v_dim())
            break;

        uint2 x[8];

#pragma unroll
        for (int k = 0; k < 8; k++)
            x[k] = kivi_cuda_row_quad<F::DIM>(rows, 8 * f.t + k, 32 * i + 4 * f.g);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            float part[4] = {0, 0, 0, 0};

#pragma unroll
            for (int k = 0; k < 2; k++) {
                uint32_t y[4];

#pragma unroll
                for (int j = 0; j < 4; j++)
                    y[j] = m ? x[4 * k + j].y : x[4 * k + j].x;
                const uint32_t c0 = __byte_perm(y[0], y[1], 0x5410);
                const uint32_t c1 = __byte_perm(y[0], y[1], 0x7632);
                const uint32_t c2 = __byte_perm(y[2], y[3], 0x5410);
                const uint32_t c3 = __byte_perm(y[2], y[3], 0x7632);

                kivi_cuda_mma(part, c0, c1, c2, c3, f.p[2 * k] & keep[2 * k],
                              f.p[2 * k + 1] & keep[2 * k + 1]);
                kivi_cuda_mma(part, c0, c1, c2, c3, f.p_low[2 * k] & keep[2 * k],
                              f.p_low[2 * k + 1] & keep[2 * k + 1]);
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
                f.out[2 * i + m][j] = fmaf(part[j], 0x1p-24f, f.out[2 * i + m][j]);
        }
    }
}

/* A unit's rows in a page, one after the other; beyond the first `keys` and `values`, zeros. */
template <class F>
__device__ __forceinline__ void kivi_cuda_fetch_page(const F &f, unsigned char *to,
                                                     const unsigned char *page, uint32_t at,
                                                     uint32_t keys, uint32_t values)
{
    constexpr uint32_t PER_ROW = F::DIM / 8, COUNT = KIVI_CUDA_UNIT * PER_ROW;

    page += f.in_page;
#pragma unroll
    for (uint32_t part = 0; part < 2; part++) {
        const uint32_t width = (part ? f.v_dim() : f.k_dim()) / 8;
        const uint4 *from = (const uint4 *)(page + part * f.s.page_v_offset) + at * KIVI_CUDA_UNIT * width;
        uint4 *rows = (uint4 *)(to + part * F::V_CODES);
        const uint32_t n = part ? values : keys;

        if (n == 0)
            continue;
#pragma unroll 8
        for (uint32_t i = f.lane; i < COUNT; i += 32) {
            const uint32_t row = i / PER_ROW, chunk = i % PER_ROW, place = F::ANY_DIM ? row * width + chunk : i;

            kivi_cuda_copy16_or_zero(&rows[kivi_cuda_row_chunk<F::DIM>(row, chunk)], from + (int)(place - f.lane),
                                     row < n && (!F::ANY_DIM || chunk < width) ? 16 : 0);
        }
    }
}

template <class F>
__device__ __forceinline__ void kivi_cuda_score_page(const F &f, const unsigned char *shared,
                                                     float score[4][2])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        score[i][0] = score[i][1] = 0;
    kivi_cuda_score_rows(f, (const uint4 *)shared, score);
}

/* Of the tokens that `keep` has not. */
template <class F>
__device__ __forceinline__ void kivi_cuda_sum_page(F &f, const unsigned char *shared,
                                                   const uint32_t *keep)
{
    uint32_t mask[4];

#pragma unroll
    for (int i = 0; i < 4; i++)
        mask[i] = keep ? ~keep[i] : 0xffffffffu;
    kivi_cuda_sum_rows(f, (const uint4 *)(shared + F::V_CODES), mask);
}

/* All copies of the warp are there. */
__device__ __forceinline__ void kivi_cuda_wait_for_all()
{
    kivi_cuda_copy_commit();
    kivi_cuda_copy_wait<0>();
    __syncwarp();
}

/* A unit of any kind, precisely, in `shared`: CODES bytes for its codes, at a time those of keys and of values if
 * they fit, then its rows. */
template <int CODES, class F>
__device__ __forceinline__ void kivi_cuda_any_unit(F &f, unsigned char *shared,
                                                   const unsigned char *page, uint32_t at, uint32_t u)
{
    const uint64_t unit = (uint64_t)u * KIVI_CUDA_UNIT, end = unit + KIVI_CUDA_UNIT;
    const bool k_codes = unit < f.item.k_packed, v_codes = unit < f.item.v_packed;
    const bool k_rows = end > f.item.k_packed || unit < f.s.n_sink;
    const bool v_rows = end > f.item.v_packed || unit < f.s.n_sink;
    constexpr bool together = CODES >= F::BYTES; /* else values come to where the keys were */
    unsigned char *const values = shared - (together ? 0 : F::V_CODES);
    uint4 *rows = (uint4 *)(shared + CODES);
    float score[4][2] = {};
    uint32_t keep[4];

    f.find_lane();
    __syncwarp();
    if (k_codes || (together && v_codes))
        kivi_cuda_fetch(f, shared, page, at, kivi_cuda_in_unit(u, f.item.k_packed),
                        together ? kivi_cuda_in_unit(u, f.item.v_packed) : 0);
    if (k_rows) {
        const kivi_cuda_rows from = kivi_cuda_key_rows(f.s, f.item, f.head);

        kivi_cuda_fetch_rows<F::DIM, F::ANY_DIM>(rows, from, u, f.lane);
        kivi_cuda_wait_for_all();
        if (k_codes) {
            kivi_cuda_precise_scores(f, shared, score);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (kivi_cuda_is_row(from, unit + 4 * f.g + i))
                    score[i][0] = score[i][1] = 0;
        }
        kivi_cuda_score_rows(f, rows, score);
    } else {
        kivi_cuda_wait_for_all();
        kivi_cuda_precise_scores(f, shared, score);
    }
    __syncwarp();
    if (!together && v_codes) /* while the weights are made */
        kivi_cuda_fetch(f, values, page, at, 0, kivi_cuda_in_unit(u, f.item.v_packed));
    if (v_rows) /* likewise */
        kivi_cuda_fetch_rows<F::DIM, F::ANY_DIM>(rows, kivi_cuda_value_rows(f.s, f.item, f.head), u, f.lane);
    kivi_cuda_copy_commit();
    f.cap(score);
    f.hide(u, score);
    f.template weigh<true>(score);
    kivi_cuda_row_mask(f, u, keep);
    kivi_cuda_wait_for_all();
    kivi_cuda_sum_rest<true>(f, values, v_codes, keep);
    if (v_codes)
        kivi_cuda_sum_codes<true>(f, values, keep);
    if (v_rows)
        kivi_cuda_sum_rows(f, rows, keep);
}

#endif
