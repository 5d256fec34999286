/*
 * Attention on tensor cores: the tokens that are codes.
 *
 * Nothing is dequantized. Masked out of its word, a code is an f16 number as it stands: a subnormal, code
 * * 2^-24, or that times 2^(bits * j) if it lies j codes up in its byte. So pairs of codes are operands
 * of a 16x16 product, and the scales are folded into the other operand (DESIGN: q' = q * scale, w = p *
 * scale), along with the factor 2^(-bits * j). The minima's part of the sums is a product of its own.
 *
 *   scores   tokens x channels times channels x rows. Lane 4 g + t holds tokens 4 g .. 4 g + 3 and the
 *            channels of words t, t + 4, ...
 *   output   channels x tokens times tokens x rows. Lane 4 g + t holds channels 4 g .. 4 g + 3 of each
 *            32 and tokens 8 t .. 8 t + 7.
 *
 * "precise": the folded operand is a sum of two f16 numbers, scales are taken times a power of 2 that makes
 * the largest of the block about as large as f16 allows, and codes times 2^15. A tensor core aligns its
 * products by the exponents of their factors, and a subnormal factor does not tell how small it is: of such a
 * product 14 bits remain.
 */
#ifndef KIVI_CUDA_FAST_CODES_CUH
#define KIVI_CUDA_FAST_CODES_CUH

#include "fast_state.cuh"

/* n registers from shared memory. */
template <int n>
__device__ __forceinline__ void kivi_cuda_load_pairs(uint32_t x[n], const unsigned char *from)
{
    if (n == 2) {
        const uint2 v = *(const uint2 *)from;

        x[0] = v.x;
        x[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < n / 4; i++) {
            const uint4 v = ((const uint4 *)from)[i];

            x[4 * i] = v.x;
            x[4 * i + 1] = v.y;
            x[4 * i + 2] = v.z;
            x[4 * i + 3] = v.w;
        }
    }
}

/* The largest of n f16 numbers, none below 0: its bits. n is 32, 64 or 128, or, if ANY, up to 256, a multiple of 4. */
template <bool ANY>
__device__ __forceinline__ uint32_t kivi_cuda_largest(const unsigned char *scales, uint32_t n,
                                                      uint32_t lane)
{
    const uint2 v = *(const uint2 *)(scales + (ANY ? lane < n / 4 ? lane : 0 : lane & (n / 4 - 1)) * 8);
    __half2 most = __hmax2(kivi_cuda_half2(v.x), kivi_cuda_half2(v.y));

    if (ANY && lane + 32 < n / 4) {
        const uint2 w = *(const uint2 *)(scales + (lane + 32) * 8);

        most = __hmax2(most, __hmax2(kivi_cuda_half2(w.x), kivi_cuda_half2(w.y)));
    }

    const uint32_t x = kivi_cuda_bits(most);

    return __reduce_max_sync(0xffffffffu, max(x & 0xffffu, x >> 16));
}

/* k such that 2^k times an f16 of these bits has exponent `exponent`, as far as 2^k is an f16 itself. */
__device__ __forceinline__ int kivi_cuda_raise(uint32_t bits, int exponent)
{
    const int k = exponent + 15 - (int)(bits >> 10);

    return k > 15 ? 15 : k < -14 ? -14 : k;
}

#define KIVI_CUDA_CODE_UP 0x78007800u /* 2^15 twice: makes codes normal numbers */

/* 2^k twice, as f16. */
__device__ __forceinline__ uint32_t kivi_cuda_power2(int k)
{
    return (uint32_t)(k + 15) * 0x04000400u;
}

/* ------------------------------------------------------- to shared memory */

/* 16-byte chunks are permuted so that the lanes of an access meet no bank twice. */
__device__ __forceinline__ uint32_t kivi_cuda_k_chunk(uint32_t row, uint32_t chunk)
{
    return row * 8 + (chunk ^ (row & 3) * 2);
}

/* Chunks 8 i + j of a row: the permutation is within each eight. */
template <class F>
__device__ __forceinline__ uint32_t kivi_cuda_v_chunk(uint32_t row, uint32_t chunk)
{
    return row * (F::DIM / 4) + (chunk & ~7u) + ((chunk & 7u) ^ (row * F::VN / 8 & 3) * 2);
}

