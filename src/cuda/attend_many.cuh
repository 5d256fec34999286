/*
 * Attention of many queries: a prompt, or a chunk of one. A block has 64 query rows of a kv head, 16 to a warp, and
 * goes through the tokens they see a piece at a time: keys and values stand in shared memory as f16, rows as they are
 * and codes as numbers, for all its rows. Scales go into the other operand, and minima's part is a product of its own,
 * as in fast_codes.cuh.
 *
 * Queries times scales are two f16 numbers, and so are weights for rows of f16 and, if `precise` (KIVI_PRECISE, and 8
 * bits) or where one would not do (take), for codes. A piece is tokens of a unit that are kept in the same way.
 *
 * Lane 4 g + t has query rows g and g + 8 of its warp; of scores, tokens 8 n + 2 t and the next; of the output,
 * channels 8 n + 2 t and the next.
 */
#ifndef KIVI_CUDA_ATTEND_MANY_CUH
#define KIVI_CUDA_ATTEND_MANY_CUH

#include <float.h>

#include "many_pieces.cuh"

/* A block's rows of one kv head, and what a warp holds of them. */
template <int D, bool ANY, int KB, int VB, bool precise> struct kivi_cuda_many : kivi_cuda_pieces<D, ANY, KB, VB> {
    using pieces = kivi_cuda_pieces<D, ANY, KB, VB>;
    using shape = typename pieces::shape;
    using pieces::item, pieces::k_dim, pieces::packed, pieces::s, pieces::segment, pieces::shared, pieces::v_dim;
    static constexpr int STEPS = D / 16, COLUMNS = D / 8;
    static constexpr bool MANY_GROUPS = D / 32 == 8; /* of values, so many that `rest` has no place left */
    /* Precise, values' codes are taken less this, and minima with as many steps more. What rounding does to weights
     * times scales is alike where these are: times codes of both signs it does not add up. */
    static constexpr int MIDDLE = precise && VB < 16 ? 1 << (VB - 1) : 0;

    uint32_t base; /* of shared memory, its address there */
    uint32_t warp, lane, g, t, group_shift;
    bool low_queries;          /* whether they are two numbers each */
    float from_q[2];           /* of rows g, g + 8: what makes scores of products, base 2 unless there is a soft cap */
    kivi_cuda_units all, some; /* of which all rows of the warp see all tokens, and some rows some */
    float unit[2];
    float out[COLUMNS][4]; /* rows g, g, g + 8, g + 8 */
    float rest[4];         /* of groups 2 t and 2 t + 1, the sum of minima; the second of lanes 3: of weights, */
    float total[4];        /* which is here if there are MANY_GROUPS */
    uint32_t p[2][4], p_low[2][4]; /* weights of tokens 16 i + 2 t, rows g, g + 8; of 8 further */

    __device__ __forceinline__ kivi_cuda_many(const kivi_cuda_step &step, const kivi_cuda_item &at,
                                              const kivi_cuda_segment &task, unsigned char *memory)
        : pieces(step, at, task, memory), base((uint32_t)__cvta_generic_to_shared(memory)),
          warp(threadIdx.x / 32), lane(threadIdx.x % 32), g(lane / 4), t(lane % 4), low_queries(at.q_type == KIVI_F32)
    {
        group_shift = 31 - __clz(s.v.group_size);
#pragma unroll
        for (int i = 0; i < 2; i++)
            unit[i] = KIVI_CUDA_NO_UNIT;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                out[i][j] = 0;
#pragma unroll
        for (int j = 0; j < 4; j++)
            rest[j] = total[j] = 0;
    }

    /* Where the lane's rows of matrices are, beside where their tile is: at another step of queries and keys, or
     * another column of values, they are at that ^ 32 * step, or ^ 16 * column. */
    __device__ __forceinline__ uint32_t query_at() const
    {
        return base + (16 * warp + lane % 16) * 2 * D + (((lane / 16) ^ (lane & 7)) << 4);
    }

    __device__ __forceinline__ uint32_t key_at() const
    {
        return base + lane % 8 * 2 * D + (((lane / 8) ^ (lane & 7)) << 4);
    }

    __device__ __forceinline__ uint32_t value_at() const
    {
        return base + lane * 2 * D + ((lane & 7) << 4);
    }

    /* Of codes of values, rows of channels: a column is 512 bytes. */
    __device__ __forceinline__ uint32_t channel_at() const
    {
        return base + lane % 8 * 64 + (((lane / 8) ^ (lane / 2 & 3)) << 4);
    }

    /* ------------------------------------------------------------ queries */

    /* The warp's rows, each times a power of 2: kivi_cuda_load_query. */
    __device__ __forceinline__ void load_queries(float *factors, uint32_t n_rows)
    {
        constexpr int PER_LANE = D / 32;
        const float factor = fabsf(s.softcap > 0 ? s.scale : s.scale * 1.44269504f);
        const float sign = copysignf(1.0f, s.scale);

#pragma unroll 4
        for (uint32_t row = 16 * warp; row < 16 * warp + 16; row++) {
            float x[PER_LANE];
            const int exponent = kivi_cuda_query_exponent(
                kivi_cuda_load_query<PER_LANE, ANY>(s, item, segment, row, n_rows, sign, x));
            const float up = kivi_cuda_power(exponent);
            uint32_t high[PER_LANE / 2], low[PER_LANE / 2];

            if (lane == 0) /* not 0: what is hidden is -inf, and times it stays so */
                factors[row] = fmaxf(factor * kivi_cuda_power(-exponent), FLT_MIN);
#pragma unroll
            for (int i = 0; i < PER_LANE / 2; i++) {
                const float a = x[2 * i] * up, b = x[2 * i + 1] * up;
                const __half2 h = __floats2half2_rn(a, b);
                const float2 rounded = __half22float2(h);

                high[i] = kivi_cuda_bits(h);
                low[i] = kivi_cuda_bits(__floats2half2_rn(a - rounded.x, b - rounded.y));
            }
#pragma unroll
            for (int i = 0; i < PER_LANE / 2; i++) {
                const uint32_t word = PER_LANE / 2 * lane + i;
                const uint32_t place = 4 * kivi_cuda_many_chunk<D>(row, word / 4) + word % 4;

                ((uint32_t *)shared)[place] = high[i];
                if (low_queries)
                    ((uint32_t *)(shared + shape::LOW_QUERIES))[place] = low[i];
            }
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            from_q[i] = factors[16 * warp + g + 8 * i];
        }

        const uint32_t oldest = 16 * warp, newest = min(16 * warp + 15, n_rows - 1);

        all = kivi_cuda_whole_units(first_seen(newest), min(position(oldest) + 1, item.n));
        some = {(uint32_t)(first_seen(oldest) / KIVI_CUDA_UNIT),
                (uint32_t)((min(position(newest) + 1, item.n) + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT)};
    }

    /* The position of a row of the block, and the first token that it sees. */
    __device__ __forceinline__ uint64_t position(uint32_t row) const
    {
        return item.q_position + kivi_cuda_query(s, segment.tile, row);
    }

    __device__ __forceinline__ uint64_t first_seen(uint32_t row) const
    {
        const uint64_t at = position(row);

        return s.window && at >= s.window ? at - s.window + 1 : 0;
    }

    /* ------------------------------------------------------------- scores */

    static __device__ __forceinline__ void multiply(float to[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
    {
        kivi_cuda_mma(to, a[0], a[1], a[2], a[3], b0, b1);
    }

    /* Adds the products of queries of two steps with keys of 32 tokens, those of the second to `more`. Products that
     * follow one another have different sums: of the same ones, one waits for the other. */
    static __device__ __forceinline__ void dot_step(float sum[4][4], float more[4][4], const uint32_t a[2][4],
                                                    const uint32_t y[4][4])
    {
#pragma unroll
        for (int n = 0; n < 4; n++)
            multiply(sum[n], a[0], y[n][0], y[n][1]);
#pragma unroll
        for (int n = 0; n < 4; n++)
            multiply(more[n], a[1], y[n][2], y[n][3]);
    }

    /* The same, each step's sums taken apart: what tensor cores add to a large number they cut off. */
    static __device__ __forceinline__ void dot_apart(float sum[4][4], const uint32_t a[2][4], const uint32_t y[4][4])
    {
        float part[2][4][4] = {};

        dot_step(part[0], part[1], a, y);
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum[n][i] += part[0][n][i] + part[1][n][i];
    }

    /* Queries of two steps times minima; likewise. */
    static __device__ __forceinline__ void dot_minima(float sum[4], const uint32_t a[2][4], const uint32_t min[4])
    {
        float part[2][4] = {};

        multiply(part[0], a[0], min[0], min[1]);
        multiply(part[1], a[1], min[2], min[3]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[i] += part[0][i] + part[1][i];
    }

    /* Keys of two steps, in the tile at `tile`. */
    __device__ __forceinline__ void load_keys(uint32_t y[4][4], uint32_t tile, int step) const
    {
#pragma unroll
        for (int n = 0; n < 4; n++)
            kivi_cuda_load_matrices(y[n], ((key_at() + tile) ^ (32 * step)) + n * 16 * D);
    }

    /* Queries of two steps: rows g, g + 8 of channels 16 i + 2 t and the next; the same of 8 further. */
    __device__ __forceinline__ void read_queries(uint32_t x[2][4], uint32_t tile, int step) const
    {
        kivi_cuda_load_matrices(x[0], (query_at() + tile) ^ (32 * step));
        kivi_cuda_load_matrices(x[1], (query_at() + tile) ^ (32 * (step + 1)));
    }

    /* Numbers of the channels of two steps, or of the tokens of a unit: those of the lane's columns. Matrices of which
     * all rows are alike. */
    __device__ __forceinline__ void load_same(uint32_t x[4], uint32_t from) const
    {
        kivi_cuda_load_matrices(x, from + 16 * (lane / 8));
    }

    /* Queries of two steps, or the weights of a unit, times scales of their columns; `low`: in two numbers. */
    template <bool low>
    static __device__ __forceinline__ void fold(uint32_t to[2][4], uint32_t to_low[2][4], const uint32_t from[2][4],
                                                const uint32_t from_low[2][4], const uint32_t scale[4])
    {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t by = scale[2 * j + i / 2];

                to[j][i] = kivi_cuda_mul2(from[j][i], by);
                if (low)
                    to_low[j][i] = kivi_cuda_low2(from[j][i], by, to[j][i], from_low[j][i]);
            }
    }

    /* sum[n]: rows g, g, g + 8, g + 8 of tokens 8 n + 2 t and the next. */
    __device__ __forceinline__ void dot_rows(uint32_t keys, float sum[4][4]) const
    {
        float more[4][4] = {};

#pragma unroll
        for (int i = 0; i < STEPS; i += 2) {
            uint32_t y[4][4], q[2][4];

            if (ANY && 16 * i >= k_dim())
                break;
            read_queries(q, 0, i);
            load_keys(y, keys, i);
            dot_step(sum, more, q, y);
        }
        if (low_queries)
#pragma unroll 1
            for (int i = 0; i < STEPS; i += 2) {
                uint32_t y[4][4], q[2][4];

                if (ANY && 16 * i >= k_dim())
                    break;
                read_queries(q, shape::LOW_QUERIES, i);
                load_keys(y, keys, i);
                dot_step(sum, more, q, y);
            }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum[n][i] += more[n][i];
    }

    /* The same of codes, with queries times scales in two numbers. `scales`: where those are, and then minima. */
    __device__ __forceinline__ void dot_codes(uint32_t keys, uint32_t scales, float sum[4][4]) const
    {
        const unsigned char *all_scales = (const unsigned char *)__cvta_shared_to_generic(scales);
        const int k = kivi_cuda_raise(kivi_cuda_largest<ANY>(all_scales, D, lane), KIVI_CUDA_SCALE_BITS);
        const uint32_t power = kivi_cuda_power2(k);
        const float down = kivi_cuda_power(-k);
        float lows[4][4] = {}, bias[4] = {0, 0, 0, 0};

#pragma unroll
        for (int i = 0; i < STEPS; i += 2) {
            uint32_t y[4][4], q[2][4], low[2][4] = {}, a[2][4], a_low[2][4], scale[4], min[4];

            if (ANY && 16 * i >= k_dim())
                break;
            read_queries(q, 0, i);
            if (low_queries)
                read_queries(low, shape::LOW_QUERIES, i);
            load_same(scale, scales + 32 * i);
            load_same(min, scales + 2 * D + 32 * i);
            load_keys(y, keys, i);
#pragma unroll
            for (int j = 0; j < 4; j++)
                scale[j] = kivi_cuda_mul2(scale[j], power);
            fold<true>(a, a_low, q, low, scale);
            if (precise)
                dot_apart(sum, a, y);
            else
                dot_step(sum, sum, a, y);
            dot_minima(bias, q, min);
            dot_step(lows, lows, a_low, y);
            if (low_queries)
                dot_minima(bias, low, min);
        }
        /* Minima's products are alike in all columns. */
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum[n][i] = fmaf(sum[n][i] + lows[n][i], down, bias[i]);
    }

    /* What rows do not see, and tokens of the unit that are not of the piece. */
    __device__ __forceinline__ void hide(const kivi_cuda_piece &piece, float score[4][4]) const
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t row = 16 * warp + g + 8 * i;
            const uint32_t from = max(piece.begin(), kivi_cuda_in_unit(piece.unit, first_seen(row)));
            const uint32_t to = min(piece.end(), kivi_cuda_in_unit(piece.unit, position(row) + 1));

#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    if (8 * n + 2 * t + j < from || 8 * n + 2 * t + j >= to)
                        score[n][2 * i + j] = -INFINITY;
        }
    }

    /* Scores themselves, capped: kivi_cuda_fast's cap. */
    __device__ __forceinline__ void cap(float score[4][4]) const
    {
        const float to = s.softcap * 1.44269504f, from = 1.0f / s.softcap;

#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                score[n][i] = to * kivi_cuda_tanh(score[n][i] * from_q[i / 2] * from);
    }

    /* A score is far above the unit of its row: the unit becomes the largest score so far. */
    __device__ __forceinline__ void raise_unit(float max[2])
    {
        float shrink[2];

#pragma unroll
        for (int i = 0; i < 2; i++) {
            float m = max[i];

            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            m = fmaxf(m, unit[i]);
            shrink[i] = kivi_cuda_exp2(unit[i] - m);
            unit[i] = m;
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                out[n][i] *= shrink[i / 2];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            rest[i] *= shrink[i / 2];
            if (MANY_GROUPS)
                total[i] *= shrink[i / 2];
        }
    }

    /* Scores, which are still to be multiplied by those of their rows, to weights. */
    template <bool low> __device__ __forceinline__ void weigh(const float score[4][4], const float by[2])
    {
        float max[2];

#pragma unroll
        for (int i = 0; i < 2; i++) {
            max[i] = fmaxf(score[0][2 * i], score[0][2 * i + 1]);
#pragma unroll
            for (int n = 1; n < 4; n++)
                max[i] = fmaxf(max[i], fmaxf(score[n][2 * i], score[n][2 * i + 1]));
            max[i] *= by[i];
        }
        if (__any_sync(0xffffffffu,
                       max[0] > unit[0] + KIVI_CUDA_SLACK || max[1] > unit[1] + KIVI_CUDA_SLACK))
            raise_unit(max);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float base = KIVI_CUDA_WEIGHT_BITS - unit[i];

#pragma unroll
            for (int n = 0; n < 4; n++) {
                /* Rounded as their largest was: of huge scores a fused difference would be anything. */
                const float a = kivi_cuda_exp2(score[n][2 * i] * by[i] + base);
                const float b = kivi_cuda_exp2(score[n][2 * i + 1] * by[i] + base);
                const __half2 h = __floats2half2_rn(a, b);

                p[n / 2][n % 2 * 2 + i] = kivi_cuda_bits(h);
                if (low) {
                    const float2 high = __half22float2(h);

                    p_low[n / 2][n % 2 * 2 + i] = kivi_cuda_bits(__floats2half2_rn(a - high.x, b - high.y));
                }
            }
        }
    }

    /* Whether one of the rows has weights that are alike. */
    __device__ __forceinline__ bool sees_alike() const
    {
        return __any_sync(0xffffffffu, kivi_cuda_are_alike(p[0][0], p[0][2], p[1][0], p[1][2])
                                           || kivi_cuda_are_alike(p[0][1], p[0][3], p[1][1], p[1][3]));
    }

    /* ------------------------------------------------------------- output */

    /* What codes of MIDDLE stand for, in two numbers: `min` becomes the first, the second is returned. A saved
     * sequence may have scales with which that is a little beyond f16. */
    static __device__ __forceinline__ uint32_t find_middle(uint32_t scale, uint32_t &min)
    {
        const float2 step = __half22float2(kivi_cuda_half2(scale)), from = __half22float2(kivi_cuda_half2(min));
        const float x = fmaf(MIDDLE, step.x, from.x), y = fmaf(MIDDLE, step.y, from.y);
        const __half2 high = __floats2half2_rn(fminf(x, 65504.0f), fminf(y, 65504.0f));

        min = kivi_cuda_bits(high);
        return kivi_cuda_bits(__floats2half2_rn(x - __low2float(high), y - __high2float(high)));
    }

    /* What codes that are 0 stand for, and the weights themselves. */
    template <bool low>
    __device__ __forceinline__ void sum_rest(const unsigned char *scales, const unsigned char *minima)
    {
        constexpr uint32_t ONES = 0x3c003c00u;
        float part[4] = {0, 0, 0, 0}, *to = low ? part : rest;
        float more[4] = {0, 0, 0, 0}, *all_to = low ? more : total;

#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t a = !MANY_GROUPS && g == 7 ? ONES : 0, b = a, a_low = 0, b_low = 0;

            if (minima && g < s.v.n_groups) {
                const uint32_t at = 16 * g + 8 * i + t;

                a = ((const uint32_t *)minima)[at];
                b = ((const uint32_t *)minima)[at + 4];
                if (MIDDLE > 0) {
                    a_low = find_middle(((const uint32_t *)scales)[at], a);
                    b_low = find_middle(((const uint32_t *)scales)[at + 4], b);
                }
            }
            multiply(to, p[i], a, b);
            if (low)
                multiply(to, p_low[i], a, b);
            if (MIDDLE > 0 && minima)
                multiply(to, p[i], a_low, b_low);
            if (MANY_GROUPS)
                multiply(all_to, p[i], ONES, ONES);
            if (MANY_GROUPS && low)
                multiply(all_to, p_low[i], ONES, ONES);
        }
        if (low)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                rest[i] += part[i];
                if (MANY_GROUPS)
                    total[i] += more[i];
            }
    }

    /* Adds the products of weights with values of four columns. */
    static __device__ __forceinline__ void sum_step(float to[4][4], const uint32_t w[2][4], const uint32_t y[4][4])
    {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int n = 0; n < 4; n++)
                multiply(to[n], w[j], y[n][2 * j], y[n][2 * j + 1]);
    }

    /* What values add that are rows of tokens. What tensor cores add to a large number they cut off: sums of a piece
     * are taken apart, as with `low` below. */
    __device__ __forceinline__ void sum_rows(uint32_t values)
    {
#pragma unroll
        for (int i = 0; i < COLUMNS; i += 4) {
            float part[4][4] = {};
            uint32_t y[4][4];

            if (ANY && 8 * i >= v_dim())
                break;
#pragma unroll
            for (int n = 0; n < 4; n++)
                kivi_cuda_load_transposed(y[n], (value_at() + values) ^ (16 * (i + n)));
            sum_step(part, p, y);
            sum_step(part, p_low, y);
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    out[i + n][j] += part[n][j];
        }
    }

    /* The same of codes, rows of channels, with weights times scales; `low`: in two numbers, of which scales are times
     * 2^v. */
    template <bool low> __device__ __forceinline__ void sum_codes(uint32_t values, uint32_t scales, int v)
    {
        const uint32_t power = kivi_cuda_power2(v);
        const float down = kivi_cuda_power(-v);

#pragma unroll
        for (int i = 0; i < COLUMNS; i += 4) { /* 32 channels are of one group */
            float part[4][4] = {}, (*to)[4] = low ? part : &out[i];
            uint32_t y[4][4], x[4], w[2][4], w_low[2][4];

            if (ANY && 8 * i >= v_dim())
                break;
            load_same(x, scales + (uint32_t)(8 * i >> group_shift) * 64);
#pragma unroll
            for (int n = 0; n < 4; n++)
                kivi_cuda_load_matrices(y[n], channel_at() + values + 512 * (i + n));
            if (low)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    x[j] = kivi_cuda_mul2(x[j], power);
            fold<low>(w, w_low, p, p_low, x);
            sum_step(to, w, y);
            if (low) {
                sum_step(to, w_low, y);
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        out[i + n][j] = fmaf(part[n][j], down, out[i + n][j]);
            }
        }
    }

    /* One piece that is in shared memory. */
    __device__ __forceinline__ void take(const kivi_cuda_piece &piece, uint32_t stage)
    {
        const uint32_t keys = shape::KEYS + stage * shape::TILE, values = shape::VALUES + stage * shape::TILE;
        const uint32_t at = base + shape::PACKED + stage * shape::STAGE;
        float score[4][4] = {}, by[2] = {from_q[0], from_q[1]};

        if (!some.has(piece.unit))
            return;
        if (KB < 16 && piece.is(kivi_cuda_piece::K_CODES))
            dot_codes(keys, at + shape::K_SCALES, score);
        else
            dot_rows(keys, score);
        if (s.softcap > 0) {
            cap(score);
            by[0] = by[1] = 1;
        }
        const bool in_part = !piece.is_whole() || !all.has(piece.unit);

        if (in_part)
            hide(piece, score);
        if (VB == 16 || !piece.is(kivi_cuda_piece::V_CODES)) {
            weigh<true>(score, by);
            sum_rest<true>(NULL, NULL);
            sum_rows(values);
            return;
        }

        const unsigned char *scales = packed(stage) + shape::V_SCALES, *minima = scales + 64 * s.v.n_groups;
        const uint32_t largest = kivi_cuda_largest<ANY>(scales, 32 * s.v.n_groups, lane);

        /* Weights are at most 2^14: in one number their products with scales of 2^-11 to below 4 stay in f16's
         * normal range. In a piece that rows see in part, weights that are alike would not be found. */
        bool low = precise || largest - 0x1000u >= 0x4400u - 0x1000u || in_part;

        if (!low) {
            weigh<false>(score, by);
            low = sees_alike();
        }
        if (low) {
            weigh<true>(score, by);
            sum_rest<true>(scales, minima);
            sum_codes<true>(values, at + shape::V_SCALES, kivi_cuda_raise(largest, 0));
        } else {
            sum_rest<false>(scales, minima);
            sum_codes<false>(values, at + shape::V_SCALES, 0);
        }
    }

    /* The warp's rows of the block's result: [rows][D] outputs, then unit and sum of each row. */
    __device__ __forceinline__ void store(float *result) const
    {
        const float down = 1.0f / (1 << (int)KIVI_CUDA_WEIGHT_BITS);
        const uint32_t row = 16 * warp + g;

#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            const uint32_t group = 8 * n >> group_shift, from = 4 * g + group / 2;

#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float even = __shfl_sync(0xffffffffu, rest[2 * i], from);
                const float odd = __shfl_sync(0xffffffffu, rest[2 * i + 1], from);
                const float min = group % 2 ? odd : even;

                *(float2 *)&result[(row + 8 * i) * D + 8 * n + 2 * t] =
                    make_float2((out[n][2 * i] + min) * down, (out[n][2 * i + 1] + min) * down);
            }
        }
        if (t == 3)
#pragma unroll
            for (int i = 0; i < 2; i++)
                *(float2 *)&result[KIVI_CUDA_MANY_ROWS * D + 2 * (row + 8 * i)] =
                    make_float2(unit[i], (MANY_GROUPS ? total : rest)[2 * i + 1] * down);
    }
};

#endif
