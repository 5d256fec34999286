/*
 * Attention on tensor cores over packed codes, for head dimensions and bit widths known when
 * compiling. A warp works on units of 32 tokens on its own; the warps of a block share a segment
 * (schedule.cuh) and merge at its end.
 *
 * Nothing is dequantized. Masked out of its word, a code is an f16 number as it stands: a subnormal, code
 * * 2^-24, or that times 2^(bits * j) if it lies j codes up in its byte. So pairs of codes are operands
 * of a 16x16 product, and the scales are folded into the other operand (DESIGN: q' = q * scale, w = p *
 * scale), along with the factor 2^(-bits * j). The minima's part of the sums is a product of its own.
 *
 *   scores   tokens x channels times channels x rows. Lane 4 g + t holds tokens 4 g .. 4 g + 3 and the
 *            channels of words t, t + 4, ... The folded query is a sum of two f16 numbers.
 *   output   channels x tokens times tokens x rows. Lane 4 g + t holds channels 4 g .. 4 g + 3 of each
 *            32 and tokens 8 t .. 8 t + 7.
 *
 * Weights are 2^(score - unit + 11): the range of f16 reaches from 2^-35 of the largest to 8 times it,
 * so that `unit` changes seldom. The sum of the weights is that of the rounded ones.
 */
#ifndef KIVI_CUDA_ATTEND_FAST_CUH
#define KIVI_CUDA_ATTEND_FAST_CUH

#include "mma.cuh"
#include "schedule.cuh"

#define KIVI_CUDA_WEIGHT_BITS 11.0f /* the largest weight is about 2^11, */
#define KIVI_CUDA_SLACK 3.0f        /* and at most 2^14 */

