/*
 * Scores of packed keys, for any vector length: queries are folded into each block's scales (fold.h), and
 * lanes are tokens. Blocks go some at a time: they share steps, which the largest of their scales decide, and the
 * arithmetic of one hides the latency of another's.
 *
 * A row has as few digits as may do, which its steps tell before it is folded, and rows with as many go together;
 * those for which no digits do, and all of KIVI_PRECISE, go in floats (floats.h). docs/numerics.md has the bounds. At 2 bits, so that one is enough, channels of a size with which
 * others could share no step are dequantized and go in floats: keys have a few of them.
 */
#ifndef KIVI_SIMD_KEYS_H
#define KIVI_SIMD_KEYS_H

#define KEY_NUMBERS 2048u /* scales that are folded before codes are read */
#define KEY_BLOCKS 8u
#define OUTLIERS 8u
#define OUTLIER_LANES (LANES > OUTLIERS ? LANES : OUTLIERS)

/* Blocks that are folded together, for some rows. */
struct key_batch {
    const struct kivi_layout *l;
    const char *blocks;
    uint32_t n_blocks, width;       /* channels of a block, up to whole sets */
    uint32_t n_rows, row[MAX_ROWS]; /* of the caller's */
    const float *q[MAX_ROWS];
    struct ahead ahead;
    int in_digits, exact_values;
    int is_dwarfed; /* all channels but one are next to nothing */
    uint32_t n_outliers;
    struct {
        uint32_t channel, word, shift; /* word: of a tile's first token */
    } outlier[OUTLIERS];
    _Alignas(KIVI_LINE) float top[KIVI_MAX_DIM]; /* largest scales, */
    float common_top[KIVI_MAX_DIM];              /* and 0 for outliers */
    float mean_square[KIVI_MAX_DIM];             /* of the scales */
    uint16_t outlier_scale[KEY_BLOCKS][OUTLIER_LANES];
    float outlier_q[MAX_ROWS][OUTLIER_LANES];
    float outlier_product[KEY_BLOCKS][MAX_ROWS][OUTLIER_LANES];
    float counted[MAX_ROWS][KIVI_MAX_DIM]; /* q, so that times a scale it counts steps */
    float steps[MAX_ROWS][KIVI_MAX_DIM / SET * STEPS];
    float centres[MAX_ROWS][KIVI_MAX_DIM / SET * STEPS];
    uint8_t digits[MAX_ROWS][MAX_DIGITS][KEY_NUMBERS]; /* `width` to a block */
    float bias[KEY_BLOCKS][MAX_ROWS];
};

_Static_assert(offsetof(struct key_batch, digits) % KIVI_LINE == 0, "vectors within lines");

/* ------------------------------------------------------------------ scoring */

/* Adds the first n words, at most 4, of each 16 channels in a set to the scores of `side` vectors of tokens. */
KIVI_INLINE void add_set(VF total[MAX_SIDE][MAX_ROWS], const uint32_t *codes, uint32_t n,
                         struct ahead *ahead, const struct operands *o, uint32_t set, uint32_t rows,
                         uint32_t side, uint32_t n_digits, uint32_t bits)
{
    uint32_t place, w;

    KIVI_UNROLL
    for (place = 0; place < 4; place++) {
        const uint32_t *word = vd_again(codes + place / PLACES(bits) * KIVI_TILE, side);
        VD sum[MAX_SIDE][MAX_SUMS];

        clear_dots(sum, rows * n_digits, side);
        KIVI_UNROLL
        for (w = 0; w < 4 && w < n; w++, word += WORDS(bits) * KIVI_TILE) {
            if (place % PLACES(bits) == 0)
                ask(ahead, side * LANES * sizeof *word, rows, bits);
            add_dots(sum, word, o, (size_t)set * SET + 16 * place, w, place, rows, side, n_digits,
                     bits, 1);
        }
        add_sums(total, sum, o, set, place, rows, side, n_digits);
    }
}

/* Adds the outlier channels of `side` vectors of tokens. */
KIVI_INLINE void add_outliers(VF total[MAX_SIDE][MAX_ROWS], const struct key_batch *b,
                              uint32_t block, const uint32_t *codes, uint32_t rows, uint32_t side,
                              uint32_t bits)
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
                    vf_fma(vf_of(code), vf_set(b->outlier_product[block][r][k]), total[v][r]);
        }
    }
}

