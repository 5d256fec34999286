/* Quantization of keys and values, for any vector length: the same bits as the scalar table (ranges.h). */
#ifndef KIVI_SIMD_QUANTIZER_H
#define KIVI_SIMD_QUANTIZER_H

/* Sixteen channels, of which n, 8 or 16, are there; the others are 0. */
KIVI_INLINE VS load_sixteen(const uint16_t *x, uint32_t n)
{
    uint16_t whole[16] = {0};

    if (n >= 16)
        return vs_of_halves(x);
    memcpy(whole, x, 8 * sizeof *x);
    return vs_of_halves(whole);
}

/* -------------------------------------------------------------------- keys */

/* Vector v of 16 channels, of which n, 8 or 16, are there. */
KIVI_INLINE VF load_channels(const uint16_t *row, uint32_t v, uint32_t n)
{
    if (v * LANES >= n)
        return vf_zero();
    return (v + 1) * LANES > n ? load_half_vector(row) : vf_load_half(row + v * LANES);
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

/* The codes of 16 channels of a key block, from `word` on, by division. bits is a constant. */
KIVI_INLINE void divide_channels(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                                 uint32_t skip, uint32_t n, const struct ranges *r, int any_wide,
                                 uint32_t *word, uint32_t bits)
{
    const size_t tile = (size_t)(l->dim_pad / 16) * (bits / 2) * KIVI_TILE;
    const VF levels = levels_of(bits);
    uint32_t t, v;

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
                number[v] = codes_of(above, r[v].divisor, levels);
            }
            vi_store_bytes(codes, number);
        }
        store_words(word + t / KIVI_TILE * tile + t % KIVI_TILE, codes, bits);
    }
}

/* The same at 2 bits by comparison, of ranges that are not wide. n is a constant. */
KIVI_INLINE void compare_channels(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                                  uint32_t skip, uint32_t n, const struct ranges *r, uint32_t *word)
{
    const size_t to_next_tile = (size_t)(l->dim_pad / 16 - 1) * KIVI_TILE;
    const VS first = find_threshold(r, 0), second = find_threshold(r, 1);
    const VS third = find_threshold(r, 2);
    uint32_t t, i;

    for (t = 0; t < l->tokens; t += 4) {
        VS codes[4];

        KIVI_UNROLL
        for (i = 0; i < 4; i++, rows += stride)
            codes[i] = count_thresholds(load_sixteen(rows, n), first, second, third);
        vs_store_words(word, codes);
        for (i = 0; i < 4 && t + i < skip; i++)
            word[i] = 0;
        word += (t + 4) % KIVI_TILE > 0 ? 4 : 4 + to_next_tile;
    }
}

/* The least and the largest of each of 16 channels, of tokens skip .. n_tokens - 1. n is a constant. */
KIVI_INLINE void find_channel_ends(const uint16_t *rows, size_t stride, uint32_t skip,
                                   uint32_t n_tokens, uint32_t n, uint16_t *min, uint16_t *max)
{
    VS least, largest;
    uint32_t t;

    rows += skip * stride;
    least = largest = load_sixteen(rows, n);
    for (t = skip + 1; t < n_tokens; t++) {
        const VS x = load_sixteen(rows += stride, n);

        least = vs_min(least, x);
        largest = vs_max(largest, x);
    }
    vs_store_halves(min, least);
    vs_store_halves(max, largest);
}

/* 16 channels of a key block, of which n are there. n and bits are constants. */
KIVI_INLINE void quantize_channels(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                                   uint32_t skip, uint32_t channel, uint32_t n, void *block,
                                   uint32_t bits)
{
    uint32_t *word = (uint32_t *)block + (size_t)(channel / 16) * (bits / 2) * KIVI_TILE;
    uint16_t min[16], max[16];
    struct ranges r[VECTORS];
    uint32_t any_wide = 0, v;

    rows += channel;
    find_channel_ends(rows, stride, skip, l->tokens, n, min, max);
    KIVI_UNROLL
    for (v = 0; v < VECTORS; v++) {
        r[v] = ranges_of(vf_load_half(min + v * LANES), vf_load_half(max + v * LANES),
                         levels_of(bits));
        any_wide |= vm_lanes(r[v].wide);
        vf_store_half(kivi_scales(l, block) + channel + v * LANES, r[v].scale);
    }
    memcpy(kivi_minima(l, block) + channel, min, sizeof min);
    if (bits == 2 && !any_wide)
        compare_channels(l, rows, stride, skip, n, r, word);
    else
        divide_channels(l, rows, stride, skip, n, r, any_wide != 0, word, bits);
}

