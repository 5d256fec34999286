/*
 * Conversion to f16 and quantization, for any vector length: the same bits as the scalar table, operation
 * by operation (../quantize.h).
 */
#ifndef KIVI_SIMD_QUANTIZER_H
#define KIVI_SIMD_QUANTIZER_H

#include "../../core/half.h"

/* -------------------------------------------------------------- conversion */

/* 0 for finite numbers, else NaN: adds up. */
KIVI_INLINE VF not_finite(VF x, VF sum)
{
    return vf_fma(x, vf_zero(), sum);
}

KIVI_INLINE int all_finite(VF sum)
{
    const float x = vf_sum(sum);

    return x == x;
}

/* From f32 or bf16; `type` is a constant. */
KIVI_INLINE int round_to_f16(uint16_t *dst, const void *src, size_t n, kivi_dtype type)
{
    const float *floats = src;
    const uint16_t *halves = src;
    VF sum = vf_zero();
    int finite = 1;
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES) {
        const VF x = type == KIVI_F32 ? vf_load(floats + i) : vf_load_bf16(halves + i);

        vf_store_half(dst + i, x);
        sum = not_finite(vf_round_half(x), sum);
    }
    for (; i < n; i++) {
        dst[i] = kivi_f16_from_f32(type == KIVI_F32 ? floats[i] : kivi_f32_from_bf16(halves[i]));
        finite &= kivi_f16_is_finite(dst[i]);
    }
    return finite & all_finite(sum);
}

static int f16_from_f32(uint16_t *dst, const void *src, size_t n)
{
    return round_to_f16(dst, src, n, KIVI_F32);
}

static int f16_from_bf16(uint16_t *dst, const void *src, size_t n)
{
    return round_to_f16(dst, src, n, KIVI_BF16);
}

static int f16_from_f16(uint16_t *dst, const void *src, size_t n)
{
    const uint16_t *from = src;
    VF sum = vf_zero();
    int finite = 1;
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES)
        sum = not_finite(vf_load_half(from + i), sum);
    for (; i < n; i++)
        finite &= kivi_f16_is_finite(from[i]);
    if (dst != src)
        memcpy(dst, src, n * sizeof *dst);
    return finite & all_finite(sum);
}

/* ------------------------------------------------------------------ ranges */

/* struct kivi_range, lane by lane. */
struct ranges {
    VF min, scale;
    VF divisor; /* the scale; where that is 0 so small a number that every quotient but 0 is clamped */
    VM wide;
};

KIVI_INLINE struct ranges ranges_of(VF min, VF max, VF levels)
{
    const VF exact = vf_sub(max, min), rounded = vf_round_half(exact);
    struct ranges r;

    r.min = vf_add(min, vf_zero()); /* -0 becomes +0 */
    r.wide = vm_equal(rounded, vf_set(INFINITY));
    r.scale = vf_round_half(vf_div(vf_select(r.wide, exact, rounded), levels));
    r.divisor = vf_max(r.scale, vf_set(1e-30f));
    return r;
}

/* The codes of numbers that lie `above` their minimum. */
KIVI_INLINE VI codes_of(VF above, VF divisor, VF levels)
{
    return vi_round(vf_min(vf_round_half(vf_div(above, divisor)), levels));
}

/*
 * The same at 2 bits without division, where `above` is an f16 number. A quotient q is rounded to f16 and
 * then to an integer, both times to even, so that its code is
 *   1 or more  if q > 0.5, and does not round to it:  q > 0.5 + 2^-12
 *   2 or more  if q >= 1.5, or rounds to it:          q >= 1.5 - 2^-11
 *   3          if q > 2.5, and does not round to it:  q > 2.5 + 2^-10
 * These numbers have 12 bits and a divisor 11: products with it are exact, and so are comparisons with them.
 */
#define THRESHOLDS 3

KIVI_INLINE VF step_of(VF divisor, int i)
{
    if (i == 0)
        return vf_mul(divisor, vf_set(0.5f + 0x1p-12f));
    if (i == 2)
        return vf_mul(divisor, vf_set(2.5f + 0x1p-10f));
    /* the number before, to be exceeded */
    return vf_bits(vi_add(vi_bits(vf_mul(divisor, vf_set(1.5f - 0x1p-11f))), vi_set(-1)));
}

KIVI_INLINE VI count_steps(VF above, VF first, VF second, VF third)
{
    return vi_count(vi_count(vi_count(vi_zero(), vm_less(first, above)), vm_less(second, above)),
                    vm_less(third, above));
}

KIVI_INLINE VF levels_of(uint32_t bits)
{
    return vf_set((float)((1u << bits) - 1u));
}

/* -------------------------------------------------------------------- keys */

/* Vector v of 16 channels, of which n, 8 or 16, are there. */
KIVI_INLINE VF load_channels(const uint16_t *row, int v, uint32_t n)
{
    if ((uint32_t)v * LANES >= n)
        return vf_zero();
    return (uint32_t)(v + 1) * LANES > n ? load_half_vector(row) : vf_load_half(row + v * LANES);
}

