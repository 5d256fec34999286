/*
 * Quantizing a prompt: whole slabs of new f16 rows, in groups of 32. A warp takes a tile, 32 tokens and 64
 * channels, and keeps it in registers from rows to packed words: lane 8 r + c has channels 8 c .. 8 c + 7 of
 * tokens 8 r .. 8 r + 7. It waits for no other warp.
 */
#include "append.cuh"
#include "kernels.cuh"
#include "mma.cuh"

namespace {

/* Smaller blocks start too slowly. */
constexpr uint32_t WARPS = 8, THREADS = 32 * WARPS, PER_SM = 4;
constexpr uint32_t TOKENS = 32, CHANNELS = 64; /* of a tile */
/* Blocks that store the newest rows of a head: with fewer, they would end last. */
constexpr uint32_t STORING = 4;

struct tile {
    const __half *rows; /* its first number, and the stride of tokens */
    int64_t stride;
    unsigned char *block; /* where it goes: the block, and its first channel there */
    uint32_t c0;
};

/* --------------------------------------------------------------- ranges of groups */

/* Ends of what the lane has of its groups, by pairs: of channels 2 j and 2 j + 1, or of tokens. A NaN stays. */
template <bool is_value>
__device__ __forceinline__ void find_ends(const kivi_cuda_half8 x[8], __half2 low[4],
                                          __half2 high[4])
{
#pragma unroll
    for (int j = 0; j < 4; j++) {
        __half2 least[2], most[2];

#pragma unroll
        for (int k = 0; k < (is_value ? 2 : 1); k++) {
            least[k] = most[k] = kivi_cuda_half2(is_value ? x[2 * j + k].pair[0] : x[0].pair[j]);
#pragma unroll
            for (int i = 1; i < (is_value ? 4 : 8); i++) {
                const __half2 y = kivi_cuda_half2(is_value ? x[2 * j + k].pair[i] : x[i].pair[j]);

                least[k] = __hmin2_nan(least[k], y);
                most[k] = __hmax2_nan(most[k], y);
            }
        }
        low[j] = is_value ? __hmin2_nan(__lows2half2(least[0], least[1]),
                                        __highs2half2(least[0], least[1]))
                          : least[0];
        high[j] = is_value
                      ? __hmax2_nan(__lows2half2(most[0], most[1]), __highs2half2(most[0], most[1]))
                      : most[0];
    }
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

/* ------------------------------------------------------------------------- codes */

/* Two numbers that are not negative, rounded down. */
__device__ __forceinline__ uint32_t round_down2(float low, float high)
{
    uint32_t pair;

    asm("cvt.rz.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/*
 * What finds the codes of two groups. 2 bits: their minima, and thresholds 0, 1, 2. Else their minima, nothing,
 * and the inverse of each one's scale. A product with that is as good as a division: a quotient of two f16 is
 * never within 2^-23 of a point where rounding to f16 turns, and two roundings lose less.
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
    } else { /* where the scale is 0, all quotients but 0 are clamped */
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

/* Codes of 4 or 8 bits of two numbers: in the low bytes of two f16, which are 1024 more. */
template <uint32_t bits> __device__ __forceinline__ uint32_t find_codes(uint32_t x, const uint4 &f)
{
    const __half2 above = __hsub2(kivi_cuda_half2(x), kivi_cuda_half2(f.x));
    const __half2 quotient = __floats2half2_rn(__low2float(above) * __uint_as_float(f.z),
                                               __high2float(above) * __uint_as_float(f.w));
    const __half2 levels = __float2half2_rn((float)((1u << bits) - 1u));

    return kivi_cuda_bits(__hadd2(__hmin2(quotient, levels), __float2half2_rn(1024.0f)));
}

/* Codes of 4 bits, two to a byte. */
__device__ __forceinline__ uint32_t join_codes(uint32_t low, uint32_t high)
{
    return low | (high << 4 & 0x00f000f0u);
}

/* ------------------------------------------------------------------------- words */

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
        const uint32_t other = __shfl_xor_sync(UINT32_MAX, odd ? codes[j] : codes[j + 2], partner);
        const uint32_t first = odd ? other : mine, second = odd ? mine : other;
        const uint32_t low = (first & 0x0f0f0f0fu) | (second << 4 & 0xf0f0f0f0u);
        const uint32_t high = (first >> 4 & 0x0f0f0f0fu) | (second & 0xf0f0f0f0u);

        words[2 * j] = __byte_perm(low, high, is_value ? 0x5410 : 0x6420);
        words[2 * j + 1] = __byte_perm(low, high, is_value ? 0x7632 : 0x7531);
    }
}

/* 2 bits: four words of the lane. `finders` are eight apart. */
template <bool is_value>
__device__ __forceinline__ void pack_2_bits(const kivi_cuda_half8 x[8], const uint4 *finders,
                                            uint32_t lane, uint32_t words[4])
{
    uint32_t half[4] = {0, 0, 0, 0};

#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint4 finder = finders[8 * k];

#pragma unroll
        for (int i = 0; i < 8; i++)
            if (is_value) { /* halves: channels; codes: tokens */
                const int t = 2 * k + i / 4, j = i % 4;

                half[j] = place_codes(half[j], x[t].pair[j], only<2>(finder, t % 2),
                                      8 * (t % 2) + 4 * (k % 2) + 2 * (k / 2));
            } else { /* bytes: two tokens; codes: channels */
                half[i / 2] = place_codes(half[i / 2], x[i].pair[k], finder,
                                          8 * (i % 2) + 4 * (k % 2) + 2 * (k / 2));
            }
    }
    weave<is_value>(half, lane, words);
}

/* 4 and 8 bits: a word of each of the lane's tokens `first` .. `first` + 3. At 4 bits it has all the lane's
 * channels, at 8 those from 4 w on. */
template <uint32_t bits>
__device__ __forceinline__ uint4 pack_keys(const kivi_cuda_half8 x[8], const uint4 *finders,
                                           int first, int w)
{
    uint32_t words[4];

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t *pair = x[first + i].pair;
        uint32_t a = find_codes<bits>(pair[2 * w], finders[8 * (2 * w)]);
        uint32_t b = find_codes<bits>(pair[2 * w + 1], finders[8 * (2 * w + 1)]);

        if (bits == 4) {
            a = join_codes(a, find_codes<bits>(pair[2], finders[8 * 2]));
            b = join_codes(b, find_codes<bits>(pair[3], finders[8 * 3]));
        }
        words[i] = __byte_perm(a, b, 0x6420);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

/* 4 and 8 bits: a word of each of the lane's channels. At 4 bits it has all the lane's tokens, at 8 those from
 * 4 w on. */
template <uint32_t bits>
__device__ __forceinline__ void pack_values(const kivi_cuda_half8 x[8], const uint4 *finders, int w,
                                            uint32_t words[8])
{
    uint32_t codes[4][4]; /* [token][pair of channels] */

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int t = 4 * w + i;
        const uint4 finder = only<bits>(finders[8 * (t / 2)], t % 2);

#pragma unroll
        for (int j = 0; j < 4; j++)
            codes[i][j] = find_codes<bits>(x[t].pair[j], finder);
        if (bits == 4) {
            const uint4 later = only<bits>(finders[8 * (t / 2 + 2)], t % 2);

#pragma unroll
            for (int j = 0; j < 4; j++)
                codes[i][j] = join_codes(codes[i][j], find_codes<bits>(x[t + 4].pair[j], later));
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t a = __byte_perm(codes[0][j], codes[1][j], 0x6240);
        const uint32_t b = __byte_perm(codes[2][j], codes[3][j], 0x6240);

        words[2 * j] = __byte_perm(a, b, 0x5410);
        words[2 * j + 1] = __byte_perm(a, b, 0x7632);
    }
}

/* Packs the lane's part of a tile. */
template <uint32_t bits, bool is_value>
__device__ __forceinline__ void pack(const kivi_layout &l, const tile &to,
                                     const kivi_cuda_half8 x[8], const uint4 *finders)
{
    constexpr uint32_t n = 32 / bits;
    const uint32_t lane = kivi_cuda_lane(), r = lane / 8, c = lane % 8;
    uint32_t *codes = (uint32_t *)to.block;
    uint32_t words[8];

    if (bits == 2) {
        pack_2_bits<is_value>(x, finders, lane, words);
        codes += is_value ? r / 2 * l.dim_pad + to.c0 + 8 * c + 4 * (r % 2)
                          : (to.c0 / n + c / 2) * KIVI_TILE + 8 * r + 4 * (c % 2);
        *(uint4 *)codes = make_uint4(words[0], words[1], words[2], words[3]);
    } else if (is_value) {
        codes += 8 * r / n * l.dim_pad + to.c0 + 8 * c;
#pragma unroll
        for (int w = 0; w < (int)bits / 4; w++, codes += l.dim_pad) {
            pack_values<bits>(x, finders, w, words);
            ((uint4 *)codes)[0] = make_uint4(words[0], words[1], words[2], words[3]);
            ((uint4 *)codes)[1] = make_uint4(words[4], words[5], words[6], words[7]);
        }
    } else {
        codes += (to.c0 + 8 * c) / n * KIVI_TILE + 8 * r;
#pragma unroll
        for (int w = 0; w < (int)bits / 4; w++, codes += KIVI_TILE) {
            ((uint4 *)codes)[0] = pack_keys<bits>(x, finders, 0, w);
            ((uint4 *)codes)[1] = pack_keys<bits>(x, finders, 4, w);
        }
    }
}

/* ------------------------------------------------------------------------- tiles */

/* A tile with a range beyond f16, or a number that is not finite, which is reported (`token` is the tile's first
 * in the call): rare, so by the rule as it is written. `ranges` is shared memory for its 64 groups. */
__device__ __noinline__ void quantize_rarely(const kivi_cuda_step &s, const kivi_layout &l,
                                             const tile &to, range *ranges, bool is_value,
                                             uint32_t index, uint32_t token)
{
    const uint32_t lane = kivi_cuda_lane(), n = 32 / l.bits;
    __half *scales = (__half *)(to.block + l.code_bytes) + to.c0;

    for (uint32_t g = lane; g < CHANNELS; g += 32) {
        __half low = __ushort_as_half(0x7c00), high = __hneg(low);

        for (uint32_t i = 0; i < 32; i++) {
            const uint32_t t = is_value ? g % 32 : i, c = is_value ? g / 32 * 32 + i : g;
            bool finite = true;
            const __half x = kivi_cuda_to_f16(__half2float(to.rows[t * to.stride + c]), &finite);

            if (!finite)
                kivi_cuda_report(s, index, token + t, is_value ? 2 : 1);
            low = __hmin(low, x);
            high = __hmax(high, x);
        }
        ranges[g] = range_of(__halves2half2(low, high), l.bits);
        scales[g] = ranges[g].scale;
        scales[l.scale_bytes / 2 + g] = ranges[g].min;
    }
    __syncwarp();
    for (uint32_t k = lane; k < TOKENS * CHANNELS / n; k += 32) {
        const uint32_t t = is_value ? k / CHANNELS * n : k % TOKENS;
        const uint32_t c = is_value ? k % CHANNELS : k / TOKENS * n;
        uint32_t word = 0;

        for (uint32_t i = 0; i < n; i++) {
            const uint32_t ti = is_value ? t + i : t, ci = is_value ? c : c + i;
            const range &r = ranges[is_value ? ci / 32 * 32 + ti : ci];
            bool finite = true;
            const __half x = kivi_cuda_to_f16(__half2float(to.rows[ti * to.stride + ci]), &finite);

            word |= code_of(x, __half2float(r.min), __half2float(r.scale), inverse_of(r),
                            (float)((1u << l.bits) - 1u))
                    << code_shift(l.bits, i);
        }
        ((uint32_t *)
             to.block)[is_value ? t / n * l.dim_pad + to.c0 + c : (to.c0 + c) / n * KIVI_TILE + t] =
            word;
    }
}

/* False, and nothing is done, if a number is not finite or a range is beyond f16. */
template <uint32_t bits, bool is_value>
__device__ __forceinline__ bool quantize_tile(const kivi_layout &l, const tile &to,
                                              uint4 shared[32])
{
    constexpr uint32_t bit = is_value ? 1 : 8; /* for share_ends */
    const uint32_t lane = kivi_cuda_lane(), r = lane / 8, c = lane % 8;
    const uint32_t pair = lane / bit % 4, sharers = is_value ? 2 * r + c / 4 : c;
    const __half *row = to.rows + 8 * r * to.stride + 8 * c;
    kivi_cuda_half8 x[8];
    __half2 low[4], high[4];

#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i].vector = __ldcs((const uint4 *)(row + i * to.stride));
    find_ends<is_value>(x, low, high);
    share_ends(low, high, lane, bit);

    const __half2 range = __hsub2(high[0], low[0]); /* not finite if an end is not */

    if (!__all_sync(UINT32_MAX, __hble2(range, __float2half2_rn(65504.0f))))
        return false;

    /* Rounded to f16 this product is the quotient: that is never near a point where rounding turns. */
    const float inverse = 1.0f / (float)((1u << bits) - 1u);
    const __half2 scale =
        __floats2half2_rn(__low2float(range) * inverse, __high2float(range) * inverse);
    const __half2 min = __hadd2(low[0], __float2half2_rn(0.0f)); /* -0 becomes +0 */
    __half *scales = (__half *)(to.block + l.code_bytes) + to.c0 + 2 * pair
                     + (is_value ? c / 4 * 32 + 8 * r : 8 * c);

    *(__half2 *)scales = scale;
    *(__half2 *)(scales + l.scale_bytes / 2) = min;
    shared[8 * pair + sharers] = finder_of<bits>(min, scale);
    __syncwarp();
    pack<bits, is_value>(l, to, x, shared + sharers);
    return true;
}

/* Grid: (keys and values of each head, so that a token's rows are read together: blocks that store first, then
 * tiles, eight to a block; items). */
__global__ void __launch_bounds__(THREADS, PER_SM)
    append_tiles(const __grid_constant__ kivi_cuda_step s)
{
    __shared__ uint4 shared[WARPS][32];
    const uint32_t sides = 2 * s.n_kv_heads, side = blockIdx.x % sides, part = blockIdx.x / sides;
    const uint32_t head = side / 2, index = blockIdx.y, warp = threadIdx.x / 32;
    const bool is_value = side % 2;
    const kivi_layout &l = is_value ? s.v : s.k;
    const kivi_cuda_item &item = kivi_cuda_items(s)[index];

    if (s.tables) /* may still be on their way */
        kivi_cuda_wait_for_stream();

    const kivi_cuda_rows rows = rows_of(s, item, head, is_value);
    const kivi_cuda_slabs slabs = is_value ? item.v_tiled : item.k_tiled;
    const uint32_t number = (part - STORING) * WARPS + warp, per_row = max(l.dim / CHANNELS, 1u);
    const uint32_t block = number / per_row, in_slab = block % (SLAB / TOKENS);
    const uint32_t slab = slabs.begin + block / (SLAB / TOKENS);
    const uint64_t token = (uint64_t)slab * SLAB + in_slab * TOKENS - rows.n_old;
    const bool stores = part < STORING, has_tile = !stores && slab < slabs.end;
    bool done;
    tile to;

    to.c0 = number % per_row * CHANNELS;
    to.stride = rows.fresh_token;
    to.rows = (const __half *)rows.fresh + rows.fresh_at + (int64_t)token * to.stride + to.c0;
    if (has_tile)
        to.block = slab_blocks(s, item, head, is_value, slab) + in_slab * l.block_bytes;
    kivi_cuda_wait_for_stream();
    if (item.n_new == 0 || (s.gate && *s.gate != KIVI_CUDA_NOT_BAD))
        return;
    if (stores)
        store_rows(s, rows, index, is_value, part * THREADS + threadIdx.x, STORING * THREADS);
    if (!has_tile)
        return;
    switch (l.bits + is_value) {
    case 2:
        done = quantize_tile<2, false>(l, to, shared[warp]);
        break;
    case 3:
        done = quantize_tile<2, true>(l, to, shared[warp]);
        break;
    case 4:
        done = quantize_tile<4, false>(l, to, shared[warp]);
        break;
    case 5:
        done = quantize_tile<4, true>(l, to, shared[warp]);
        break;
    case 8:
        done = quantize_tile<8, false>(l, to, shared[warp]);
        break;
    default:
        done = quantize_tile<8, true>(l, to, shared[warp]);
    }
    if (!done)
        quantize_rarely(s, l, to, (range *)shared[warp], is_value, index, (uint32_t)token);
}

} // namespace

bool kivi_cuda_fits_tiles(const kivi_layout *l)
{
    return l->group_size == 32 && l->bits <= 8 && l->dim % CHANNELS == 0;
}

cudaError_t kivi_cuda_append_tiles(const kivi_cuda_step *step, uint32_t slabs, cudaStream_t stream)
{
    const uint32_t dim = step->k.dim > step->v.dim ? step->k.dim : step->v.dim;
    const uint32_t tiles = slabs * (SLAB / TOKENS) * (dim / CHANNELS);
    const uint32_t parts = STORING + (tiles + WARPS - 1) / WARPS;
    const dim3 grid(parts * 2 * step->n_kv_heads, step->n_items);

    return kivi_cuda_launch(append_tiles, grid, THREADS, 0, stream, step->overlap, *step);
}