/* Scores of a tile for all rows, `at` tokens into the caller's. The last three are constants. */
KIVI_INLINE void score_key_tile(const struct key_batch *b, const uint32_t *codes, uint32_t n_sets,
                                uint32_t rest, struct ahead *ahead, const struct operands *o,
                                uint32_t block, float *const *scores, size_t at, uint32_t rows,
                                uint32_t n_digits, uint32_t bits)
{
    const uint32_t side = SIDE_BY_SIDE(rows, n_digits);
    uint32_t token, s, r, v;

    for (token = 0; token < KIVI_TILE; token += side * LANES) {
        const uint32_t *word = codes + token;
        VF total[MAX_SIDE][MAX_ROWS];

        KIVI_UNROLL
        for (r = 0; r < rows; r++) {
            KIVI_UNROLL
            for (v = 0; v < side; v++)
                total[v][r] = vf_set(b->bias[block][r]);
        }
        for (s = 0; s < n_sets; s++, word += SET * bits / 32 * KIVI_TILE)
            add_set(total, word, 4, ahead, o, s, rows, side, n_digits, bits);
        if (rest > 0) /* less than 4 */
            add_set(total, word, rest % 4, ahead, o, s, rows, side, n_digits, bits);
        if (n_digits == 1 && b->n_outliers > 0)
            add_outliers(total, b, block, codes + token, rows, side, bits);
        KIVI_UNROLL
        for (r = 0; r < rows; r++) {
            KIVI_UNROLL
            for (v = 0; v < side; v++)
                vf_store(scores[r] + at + token + v * LANES, total[v][r]);
        }
    }
}

/* Scores of all blocks for all rows. The last three are constants. What the loops need is copied: stores
 * of vectors might be to anything, for all that compilers know. */
KIVI_INLINE void score_codes(struct key_batch *b, float *scores, size_t ld, uint32_t rows,
                             uint32_t n_digits, uint32_t bits)
{
    const struct kivi_layout *l = b->l;
    const uint32_t n_sets = l->dim_pad / SET, rest = l->dim_pad % SET / 16, n_blocks = b->n_blocks;
    const size_t tile_words = (size_t)l->dim_pad * bits / 32 * KIVI_TILE, tokens = l->tokens;
    const size_t rest_words = l->block_bytes / sizeof(uint32_t) - tokens / KIVI_TILE * tile_words;
    const uint32_t *codes = (const uint32_t *)(const void *)b->blocks;
    const uint32_t width = b->width;
    struct operands o = {b->digits[0][0], sizeof b->digits[0], sizeof b->digits[0][0], b->steps[0],
                         sizeof b->steps[0] / sizeof(float)};
    struct ahead ahead = b->ahead;
    float *to[MAX_ROWS];
    size_t at = 0, end = 0;
    uint32_t i, r;

    KIVI_UNROLL
    for (r = 0; r < rows; r++)
        to[r] = scores + b->row[r] * ld;
    for (i = 0; i < n_blocks; i++) {
        for (end += tokens; at < end; at += KIVI_TILE, codes += tile_words)
            score_key_tile(b, codes, n_sets, rest, &ahead, &o, i, to, at, rows, n_digits, bits);
        codes += rest_words;
        o.digits += width;
    }
    end_ahead(&b->ahead, b->blocks);
}

typedef void score_loop(struct key_batch *b, float *scores, size_t ld);

/* ------------------------------------------------------------------ folding */

/* Of one digit, as a share of what the codes' own quantization does, squared. docs/numerics.md has what rows of outputs
 * come to. */
#define SHARE_ALLOWED (0.03f * 0.03f)

/* What a score's error may be as such, squared: it is a relative one of its weight. */
KIVI_INLINE float error_allowed(uint32_t n_digits, uint32_t bits)
{
    const float most = n_digits == 1 ? 1.1e-2f : bits == 2 ? 1e-3f : 1e-4f;

    return most * most;
}

