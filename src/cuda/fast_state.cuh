/*
 * Attention on tensor cores: what a warp holds for its tile of query rows, and how scores become weights.
 * attend_fast.cuh has the whole.
 *
 * Weights are 2^(score - unit + 11): the range of f16 reaches from 2^-35 of the largest to 8 times it,
 * so that `unit` changes seldom. The sum of the weights is that of the rounded ones.
 */
#ifndef KIVI_CUDA_FAST_STATE_CUH
#define KIVI_CUDA_FAST_STATE_CUH

#include "mma.cuh"
#include "results.cuh"

#define KIVI_CUDA_WEIGHT_BITS 11.0f /* the largest weight is about 2^11, */
#define KIVI_CUDA_SLACK 3.0f        /* and at most 2^14 */

/* The tile's queries, in the order in which lanes hold them: query * 2^x, each a sum of two f16 numbers. Shared by the
 * warps of a block. Of four channels the high and the low parts of two, then those of the others: a left operand with
 * the rows of low parts below those of high ones. */
template <int D> struct kivi_cuda_queries {
    uint4 quads[D / 16][32];
    float factor[KIVI_CUDA_ROWS];  /* 2^-x of each row, */
    float largest[KIVI_CUDA_ROWS]; /* and its largest number, as it was before */
};

#define KIVI_CUDA_ALIKE 0x3c583c58u /* 1.086 */

/* Whether a lane's 8 weights of a row are alike: of the 4 in lower halves, and of the others, the largest is below
 * 1.086 times the least. Rounded to one f16, and times scales that mostly are alike, too, they would all be off alike,
 * which adds up: they are to be two numbers. If all are 0, nothing is lost. */
__device__ __forceinline__ bool kivi_cuda_are_alike(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    const __half2 w[4] = {kivi_cuda_half2(a), kivi_cuda_half2(b), kivi_cuda_half2(c), kivi_cuda_half2(d)};
    const __half2 least = __hmin2(__hmin2(w[0], w[1]), __hmin2(w[2], w[3]));
    const __half2 most = __hmax2(__hmax2(w[0], w[1]), __hmax2(w[2], w[3]));

    return __hblt2(most, __hmul2(least, kivi_cuda_half2(KIVI_CUDA_ALIKE)));
}

/* A token's place in unit u; beyond it, the nearest end. */
__device__ __forceinline__ uint32_t kivi_cuda_in_unit(uint32_t u, uint64_t token)
{
    const uint64_t unit = (uint64_t)u * KIVI_CUDA_UNIT;

    return token < unit ? 0 : token - unit < KIVI_CUDA_UNIT ? (uint32_t)(token - unit) : KIVI_CUDA_UNIT;
}

/* Codes of a word of keys; rows of f16 are taken in the order of 8 bits. */
template <int KB> constexpr int kivi_cuda_key_codes = KB == 16 ? 4 : 32 / KB;

/* Queries are taken times a power of 2 that makes a row's largest number 2^7 to 2^8, and scales, where they matter, so
 * that the largest has exponent 7: their product is an f16. The second of two numbers is a subnormal if the first is
 * small: what it loses is next to nothing beside the row's largest, but not beside a key a thousand times the rest. */
#define KIVI_CUDA_QUERY_BITS 8
#define KIVI_CUDA_SCALE_BITS (15 - KIVI_CUDA_QUERY_BITS)

/* A folded query of one f16 is off by up to 2^-11, and a score by as much of what a channel adds to it. If that may be
 * more than this, it might show in the weights: the unit is left for later, and done precisely. */
#define KIVI_CUDA_LARGE_SCORE 64.0f
#define KIVI_CUDA_LEAST_SCALE 0x0c00u /* 2^-12 */
#define KIVI_CUDA_MOST_SCALE 0x5bfdu  /* 255.6 */

/* For queries whose largest number is this: how many largest scales of a unit's keys, as bits of f16 from
 * KIVI_CUDA_LEAST_SCALE on, allow quick scores. */