KIVI_INLINE void quantize_keys(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                               uint32_t skip, void *block, uint32_t bits)
{
    uint32_t channel;

    for (channel = 0; channel + 16 <= l->dim; channel += 16)
        quantize_channels(l, rows, stride, skip, channel, 16, block, bits);
    if (channel < l->dim)
        quantize_channels(l, rows, stride, skip, channel, 8, block, bits);
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
#define MAX_RANGES (KIVI_MAX_DIM / 32 * KIVI_TILE)

struct group_ranges {
    float min[MAX_RANGES], divisor[MAX_RANGES];
    float wide[MAX_RANGES]; /* 1 or 0 */
    int any_wide;
};

struct group_thresholds {
    int16_t at[THRESHOLDS][MAX_RANGES];
};

/* The least and the largest of n channels of a token, for each of 16 lanes. */
KIVI_INLINE void find_ends(const uint16_t *x, uint32_t n, VS *least, VS *largest)
{
    uint16_t twice[16];

    if (n < 16) { /* 8: twice, as padding that is in the group */
        memcpy(twice, x, 8 * sizeof *x);
        memcpy(twice + 8, x, 8 * sizeof *x);
        x = twice;
    }
    *least = *largest = vs_of_halves(x);
    for (; n > 16; n -= n < 32 ? 8 : 16) {
        VS y;

        x += n < 32 ? 8 : 16; /* the last 8 with 8 before them */
        y = vs_of_halves(x);
        *least = vs_min(*least, y);
        *largest = vs_max(*largest, y);
    }
}

/* Of all groups of `count` tokens, in the order of struct group_ranges. What lies behind them in whole sixteens becomes
 * 0. */
static void find_all_ends(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                          uint32_t count, uint16_t *min, uint16_t *max)
{
    const uint16_t *x = rows;
    uint32_t size = l->group_size < l->dim ? l->group_size : l->dim, channel = 0, t = 0, i, j;

    for (i = 0; i < l->n_groups * count; i += 16) {
        VS least[16], largest[16];

        for (j = 0; j < 16; j++) {
            if (channel == l->dim) {
                least[j] = largest[j] = vs_zero();
                continue;
            }
            if (size == 32) /* a constant */
                find_ends(x, 32, &least[j], &largest[j]);
            else
                find_ends(x, size, &least[j], &largest[j]);
            x += stride;
            if (++t == count) {
                t = 0;
                channel += size;
                x = rows + channel;
                size = l->dim - channel < size ? l->dim - channel : size;
            }
        }
        vs_store_halves(min + i, vs_least(least));
        vs_store_halves(max + i, vs_largest(largest));
    }
}

/* Ranges of `count` tokens; scales and minima go to the block. */
static void find_ranges(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                        uint32_t first, uint32_t count, void *block, struct group_ranges *r)
{
    const uint32_t n = l->n_groups * count;
    const VF levels = levels_of(l->bits);
    uint16_t min[MAX_RANGES], max[MAX_RANGES], scales[MAX_RANGES];
    uint32_t any_wide = 0, g, i;

    find_all_ends(l, rows, stride, count, min, max);
    for (i = 0; i < n; i += LANES) {
        const struct ranges v = ranges_of(vf_load_half(min + i), vf_load_half(max + i), levels);

        any_wide |= vm_lanes(v.wide);
        vf_store(r->min + i, v.min);
        vf_store(r->divisor + i, v.divisor);
        vf_store(r->wide + i, vf_select(v.wide, vf_set(1), vf_zero()));
        vf_store_half(scales + i, v.scale);
    }
    r->any_wide = any_wide != 0;
    for (g = 0; g < l->n_groups; g++) {
        const size_t at = g * KIVI_TILE + first;

        memcpy(kivi_scales(l, block) + at, scales + g * count, count * sizeof *scales);
        memcpy(kivi_minima(l, block) + at, min + g * count, count * sizeof *min);
    }
}

/* Of the first n ranges, whole sixteens. */
static void find_thresholds(const struct group_ranges *r, uint32_t n, struct group_thresholds *of)
{
    uint32_t at, v, i;

    for (at = 0; at < n; at += 16) {
        struct ranges sixteen[VECTORS];

        KIVI_UNROLL
        for (v = 0; v < VECTORS; v++) {
            sixteen[v].min = vf_load(r->min + at + v * LANES);
            sixteen[v].divisor = vf_load(r->divisor + at + v * LANES);
        }
        KIVI_UNROLL
        for (i = 0; i < THRESHOLDS; i++)
            vs_store(of->at[i] + at, find_threshold(sixteen, i));
    }
}

/* Channels, of which n are there, of `count` tokens that share words, in whose places from `first` on they are; their
 * ranges are those from `range` on. By division. side, vectors of channels, at most those of 32, and bits are
 * constants. */
KIVI_INLINE void divide_words(const uint16_t *rows, size_t stride, uint32_t n, uint32_t first,
                              uint32_t count, const struct group_ranges *r, uint32_t range,
                              uint32_t *words, uint32_t side, uint32_t bits)
{
    uint32_t keep = UINT32_MAX, i, v;
    VI word[32 / LANES];

    KIVI_UNROLL
    for (v = 0; v < side; v++)
        word[v] = vi_zero();
    for (i = 0; i < count; i++) {
        const uint32_t shift = kivi_code_shift(bits, first + i);
        const VF min = vf_set(r->min[range + i]), divisor = vf_set(r->divisor[range + i]);
        const int wide = r->wide[range + i] != 0;

        KIVI_UNROLL
        for (v = 0; v < side; v++) {
            const uint16_t *x = rows + i * stride + v * LANES;
            const VF exact = vf_sub(n < LANES ? load_half_vector(x) : vf_load_half(x), min);
            const VF above = wide ? exact : vf_round_half(exact);
            const VI codes = codes_of(above, divisor, levels_of(bits));

            word[v] = vi_or(word[v], vi_shift_left(codes, (int)shift));
        }
        keep &= ~(((1u << bits) - 1u) << shift);
    }
    if (n < LANES) {
        uint32_t all[LANES];

        vi_store(all, word[0]);
        for (i = 0; i < n; i++)
            words[i] = (words[i] & keep) | all[i];
        return;
    }
    KIVI_UNROLL
    for (v = 0; v < side; v++, words += LANES)
        vi_store(words, vi_or(word[v], vi_and(vi_load(words), vi_set((int32_t)keep))));
}

/* The same at 2 bits by comparison, for all tokens of some words and 16 channels, or 32 if side is 2, a constant. Words
 * grow from their last codes on, the lower and the upper halves of them apart. */
KIVI_INLINE void compare_words(const uint16_t *rows, size_t stride,
                               const struct group_thresholds *of, uint32_t range, uint32_t *words,
                               uint32_t side)
{
    VS half[2][2];
    uint32_t place, i, v;

    KIVI_UNROLL
    for (v = 0; v < side; v++)
        half[0][v] = half[1][v] = vs_zero();
    for (place = 4; place-- > 0;) {
        KIVI_UNROLL
        for (i = 0; i < 4; i++) {
            const uint32_t token = 4 * place + i, at = range + token;
            const VS first = vs_set(of->at[0][at]), second = vs_set(of->at[1][at]);
            const VS third = vs_set(of->at[2][at]);
            VS *to = half[i / 2];

            KIVI_UNROLL
            for (v = 0; v < side; v++) {
                const VS x = vs_of_halves(rows + token * stride + 16 * v);
                const VS codes = count_thresholds(x, first, second, third);

                to[v] = i % 2 == 0 ? vs_or(vs_shift_left(to[v], 2), codes)
                                   : vs_or(to[v], vs_shift_left(codes, 8));
            }
        }
    }
    KIVI_UNROLL
    for (v = 0; v < side; v++)
        vs_store_pairs(words + 16 * v, half[0][v], half[1][v]);
}

/* `count` tokens that share words, in whose places from `first` on they are; of the block's tokens they
 * are those from `token` on, counted as in r. `of`: their thresholds if they are all that share them, else NULL. */
KIVI_INLINE void quantize_tokens(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                                 uint32_t first, uint32_t count, const struct group_ranges *r,
                                 const struct group_thresholds *of, uint32_t n_tokens,
                                 uint32_t token, uint32_t *words, uint32_t bits)
{
    uint32_t g, c = 0;

    for (g = 0; g < l->n_groups; g++) {
        const uint32_t range = g * n_tokens + token, next = (g + 1) * l->group_size;
        const uint32_t end = next < l->dim ? next : l->dim;

        for (; of && c + 32 <= end; c += 32)
            compare_words(rows + c, stride, of, range, words + c, 2);
        for (; of && c + 16 <= end; c += 16)
            compare_words(rows + c, stride, of, range, words + c, 1);
        for (; c + 32 <= end; c += 32)
            divide_words(rows + c, stride, 32, first, count, r, range, words + c, 32 / LANES, bits);
        for (; c < end; c += LANES)
            divide_words(rows + c, stride, end - c, first, count, r, range, words + c, 1, bits);
    }
}

KIVI_INLINE void quantize_values(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                                 uint32_t first, uint32_t count, void *block, uint32_t bits)
{
    const uint32_t per_word = 32 / bits;
    struct group_ranges r;
    struct group_thresholds of;
    uint32_t t, n;
    int compares;

    if (first == 0)
        memset(block, 0, l->block_bytes);
    find_ranges(l, rows, stride, first, count, block, &r);
    compares = bits == 2 && count >= per_word && !r.any_wide;
    if (compares)
        find_thresholds(&r, l->n_groups * count, &of);
    for (t = 0; t < count; t += n) {
        const uint32_t place = (first + t) % per_word, left = per_word - place;

        n = count - t < left ? count - t : left;
        quantize_tokens(l, rows + t * stride, stride, place, n, &r,
                        compares && n == per_word ? &of : NULL, count, t,
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