/* Units of pages whose "codes" are rows of f16: fast_rows.cuh. */
template <class F>
__device__ __forceinline__ void kivi_cuda_fetch_page(const F &f, unsigned char *to,
                                                     const unsigned char *page, uint32_t at,
                                                     uint32_t keys, uint32_t values);
template <class F>
__device__ __forceinline__ void kivi_cuda_score_page(const F &f, const unsigned char *shared,
                                                     float score[4][2]);
template <class F>
__device__ __forceinline__ void kivi_cuda_sum_page(F &f, const unsigned char *shared,
                                                   const uint32_t *keep);

/* Starts the copy of a unit's codes whole, those of keys and of values unless there are none. */
template <class F>
__device__ __forceinline__ void kivi_cuda_fetch_packed(const F &f, unsigned char *to,
                                                       const unsigned char *page, uint32_t at,
                                                       uint32_t keys, uint32_t values)
{
    constexpr uint32_t K_MOST = F::DIM * F::K_BITS / 4, V_MOST = F::DIM * F::V_BITS / 4, PER_ROW = F::DIM / 4;
    constexpr bool ANY = F::ANY_DIM;
    const kivi_layout &k = f.s.k, &v = f.s.v;
    const uint32_t k_count = f.k_pad() * F::K_BITS / 4, v_count = f.v_pad() * F::V_BITS / 4, v_row = f.v_pad() / 4;
    const uint32_t lane = f.lane;
    uint4 *to16 = (uint4 *)to;

    page += f.in_page; /* offsets there are below 2^32: backend.cu */
    if (keys) {
        const uint32_t per_block = k.tokens / KIVI_CUDA_UNIT; /* 1, 2 or 4 */
        const uint32_t shift = 31 - __clz(per_block);
        const uint32_t block = (at >> shift) * (uint32_t)k.block_bytes;
        const uint4 *codes = (const uint4 *)(page + (block + (at & (per_block - 1)) * (k_count * 16)));

#pragma unroll
        for (uint32_t i = 0; i < K_MOST; i += 32)
            if (!ANY || i + lane < k_count)
                kivi_cuda_copy16(&to16[kivi_cuda_k_chunk((i + lane) / 8, lane % 8)], codes + i);
        if (!ANY && (PER_ROW >= 32 || lane < PER_ROW))
            kivi_cuda_copy16(&to16[F::K_SCALES / 16 + lane], page + (block + (uint32_t)k.code_bytes));
        if (ANY) /* as many minima come after the scales; beyond the last of either, zeros */
#pragma unroll
            for (uint32_t i = 0; i < PER_ROW; i += 32) {
                const uint32_t chunk = (i + lane) % (PER_ROW / 2);
                const bool is_min = i + lane >= PER_ROW / 2;
                const int from = 16 * (int)((is_min ? k.dim_pad / 8 : 0) + chunk - lane);

                kivi_cuda_copy16_or_zero(&to16[F::K_SCALES / 16 + i + lane],
                                         page + (block + (uint32_t)k.code_bytes) + from,
                                         8 * chunk < k.dim_pad ? 16 : 0);
            }
    }
    if (values) {
        const uint4 *codes =
            (const uint4 *)(page + ((uint32_t)f.s.page_v_offset + at * (uint32_t)v.block_bytes));

#pragma unroll
        for (uint32_t i = 0; i < V_MOST; i += 32) {
            const uint32_t row = (i + lane) / PER_ROW, chunk = (i + lane) % PER_ROW;

            if (!ANY || chunk < v_row)
                kivi_cuda_copy16(&to16[F::V_CODES / 16 + kivi_cuda_v_chunk<F>(row, chunk)],
                                 codes + (ANY ? (int)(row * v_row + chunk - lane) : (int)i));
        }
#pragma unroll
        for (uint32_t i = 0; i < PER_ROW; i += 32)
            if (i + lane < v.n_groups * 8 && values == KIVI_CUDA_UNIT)
                kivi_cuda_copy16(&to16[F::V_SCALES / 16 + i + lane], codes + v_count + i);
            else if (i + lane < v.n_groups * 8) /* zeros for tokens that are not codes yet, but may be becoming some */
                kivi_cuda_copy16_or_zero(&to16[F::V_SCALES / 16 + i + lane], codes + v_count + i,
                                         values <= 8 * (lane % 4) ? 0 : 2 * (values - 8 * (lane % 4)));
    }
}