/* Finds the largest scale of each channel, and the mean square. */
static void find_scales(struct key_batch *b)
{
    const size_t dim = b->l->dim_pad, block = b->l->block_bytes / sizeof(uint16_t);
    const VF share = vf_set(1 / (float)b->n_blocks);
    const uint16_t *scales = kivi_scales_const(b->l, b->blocks);
    const uint32_t n_blocks = b->n_blocks;
    uint32_t i;
    size_t c;

    for (c = 0; c < dim; c += LANES) {
        VF top = vf_zero(), squares = vf_zero();

        for (i = 0; i < n_blocks; i++) {
            const VF scale = vf_load_half(scales + i * block + c);

            top = vf_max(top, scale);
            squares = vf_fma(scale, scale, squares);
        }
        vf_store(b->top + c, top);
        vf_store(b->common_top + c, top);
        vf_store(b->mean_square + c, vf_mul(squares, share));
    }
}

/* What the steps of a row do, lane by lane. */
struct rounding {
    VF steps;    /* their squares */
    VF products; /* squares of the products of a block on average, */
    VF tops;     /* and of the largest */
    VF aligned; /* what rounding the largest makes of them, towards 0 or away from it: what a token is off by, but for
                    the middle code, whose codes are all at the ends at which the queries' signs make its score the
                    largest */
};

/* Finds the steps of n channels from c on for row r, and adds up what they do. n may, and the last two are constants. */
KIVI_INLINE void find_set_steps(struct key_batch *b, uint32_t r, size_t c, uint32_t n,
                                const float *places, struct rounding *all, uint32_t n_digits,
                                uint32_t bits)
{
    const float *q = b->q[r] + c, *top = (n_digits == 1 ? b->common_top : b->top) + c;
    float *steps = b->steps[r] + c / SET * STEPS, *centres = b->centres[r] + c / SET * STEPS;
    uint32_t w, v;

    KIVI_UNROLL
    for (v = 0; v < VECTORS; v++) {
        VF widest = vf_zero(), step, inverse;

        KIVI_UNROLL
        for (w = 0; w < 4; w++) {
            const size_t at = 16 * w + v * LANES;

            if (16 * w < n)
                widest = vf_larger(widest, vf_mul(vf_load(q + at), vf_load(top + at)));
        }
        step = find_steps(widest, n_digits, 1, &inverse);
        all->steps = vf_fma(step, step, all->steps);
        vf_store(steps + v * LANES, vf_mul(step, vf_load(places + v * LANES)));
        vf_store(centres + v * LANES, centre_steps(step, bits));
        KIVI_UNROLL
        for (w = 0; w < 4; w++) {
            const size_t at = 16 * w + v * LANES;
            VF y, scale;

            if (16 * w >= n)
                break;
            y = vf_load(q + at);
            scale = vf_load(top + at);
            if (n_digits == 1) {
                const VF product = vf_mul(y, scale), number = vf_abs(vf_mul(product, inverse));

                all->products =
                    vf_fma(vf_mul(y, y), vf_load(b->mean_square + c + at), all->products);
                all->tops = vf_fma(product, product, all->tops);
                all->aligned = vf_fma(step, vf_sub(vf_nearest(number), number), all->aligned);
            }
            /* where there is no scale the number is not needed, and might overflow */
            vf_store(b->counted[r] + c + at,
                     vf_select(vm_less(vf_zero(), scale), vf_mul(y, inverse), vf_zero()));
        }
    }
}

/* Blocks whose products are so many times the mean, in squares, stand out. */
#define STANDS_OUT 1.75f

/* Finds the steps of row r. Returns whether they are fine enough. A step counts for 16 products, which are off by a
 * twelfth of its square, times codes as likely at the ends of their range as in the middle. Products that are alike
 * are all off the same way, as independent ones, within two deviations, are not: from a third of what a score may be off
 * by that counts apart. Where blocks stand out their tokens may have all the weight: one digit is too few. The last two
 * are constants. */
KIVI_INLINE int find_row_steps(struct key_batch *b, uint32_t r, const float *places,
                               uint32_t n_digits, uint32_t bits)
{
    const float levels = (float)(1u << bits), code = levels * levels / 12;
    const float allowed = error_allowed(n_digits, bits);
    const size_t dim = b->l->dim_pad;
    struct rounding all = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    float error, aligned, independent, products;
    size_t c;

    for (c = 0; c + SET <= dim; c += SET)
        find_set_steps(b, r, c, SET, places, &all, n_digits, bits);
    if (c < dim)
        find_set_steps(b, r, c, (uint32_t)(dim - c), places, &all, n_digits, bits);
    error = vf_sum(all.steps) / 4 * 16 / 12 * code;
    if (n_digits > 1 || error > allowed)
        return error <= allowed;
    products = vf_sum(all.products);
    aligned = vf_sum(all.aligned) * middle_code(bits);
    independent = error / code * middle_code(bits) * middle_code(bits);
    return error <= SHARE_ALLOWED / 12 * products
           && aligned * aligned <= fmaxf(allowed / 9, 4 * independent)
           && vf_sum(all.tops) <= STANDS_OUT * products;
}