template <int KB> __device__ __forceinline__ uint32_t kivi_cuda_usual_scales(float largest)
{
    const float most = KIVI_CUDA_LARGE_SCORE / (float)((1 << KB) - 1) * kivi_cuda_inverse(largest);
    const uint32_t bits = __half_as_ushort(__float2half_rd(fminf(most, 65504.0f)));

    return bits < KIVI_CUDA_LEAST_SCALE ? 0 : min(bits, KIVI_CUDA_MOST_SCALE) - KIVI_CUDA_LEAST_SCALE + 1;
}

/* tanh x = 1 - 2 / (1 + e^2x); where that cancels, Cephes' polynomial for |x| < 0.625. Relative to it, exact but for
 * some 2^-22: a cap far above all scores is to leave them as they are. */
__device__ __forceinline__ float kivi_cuda_tanh(float x)
{
    const float large =
        fmaf(-2.0f, kivi_cuda_inverse(1.0f + kivi_cuda_exp2(fabsf(x) * (2.0f * 1.44269504f))), 1.0f);
    const float square = x * x;
    float y = fmaf(-5.70498872745e-3f, square, 2.06390887954e-2f);

    y = fmaf(y, square, -5.37397155531e-2f);
    y = fmaf(y, square, 1.33314422036e-1f);
    y = fmaf(y, square, -3.33332819422e-1f);
    return fabsf(x) < 0.625f ? fmaf(y * square, x, x) : copysignf(large, x);
}

/* D: head dimension of keys and of values, or, if ANY, the most that they have: what is beyond theirs is 0 where it
 * counts, and left out where it would take time. */