/* Starts the copy of what a page has of a unit, the first `keys` and `values` tokens: `at` is its place there. */
template <class F>
__device__ __forceinline__ void kivi_cuda_fetch(const F &f, unsigned char *to,
                                                const unsigned char *page, uint32_t at,
                                                uint32_t keys, uint32_t values)
{
    if constexpr (F::K_BITS == 16)
        kivi_cuda_fetch_page(f, to, page, at, keys, values);
    else
        kivi_cuda_fetch_packed(f, to, page, at, keys, values);
}

/* ------------------------------------------------------------------ scores */

/*
 * codes[m][2 i + j]: folded query . codes of token 4 g + 2 m + i and row 2 t + j, times 2^-24. rest[j]: query . minima.
 *
 * Quick, only the queries' high parts are folded. That would move all scores of a row alike, so the rest has what the
 * low parts add to codes of the middle. Likewise rounding the folded query moves the scores of a unit alike; that is
 * made up for at 4 bits. At 2 bits it is next to nothing beside the quantization error.
 */
template <bool precise, class F>
__device__ __forceinline__ void kivi_cuda_dot_keys(const F &f, const unsigned char *shared, uint32_t power,
                                                   float codes[2][4], float rest[2])
{
    constexpr bool rounding = !precise && F::K_BITS > 2;
    constexpr float middle = 0.5f * (float)((1 << F::K_BITS) - 1);
    constexpr uint32_t one = 0x3c003c00u;
    float part[4] = {}; /* by rows, high and low parts of queries; by columns, minima, scales, minima, ... */
    float folded[4] = {}, own;

#pragma unroll
    for (int w = 0; w < F::KW; w++) {
        if (F::ANY_DIM && 4 * w * F::KN >= f.k_dim())
            break;

        const uint4 words = ((const uint4 *)shared)[kivi_cuda_k_chunk(f.t, f.g) + 32 * w]; /* t decides on the order */
        const uint32_t x[4] = {words.x, words.y, words.z, words.w};
        const unsigned char *scales = shared + F::K_SCALES + (4 * w + f.t) * F::KN * 2;
        uint32_t y[4][2], scale[F::KN / 2], column[F::KN / 2];

        kivi_cuda_load_pairs<F::KN / 2>(scale, scales);
        kivi_cuda_load_pairs<F::KN / 2>(column, scales + (f.g % 2 ? 0 : 2 * F::DIM));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            y[i][0] = __byte_perm(x[i], 0, 0x4140);
            y[i][1] = __byte_perm(x[i], 0, 0x4342);
        }
#pragma unroll
        for (int j = 0; j < F::KJ; j++) {
            const uint32_t mask = ((1u << F::K_BITS) - 1u) * 0x00010001u << (F::K_BITS * j);
            const uint32_t down = (uint32_t)(F::K_BITS * j) * 0x04000400u; /* exponents: so far up do codes stand */
            const uint4 q = f.query(w, j);
            uint32_t a, b, a_low, b_low;

            if (precise) {
                const uint32_t s0 = kivi_cuda_mul2(scale[2 * j], power - down);
                const uint32_t s1 = kivi_cuda_mul2(scale[2 * j + 1], power - down);

                a = kivi_cuda_mul2(q.x, s0);
                b = kivi_cuda_mul2(q.z, s1);
                a_low = kivi_cuda_low2(q.x, s0, a, q.y);
                b_low = kivi_cuda_low2(q.z, s1, b, q.w);
            } else {
                a = kivi_cuda_mul2(q.x, scale[2 * j]);
                b = kivi_cuda_mul2(q.z, scale[2 * j + 1]);
            }
            kivi_cuda_mma(part, q.x, q.y, q.z, q.w, column[2 * j], column[2 * j + 1]);
            if (rounding)
                kivi_cuda_mma_upper(folded, one, one, a, b);
            if (!precise && j > 0) {
                a = kivi_cuda_mul2(a, one - down);
                b = kivi_cuda_mul2(b, one - down);
            }
#pragma unroll
            for (int m = 0; m < 2; m++) {
                uint32_t c0 = y[2 * m][0] & mask, c1 = y[2 * m + 1][0] & mask;
                uint32_t c2 = y[2 * m][1] & mask, c3 = y[2 * m + 1][1] & mask;

                if (precise) {
                    c0 = kivi_cuda_mul2(c0, KIVI_CUDA_CODE_UP);
                    c1 = kivi_cuda_mul2(c1, KIVI_CUDA_CODE_UP);
                    c2 = kivi_cuda_mul2(c2, KIVI_CUDA_CODE_UP);
                    c3 = kivi_cuda_mul2(c3, KIVI_CUDA_CODE_UP);
                }
                kivi_cuda_mma(codes[m], c0, c1, c2, c3, a, b);
                if (precise)
                    kivi_cuda_mma(codes[m], c0, c1, c2, c3, a_low, b_low);
            }
        }
    }
    own = part[0] + part[2]; /* of row g */
    if (!precise)
        own = fmaf(middle, rounding ? part[1] + part[3] : part[3], own);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        rest[j] = __shfl_sync(0xffffffffu, own, 8 * f.t + 4 * j);
        if (rounding)
            rest[j] = fmaf(-middle, folded[j], rest[j]);
        rest[j] *= f.from_q[j];
    }
}