/* Folds n channels of a set for n_rows rows. n may, and the last three are constants. */
KIVI_INLINE void fold_set(struct key_batch *b, size_t c, const uint16_t *scales,
                          const uint16_t *minima, uint32_t n, struct ahead *ahead, VF *bias,
                          uint8_t *digits, uint32_t n_rows, uint32_t n_digits, uint32_t bits)
{
    struct unfolded u;
    uint32_t w, r, v;

    KIVI_UNROLL
    for (w = 0; w < 4; w++) {
        if (16 * w < n) {
            ask(ahead, 2 * 16 * sizeof *scales, n_rows, bits);
            unfold(&u, w, scales + 16 * w, minima + 16 * w, bits);
        } else {
            unfold_none(&u, w);
        }
    }
    for (r = 0; r < n_rows; r++) {
        const float *q = b->q[r] + c, *counted = b->counted[r] + c;
        const float *centres = b->centres[r] + c / SET * STEPS;
        VF sum = bias[r];

        KIVI_UNROLL
        for (v = 0; v < VECTORS; v++) {
            VF product[4];

            KIVI_UNROLL
            for (w = 0; w < 4; w++) {
                const size_t at = 16 * w + v * LANES;

                product[w] = 16 * w < n ? vf_mul(vf_load(counted + at), u.scale[w][v]) : vf_zero();
                if (16 * w < n)
                    sum = vf_fma(vf_load(q + at), u.middle[w][v], sum);
            }
            sum = round_set(product, vf_load(centres + v * LANES), digits + r * sizeof b->digits[0],
                            KEY_NUMBERS, sum, v, n_digits, 1);
        }
        bias[r] = sum;
    }
}

/* Folds the outliers of a block for n_rows rows. */
static void fold_outliers(struct key_batch *b, uint32_t block, VF *bias, uint32_t n_rows)
{
    uint32_t r, v;

    for (v = 0; v < OUTLIERS; v += LANES) {
        const VF scale = vf_load_half(b->outlier_scale[block] + v);

        for (r = 0; r < n_rows; r++) {
            const VF product = vf_mul(vf_load(b->outlier_q[r] + v), scale);

            vf_store(b->outlier_product[block][r] + v, product);
            bias[r] = vf_fma(product, vf_set(-middle_code(2)), bias[r]);
        }
    }
}

/* Folds rows into all blocks. The last two are constants, and n_rows may be. */
KIVI_INLINE void fold_queries(struct key_batch *b, uint32_t n_rows, uint32_t n_digits,
                              uint32_t bits)
{
    const size_t dim = b->l->dim_pad, block = b->l->block_bytes / sizeof(uint16_t);
    const uint32_t n_blocks = b->n_blocks;
    const uint16_t *scales = kivi_scales_const(b->l, b->blocks);
    const uint16_t *minima = kivi_minima_const(b->l, b->blocks);
    uint8_t *digits = b->digits[0][0];
    struct ahead ahead = b->ahead;
    VF bias[MAX_ROWS];
    size_t c;
    uint32_t i, r;

    for (i = 0; i < n_blocks; i++) {
        for (r = 0; r < n_rows; r++)
            bias[r] = vf_zero();
        for (c = 0; c + SET <= dim; c += SET)
            fold_set(b, c, scales + c, minima + c, SET, &ahead, bias, digits + c, n_rows, n_digits,
                     bits);
        if (c < dim)
            fold_set(b, c, scales + c, minima + c, (uint32_t)(dim - c), &ahead, bias, digits + c,
                     n_rows, n_digits, bits);
        if (n_digits == 1 && b->n_outliers > 0)
            fold_outliers(b, i, bias, n_rows);
        for (r = 0; r < n_rows; r++)
            b->bias[i][r] = vf_sum(bias[r]);
        scales += block;
        minima += block;
        digits += b->width;
    }
    b->ahead = ahead;
}