template <int D, int KB, int VB> struct kivi_cuda_fast {
    static constexpr int KN = 32 / KB, VN = 32 / VB; /* codes of a word */
    static constexpr int KW = D / KN / 4;            /* words of a token that a lane holds */
    static constexpr int KJ = KN / 4;                /* codes of a byte */
    static constexpr int QR = D / 8;                 /* pairs of query channels that a lane holds */
    static constexpr int CHUNKS = D / 32;            /* of output channels */
    /* Where a unit's parts lie in its shared memory, in bytes. */
    static constexpr int K_SCALES = 4 * D * KB, V_CODES = K_SCALES + 4 * D;
    static constexpr int V_SCALES = V_CODES + 4 * D * VB, BYTES = V_SCALES + 4 * D;

    /* The segment. */
    const kivi_cuda_step &s;
    const kivi_cuda_item &item;
    uint32_t head, tile, lane, g, t;
    uint32_t plain_begin, plain_end; /* units of codes that all rows see in full */
    uint32_t k_units, v_units;       /* units that hold codes */
    uint64_t position[2];            /* of rows 2 t, 2 t + 1 */

    uint32_t q[QR], q_low[QR]; /* row g: query * 2^x * 2^(-bits * j), in two parts */
    float from_q[2];           /* rows 2 t, 2 t + 1: 2^-x */
    float unit[2];             /* rows 2 t, 2 t + 1 */
    float out[2 * CHUNKS][4];  /* [16 channels] x rows, of codes */
    float rest[4];             /* [groups and the sum of weights] x rows */
    uint32_t p[4], p_low[4];   /* row g: weights of tokens 8 t + 0,1; 2,3; 4,5; 6,7 */

    __device__ __forceinline__ kivi_cuda_fast(const kivi_cuda_step &step,
                                              const kivi_cuda_segment &segment)
        : s(step), item(kivi_cuda_items(step)[segment.item]), head(segment.head),
          tile(segment.tile)
    {
        lane = threadIdx.x % 32;
        g = lane / 4;
        t = lane % 4;
        k_units = (uint32_t)((item.k_packed + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT);
        v_units = (uint32_t)((item.v_packed + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT);
    }

    /* ------------------------------------------------------------- the segment */

    __device__ __forceinline__ void start(bool report)
    {
        const uint32_t n_rows = kivi_cuda_tile_rows(s, item, tile);
        const uint64_t first = kivi_cuda_position(s, item, tile, 0);
        const uint64_t last = kivi_cuda_position(s, item, tile, n_rows - 1);
        uint64_t begin = s.window && last >= s.window ? last - s.window + 1 : 0;
        uint64_t end = item.k_packed < item.v_packed ? item.k_packed : item.v_packed;

        begin = begin > s.n_sink ? begin : s.n_sink;
        end = first + 1 < end ? first + 1 : end;
        plain_begin = (uint32_t)((begin + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT);
        plain_end = (uint32_t)(end / KIVI_CUDA_UNIT);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            position[i] = kivi_cuda_position(s, item, tile, 2 * t + i);
            unit[i] = -1e30f;
        }
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                out[i][j] = 0;
#pragma unroll
        for (int j = 0; j < 4; j++)
            rest[j] = 0;
        load_queries(n_rows, report);
    }

    __device__ __forceinline__ void load_queries(uint32_t n_rows, bool report)
    {
        const uint32_t line = tile * KIVI_CUDA_ROWS + g, token = line / s.heads_per_kv;
        const int64_t at = (int64_t)token * item.q_token
                           + (int64_t)(head * s.heads_per_kv + line % s.heads_per_kv) * item.q_head;
        const float factor = s.softcap > 0 ? s.scale : s.scale * 1.44269504f;
        float max = 0, x[2 * QR], up, down;
        bool finite = true;
        int exponent;

#pragma unroll
        for (int w = 0; w < KW; w++)
#pragma unroll
            for (int i = 0; i < KN; i++) {
                const uint32_t c = (4 * w + t) * KN + i;
                float y = g < n_rows ? kivi_cuda_element(item.q, item.q_type, at + c) : 0.0f;

                finite = finite && fabsf(y * s.scale) <= 1e30f;
                y = finite ? y * factor : 0.0f;
                x[w * KN + i] = y;
                max = fmaxf(max, fabsf(y));
            }
        if (report && !finite)
            kivi_cuda_report(s, (uint32_t)(&item - kivi_cuda_items(s)), token, 0);
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
        /* The largest of the row becomes 8 to 16. */
        exponent = max > 0x1p-100f ? 130 - (int)(__float_as_uint(max) >> 23) : 100;
        up = __uint_as_float((uint32_t)(exponent + 127) << 23);
        down = __uint_as_float((uint32_t)(127 - exponent) << 23);
        from_q[0] = __shfl_sync(0xffffffffu, down, 8 * t);
        from_q[1] = __shfl_sync(0xffffffffu, down, 8 * t + 4);
#pragma unroll
        for (int r = 0; r < QR; r++) {
            const int j = r % (KN / 2) / 2;
            const float f = up / (float)(1 << (KB * j));
            const float a = x[2 * r] * f, b = x[2 * r + 1] * f;
            const __half2 h = __floats2half2_rn(a, b);
            const float2 high = __half22float2(h);

            q[r] = kivi_cuda_bits(h);
            q_low[r] = kivi_cuda_bits(__floats2half2_rn(a - high.x, b - high.y));
        }
    }

    /* ---------------------------------------------------- units to shared memory */

    /* 16-byte chunks are permuted so that the lanes of an access meet no bank twice. */
    static __device__ __forceinline__ uint32_t k_chunk(uint32_t row, uint32_t chunk)
    {
        return row * 8 + (chunk ^ (row & 3) * 2);
    }
    static __device__ __forceinline__ uint32_t v_chunk(uint32_t row, uint32_t chunk)
    {
        return row * (D / 4) + (chunk ^ (row * VN / 8 & 3) * 2);
    }

    /* Starts the copy of what is codes of a unit: `page` holds it, `at` is its place there. */
    __device__ __forceinline__ void fetch(unsigned char *to, uint32_t u, const unsigned char *page,
                                          uint32_t at) const
    {
        const uint32_t per_block = s.k.tokens / KIVI_CUDA_UNIT;
        uint4 *to16 = (uint4 *)to;

        page += head * s.page_head_stride;
        if (u < k_units) {
            const uint4 *block = (const uint4 *)(page + at / per_block * s.k.block_bytes);
            const uint4 *codes = block + at % per_block * (D * KB / 4);
            const uint4 *scales = block + s.k.code_bytes / 16;

#pragma unroll
            for (uint32_t i = lane; i < D * KB / 4; i += 32)
                kivi_cuda_copy16(&to16[k_chunk(i / 8, i % 8)], codes + i);
#pragma unroll
            for (uint32_t i = lane; i < D / 4; i += 32)
                kivi_cuda_copy16(&to16[K_SCALES / 16 + i], scales + i);
        }
        if (u < v_units) {
            const uint4 *codes = (const uint4 *)(page + s.page_v_offset + at * s.v.block_bytes);
            const uint4 *scales = codes + D * VB / 4;

#pragma unroll
            for (uint32_t i = lane; i < D * VB / 4; i += 32)
                kivi_cuda_copy16(&to16[V_CODES / 16 + v_chunk(i / (D / 4), i % (D / 4))],
                                 codes + i);
            for (uint32_t i = lane; i < s.v.n_groups * 8; i += 32)
                kivi_cuda_copy16(&to16[V_SCALES / 16 + i], scales + i);
        }
    }

    /* ------------------------------------------------------------------ scores */

    /* Whether any of n f16 numbers, n at most 128, is above the limit: an f16 in both halves. */
    __device__ __forceinline__ bool any_above(const unsigned char *scales, uint32_t n,
                                              uint32_t limit) const
    {
        bool above = false;

        if (lane * 4 < n) {
            const uint2 x = *(const uint2 *)(scales + lane * 8);

            above = __vmaxu2(x.x, x.y) != __vminu2(__vmaxu2(x.x, x.y), limit);
        }
        return __any_sync(0xffffffffu, above);
    }

    /* sum[i]: query . minima of row 2 t + i. */
    __device__ __forceinline__ void bias_of_codes(const unsigned char *shared, float sum[2]) const
    {
        float part[KJ][4] = {};

#pragma unroll
        for (int w = 0; w < KW; w++) {
            uint32_t min[KN / 2];

            load_pairs<KN / 2>(min, shared + K_SCALES + 2 * D + (4 * w + t) * KN * 2);
#pragma unroll
            for (int j = 0; j < KJ; j++) {
                const int r = w * (KN / 2) + 2 * j;

                kivi_cuda_mma(part[j], min[2 * j], 0, min[2 * j + 1], 0, q[r], q[r + 1]);
                kivi_cuda_mma(part[j], min[2 * j], 0, min[2 * j + 1], 0, q_low[r], q_low[r + 1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[i] = part[0][i];
#pragma unroll
            for (int j = 1; j < KJ; j++)
                sum[i] += (float)(1 << (KB * j)) * part[j][i];
            sum[i] *= from_q[i];
        }
        /* Rows g of the product are all alike: lane 4 g + t already has what it needs. */
    }

    /* score[i][j]: token 4 g + i, row 2 t + j, base 2 unless there is a soft cap. */
    __device__ __forceinline__ void scores_of_codes(const unsigned char *shared, float score[4][2])
    {
        /* Above this, 16 * scale is beyond f16: such a block is taken at 1/32 of its size. */
        const bool large = any_above(shared + K_SCALES, D, 0x6bfd6bfdu);
        float sum[2][4] = {}, bias[2], unit_of_codes = large ? 0x1p29f : 0x1p24f;

        bias_of_codes(shared, bias);
#pragma unroll
        for (int w = 0; w < KW; w++) {
            const uint32_t row = 4 * w + t;
            const uint4 words = ((const uint4 *)shared)[k_chunk(row, g)];
            const uint32_t x[4] = {words.x, words.y, words.z, words.w};
            uint32_t y[4][2], scale[KN / 2];

            load_pairs<KN / 2>(scale, shared + K_SCALES + row * KN * 2);
            if (large)
#pragma unroll
                for (int i = 0; i < KN / 2; i++)
                    scale[i] = kivi_cuda_mul2(scale[i], 0x28002800u); /* 1/32 */
#pragma unroll
            for (int i = 0; i < 4; i++) {
                y[i][0] = __byte_perm(x[i], 0, 0x4140);
                y[i][1] = __byte_perm(x[i], 0, 0x4342);
            }
#pragma unroll
            for (int j = 0; j < KJ; j++) {
                const uint32_t mask = ((1u << KB) - 1u) * 0x00010001u << (KB * j);
                const int r = w * (KN / 2) + 2 * j;
                const uint32_t a = kivi_cuda_mul2(q[r], scale[2 * j]);
                const uint32_t b = kivi_cuda_mul2(q[r + 1], scale[2 * j + 1]);
                const uint32_t a_low = kivi_cuda_low2(q[r], scale[2 * j], a, q_low[r]);
                const uint32_t b_low = kivi_cuda_low2(q[r + 1], scale[2 * j + 1], b, q_low[r + 1]);

#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const uint32_t c0 = y[2 * m][0] & mask, c1 = y[2 * m + 1][0] & mask;
                    const uint32_t c2 = y[2 * m][1] & mask, c3 = y[2 * m + 1][1] & mask;

                    kivi_cuda_mma(sum[m], c0, c1, c2, c3, a, b);
                    kivi_cuda_mma(sum[m], c0, c1, c2, c3, a_low, b_low);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                score[2 * m + i / 2][i % 2] = fmaf(sum[m][i], unit_of_codes * from_q[i % 2],
                                                   bias[i % 2]);
    }

    template <int n>
    static __device__ __forceinline__ void load_pairs(uint32_t x[n], const unsigned char *from)
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

    /* The same for tokens that are rows of f16; others keep their score. */
    __device__ __forceinline__ void scores_of_rows(uint32_t u, float score[4][2]) const
    {
        const kivi_cuda_rows rows = kivi_cuda_key_rows(s, item, head);

#pragma unroll
        for (int m = 0; m < 2; m++) {
            const uint64_t token = (uint64_t)u * KIVI_CUDA_UNIT + 4 * g + 2 * m;
            const kivi_cuda_row row[2] = {kivi_cuda_find_row(rows, token),
                                          kivi_cuda_find_row(rows, token + 1)};
            float sum[KJ][4] = {};

#pragma unroll
            for (int w = 0; w < KW; w++) {
                kivi_cuda_half8 x[2][(KN + 7) / 8];

#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < (KN + 7) / 8; j++) {
                        const uint32_t c = (4 * w + t) * KN + 8 * j;

                        x[i][j].vector = kivi_cuda_row8(row[i], c / 8 * 8);
                        if (c % 8) /* words of four channels: the upper half */
                            x[i][j].quad[0] = x[i][j].quad[1];
                    }
#pragma unroll
                for (int j = 0; j < KJ; j++) {
                    const int r = w * (KN / 2) + 2 * j;
                    const uint32_t *a = &x[0][j / 2].pair[2 * (j % 2)];
                    const uint32_t *b = &x[1][j / 2].pair[2 * (j % 2)];

                    kivi_cuda_mma(sum[j], a[0], b[0], a[1], b[1], q[r], q[r + 1]);
                    kivi_cuda_mma(sum[j], a[0], b[0], a[1], b[1], q_low[r], q_low[r + 1]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float x = sum[0][i];

#pragma unroll
                for (int j = 1; j < KJ; j++)
                    x += (float)(1 << (KB * j)) * sum[j][i];
                if (row[i / 2].data)
                    score[2 * m + i / 2][i % 2] = x * from_q[i % 2];
            }
        }
    }

    /* Scores to weights in `p`, and what rounding lost of them in `p_low`. */
    __device__ __forceinline__ void weigh(uint32_t u, float score[4][2], bool plain)
    {
        float max[2];

        if (s.softcap > 0)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    score[i][j] = s.softcap * 1.44269504f * tanhf(score[i][j] / s.softcap);
        if (!plain)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint64_t token = (uint64_t)u * KIVI_CUDA_UNIT + 4 * g + i;

#pragma unroll
                for (int j = 0; j < 2; j++)
                    if (token > position[j] || token >= item.n
                        || (s.window && token + s.window <= position[j]))
                        score[i][j] = -INFINITY;
            }
#pragma unroll
        for (int j = 0; j < 2; j++)
            max[j] = fmaxf(fmaxf(score[0][j], score[1][j]), fmaxf(score[2][j], score[3][j]));
        if (__any_sync(0xffffffffu,
                       max[0] > unit[0] + KIVI_CUDA_SLACK || max[1] > unit[1] + KIVI_CUDA_SLACK))
            raise_unit(max);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float y[2];

#pragma unroll
            for (int j = 0; j < 2; j++)
                y[j] = kivi_cuda_exp2(score[i][j] - (unit[j] - KIVI_CUDA_WEIGHT_BITS));
            const __half2 h = __floats2half2_rn(y[0], y[1]);

            p[i] = kivi_cuda_transpose(kivi_cuda_bits(h)); /* tokens 8 t + i, 8 t + 4 + i */
            p_low[i] = 0;
            if (s.precise) {
                const float2 high = __half22float2(h);

                p_low[i] = kivi_cuda_transpose(
                    kivi_cuda_bits(__floats2half2_rn(y[0] - high.x, y[1] - high.y)));
            }
        }
        regroup(p);
        if (s.precise)
            regroup(p_low);
    }

    static __device__ __forceinline__ void regroup(uint32_t x[4])
    {
        const uint32_t a = __byte_perm(x[0], x[1], 0x5410), b = __byte_perm(x[2], x[3], 0x5410);
        const uint32_t c = __byte_perm(x[0], x[1], 0x7632), d = __byte_perm(x[2], x[3], 0x7632);

        x[0] = a;
        x[1] = b;
        x[2] = c;
        x[3] = d;
    }

    /* A score is far above the unit of its row: the unit becomes the largest score so far. */
    __device__ __forceinline__ void raise_unit(float max[2])
    {
        float shrink[2];

#pragma unroll
        for (int j = 0; j < 2; j++) {
            float m = max[j];

            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 4));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 8));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 16));
            m = fmaxf(m, unit[j]);
            shrink[j] = kivi_cuda_exp2(unit[j] - m);
            unit[j] = m;
        }
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                out[i][j] *= shrink[j % 2];
#pragma unroll
        for (int j = 0; j < 4; j++)
            rest[j] *= shrink[j % 2];
    }

    /* ------------------------------------------------------------------ output */

    /* Tokens 8 t .. 8 t + 7 that are rows, as masks over pairs of f16. */
    __device__ __forceinline__ void row_mask(uint32_t u, uint32_t mask[4]) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint64_t token = (uint64_t)u * KIVI_CUDA_UNIT + 8 * t + 2 * i;

            mask[i] = (token >= item.v_packed || token < s.n_sink ? 0xffffu : 0u)
                      | (token + 1 >= item.v_packed || token + 1 < s.n_sink ? 0xffff0000u : 0u);
        }
    }

    /* The minima's part, and the sum of the weights in row 7. `keep` masks tokens that are codes. */
    __device__ __forceinline__ void sum_rest(const unsigned char *shared, bool codes,
                                             const uint32_t *keep)
    {
        uint4 x = make_uint4(0, 0, 0, 0);

        if (codes && g < s.v.n_groups)
            x = *(const uint4 *)(shared + V_SCALES + (s.v.n_groups + g) * 64 + t * 16);
        if (keep) {
            x.x &= ~keep[0];
            x.y &= ~keep[1];
            x.z &= ~keep[2];
            x.w &= ~keep[3];
        }
        if (g == 7)
            x = make_uint4(0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u);
        kivi_cuda_mma(rest, x.x, 0, x.y, 0, p[0], p[1]);
        kivi_cuda_mma(rest, x.z, 0, x.w, 0, p[2], p[3]);
        if (s.precise) {
            kivi_cuda_mma(rest, x.x, 0, x.y, 0, p_low[0], p_low[1]);
            kivi_cuda_mma(rest, x.z, 0, x.w, 0, p_low[2], p_low[3]);
        }
    }

    /* The codes' part. `large`: scales so large that the weights must be taken smaller. */
    template <bool large>
    __device__ __forceinline__ void sum_codes(const unsigned char *shared, const uint32_t w[4],
                                              const uint32_t w_low[4])
    {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const unsigned char *scales = shared + V_SCALES + 32 * i / s.v.group_size * 64 + t * 16;
            uint32_t scale[4], b[4], b_low[4], y[2][4][2];

            load_pairs<4>(scale, scales);
#pragma unroll
            for (int k = 0; k < 4; k++)
                b[k] = kivi_cuda_mul2(w[k], scale[k]);
            if (s.precise)
#pragma unroll
                for (int k = 0; k < 4; k++)
                    b_low[k] = kivi_cuda_low2(w[k], scale[k], b[k], w_low[k]);
            load_codes(shared, i, y);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                float part[4] = {0, 0, 0, 0};
                float *to = large ? part : out[2 * i + m];

#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const uint32_t c0 = y[k][2 * m][0], c1 = y[k][2 * m + 1][0];
                    const uint32_t c2 = y[k][2 * m][1], c3 = y[k][2 * m + 1][1];

                    kivi_cuda_mma(to, c0, c1, c2, c3, b[2 * k], b[2 * k + 1]);
                    if (s.precise)
                        kivi_cuda_mma(to, c0, c1, c2, c3, b_low[2 * k], b_low[2 * k + 1]);
                }
                if (large)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        out[2 * i + m][j] = fmaf(part[j], 0x1p14f, out[2 * i + m][j]);
            }
        }
    }

    /* y[k][c]: codes of channel 4 g + c of a chunk, tokens 8 t + 4 k + 0,1 and 2,3. */
    __device__ __forceinline__ void load_codes(const unsigned char *shared, int chunk,
                                               uint32_t y[2][4][2]) const
    {
        const uint4 *codes = (const uint4 *)(shared + V_CODES);

        if (VB == 8) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const uint4 v = codes[v_chunk(2 * t + k, 8 * chunk + g)];
                const uint32_t x[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
                for (int c = 0; c < 4; c++) {
                    y[k][c][0] = __byte_perm(x[c], 0, 0x4140);
                    y[k][c][1] = __byte_perm(x[c], 0, 0x4342);
                }
            }
        } else {
            const uint32_t mask = ((1u << VB) - 1u) * 0x00010001u;
            const uint4 v = codes[v_chunk(VB == 2 ? t / 2 : t, 8 * chunk + g)];
            uint32_t x[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
            for (int c = 0; c < 4; c++) {
                uint32_t a, b;

                if (VB == 2) /* the upper or the lower half of each byte */
                    x[c] >>= 4 * (t & 1);
                a = __byte_perm(x[c], 0, 0x4140);
                b = __byte_perm(x[c], 0, 0x4342);
                y[0][c][0] = a & mask;
                y[0][c][1] = b & mask;
                y[1][c][0] = a & mask << VB;
                y[1][c][1] = b & mask << VB;
            }
        }
    }

    __device__ __forceinline__ void sum_of_codes(const unsigned char *shared, const uint32_t *keep)
    {
        /* Above this, 2^14 * scale is beyond f16. */
        const bool large = any_above(shared + V_SCALES, s.v.n_groups * 32, 0x43fe43feu);
        uint32_t w[4], w_low[4];

#pragma unroll
        for (int k = 0; k < 4; k++) {
            w[k] = keep ? p[k] & ~keep[k] : p[k];
            w_low[k] = keep ? p_low[k] & ~keep[k] : p_low[k];
        }
        if (VB < 8) /* the second code of each pair stands 2^bits higher */
#pragma unroll
            for (int k = 2; k < 4; k++) {
                const uint32_t down = VB == 2 ? 0x34003400u : 0x2c002c00u;

                w[k] = kivi_cuda_mul2(w[k], down);
                if (s.precise)
                    w_low[k] = kivi_cuda_mul2(w_low[k], down);
            }
        if (!large) {
            sum_codes<false>(shared, w, w_low);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                w[k] = kivi_cuda_mul2(w[k], 0x04000400u);         /* 2^-14 */
                w_low[k] = kivi_cuda_mul2(w_low[k], 0x04000400u);
            }
            sum_codes<true>(shared, w, w_low);
        }
    }

    /* The part of the tokens that are rows of f16. */
    __device__ __forceinline__ void sum_of_rows(uint32_t u, const uint32_t *keep)
    {
        const kivi_cuda_rows rows = kivi_cuda_value_rows(s, item, head);

#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            uint2 x[8];

#pragma unroll
            for (int k = 0; k < 8; k++) {
                const kivi_cuda_row row = kivi_cuda_find_row(
                    rows, (uint64_t)u * KIVI_CUDA_UNIT + 8 * t + k);
                kivi_cuda_half8 y;

                y.vector = kivi_cuda_row8(row, 32 * i + g / 2 * 8);
                x[k] = y.quad[g % 2];
            }
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

                    kivi_cuda_mma(part, c0, c1, c2, c3, p[2 * k] & keep[2 * k],
                                  p[2 * k + 1] & keep[2 * k + 1]);
                    if (s.precise)
                        kivi_cuda_mma(part, c0, c1, c2, c3, p_low[2 * k] & keep[2 * k],
                                      p_low[2 * k + 1] & keep[2 * k + 1]);
                }
