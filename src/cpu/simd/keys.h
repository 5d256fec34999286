/*
 * Scores of packed keys, for any vector length: queries are folded into each block's scales (fold.h), and
 * lanes are tokens. Blocks are folded some at a time, so that the arithmetic of one hides the latency of
 * another's.
 *
 * A row has as few digits as may do, which is known when it has been folded, and rows with as many go together;
 * docs/numerics.md has the bounds. At 2 bits, so that one is enough, channels of a size with which
 * others could share no step are dequantized and go in floats: keys have a few of them.
 */
#ifndef KIVI_SIMD_KEYS_H
#define KIVI_SIMD_KEYS_H

#define KEY_NUMBERS 1024u /* scales that are folded together */
#define KEY_BLOCKS 8u
#define OUTLIERS 8u

/* Blocks that are folded together: their scales in floats, and the digits of some rows. */
struct key_batch {
    const struct kivi_layout *l;
    const char *blocks;
    uint32_t n_blocks, width;       /* channels of a block, up to whole sets */
    uint32_t n_rows, row[MAX_ROWS]; /* of the caller's */
    uintptr_t ahead;
    int is_dwarfed; /* all channels but one are next to nothing */
    uint32_t n_outliers;
    struct {
        uint32_t channel, word, shift; /* word: of a tile's first token */
    } outlier[OUTLIERS];
    float scale[KEY_NUMBERS], middle[KEY_NUMBERS];
    uint8_t digits[MAX_ROWS * MAX_DIGITS * KEY_NUMBERS]; /* [block][MAX_ROWS][digit][width] */
    float steps[MAX_ROWS * KEY_NUMBERS / SET * STEPS];   /* [block][MAX_ROWS][width / SET][STEPS] */
    float bias[KEY_BLOCKS][MAX_ROWS];
    float outlier_scale[KEY_BLOCKS][OUTLIERS];
    float outlier_product[KEY_BLOCKS][MAX_ROWS][OUTLIERS];
};

/* Where the digits and steps of a row over a block are. */
static uint8_t *key_digits(struct key_batch *b, uint32_t block, uint32_t row)
{
    return b->digits + ((size_t)block * MAX_ROWS + row) * MAX_DIGITS * b->width;
}

static float *key_steps(struct key_batch *b, uint32_t block, uint32_t row)
{
    return b->steps + ((size_t)block * MAX_ROWS + row) * (b->width / SET) * STEPS;
}

/* ------------------------------------------------------------------ scoring */

/* Adds the first n words, at most 4, of each 16 channels in a set to the scores of `side` vectors of tokens. */
KIVI_INLINE void add_set(VF total[MAX_SIDE][MAX_ROWS], const uint32_t *codes, uint32_t n,
                         uintptr_t ahead, const struct operands *o, uint32_t set, uint32_t rows,
                         uint32_t side, uint32_t n_digits, uint32_t bits)
{
    uint32_t i, w, v;

    KIVI_UNROLL
    for (i = 0; i < WORDS(bits); i++) {
        const uint32_t place = i * PLACES(bits);
        const size_t offset = (size_t)set * SET + 16 * place;
        const uint32_t *word = codes + i * KIVI_TILE;
        VD sum[MAX_SIDE][MAX_SUMS];

        clear_dots(sum, rows * SUMS(n_digits, bits), side);
        for (w = 0; w < n; w++, word += WORDS(bits) * KIVI_TILE) {
            KIVI_UNROLL
            for (v = 0; v < side * LANES; v += 16)
                prefetch_ahead(word + v, ahead);
            add_dots(sum, word, o, offset + 4 * w, rows, side, n_digits, bits, 1);
        }
        add_sums(total, sum, o, set, place, rows, side, n_digits, bits);
    }
}

/* Adds the outlier channels of `side` vectors of tokens. */
KIVI_INLINE void add_outliers(VF total[MAX_SIDE][MAX_ROWS], const struct key_batch *b,
                              uint32_t block, uint32_t row, const uint32_t *codes, uint32_t rows,
                              uint32_t side, uint32_t bits)
{
    uint32_t k, r, v;

    for (k = 0; k < b->n_outliers; k++) {
        const uint32_t *word = codes + b->outlier[k].word;

        KIVI_UNROLL
        for (v = 0; v < side; v++) {
            const VI words = vi_shift_right_by(vi_load(word + v * LANES), b->outlier[k].shift);
            const VI code = vi_and(words, vi_set((1 << bits) - 1));

            KIVI_UNROLL
            for (r = 0; r < rows; r++)
                total[v][r] =
                    vf_fma(vf_of(code), vf_set(b->outlier_product[block][row + r][k]), total[v][r]);
        }
    }
}

