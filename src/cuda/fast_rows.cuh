/*
 * Attention on tensor cores: the tokens that are rows of f16, in the window or new in this step, and
 * units in which rows of the tile do not see all tokens. Always precise: where nothing is quantized,
 * there is no error to hide behind. Lanes hold what fast_codes.cuh says.
 */
#ifndef KIVI_CUDA_FAST_ROWS_CUH
#define KIVI_CUDA_FAST_ROWS_CUH

#include "fast_codes.cuh"

/* Channels c .. c + 3 of a row; zeros if there is none. */
__device__ __forceinline__ uint2 kivi_cuda_row4(const kivi_cuda_row &row, uint32_t c)
{
    kivi_cuda_half8 x;

    x.vector = kivi_cuda_row8(row, c / 8 * 8);
    return c % 8 ? x.quad[1] : x.quad[0];
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

/* score[i][j]: token 4 g + i, row 2 t + j, for tokens that are rows; others keep theirs. */
template <bool f16, class F>
__device__ __forceinline__ void kivi_cuda_score_rows(const F &f, const kivi_cuda_rows &rows,
                                                     uint32_t u, float score[4][2])
{
    const uint64_t unit = (uint64_t)u * KIVI_CUDA_UNIT;
    const uint32_t at = (uint32_t)(unit % rows.ring_length);
    uint32_t q_low[F::QR];

    f.load(q_low, f.queries.low);
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const __half *data[2];
        kivi_cuda_row row[2];
        uint2 x[2][F::QR / 2];
        float sum[F::KJ][4] = {};

#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (f16)
                data[i] = kivi_cuda_f16_row(rows, unit, at, 4 * f.g + 2 * m + i);
            else
                row[i] = kivi_cuda_find_row(rows, unit + 4 * f.g + 2 * m + i);
#pragma unroll
            for (int k = 0; k < F::QR / 2; k++) { /* four channels each */
                const uint32_t w = k / (F::KN / 4), j = k % (F::KN / 4);
                const uint32_t c = (4 * w + f.t) * F::KN + 4 * j;

                if (f16)
                    x[i][k] = data[i] ? *(const uint2 *)(data[i] + c) : make_uint2(0, 0);
                else
                    x[i][k] = kivi_cuda_row4(row[i], c);
            }
        }
#pragma unroll
        for (int k = 0; k < F::QR / 2; k++) {
            float *to = sum[k % F::KJ];

            kivi_cuda_mma(to, x[0][k].x, x[1][k].x, x[0][k].y, x[1][k].y, f.q[2 * k],
                          f.q[2 * k + 1]);
            kivi_cuda_mma(to, x[0][k].x, x[1][k].x, x[0][k].y, x[1][k].y, q_low[2 * k],
                          q_low[2 * k + 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float y = sum[0][i];

#pragma unroll
            for (int j = 1; j < F::KJ; j++)
                y = fmaf((float)(1 << (F::K_BITS * j)), sum[j][i], y);
            if (f16 ? data[i / 2] != NULL : row[i / 2].data != NULL)
                score[2 * m + i / 2][i % 2] = y * f.from_q[i % 2];
        }
    }
}

/* The part of the tokens that are rows: those that `keep` has. */
template <bool f16, class F>
__device__ __forceinline__ void kivi_cuda_sum_rows(F &f, const kivi_cuda_rows &rows, uint32_t u,
                                                   const uint32_t *keep)
{
    const uint64_t unit = (uint64_t)u * KIVI_CUDA_UNIT;
    const uint32_t at = (uint32_t)(unit % rows.ring_length);
    const __half *data[8];

    if (f16)
#pragma unroll
        for (int k = 0; k < 8; k++)
            data[k] = kivi_cuda_f16_row(rows, unit, at, 8 * f.t + k);
#pragma unroll
    for (int i = 0; i < F::CHUNKS; i++) {
        const uint32_t c = 32 * i + 4 * f.g;
        uint2 x[8];

#pragma unroll
        for (int k = 0; k < 8; k++)
            if (f16)
                x[k] = data[k] ? *(const uint2 *)(data[k] + c) : make_uint2(0, 0);
            else
                x[k] = kivi_cuda_row4(kivi_cuda_find_row(rows, unit + 8 * f.t + k), c);
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

/* A unit of any kind, precisely; its codes are in shared memory, if it has any. */
template <class F>
__device__ __forceinline__ void kivi_cuda_any_unit(F &f, const unsigned char *shared, uint32_t u,
                                               bool key_codes, bool value_codes)
{
    const uint64_t unit = (uint64_t)u * KIVI_CUDA_UNIT, end = unit + KIVI_CUDA_UNIT;
    float score[4][2] = {};
    uint32_t keep[4];

    if (key_codes)
        kivi_cuda_precise_scores(f, shared, score);
    if (end > f.item.k_packed || unit < f.s.n_sink) {
        const kivi_cuda_rows rows = kivi_cuda_key_rows(f.s, f.item, f.head);

        if (kivi_cuda_rows_are_f16(rows, end))
            kivi_cuda_score_rows<true>(f, rows, u, score);
        else
            kivi_cuda_score_rows<false>(f, rows, u, score);
    }
    f.cap(score);
    f.hide(u, score);
    f.template weigh<true>(score);
    kivi_cuda_row_mask(f, u, keep);
    kivi_cuda_sum_rest<true>(f, shared, value_codes, keep);
    if (value_codes)
        kivi_cuda_sum_codes<true>(f, shared, keep);
    if (end > f.item.v_packed || unit < f.s.n_sink) {
        const kivi_cuda_rows rows = kivi_cuda_value_rows(f.s, f.item, f.head);

        if (kivi_cuda_rows_are_f16(rows, end))
            kivi_cuda_sum_rows<true>(f, rows, u, keep);
        else
            kivi_cuda_sum_rows<false>(f, rows, u, keep);
    }
}

#endif