/* score[i][j]: token 4 g + i, row 2 t + j, base 2 unless there is a soft cap. */
template <class F>
__device__ __forceinline__ void kivi_cuda_score_packed(const F &f, const unsigned char *shared,
                                                       float score[4][2])
{
    const uint32_t largest = kivi_cuda_largest<F::ANY_DIM>(shared + F::K_SCALES, f.k_pad(), f.lane);
    const int k = kivi_cuda_raise(largest, KIVI_CUDA_SCALE_BITS);
    const float unit_of_codes = __uint_as_float((uint32_t)(127 + 24 - 15 - k) << 23);
    float codes[2][4] = {}, rest[2];

    kivi_cuda_dot_keys<true>(f, shared, kivi_cuda_power2(k), codes, rest);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 2; j++)
            score[i][j] = fmaf(codes[i / 2][i % 2 * 2 + j], unit_of_codes * f.from_q[j], rest[j]);
}

template <class F>
__device__ __forceinline__ void kivi_cuda_precise_scores(const F &f, const unsigned char *shared,
                                                         float score[4][2])
{
    if constexpr (F::K_BITS == 16)
        kivi_cuda_score_page(f, shared, score);
    else
        kivi_cuda_score_packed(f, shared, score);
}

/* Whether a unit's scales keep quick operands in f16's normal range (queries are below 2^8, weights at most 2^14), and
 * what a channel adds to a score so small that one f16 does for a folded query. */
template <class F>
__device__ __forceinline__ bool kivi_cuda_is_usual(const F &f, const unsigned char *shared)
{
    const uint32_t k = kivi_cuda_largest<F::ANY_DIM>(shared + F::K_SCALES, f.k_pad(), f.lane);
    const uint32_t v = kivi_cuda_largest<F::ANY_DIM>(shared + F::V_SCALES, f.s.v.n_groups * 32, f.lane);

    return k - KIVI_CUDA_LEAST_SCALE < f.usual_scales
           && v - 0x1000u < 0x4400u - 0x1000u; /* 2^-11 to below 4 */
}

/* The same scores in one f16 to an operand. */
template <class F>
__device__ __forceinline__ void kivi_cuda_quick_scores(const F &f, const unsigned char *shared,
                                                       float score[4][2])
{
    float codes[2][4] = {}, rest[2];

    kivi_cuda_dot_keys<false>(f, shared, 0, codes, rest);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 2; j++)
            score[i][j] = fmaf(codes[i / 2][i % 2 * 2 + j], 0x1p24f * f.from_q[j], rest[j]);
}

/* ------------------------------------------------------------------ output */

/* a0, a2: numbers of row g and of tokens 8 t + 4 k + 0,1 and 2,3. Of MANY_GROUPS the sum of the weights is in row 8. */
template <class F>
__device__ __forceinline__ void kivi_cuda_add_rest(const F &f, float to[4], uint32_t a0, uint32_t a2, uint32_t b0,
                                                   uint32_t b1)
{
    const uint32_t ones = f.g == 0 ? 0x3c003c00u : 0;

    if (F::MANY_GROUPS)
        kivi_cuda_mma(to, a0, ones, a2, ones, b0, b1);
    else
        kivi_cuda_mma_upper(to, a0, a2, b0, b1);
}