/* Scores of all blocks for rows from `row` on. The last three are constants. */
KIVI_INLINE void score_codes(struct key_batch *b, uint32_t row, float *scores, size_t ld,
                             uint32_t rows, uint32_t n_digits, uint32_t bits)
{
    const struct kivi_layout *l = b->l;
    const uint32_t side = SIDE_BY_SIDE(rows, n_digits, bits);
    const uint32_t n_sets = l->dim_pad / SET, rest = l->dim_pad % SET / 16;
    const size_t set_words = (size_t)SET * bits / 32 * KIVI_TILE;
    const char *block = b->blocks;
    uint32_t i, tile, token, s, r, v;

    for (i = 0; i < b->n_blocks; i++, block += l->block_bytes) {
        const struct operands o = {key_digits(b, i, row), (size_t)MAX_DIGITS * b->width, b->width,
                                   key_steps(b, i, row), b->width / SET * STEPS};
        const uint32_t *codes = (const uint32_t *)(const void *)block;

        for (tile = 0; tile < l->tokens; tile += KIVI_TILE) {
            for (token = 0; token < KIVI_TILE; token += side * LANES) {
                const uint32_t *word = codes + token;
                VF total[MAX_SIDE][MAX_ROWS];

                KIVI_UNROLL
                for (r = 0; r < rows; r++) {
                    KIVI_UNROLL
                    for (v = 0; v < side; v++)
                        total[v][r] = vf_set(b->bias[i][row + r]);
                }
                for (s = 0; s < n_sets; s++, word += set_words)
                    add_set(total, word, 4, b->ahead, &o, s, rows, side, n_digits, bits);
                if (rest > 0) /* less than 4 */
                    add_set(total, word, rest % 4, b->ahead, &o, s, rows, side, n_digits, bits);
                if (bits == 2)
                    add_outliers(total, b, i, row, codes + token, rows, side, bits);
                KIVI_UNROLL
                for (r = 0; r < rows; r++) {
                    KIVI_UNROLL
                    for (v = 0; v < side; v++)
                        vf_store(scores + b->row[row + r] * ld + token + v * LANES, total[v][r]);
                }
            }
            scores += KIVI_TILE;
            codes += (size_t)l->dim_pad * bits / 32 * KIVI_TILE;
        }
    }
}

typedef void score_loop(struct key_batch *b, uint32_t row, float *scores, size_t ld);

/* ------------------------------------------------------------------ folding */

/* A score's error as such is a relative one of its weight: what it may be, squared. The codes' own quantization
 * is off by as much as the second number allows of it, so small that a sum of few weights keeps to 5%. */
#define ERROR_ALLOWED(n_digits) ((n_digits) == 1 ? 1e-2f * 1e-2f : 1e-4f * 1e-4f)
#define SHARE_ALLOWED (0.022f * 0.022f)
#define TOKENS_OF_SHARE 256u /* of fewer, one or two may decide a row: they take two digits */

/* Whether a row over n blocks, with so many tokens in all of the batch, is fine with so many digits. A step counts for 16 products, which are off by a
 * twelfth of its square, times codes as likely at the ends of their range as in the middle. */
static int fine_enough(const struct folded *all, uint32_t n, uint32_t n_tokens,
                       uint32_t n_digits, uint32_t bits)
{
    const float levels = (float)(1u << bits), code = levels * levels / 12;
    const float error = vf_sum(all->steps) / 4 * 16 / 12 * code;

    if (error > ERROR_ALLOWED(n_digits) * (float)n)
        return 0;
    if (n_digits > 1)
        return 1;
    return n_tokens >= TOKENS_OF_SHARE && error <= SHARE_ALLOWED / 12 * vf_sum(all->squares);
}

/* The outliers' products, and what they add to the bias. */
static float fold_outliers(struct key_batch *b, const float *q, uint32_t block, uint32_t row,
                           uint32_t bits, float *squares)
{
    float sum = 0;
    uint32_t k;

    for (k = 0; k < b->n_outliers; k++) {
        const float product = q[b->outlier[k].channel] * b->outlier_scale[block][k];

        b->outlier_product[block][row][k] = product;
        sum -= product * middle_code(bits);
        *squares += product * product;
    }
    return sum;
}