template <int D, bool ANY, int KB, int VB> struct kivi_cuda_fast {
    static constexpr int KN = kivi_cuda_key_codes<KB>, VN = 32 / VB; /* codes of a word */
    static constexpr int KW = D / KN / 4;            /* words of a token that a lane holds */
    static constexpr int KJ = KN / 4;                /* codes of a byte */
    static constexpr int CHUNKS = D / 32;            /* of output channels */
    static constexpr int K_BITS = KB, V_BITS = VB, DIM = D;
    static constexpr bool ANY_DIM = ANY;
    static constexpr bool MANY_GROUPS = D / 32 == 8; /* of values, so many that `rest` has no row left below 8 */
    /* Where a unit's parts lie in its shared memory, in bytes. */
    static constexpr int K_SCALES = 4 * D * KB, V_CODES = K_SCALES + (KB == 16 ? 0 : 4 * D);
    static constexpr int V_SCALES = V_CODES + 4 * D * VB, BYTES = V_SCALES + (VB == 16 ? 0 : 4 * D);

    const kivi_cuda_step &s;
    const kivi_cuda_item &item;
    const kivi_cuda_queries<D> &queries;
    uint32_t head, tile, lane, g, t;
    uint32_t in_page;     /* bytes: where the lane's share of the head's codes begins in a page */
    uint32_t group_shift; /* log2 of the chunks of 32 channels that share a scale */

    float from_q[2];          /* rows 2 t, 2 t + 1: 2^-x */
    uint32_t usual_scales;    /* kivi_cuda_usual_scales of the tile's queries */
    float unit[2];            /* rows 2 t, 2 t + 1 */
    float out[2 * CHUNKS][4]; /* [16 channels] x rows, of codes */
    float rest[4];            /* [groups, and in row 7 or 8 the sum of weights] x rows */
    uint32_t p[4], p_low[4];  /* row g: weights of tokens 8 t + 0,1; 2,3; 4,5; 6,7; what they lost */

    __device__ __forceinline__ kivi_cuda_fast(const kivi_cuda_step &step,
                                              const kivi_cuda_item &at,
                                              const kivi_cuda_segment &segment,
                                              const kivi_cuda_queries<D> &from)
        : s(step), item(at), queries(from), head(segment.head), tile(segment.tile)
    {
        find_lane();
        in_page = head * (uint32_t)step.page_head_stride + 16 * lane;
        group_shift = 31 - __clz(step.v.group_size / 32);
#pragma unroll
        for (int i = 0; i < 2; i++)
            unit[i] = KIVI_CUDA_NO_UNIT;
#pragma unroll
        for (int i = 0; i < 2 * CHUNKS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                out[i][j] = 0;
#pragma unroll
        for (int j = 0; j < 4; j++)
            rest[j] = 0;
    }

    __device__ __forceinline__ void find_lane()
    {
        lane = kivi_cuda_lane();
        g = lane / 4;
        t = lane % 4;
    }

    /* Channels of keys and of values, and those of their packed layout. */
    __device__ __forceinline__ uint32_t k_dim() const
    {
        return ANY ? s.k.dim : D;
    }

    __device__ __forceinline__ uint32_t v_dim() const
    {
        return ANY ? s.v.dim : D;
    }

    __device__ __forceinline__ uint32_t k_pad() const
    {
        return ANY ? s.k.dim_pad : D;
    }

    __device__ __forceinline__ uint32_t v_pad() const
    {
        return ANY ? s.v.dim_pad : D;
    }

    /* Once the block's queries are there. */
    __device__ __forceinline__ void take_queries()
    {
        const uint32_t most = __reduce_max_sync(0xffffffffu, __float_as_uint(queries.largest[lane % KIVI_CUDA_ROWS]));

        from_q[0] = queries.factor[2 * t];
        from_q[1] = queries.factor[2 * t + 1];
        usual_scales = kivi_cuda_usual_scales<KB>(__uint_as_float(most));
    }

    /* The queries' channels of codes j of the four bytes in the lane's word w of keys, row g. Read for each unit: kept,
     * they take registers that the loop needs. */
    __device__ __forceinline__ uint4 query(int w, int j) const
    {
        return queries.quads[w * KJ + j][lane];
    }

    /* The soft cap, if there is one: cap * tanh(score / cap), base 2. */
    __device__ __forceinline__ void cap(float score[4][2]) const
    {
        if (!(s.softcap > 0))
            return;

        const float to = s.softcap * 1.44269504f, from = 1.0f / s.softcap;

#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                score[i][j] = to * kivi_cuda_tanh(score[i][j] * from);
    }

    /* Scores, base 2, to weights in `p`. score[i][j] is that of token 4 g + i and row 2 t + j. */
    template <bool precise> __device__ __forceinline__ void weigh(float score[4][2])
    {
        float max[2];

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
            if (precise) {
                const float2 high = __half22float2(h);

                p_low[i] = kivi_cuda_transpose(
                    kivi_cuda_bits(__floats2half2_rn(y[0] - high.x, y[1] - high.y)));
            }
        }
        regroup(p);
        if (precise)
            regroup(p_low);
    }

    /* Takes out what a row does not see of unit u. */
    __device__ __forceinline__ void hide(uint32_t u, float score[4][2]) const
    {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint64_t last = item.q_position + kivi_cuda_query(s, tile, 2 * t + j);
            const uint32_t begin =
                kivi_cuda_in_unit(u, s.window && last >= s.window ? last - s.window + 1 : 0);
            const uint32_t end = kivi_cuda_in_unit(u, last < item.n ? last + 1 : item.n);

#pragma unroll
            for (int i = 0; i < 4; i++)
                if (4 * g + i < begin || 4 * g + i >= end)
                    score[i][j] = -INFINITY;
        }
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

    /* This warp's result: [rows][v_dim] outputs, of the tile's n_rows, then unit and sum of each row. All warps write
     * theirs at a time. */
    __device__ __forceinline__ void store(float *result, uint32_t n_rows) const
    {
        const float down = 0x1p-11f, end[2] = {rest[0] * down, rest[1] * down};

#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const uint32_t from = ((uint32_t)i >> group_shift) * 4 + t;

#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float b = __shfl_sync(0xffffffffu, end[j], from);

                if (2 * t + j < n_rows && (!ANY || 32 * i + 4 * g < v_dim()))
                    *(float4 *)&result[(2 * t + j) * v_dim() + 32 * i + 4 * g] =
                        make_float4(fmaf(out[2 * i][j], 0x1p24f * down, b),
                                    fmaf(out[2 * i][j + 2], 0x1p24f * down, b),
                                    fmaf(out[2 * i + 1][j], 0x1p24f * down, b),
                                    fmaf(out[2 * i + 1][j + 2], 0x1p24f * down, b));
            }
        }
        if (!MANY_GROUPS && g == 7)
            *(float4 *)&result[kivi_cuda_ends(v_dim(), 2 * t)] = make_float4(unit[0], end[0], unit[1], end[1]);
        if (MANY_GROUPS && g == 0)
            *(float4 *)&result[kivi_cuda_ends(v_dim(), 2 * t)] =
                make_float4(unit[0], rest[2] * down, unit[1], rest[3] * down);
    }
};