#pragma unroll
                for (int j = 0; j < 4; j++)
                    out[2 * i + m][j] = fmaf(part[j], 0x1p-24f, out[2 * i + m][j]);
            }
        }
    }

    /* One unit, whose codes are in shared memory. */
    __device__ __forceinline__ void work(const unsigned char *shared, uint32_t u)
    {
        const bool plain = u >= plain_begin && u < plain_end;
        float score[4][2] = {};

        if (u < k_units)
            scores_of_codes(shared, score);
        if (plain) {
            weigh(u, score, true);
            sum_rest(shared, true, NULL);
            sum_of_codes(shared, NULL);
        } else {
            uint32_t keep[4];

            scores_of_rows(u, score);
            weigh(u, score, false);
            row_mask(u, keep);
            sum_rest(shared, u < v_units, keep);
            if (u < v_units)
                sum_of_codes(shared, keep);
            sum_of_rows(u, keep);
        }
    }

    /* This warp's result: [rows][D] outputs, then unit and sum of each row. */
    __device__ __forceinline__ void store(float *result) const
    {
        const float down = 0x1p-11f;

#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const uint32_t from = 32 * i / s.v.group_size * 4 + t;

#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float b = __shfl_sync(0xffffffffu, rest[j], from);

#pragma unroll
                for (int m = 0; m < 2; m++)
                    *(float2 *)&result[(2 * t + j) * D + 32 * i + 4 * g + 2 * m] =
                        make_float2(fmaf(out[2 * i + m][j], 0x1p24f, b) * down,
                                    fmaf(out[2 * i + m][j + 2], 0x1p24f, b) * down);
            }
        }
        if (g == 7) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                result[KIVI_CUDA_ROWS * D + 2 * t + j] = unit[j];
                result[KIVI_CUDA_ROWS * (D + 1) + 2 * t + j] = rest[j] * down;
            }
        }
    }
};

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
    static constexpr int ROOM = 98304 / WARPS / BYTES;
    static constexpr int STAGES = ROOM > 4 ? 4 : ROOM;
    static constexpr int WARP_BYTES = STAGES * BYTES > RESULT ? STAGES * BYTES
                                                              : (RESULT + 127) / 128 * 128;
    static constexpr int THREADS = 32 * WARPS, BLOCKS = 16 / WARPS; /* of an SM, at least */
};