/* Folds a row into all blocks. Returns 0 if so many digits are too few. */
KIVI_INLINE int fold_query(struct key_batch *b, const float *q, uint32_t row, uint32_t n_digits,
                           uint32_t bits, const float *places)
{
    const uint32_t dim = b->l->dim_pad;
    struct folded all = nothing_folded();
    uint32_t i, c;

    for (i = 0; i < b->n_blocks; i++) {
        const float *scale = b->scale + (size_t)i * b->width;
        const float *middle = b->middle + (size_t)i * b->width;
        uint8_t *digits = key_digits(b, i, row);
        float *steps = key_steps(b, i, row);
        float bias = 0, squares = 0;

        all.bias = vf_zero();
        for (c = 0; c + SET <= dim; c += SET, steps += STEPS)
            fold(q + c, scale + c, middle + c, SET, 1, n_digits, bits, 1, places, digits + c,
                 b->width, steps, &all);
        if (c < dim)
            fold(q + c, scale + c, middle + c, dim - c, 1, n_digits, bits, 1, places, digits + c,
                 b->width, steps, &all);
        if (bits == 2) {
            bias = fold_outliers(b, q, i, row, bits, &squares);
            if (n_digits == 1)
                all.squares = vf_add(all.squares, vf_first(squares));
        }
        b->bias[i][row] = bias + vf_sum(all.bias);
        if (n_digits < MAX_DIGITS && (i == 0 || i + 1 == b->n_blocks)
            && !fine_enough(&all, i + 1, b->n_blocks * b->l->tokens, n_digits, bits))
            return 0;
    }
    return 1;
}

/* Scores of n of the caller's rows, without those for which so many digits are too few. Leaves these in `rows`, and
 * returns their number. The last two are constants. */
KIVI_INLINE uint32_t score_queries(struct key_batch *b, const float *q, uint32_t *rows, uint32_t n,
                                   float *scores, size_t ld, score_loop *of_4, score_loop *of_2,
                                   score_loop *of_1, uint32_t n_digits, uint32_t bits)
{
    float places[STEPS];
    uint32_t i, r = 0, n_left = 0;

    find_places(places, bits, 1);
    b->n_rows = 0;
    for (i = 0; i < n; i++) {
        if (fold_query(b, q + (size_t)rows[i] * b->l->dim_pad, b->n_rows, n_digits, bits, places))
            b->row[b->n_rows++] = rows[i];
        else
            rows[n_left++] = rows[i];
    }
    for (; ROWS_TOGETHER(n_digits, bits) >= 4 && r + 4 <= b->n_rows; r += 4)
        of_4(b, r, scores, ld);
    for (; ROWS_TOGETHER(n_digits, bits) >= 2 && r + 2 <= b->n_rows; r += 2)
        of_2(b, r, scores, ld);
    for (; r < b->n_rows; r++)
        of_1(b, r, scores, ld);
    return n_left;
}

#define SCORE_LOOP(rows, n_digits, bits)                                                           \
    KIVI_APART void score_##rows##_##n_digits##_##bits(struct key_batch *b, uint32_t row,          \
                                                       float *scores, size_t ld)                   \
    {                                                                                              \
        if (ROWS_TOGETHER(n_digits, bits) >= rows)                                                 \
            score_codes(b, row, scores, ld, rows, n_digits, bits);                                 \
    }

#define SCORE_ROWS(n_digits, bits)                                                                 \
    SCORE_LOOP(1, n_digits, bits)                                                                  \
    SCORE_LOOP(2, n_digits, bits)                                                                  \
    SCORE_LOOP(4, n_digits, bits)                                                                  \
    KIVI_APART uint32_t score_##n_digits##_##bits(                                                 \
        struct key_batch *b, const float *q, uint32_t *rows, uint32_t n, float *scores, size_t ld) \
    {                                                                                              \
        return score_queries(b, q, rows, n, scores, ld, score_4_##n_digits##_##bits,               \
                             score_2_##n_digits##_##bits, score_1_##n_digits##_##bits, n_digits,   \
                             bits);                                                                \
    }

SCORE_ROWS(1, 2)
SCORE_ROWS(2, 2)
SCORE_ROWS(3, 2)
SCORE_ROWS(2, 4)
SCORE_ROWS(3, 4)
SCORE_ROWS(2, 8)
SCORE_ROWS(3, 8)

/* Scores of n rows, at most MAX_ROWS. */
static void score_batch(struct key_batch *b, const float *q, uint32_t n, float *scores, size_t ld,
                        kivi_precision precision)
{
    const int standard = precision == KIVI_STANDARD && !b->is_dwarfed;
    uint32_t rows[MAX_ROWS] = {0, 1, 2, 3};

    if (b->l->bits == 2) {
        if (standard)
            n = score_1_2(b, q, rows, n, scores, ld);
        if (standard && n > 0)
            n = score_2_2(b, q, rows, n, scores, ld);
        if (n > 0)
            score_3_2(b, q, rows, n, scores, ld);
    } else if (b->l->bits == 4) {
        if (standard)
            n = score_2_4(b, q, rows, n, scores, ld);
        if (n > 0)
            score_3_4(b, q, rows, n, scores, ld);
    } else {
        if (standard)
            n = score_2_8(b, q, rows, n, scores, ld);
        if (n > 0)
            score_3_8(b, q, rows, n, scores, ld);
    }
}