/* x such that 2^x times a row's largest number is just below 2^KIVI_CUDA_QUERY_BITS. */
__device__ __forceinline__ int kivi_cuda_query_exponent(float largest)
{
    return largest > 0x1p-100f ? 126 + KIVI_CUDA_QUERY_BITS - (int)(__float_as_uint(largest) >> 23) : 100;
}

/* A row of queries, by a warp: the lane's N numbers times `by`, zeros in channels beyond theirs; in places beyond the
 * last row that one again, as weights of zeros would be alike. Returns the largest of the row. */
template <int N, bool ANY>
__device__ __forceinline__ float kivi_cuda_load_query(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                                      const kivi_cuda_segment &segment, uint32_t place, uint32_t n_rows,
                                                      float by, float x[N])
{
    const uint32_t row = min(place, n_rows - 1);
    const uint32_t token = kivi_cuda_query(s, segment.tile, row), lane = threadIdx.x % 32;
    const uint32_t q_head = kivi_cuda_query_head(s, segment, row, token);
    const int64_t at = (int64_t)token * item.q_token + (int64_t)q_head * item.q_head;
    float max = 0;
    bool finite = true;

#pragma unroll
    for (int i = 0; i < N; i++)
        x[i] = 0;
    if (!ANY || N * lane < s.k.dim) { /* dimensions are multiples of 8 */
        constexpr int AT_ONCE = N < 4 ? N : 4;

#pragma unroll
        for (int i = 0; i < N; i += AT_ONCE)
            kivi_cuda_load_floats<AT_ONCE>(item.q, item.q_type, at + N * lane + i, x + i);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        finite = finite && fabsf(x[i] * s.scale) <= 1e30f;
        x[i] = finite ? x[i] * by : 0.0f;
        max = fmaxf(max, fabsf(x[i]));
    }
    if (!finite)
        kivi_cuda_report(s, segment.item, token, 0);
    return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(max)));
}

/* 2^x, as far as f32 has it. */
__device__ __forceinline__ float kivi_cuda_power(int x)
{
    return __uint_as_float((uint32_t)(127 + x) << 23);
}

/* The tile's queries to shared memory, by all warps of the block: a row to a warp at a time. */
template <int D, bool ANY, int KB>
__device__ __forceinline__ void kivi_cuda_load_queries(const kivi_cuda_step &s,
                                                       const kivi_cuda_item &item,
                                                       const kivi_cuda_segment &segment,
                                                       kivi_cuda_queries<D> &to)
{
    constexpr int KN = kivi_cuda_key_codes<KB>, PER_LANE = D / 32;
    const uint32_t n_rows = kivi_cuda_tile_rows(s, item, segment.tile), lane = threadIdx.x % 32;
    const float factor = s.softcap > 0 ? s.scale : s.scale * 1.44269504f;

    for (uint32_t row = threadIdx.x / 32; row < KIVI_CUDA_ROWS; row += blockDim.x / 32) {
        float x[PER_LANE];
        const float largest = kivi_cuda_load_query<PER_LANE, ANY>(s, item, segment, row, n_rows, factor, x);
        const int exponent = kivi_cuda_query_exponent(largest);
        const float up = kivi_cuda_power(exponent);

        if (lane == 0) {
            to.factor[row] = kivi_cuda_power(-exponent);
            to.largest[row] = largest;
        }
#pragma unroll
        for (int i = 0; i < PER_LANE; i += 2) {
            const uint32_t c = PER_LANE * lane + i, word = c / KN, in = c % KN;
            const uint32_t quad = word / 4 * (KN / 4) + in / 4;
            const uint32_t place = (quad * 32 + 4 * row + word % 4) * 4 + in / 2 % 2 * 2;
            const float a = x[i] * up, b = x[i + 1] * up;
            const __half2 h = __floats2half2_rn(a, b);
            const float2 high = __half22float2(h);

            ((uint32_t *)to.quads)[place] = kivi_cuda_bits(h);
            ((uint32_t *)to.quads)[place + 1] =
                kivi_cuda_bits(__floats2half2_rn(a - high.x, b - high.y));
        }
    }
}

#endif