/* Scores of n of the caller's rows, without those for which so many digits are too few. Leaves these in `rows`, and
 * returns their number. The last two are constants. */
KIVI_INLINE uint32_t score_queries(struct key_batch *b, const float *q, uint32_t *rows, uint32_t n,
                                   float *scores, size_t ld, score_loop *const *loops,
                                   uint32_t n_digits, uint32_t bits)
{
    float places[STEPS];
    uint32_t i, k, n_left = 0;

    find_places(places, bits, 1);
    b->n_rows = 0;
    for (i = 0; i < n; i++) {
        const uint32_t to = b->n_rows;

        b->q[to] = q + (size_t)rows[i] * b->l->dim_pad;
        if (!find_row_steps(b, to, places, n_digits, bits)) {
            rows[n_left++] = rows[i];
            continue;
        }
        for (k = 0; n_digits == 1 && k < b->n_outliers; k++)
            b->outlier_q[to][k] = b->q[to][b->outlier[k].channel];
        b->row[b->n_rows++] = rows[i];
    }
    if (b->n_rows == 0)
        return n_left;
    if (b->n_rows == 1) /* whose sums compilers then keep in registers */
        fold_queries(b, 1, n_digits, bits);
    else
        fold_queries(b, b->n_rows, n_digits, bits);
    loops[b->n_rows - 1](b, scores, ld);
    return n_left;
}

#define SCORE_LOOP(rows, n_digits, bits)                                                           \
    KIVI_APART void score_##rows##_##n_digits##_##bits(struct key_batch *b, float *scores,         \
                                                       size_t ld)                                  \
    {                                                                                              \
        if (n_digits <= MOST_DIGITS(bits))                                                         \
            score_codes(b, scores, ld, rows, n_digits, bits);                                      \
    }