/* The words of a token from its 16 codes, KIVI_TILE apart. */
KIVI_INLINE void store_words(uint32_t *word, const uint8_t *codes, uint32_t bits)
{
    const uint32_t per_word = 8 / bits;
    uint32_t four[4], i, j;

    memcpy(four, codes, sizeof four);
    KIVI_UNROLL
    for (i = 0; i < 4; i += per_word) {
        uint32_t w = four[i];

        KIVI_UNROLL
        for (j = 1; j < per_word; j++)
            w |= four[i + j] << (bits * j);
        word[i / per_word * KIVI_TILE] = w;
    }
}

/* 16 channels of a key block; bits is a constant. */
KIVI_INLINE void quantize_channels(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                                   uint32_t skip, uint32_t channel, void *block, uint32_t bits)
{
    const uint32_t n = l->dim - channel < 16 ? 8 : 16;
    const VF levels = levels_of(bits);
    uint32_t *word = (uint32_t *)block + (size_t)(channel / 16) * (bits / 2) * KIVI_TILE;
    struct ranges r[VECTORS];
    VF step[VECTORS][THRESHOLDS];
    int any_wide = 0, v;
    uint32_t t;

    rows += channel;
    for (v = 0; v < VECTORS; v++) {
        VF min = load_channels(rows + skip * stride, v, n), max = min;

        for (t = skip + 1; t < l->tokens; t++) {
            const VF x = load_channels(rows + t * stride, v, n);

            min = vf_min(min, x);
            max = vf_max(max, x);
        }
        r[v] = ranges_of(min, max, levels);
        any_wide |= vm_lanes(r[v].wide) != 0;
        for (t = 0; bits == 2 && t < THRESHOLDS; t++)
            step[v][t] = step_of(r[v].divisor, (int)t);
        vf_store_half(kivi_scales(l, block) + channel + v * LANES, r[v].scale);
        vf_store_half(kivi_minima(l, block) + channel + v * LANES, r[v].min);
    }
    for (t = 0; t < l->tokens; t++) {
        uint8_t codes[16] = {0};
        VI number[VECTORS];

        if (t >= skip) {
            KIVI_UNROLL
            for (v = 0; v < VECTORS; v++) {
                const VF exact = vf_sub(load_channels(rows + t * stride, v, n), r[v].min);
                VF above = vf_round_half(exact);

                if (any_wide)
                    above = vf_select(r[v].wide, exact, above);
                number[v] = bits == 2 && !any_wide
                                ? count_steps(above, step[v][0], step[v][1], step[v][2])
                                : codes_of(above, r[v].divisor, levels);
            }
            vi_store_bytes(codes, number);
        }
        store_words(word + (size_t)(t / KIVI_TILE) * (l->dim_pad / 16) * (bits / 2) * KIVI_TILE
                        + t % KIVI_TILE,
                    codes, bits);
    }
}

KIVI_INLINE void quantize_keys(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                               uint32_t skip, void *block, uint32_t bits)
{
    uint32_t channel;

    for (channel = 0; channel < l->dim; channel += 16)
        quantize_channels(l, rows, stride, skip, channel, block, bits);
}

static void quantize_k(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                       uint32_t skip, void *block)
{
    if (skip >= l->tokens)
        memset(block, 0, l->block_bytes);
    else if (l->bits == 2)
        quantize_keys(l, rows, stride, skip, block, 2);
    else if (l->bits == 4)
        quantize_keys(l, rows, stride, skip, block, 4);
    else
        quantize_keys(l, rows, stride, skip, block, 8);
}

/* ------------------------------------------------------------------ values */

/* Ranges of all groups of up to 32 tokens: group * count + token. Together, so that one token of a few
 * groups, as decoding appends it, fills a vector. */
#define MAX_RANGES (MAX_DIM / 32 * KIVI_TILE)

struct group_ranges {
    float min[MAX_RANGES], divisor[MAX_RANGES];
    float wide[MAX_RANGES]; /* 1 or 0 */
    float step[THRESHOLDS][MAX_RANGES];
};

/* The ends of one token's group of n channels. */
KIVI_INLINE void find_ends(const uint16_t *x, uint32_t n, float *min, float *max)
{
    VF low = vf_set(INFINITY), high = vf_set(-INFINITY);
    uint32_t c;

    for (c = 0; c + LANES <= n; c += LANES) {
        const VF y = vf_load_half(x + c);

        low = vf_min(low, y);
        high = vf_max(high, y);
    }
    if (c < n) { /* 8 channels where LANES is 16: twice, as padding that is in the group */
        uint16_t twice[LANES > 8 ? LANES : 16];
        VF y;

        memcpy(twice, x + c, 8 * sizeof *x);
        memcpy(twice + 8, x + c, 8 * sizeof *x);
        y = vf_load_half(twice);
        low = vf_min(low, y);
        high = vf_max(high, y);
    }
    *min = -vf_largest(vf_sub(vf_zero(), low));
    *max = vf_largest(high);
}

