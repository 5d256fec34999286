/*
 * Quantizing a prompt: tiles of 32 tokens and 64 channels whose groups are whole, of aligned f16 rows, in the
 * registers of a warp. Lane 8 r + c has channels 8 c .. 8 c + 7 of tokens 8 r .. 8 r + 7. append.cu does all else.
 */
#ifndef KIVI_CUDA_APPEND_TILE_CUH
#define KIVI_CUDA_APPEND_TILE_CUH

#include "mma.cuh"
#include "step.cuh"

namespace {

constexpr uint32_t TILE_CHANNELS = 64;

/*
 * A code of 2 bits is the number of thresholds that `above` = f16(x - min) exceeds. The rule rounds
 * above / scale to f16, then to an integer, halves to even; so code > i where above > scale * t_i with
 * t_i halfway between i + 1/2 and its neighbour in f16. scale * t_i is exact in f32, and rounding it
 * down to f16 changes no comparison with an f16.
 */
__device__ __forceinline__ float threshold_of(int i)
{
    return i == 0 ? 0.5f + 0x1p-12f : i == 1 ? 1.5f - 0x1p-11f : 2.5f + 0x1p-10f;
}

/* Two numbers that are not negative, rounded down. */
__device__ __forceinline__ uint32_t round_down2(float low, float high)
{
    uint32_t pair;

    asm("cvt.rz.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Ends of four pairs of groups that four lanes share, those which differ in bits `bit` and 2 * bit: each
 * lane is left with the ends of one pair, number lane / bit % 4, in place 0. */
__device__ __forceinline__ void share_ends(__half2 low[4], __half2 high[4], uint32_t lane,
                                           uint32_t bit)
{
#pragma unroll
    for (uint32_t n = 2; n > 0; n /= 2) {
        const bool upper = (lane & (n * bit)) != 0;

#pragma unroll
        for (uint32_t j = 0; j < n; j++) {
            const __half2 other_low = upper ? low[j] : low[j + n];
            const __half2 other_high = upper ? high[j] : high[j + n];

            low[j] = __hmin2_nan(upper ? low[j + n] : low[j],
                                 __shfl_xor_sync(UINT32_MAX, other_low, n * bit));
            high[j] = __hmax2_nan(upper ? high[j + n] : high[j],
                                  __shfl_xor_sync(UINT32_MAX, other_high, n * bit));
        }
    }
}

/*
 * What finds the codes of two groups. 2 bits: their minima, and thresholds 0, 1, 2. 4 bits: their minima, nothing,
 * and a float for each: the inverse of its scale. One product with that is as good as a division: a quotient
 * of two f16 is never within 2^-23 of a point where rounding to f16 turns, and less is what the product's two
 * roundings can lose.
 */
template <uint32_t bits> __device__ __forceinline__ uint4 finder_of(__half2 min, __half2 scale)
{
    const float a = __low2float(scale), b = __high2float(scale);
    uint4 f;

    f.x = kivi_cuda_bits(min);
    if (bits == 2) {
        f.y = round_down2(a * threshold_of(0), b * threshold_of(0));
        f.z = round_down2(a * threshold_of(1), b * threshold_of(1));
        f.w = round_down2(a * threshold_of(2), b * threshold_of(2));
    } else { /* where the scale is 0, every quotient but 0 is clamped */
        f.y = 0;
        f.z = __float_as_uint(a > 0 ? __frcp_rn(a) : 1e30f);
        f.w = __float_as_uint(b > 0 ? __frcp_rn(b) : 1e30f);
    }
    return f;
}

/* Of its two groups only the first or the second, twice. */
template <uint32_t bits> __device__ __forceinline__ uint4 only(const uint4 &f, uint32_t second)
{
    const uint32_t half = second ? 0x3232 : 0x1010;
    uint4 g;

    g.x = __byte_perm(f.x, 0, half);
    if (bits == 2) {
        g.y = __byte_perm(f.y, 0, half);
        g.z = __byte_perm(f.z, 0, half);
        g.w = __byte_perm(f.w, 0, half);
    } else {
        g.y = 0;
        g.z = g.w = second ? f.w : f.z;
    }
    return g;
}

/* Codes of 2 bits of two numbers, at bit `at` of the word's two halves. */
__device__ __forceinline__ uint32_t place_codes(uint32_t word, uint32_t x, const uint4 &f,
                                                uint32_t at)
{
    const __half2 above = __hsub2(kivi_cuda_half2(x), kivi_cuda_half2(f.x));
    const uint32_t upper = __hgt2_mask(above, kivi_cuda_half2(f.z));
    const uint32_t lower = __hgt2_mask(above, kivi_cuda_half2((upper & f.w) | (~upper & f.y)));

    word |= upper & (0x00020002u << at);
    return word | (lower & (0x00010001u << at));
}

/* Codes of 4 bits of two numbers, plus 1024 each: in the low bits of an f16. */
__device__ __forceinline__ __half2 find_codes(uint32_t x, const uint4 &f)
{
    const __half2 above = __hsub2(kivi_cuda_half2(x), kivi_cuda_half2(f.x));
    const __half2 quotient =
        __floats2half2_rn(__low2float(above) * __uint_as_float(f.z),
                          __high2float(above) * __uint_as_float(f.w));

    return __hadd2(__hmin2(quotient, __float2half2_rn(15.0f)), __float2half2_rn(1024.0f));
}

/* The same with codes `low` in bits 0 .. 3 and `high` in 4 .. 7. */
__device__ __forceinline__ uint32_t join_codes(__half2 low, __half2 high)
{
    return kivi_cuda_bits(__hfma2(__hsub2(high, __float2half2_rn(1024.0f)),
                                  __float2half2_rn(16.0f), low));
}

/*
 * 2 bits: each lane has half of every word's codes, the lane that differs in bit `partner` the others, and four
 * words are left to each. Of code i, i % 4 says which nibble: 0 or 1, in the two low ones of a half or of its
 * bytes, 2 or 3 above them.
 */
template <bool is_value>
__device__ __forceinline__ void weave(const uint32_t codes[4], uint32_t lane, uint32_t words[4])
{
    constexpr uint32_t partner = is_value ? 8 : 1;
    const bool odd = (lane & partner) != 0;

#pragma unroll
    for (int j = 0; j < 2; j++) {
        const uint32_t mine = odd ? codes[j + 2] : codes[j];
        const uint32_t other =
            __shfl_xor_sync(UINT32_MAX, odd ? codes[j] : codes[j + 2], partner);
        const uint32_t first = odd ? other : mine, second = odd ? mine : other;
        const uint32_t low = (first & 0x0f0f0f0fu) | (second << 4 & 0xf0f0f0f0u);
        const uint32_t high = (first >> 4 & 0x0f0f0f0fu) | (second & 0xf0f0f0f0u);

        words[2 * j] = __byte_perm(low, high, is_value ? 0x5410 : 0x6420);
        words[2 * j + 1] = __byte_perm(low, high, is_value ? 0x7632 : 0x7531);
    }
}

/*
 * Writes one tile: channels c0 .. c0 + 63 of a block whose first token's row begins at `rows`. `shared` is
 * for this warp alone. False, and nothing done, if an input is not finite or a range is beyond f16.
 */
template <uint32_t bits, bool is_value>
__device__ __forceinline__ bool quantize_tile(const kivi_layout &l, uint4 shared[32],
                                              const __half *rows, int64_t stride,
                                              unsigned char *block, uint32_t c0)
{
    constexpr uint32_t bit = is_value ? 1 : 8; /* for share_ends */
    const uint32_t lane = kivi_cuda_lane(), r = lane / 8, c = lane % 8;
    const uint32_t pair = lane / bit % 4, sharers = is_value ? 2 * r + c / 4 : c;
    uint32_t *codes = (uint32_t *)block;
    kivi_cuda_half8 x[8];
    __half2 low[4], high[4];
    uint4 finder[4];

    rows += 8 * r * stride + c0 + 8 * c;
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i].vector = *(const uint4 *)(rows + i * stride);
    /* Pairs of channels, or of tokens. A NaN stays. */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        __half2 ends[2][2];

#pragma unroll
        for (int k = 0; k < (is_value ? 2 : 1); k++) {
            ends[0][k] = ends[1][k] = kivi_cuda_half2(is_value ? x[2 * j + k].pair[0] : x[0].pair[j]);
#pragma unroll
            for (int i = 1; i < (is_value ? 4 : 8); i++) {
                const __half2 y = kivi_cuda_half2(is_value ? x[2 * j + k].pair[i] : x[i].pair[j]);

                ends[0][k] = __hmin2_nan(ends[0][k], y);
                ends[1][k] = __hmax2_nan(ends[1][k], y);
            }
        }
        low[j] = is_value ? __hmin2_nan(__lows2half2(ends[0][0], ends[0][1]),
                                        __highs2half2(ends[0][0], ends[0][1]))
                          : ends[0][0];
        high[j] = is_value ? __hmax2_nan(__lows2half2(ends[1][0], ends[1][1]),
                                         __highs2half2(ends[1][0], ends[1][1]))
                           : ends[1][0];
    }
    share_ends(low, high, lane, bit);

    const __half2 range = __hsub2(high[0], low[0]); /* not finite if an end is not */

    if (!__all_sync(UINT32_MAX, __hble2(range, __float2half2_rn(65504.0f))))
        return false;
    {
        /* Rounded to f16 this product is the quotient: that is never near a point where rounding turns. */
        const float inverse = 1.0f / (float)((1u << bits) - 1u);
        const __half2 scale =
            __floats2half2_rn(__low2float(range) * inverse, __high2float(range) * inverse);
        const __half2 min = __hadd2(low[0], __float2half2_rn(0.0f)); /* -0 becomes +0 */
        const uint32_t at = is_value ? (c0 + 8 * c) / 32 * 32 + 8 * r + 2 * pair
                                     : c0 + 8 * c + 2 * pair;
        __half *scales = (__half *)(block + l.code_bytes) + at;

        *(__half2 *)scales = scale;
        *(__half2 *)(scales + l.scale_bytes / 2) = min;
        shared[pair * 8 + sharers] = finder_of<bits>(min, scale);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 4; j++)
        finder[j] = shared[j * 8 + sharers];

    if (bits == 2) {
        uint32_t half[4] = {0, 0, 0, 0}, words[4];

#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint4 one = only<bits>(finder[i / 2], i % 2);

#pragma unroll
            for (int j = 0; j < 4; j++)
                if (is_value) /* halves: channels; codes: tokens */
                    half[j] = place_codes(half[j], x[i].pair[j], one,
                                          8 * (i % 2) + 4 * (i / 2 % 2) + 2 * (i / 4));
                else /* bytes: two tokens; codes: channels */
                    half[i / 2] = place_codes(half[i / 2], x[i].pair[j], finder[j],
                                              8 * (i % 2) + 4 * (j % 2) + 2 * (j / 2));
        }
        weave<is_value>(half, lane, words);
        codes += is_value ? r / 2 * l.dim_pad + c0 + 8 * c + 4 * (r % 2)
                          : (c0 / 16 + c / 2) * KIVI_TILE + 8 * r + 4 * (c % 2);
        *(uint4 *)codes = make_uint4(words[0], words[1], words[2], words[3]);
        return true;
    }