#define SCORE_ROWS(n_digits, bits)                                                                 \
    SCORE_LOOP(1, n_digits, bits)                                                                  \
    SCORE_LOOP(2, n_digits, bits)                                                                  \
    SCORE_LOOP(3, n_digits, bits)                                                                  \
    SCORE_LOOP(4, n_digits, bits)                                                                  \
    KIVI_APART uint32_t score_##n_digits##_##bits(                                                 \
        struct key_batch *b, const float *q, uint32_t *rows, uint32_t n, float *scores, size_t ld) \
    {                                                                                              \
        static score_loop *const loops[MAX_ROWS] = {                                               \
            score_1_##n_digits##_##bits, score_2_##n_digits##_##bits, score_3_##n_digits##_##bits, \
            score_4_##n_digits##_##bits};                                                          \
                                                                                                   \
        return score_queries(b, q, rows, n, scores, ld, loops, n_digits, bits);                    \
    }

SCORE_ROWS(1, 2)
SCORE_ROWS(2, 2)
SCORE_ROWS(2, 4)
SCORE_ROWS(2, 8)

/* A channel is an outlier if the square of its scale is so many times the mean. */
#define OUTLIER_SIZE 8.0f

/* Takes the outliers out of the common scales. Puts their scales of all blocks together, long before they are read as
 * vectors. */
static void gather_outliers(struct key_batch *b)
{
    const size_t block = b->l->block_bytes / sizeof(uint16_t);
    const uint32_t n_blocks = b->n_blocks;
    uint32_t i, k;

    memset(b->outlier_scale, 0, sizeof b->outlier_scale);
    memset(b->outlier_q, 0, sizeof b->outlier_q);
    for (k = 0; k < b->n_outliers; k++) {
        const uint16_t *scale = kivi_scales_const(b->l, b->blocks) + b->outlier[k].channel;

        b->common_top[b->outlier[k].channel] = 0;
        for (i = 0; i < n_blocks; i++)
            b->outlier_scale[i][k] = scale[i * block];
    }
}

/* Finds the outliers of the blocks, and takes them out of the common scales. Too many are none. */
static void find_outliers(struct key_batch *b)
{
    const struct kivi_layout l = *b->l;
    VF squares = vf_zero(), top = vf_zero();
    float sum, widest, least;
    uint32_t c, i;

    for (c = 0; c < l.dim_pad; c += LANES) {
        const VF square = vf_load(b->mean_square + c);

        squares = vf_add(squares, square);
        top = vf_max(top, square);
    }
    sum = vf_sum(squares);
    widest = vf_largest(top);
    least = sum / (float)l.dim * OUTLIER_SIZE;
    b->is_dwarfed = widest > 0.99f * sum;
    b->n_outliers = 0;
    if (l.bits != 2 || widest <= least)
        return;
    for (c = 0; c < l.dim_pad; c += LANES) {
        uint32_t larger = vm_lanes(vm_less(vf_set(least), vf_load(b->mean_square + c)));

        for (i = c; larger != 0; i++, larger >>= 1) {
            uint32_t shift;

            if (!(larger & 1))
                continue;
            if (b->n_outliers == OUTLIERS) {
                b->n_outliers = 0;
                return;
            }
            b->outlier[b->n_outliers].channel = i;
            b->outlier[b->n_outliers].word = (uint32_t)kivi_key_word(&l, 0, i, &shift);
            b->outlier[b->n_outliers++].shift = shift;
        }
    }
    gather_outliers(b);
}

/* Of fewer tokens one or two may decide a row, and beside exact values nothing hides what a score is off by: there one
 * digit is too few. */
#define LEAST_TOKENS 256u

/* Scores of n rows. Leaves in `rows` those for which digits are too few, and returns their number. */
static uint32_t score_in_digits(struct key_batch *b, const float *q, uint32_t *rows, uint32_t n,
                                float *scores, size_t ld)
{
    if (b->l->bits == 8)
        return score_2_8(b, q, rows, n, scores, ld);
    if (b->l->bits == 4)
        return score_2_4(b, q, rows, n, scores, ld);
    if (!b->exact_values && b->n_blocks * b->l->tokens >= LEAST_TOKENS)
        n = score_1_2(b, q, rows, n, scores, ld);
    return n > 0 && MOST_DIGITS(2) > 1 ? score_2_2(b, q, rows, n, scores, ld) : n;
}

/* Scores of n rows, at most MAX_ROWS. */
static void score_batch(struct key_batch *b, const float *q, uint32_t n, float *scores, size_t ld)
{
    const float *q_left[MAX_ROWS];
    float *scores_left[MAX_ROWS];
    uint32_t rows[MAX_ROWS] = {0, 1, 2, 3}, r;

    if (b->in_digits && !b->is_dwarfed)
        n = score_in_digits(b, q, rows, n, scores, ld);
    for (r = 0; r < n; r++) {
        q_left[r] = q + (size_t)rows[r] * b->l->dim_pad;
        scores_left[r] = scores + rows[r] * ld;
    }
    if (n > 0)
        score_in_floats(b->l, q_left, n, b->blocks, b->n_blocks, b->ahead, scores_left);
    end_ahead(&b->ahead, b->blocks);
}

static void k_scores(const struct kivi_layout *l, const float *q, uint32_t n_rows,
                     const void *blocks, uint32_t n_blocks, struct kivi_next next, float *scores,
                     size_t ld, int exact_values, kivi_precision precision)
{
    const uint32_t width = (l->dim_pad + SET - 1) / SET * SET;
    const uint32_t room = KEY_NUMBERS / width < KEY_BLOCKS ? KEY_NUMBERS / width : KEY_BLOCKS;
    struct ahead ahead =
        ahead_of(next, blocks, (size_t)n_blocks * l->block_bytes, n_rows, l->bits);
    struct key_batch b;
    uint32_t r;

    b.l = l;
    b.blocks = blocks;
    b.width = width;
    b.exact_values = exact_values;
    b.in_digits = in_digits(l->bits, n_rows, next, precision);
    for (; n_blocks > 0; n_blocks -= b.n_blocks) {
        b.n_blocks = n_blocks < room ? n_blocks : room;
        b.ahead = ahead;
        if (b.in_digits) {
            find_scales(&b);
            find_outliers(&b);
        }
        for (r = 0; r < n_rows; r += MAX_ROWS)
            score_batch(&b, q + (size_t)r * l->dim_pad,
                        n_rows - r < MAX_ROWS ? n_rows - r : MAX_ROWS, scores + r * ld, ld);
        scores += (size_t)b.n_blocks * l->tokens;
        b.blocks += (size_t)b.n_blocks * l->block_bytes;
        move_ahead(&ahead, (size_t)b.n_blocks * l->block_bytes, l->bits);
    }
}

#endif