/* A channel is an outlier if its scale is so many times the root mean square, squared. */
#define OUTLIER_SIZE 8.0f

/* Finds the outliers of the first block: they stay the same from block to block. Too many are none. */
static void find_outliers(struct key_batch *b, uint32_t bits)
{
    const uint32_t dim = b->l->dim_pad;
    VF squares = vf_zero(), top = vf_zero();
    float sum, widest, least;
    uint32_t c, v;

    for (c = 0; c < dim; c += LANES) {
        squares = vf_fma(vf_load(b->scale + c), vf_load(b->scale + c), squares);
        top = vf_max(top, vf_load(b->scale + c));
    }
    sum = vf_sum(squares);
    widest = vf_largest(top);
    least = sqrtf(sum / (float)b->l->dim * OUTLIER_SIZE);
    b->is_dwarfed = widest * widest > 0.99f * sum;
    b->n_outliers = 0;
    for (c = 0; bits == 2 && c < dim; c += LANES) {
        if (!vm_any(vm_less(vf_set(least), vf_load(b->scale + c))))
            continue;
        for (v = c; v < c + LANES; v++) {
            if (b->scale[v] <= least)
                continue;
            if (b->n_outliers == OUTLIERS) {
                b->n_outliers = 0;
                return;
            }
            b->outlier[b->n_outliers].channel = v;
            b->outlier[b->n_outliers].word =
                (uint32_t)kivi_key_word(b->l, 0, v, &b->outlier[b->n_outliers].shift);
            b->n_outliers++;
        }
    }
}

/* Reads the scales of the blocks. Outliers' become 0: they are not folded. */
KIVI_INLINE void unfold_keys(struct key_batch *b, uint32_t bits)
{
    const struct kivi_layout *l = b->l;
    VF unused = vf_zero();
    uint32_t i, c, k;

    for (i = 0; i < b->n_blocks; i++) {
        const char *block = b->blocks + (size_t)i * l->block_bytes;
        const uint16_t *scales = kivi_scales_const(l, block), *minima = kivi_minima_const(l, block);
        float *scale = b->scale + (size_t)i * b->width, *middle = b->middle + (size_t)i * b->width;

        for (c = 0; c + 32 <= l->dim_pad; c += 32) {
            prefetch_ahead(scales + c, b->ahead);
            prefetch_ahead(minima + c, b->ahead);
            KIVI_UNROLL
            for (k = c; k < c + 32; k += 16)
                unfold_16(scales + k, minima + k, bits, scale + k, middle + k, &unused);
        }
        if (c < l->dim_pad)
            unfold_16(scales + c, minima + c, bits, scale + c, middle + c, &unused);
        if (i == 0)
            find_outliers(b, bits);
        for (k = 0; k < b->n_outliers; k++) {
            b->outlier_scale[i][k] = scale[b->outlier[k].channel];
            scale[b->outlier[k].channel] = 0;
        }
    }
}

static void k_scores(const struct kivi_layout *l, const float *q, uint32_t n_rows,
                     const void *blocks, uint32_t n_blocks, const void *next, float *scores,
                     size_t ld, kivi_precision precision)
{
    const uint32_t width = (l->dim_pad + SET - 1) / SET * SET;
    const uint32_t room = KEY_NUMBERS / width < KEY_BLOCKS ? KEY_NUMBERS / width : KEY_BLOCKS;
    const uintptr_t ahead = ahead_of(blocks, next);
    struct key_batch b;
    uint32_t r;

    b.l = l;
    b.blocks = blocks;
    b.width = width;
    for (; n_blocks > 0; n_blocks -= b.n_blocks) {
        b.n_blocks = n_blocks < room ? n_blocks : room;
        b.ahead = ahead;
        if (l->bits == 2)
            unfold_keys(&b, 2);
        else if (l->bits == 4)
            unfold_keys(&b, 4);
        else
            unfold_keys(&b, 8);
        for (r = 0; r < n_rows; r += MAX_ROWS) {
            score_batch(&b, q + (size_t)r * l->dim_pad,
                        n_rows - r < MAX_ROWS ? n_rows - r : MAX_ROWS, scores + r * ld, ld,
                        precision);
            b.ahead = 0; /* was asked for */
        }
        scores += (size_t)b.n_blocks * l->tokens;
        b.blocks += (size_t)b.n_blocks * l->block_bytes;
    }
}

#endif