/* Ranges of `count` tokens; scales and minima go to the block. */
static void find_ranges(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                        uint32_t first, uint32_t count, void *block, struct group_ranges *r)
{
    const uint32_t n = l->n_groups * count;
    const VF levels = levels_of(l->bits);
    uint16_t scales[MAX_RANGES], minima[MAX_RANGES];
    uint32_t g, t, i;

    for (g = 0, i = 0; g < l->n_groups; g++) {
        const uint32_t channel = g * l->group_size, left = l->dim - channel;

        for (t = 0; t < count; t++, i++)
            find_ends(rows + t * stride + channel, left < l->group_size ? left : l->group_size,
                      &r->min[i], &r->divisor[i]);
    }
    for (; i % LANES > 0; i++) /* the last vector's other lanes: any number */
        r->min[i] = r->divisor[i] = 0;
    for (i = 0; i < n; i += LANES) {
        const struct ranges v = ranges_of(vf_load(r->min + i), vf_load(r->divisor + i), levels);

        vf_store(r->min + i, v.min);
        vf_store(r->divisor + i, v.divisor);
        vf_store(r->wide + i, vf_select(v.wide, vf_set(1), vf_zero()));
        for (t = 0; t < THRESHOLDS; t++)
            vf_store(r->step[t] + i, step_of(v.divisor, (int)t));
        vf_store_half(scales + i, v.scale);
        vf_store_half(minima + i, v.min);
    }
    for (g = 0; g < l->n_groups; g++) {
        const size_t at = g * KIVI_TILE + first;

        memcpy(kivi_scales(l, block) + at, scales + g * count, count * sizeof *scales);
        memcpy(kivi_minima(l, block) + at, minima + g * count, count * sizeof *minima);
    }
}

/* One vector of channels, of which n are there, of `count` tokens that share words, in whose places from
 * `first` on they are; their ranges are those from `range` on. bits is a constant. */
KIVI_INLINE void quantize_words(const uint16_t *rows, size_t stride, uint32_t n, uint32_t first,
                                uint32_t count, const struct group_ranges *r, uint32_t range,
                                uint32_t *words, uint32_t bits)
{
    const VF levels = levels_of(bits);
    uint32_t keep = UINT32_MAX, i;
    VI word = vi_zero();

    for (i = 0; i < count; i++) {
        const uint32_t shift = kivi_code_shift(bits, first + i);
        const VF x =
            n < LANES ? load_half_vector(rows + i * stride) : vf_load_half(rows + i * stride);
        const VF exact = vf_sub(x, vf_set(r->min[range + i]));
        const int wide = r->wide[range + i] != 0;
        const VF above = wide ? exact : vf_round_half(exact);
        const VI codes =
            bits == 2 && !wide
                ? count_steps(above, vf_set(r->step[0][range + i]), vf_set(r->step[1][range + i]),
                              vf_set(r->step[2][range + i]))
                : codes_of(above, vf_set(r->divisor[range + i]), levels);

        word = vi_or(word, vi_shift_left(codes, (int)shift));
        keep &= ~(((1u << bits) - 1u) << shift);
    }
    if (n < LANES) {
        uint32_t all[LANES];

        vi_store(all, word);
        for (i = 0; i < n; i++)
            words[i] = (words[i] & keep) | all[i];
    } else {
        vi_store(words, vi_or(word, vi_and(vi_load(words), vi_set((int32_t)keep))));
    }
}

/* `count` tokens that share words, in whose places from `first` on they are; of the block's tokens they
 * are those from `token` on, counted as in r. */
KIVI_INLINE void quantize_tokens(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                                 uint32_t first, uint32_t count, const struct group_ranges *r,
                                 uint32_t n_tokens, uint32_t token, uint32_t *words, uint32_t bits)
{
    uint32_t g, c = 0;

    for (g = 0; g < l->n_groups; g++) {
        const uint32_t end = (g + 1) * l->group_size;

        for (; c < end && c < l->dim; c += LANES)
            quantize_words(rows + c, stride, l->dim - c, first, count, r, g * n_tokens + token,
                           words + c, bits);
    }
}

KIVI_INLINE void quantize_values(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                                 uint32_t first, uint32_t count, void *block, uint32_t bits)
{
    const uint32_t per_word = 32 / bits;
    struct group_ranges r;
    uint32_t t, n;

    if (first == 0)
        memset(block, 0, l->block_bytes);
    find_ranges(l, rows, stride, first, count, block, &r);
    for (t = 0; t < count; t += n) {
        const uint32_t place = (first + t) % per_word, left = per_word - place;

        n = count - t < left ? count - t : left;
        quantize_tokens(l, rows + t * stride, stride, place, n, &r, count, t,
                        (uint32_t *)block + (size_t)((first + t) / per_word) * l->dim_pad, bits);
    }
}

static void quantize_v(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                       uint32_t first, uint32_t count, void *block)
{
    if (l->bits == 2)
        quantize_values(l, rows, stride, first, count, block, 2);
    else if (l->bits == 4)
        quantize_values(l, rows, stride, first, count, block, 4);
    else
        quantize_values(l, rows, stride, first, count, block, 8);
}

#endif