/* The minima's part, and the sum of the weights in row 7 or 8. `keep` masks tokens that are rows. */
template <bool precise, class F>
__device__ __forceinline__ void kivi_cuda_sum_rest(F &f, const unsigned char *shared, bool codes,
                                                   const uint32_t *keep)
{
    float part[4] = {0, 0, 0, 0}, *to = precise ? part : f.rest;
    uint4 x = make_uint4(0, 0, 0, 0);

    if (F::V_BITS < 16 && codes && f.g < f.s.v.n_groups)
        x = *(const uint4 *)(shared + F::V_SCALES + (f.s.v.n_groups + f.g) * 64 + f.t * 16);
    if (keep) {
        x.x &= ~keep[0];
        x.y &= ~keep[1];
        x.z &= ~keep[2];
        x.w &= ~keep[3];
    }
    if (!F::MANY_GROUPS && f.g == 7)
        x = make_uint4(0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u);
    kivi_cuda_add_rest(f, to, x.x, x.y, f.p[0], f.p[1]);
    kivi_cuda_add_rest(f, to, x.z, x.w, f.p[2], f.p[3]);
    if (precise) {
        kivi_cuda_add_rest(f, to, x.x, x.y, f.p_low[0], f.p_low[1]);
        kivi_cuda_add_rest(f, to, x.z, x.w, f.p_low[2], f.p_low[3]);
#pragma unroll
        for (int j = 0; j < 4; j++)
            f.rest[j] += part[j];
    }
}

/* How far up in its byte the first code of a pair stands: at 2 bits a lane has the upper or the lower half of
 * each byte. */
template <class F> __device__ __forceinline__ uint32_t kivi_cuda_value_shift(const F &f)
{
    return F::V_BITS == 2 ? 4 * (f.t & 1) : 0;
}

/* y[k][c]: codes of channel 4 g + c of a chunk, tokens 8 t + 4 k + 0,1 and 2,3. */
template <class F>
__device__ __forceinline__ void kivi_cuda_value_codes(const F &f, const unsigned char *shared,
                                                      int chunk, uint32_t y[2][4][2])
{
    const uint4 *codes = (const uint4 *)(shared + F::V_CODES);

    if (F::V_BITS == 8) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint4 v = codes[kivi_cuda_v_chunk<F>(2 * f.t + k, f.g) + 8 * chunk];
            const uint32_t x[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
            for (int c = 0; c < 4; c++) {
                y[k][c][0] = __byte_perm(x[c], 0, 0x4140);
                y[k][c][1] = __byte_perm(x[c], 0, 0x4342);
            }
        }
    } else {
        const uint32_t mask = ((1u << F::V_BITS) - 1u) * 0x00010001u << kivi_cuda_value_shift(f);
        const uint4 v =
            codes[kivi_cuda_v_chunk<F>(F::V_BITS == 2 ? f.t / 2 : f.t, f.g) + 8 * chunk];
        const uint32_t x[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
        for (int c = 0; c < 4; c++) {
            const uint32_t a = __byte_perm(x[c], 0, 0x4140), b = __byte_perm(x[c], 0, 0x4342);

            y[0][c][0] = a & mask;
            y[0][c][1] = b & mask;
            y[1][c][0] = a & mask << F::V_BITS;
            y[1][c][1] = b & mask << F::V_BITS;
        }
    }
}