template <int D, int KB, int VB>
__global__ void __launch_bounds__(kivi_cuda_fast_shape<D, KB, VB>::THREADS,
                                  kivi_cuda_fast_shape<D, KB, VB>::BLOCKS)
    kivi_cuda_attend_fast(const __grid_constant__ kivi_cuda_step s)
{
    using shape = kivi_cuda_fast_shape<D, KB, VB>;
    using fast = kivi_cuda_fast<D, KB, VB>;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t warp = threadIdx.x / 32, per_page = s.page_tokens / KIVI_CUDA_UNIT;
    unsigned char *mine = shared + warp * shape::WARP_BYTES;
    kivi_cuda_cursor cursor = kivi_cuda_first(s, blockIdx.x);
    kivi_cuda_segment segment;

    while (kivi_cuda_next(s, cursor, segment)) {
        fast f(s, segment);
        unsigned char *const *pages = kivi_cuda_pages(s, f.item);
        uint32_t next = segment.begin + warp; /* to fetch */
        uint32_t page = next / per_page, at = next % per_page;
        uint32_t stage = 0;
        const auto fetch = [&](uint32_t slot) {
            if (next < segment.end && (next < f.k_units || next < f.v_units))
                f.fetch(mine + slot * fast::BYTES, next, pages[page], at);
            kivi_cuda_copy_commit();
            next += shape::WARPS;
            for (at += shape::WARPS; at >= per_page; at -= per_page)
                page++;
        };

        for (uint32_t i = 0; i + 1 < shape::STAGES; i++)
            fetch(i);
        f.start(warp == 0);
        for (uint32_t u = segment.begin + warp; u < segment.end; u += shape::WARPS) {
            kivi_cuda_copy_wait<shape::STAGES - 2>();
            __syncwarp();
            fetch((stage + shape::STAGES - 1) % shape::STAGES);
            f.work(mine + stage * fast::BYTES, u);
            stage = (stage + 1) % shape::STAGES;
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