    uint32_t words[8];

    if (is_value) {
        uint32_t joined[4][4]; /* [token][pair of channels] */

#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint4 low_one = only<bits>(finder[i / 2], i % 2);
            const uint4 high_one = only<bits>(finder[i / 2 + 2], i % 2);

#pragma unroll
            for (int j = 0; j < 4; j++)
                joined[i][j] = join_codes(find_codes(x[i].pair[j], low_one),
                                          find_codes(x[i + 4].pair[j], high_one));
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t a = __byte_perm(joined[0][j], joined[1][j], 0x6240);
            const uint32_t b = __byte_perm(joined[2][j], joined[3][j], 0x6240);

            words[2 * j] = __byte_perm(a, b, 0x5410);
            words[2 * j + 1] = __byte_perm(a, b, 0x7632);
        }
        codes += r * l.dim_pad + c0 + 8 * c;
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t a = join_codes(find_codes(x[i].pair[0], finder[0]),
                                          find_codes(x[i].pair[2], finder[2]));
            const uint32_t b = join_codes(find_codes(x[i].pair[1], finder[1]),
                                          find_codes(x[i].pair[3], finder[3]));

            words[i] = __byte_perm(a, b, 0x6420);
        }
        codes += (c0 / 8 + c) * KIVI_TILE + 8 * r;
    }
    ((uint4 *)codes)[0] = make_uint4(words[0], words[1], words[2], words[3]);
    ((uint4 *)codes)[1] = make_uint4(words[4], words[5], words[6], words[7]);
    return true;
}

} // namespace

#endif