/* The codes' part, of weights w. Precise: times 2^-k of what `power` is 2^k of. */
template <bool precise, class F>
__device__ __forceinline__ void kivi_cuda_sum_products(F &f, const unsigned char *shared,
                                                       const uint32_t w[4], const uint32_t w_low[4],
                                                       uint32_t power, float down)
{
#pragma unroll
    for (int i = 0; i < F::CHUNKS; i++) {
        if (F::ANY_DIM && 32 * i >= f.v_dim())
            break;

        const unsigned char *scales =
            shared + F::V_SCALES + ((uint32_t)i >> f.group_shift) * 64 + f.t * 16;
        uint32_t scale[4], b[4], b_low[4], y[2][4][2];

        kivi_cuda_load_pairs<4>(scale, scales);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (precise)
                scale[k] = kivi_cuda_mul2(scale[k], power);
            b[k] = kivi_cuda_mul2(w[k], scale[k]);
            if (precise)
                b_low[k] = kivi_cuda_low2(w[k], scale[k], b[k], w_low[k]);
        }
        kivi_cuda_value_codes(f, shared, i, y);
        if (precise)
#pragma unroll
            for (int k = 0; k < 16; k++)
                y[k / 8][k / 2 % 4][k % 2] =
                    kivi_cuda_mul2(y[k / 8][k / 2 % 4][k % 2], KIVI_CUDA_CODE_UP);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            float part[4] = {0, 0, 0, 0};
            float *to = precise ? part : f.out[2 * i + m];

#pragma unroll
            for (int k = 0; k < 2; k++) {
                const uint32_t c0 = y[k][2 * m][0], c1 = y[k][2 * m + 1][0];
                const uint32_t c2 = y[k][2 * m][1], c3 = y[k][2 * m + 1][1];

                kivi_cuda_mma(to, c0, c1, c2, c3, b[2 * k], b[2 * k + 1]);
                if (precise)
                    kivi_cuda_mma(to, c0, c1, c2, c3, b_low[2 * k], b_low[2 * k + 1]);
            }
            if (precise)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    f.out[2 * i + m][j] = fmaf(part[j], down, f.out[2 * i + m][j]);
        }
    }
}

template <bool precise, class F>
__device__ __forceinline__ void kivi_cuda_sum_packed(F &f, const unsigned char *shared,
                                                     const uint32_t *keep)
{
    uint32_t w[4], w_low[4];

#pragma unroll
    for (int k = 0; k < 4; k++) {
        w[k] = keep ? f.p[k] & ~keep[k] : f.p[k];
        if (precise)
            w_low[k] = keep ? f.p_low[k] & ~keep[k] : f.p_low[k];
    }
    if (F::V_BITS < 8) /* the second code of each pair stands 2^bits higher than the first */
#pragma unroll
        for (int k = F::V_BITS == 2 ? 0 : 2; k < 4; k++) {
            const uint32_t down =
                kivi_cuda_power2(-(int)kivi_cuda_value_shift(f) - (k < 2 ? 0 : F::V_BITS));

            w[k] = kivi_cuda_mul2(w[k], down);
            if (precise)
                w_low[k] = kivi_cuda_mul2(w_low[k], down);
        }
    if (precise) {
        const uint32_t largest =
            kivi_cuda_largest<F::ANY_DIM>(shared + F::V_SCALES, f.s.v.n_groups * 32, f.lane);
        const int k = kivi_cuda_raise(largest, 0);

        kivi_cuda_sum_products<true>(f, shared, w, w_low, kivi_cuda_power2(k),
                                     __uint_as_float((uint32_t)(127 - 15 - k) << 23));
    } else {
        kivi_cuda_sum_products<false>(f, shared, w, w_low, 0, 1.0f);
    }
}

template <bool precise, class F>
__device__ __forceinline__ void kivi_cuda_sum_codes(F &f, const unsigned char *shared,
                                                    const uint32_t *keep)
{
    if constexpr (F::V_BITS == 16)
        kivi_cuda_sum_page(f, shared, keep);
    else
        kivi_cuda_sum_packed<precise>(f, shared, keep);
}

/* A unit of codes that every row sees in full. False: it is to be done precisely, and is not part of any sum yet. */
template <bool precise, class F>
__device__ __forceinline__ bool kivi_cuda_plain_unit(F &f, const unsigned char *shared)
{
    float score[4][2];

    if constexpr (precise) {
        kivi_cuda_precise_scores(f, shared, score);
    } else {
        if (!kivi_cuda_is_usual(f, shared))
            return false;
        kivi_cuda_quick_scores(f, shared, score);
    }
    f.cap(score);
    f.template weigh<precise>(score);
    if (!precise && __any_sync(0xffffffffu, kivi_cuda_are_alike(f.p[0], f.p[1], f.p[2], f.p[3])))
        return false;
    kivi_cuda_sum_rest<precise>(f, shared, true, NULL);
    kivi_cuda_sum_codes<precise>(f, shared, NULL);
    return true;
}

#endif
