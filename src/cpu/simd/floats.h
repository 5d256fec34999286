/*
 * Packed codes as floats, for any vector length: for KIVI_PRECISE, for rows that want more than digits give (fold.h),
 * and for codes with which digits are no faster. Scales are folded into the other operand here, too:
 *
 *     sum x * (code * scale + min) = sum (x * scale) * (code - half) + sum x * (min + half * scale)
 *
 * where half, 2^(bits - 1), keeps sums small. Words are read once and in the order of addresses. Rows share the floats
 * that codes become, and vectors the numbers that these are multiplied with.
 */
#ifndef KIVI_SIMD_FLOATS_H
#define KIVI_SIMD_FLOATS_H

#define FLOAT_SUMS (LANES == 8 ? 8 : 16) /* that are kept at a time: what the registers hold */
#define FEWEST_SUMS (FLOAT_SUMS / 2)     /* with which none waits for the one before */

#define LESS_OF(a, b) ((a) < (b) ? (a) : (b))

/* Vectors of codes that go together, and the sums that a row has for each. */
#define FLOAT_SIDE(rows) LESS_OF(KIVI_TILE / LANES, LESS_OF(FLOAT_SUMS / (rows), MAX_SIDE))
#define FLOAT_CHAINS(rows, side)                                                                   \
    ((rows) * (side) < FEWEST_SUMS ? LESS_OF(FEWEST_SUMS / ((rows) * (side)), 4) : 1)

/* What vf_code counts in. */
KIVI_INLINE float code_unit(uint32_t bits)
{
    return (float)(1u << (32 - bits));
}

/* Numbers of rows times scales, and what the middles add. */
struct float_operands {
    _Alignas(KIVI_LINE) float scaled[MAX_ROWS][KIVI_MAX_DIM];
    float bias[MAX_ROWS];
};

/* ------------------------------------------------------------------ folding */

/* Folds n numbers of rows x, from `at` on, a multiple of 16. Adds to the biases. The last three are constants. */
KIVI_INLINE void fold_floats(struct float_operands *f, const uint16_t *scales,
                             const uint16_t *minima, const float *const *x, uint32_t at, uint32_t n,
                             struct ahead *next, VF *bias, float unit, uint32_t rows, uint32_t bits)
{
    const float half = (float)(1u << (bits - 1));
    uint32_t i, r;

    for (i = 0; i < n; i += LANES) {
        const VF scale = vf_load_half(scales + i);
        const VF middle = vf_fma(scale, vf_set(half), vf_load_half(minima + i));

        if (i % 16 == 0)
            ask(next, 2 * 16 * sizeof *scales, rows, bits);
        KIVI_UNROLL
        for (r = 0; r < rows; r++) {
            const VF y = vf_load(x[r] + at + i);

            vf_store(f->scaled[r] + at + i, vf_mul(y, vf_mul(scale, vf_set(unit))));
            bias[r] = vf_fma(y, middle, bias[r]);
        }
    }
}

KIVI_INLINE void clear_floats(VF *x, uint32_t n)
{
    uint32_t i;

    KIVI_UNROLL
    for (i = 0; i < n; i++)
        x[i] = vf_zero();
}

KIVI_INLINE void store_biases(struct float_operands *f, const VF *bias, uint32_t rows)
{
    uint32_t r;

    KIVI_UNROLL
    for (r = 0; r < rows; r++)
        f->bias[r] = vf_sum(bias[r]);
}

/* ------------------------------------------------------------------ summing */

/* Adds the products of `side` vectors of words with numbers of rows. The last three are constants. */
KIVI_INLINE void add_word(VF sum[MAX_SIDE][FLOAT_SUMS], const uint32_t *word,
                          const struct float_operands *f, uint32_t at, uint32_t rows, uint32_t side,
                          uint32_t bits)
{
    const uint32_t chains = FLOAT_CHAINS(rows, side);
    VI words[MAX_SIDE];
    uint32_t i, v, r;

    KIVI_UNROLL
    for (v = 0; v < side; v++)
        words[v] = vi_load(word + v * LANES);
    KIVI_UNROLL
    for (i = 0; i < 32 / bits; i++) {
        VF code[MAX_SIDE];

        KIVI_UNROLL
        for (v = 0; v < side; v++)
            code[v] = vf_code(words[v], kivi_code_shift(bits, i), bits);
        KIVI_UNROLL
        for (r = 0; r < rows; r++) {
            const uint32_t k = r * chains + i % chains;

            KIVI_UNROLL
            for (v = 0; v < side; v++)
                sum[v][k] = vf_fma_number(code[v], f->scaled[r] + at, i, sum[v][k]);
        }
    }
}

KIVI_INLINE VF sum_of_chains(const VF *sum, uint32_t chains)
{
    return chains == 4   ? vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3]))
           : chains == 2 ? vf_add(sum[0], sum[1])
                         : sum[0];
}

/* ------------------------------------------------------------------ keys */

/* Scores of `side` vectors of tokens, of which `word` is the first. The last three are constants. */
KIVI_INLINE void score_vectors(const struct float_operands *f, const uint32_t *word, uint32_t dim,
                               struct ahead *next, float *const *scores, size_t at, uint32_t rows,
                               uint32_t side, uint32_t bits)
{
    const uint32_t chains = FLOAT_CHAINS(rows, side);
    VF sum[MAX_SIDE][FLOAT_SUMS];
    uint32_t c, r, v;

    KIVI_UNROLL
    for (v = 0; v < side; v++)
        clear_floats(sum[v], rows * chains);
    for (c = 0; c < dim; c += 32 / bits, word += KIVI_TILE) {
        ask(next, side * LANES * sizeof *word, rows, bits);
        add_word(sum, word, f, c, rows, side, bits);
    }
    KIVI_UNROLL
    for (r = 0; r < rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < side; v++)
            vf_store(scores[r] + at + v * LANES,
                     vf_add(sum_of_chains(&sum[v][r * chains], chains), vf_set(f->bias[r])));
    }
}

/* Scores of blocks for rows q, which are to go to `scores`. The last two are constants. */
KIVI_INLINE void score_floats(const struct kivi_layout *l, const float *const *q,
                              const char *blocks, uint32_t n_blocks, struct ahead next,
                              float *const *scores, uint32_t rows, uint32_t bits)
{
    const uint32_t side = FLOAT_SIDE(rows), dim = l->dim_pad;
    const uint32_t tile_words = dim * bits / 32 * KIVI_TILE;
    const float unit = 1 / code_unit(bits); /* before the products, which might overflow */
    struct float_operands f;
    VF bias[MAX_ROWS];
    size_t at = 0, end = 0;
    uint32_t v;

    for (; n_blocks > 0; n_blocks--, blocks += l->block_bytes) {
        const uint32_t *tile = (const uint32_t *)(const void *)blocks;

        clear_floats(bias, rows);
        fold_floats(&f, kivi_scales_const(l, blocks), kivi_minima_const(l, blocks), q, 0, dim,
                    &next, bias, unit, rows, bits);
        store_biases(&f, bias, rows);
        for (end += l->tokens; at < end; at += KIVI_TILE, tile += tile_words)
            for (v = 0; v < KIVI_TILE; v += side * LANES)
                score_vectors(&f, tile + v, dim, &next, scores, at + v, rows, side, bits);
    }
}

/* ------------------------------------------------------------------ values */

/* Adds `side` vectors of channels, from `channel` on, to the rows of `out`. The last three are constants. */
KIVI_INLINE void sum_vectors(const struct float_operands *f, const struct kivi_layout *l,
                             const char *blocks, uint32_t n_tokens, uint32_t channel,
                             struct ahead *next, float *out, uint32_t rows, uint32_t side,
                             uint32_t bits)
{
    const uint32_t chains = FLOAT_CHAINS(rows, side), dim = l->dim_pad;
    const VF inverse = vf_set(1 / code_unit(bits));
    VF sum[MAX_SIDE][FLOAT_SUMS];
    uint32_t t, i, r, v;

    KIVI_UNROLL
    for (v = 0; v < side; v++)
        clear_floats(sum[v], rows * chains);
    for (t = 0; t < n_tokens; t += KIVI_TILE, blocks += l->block_bytes) {
        const uint32_t *word = (const uint32_t *)(const void *)blocks + channel;

        for (i = 0; i < KIVI_TILE; i += 32 / bits, word += dim) {
            ask(next, side * LANES * sizeof *word, rows, bits);
            add_word(sum, word, f, t + i, rows, side, bits);
        }
    }
    KIVI_UNROLL
    for (r = 0; r < rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < side; v++) {
            float *to = out + r * dim + channel + v * LANES;
            const VF bias = vf_add(vf_load(to), vf_set(f->bias[r]));

            vf_store(to, vf_fma(sum_of_chains(&sum[v][r * chains], chains), inverse, bias));
        }
    }
}

/* Adds the values of a group, at most KIVI_MAX_DIM, with weights p to the rows of `out`. The last two are constants. */
KIVI_INLINE void sum_floats(const struct kivi_layout *l, const float *const *p, const char *blocks,
                            uint32_t n_tokens, uint32_t group, struct ahead next, float *out,
                            uint32_t rows, uint32_t bits)
{
    const uint32_t side = FLOAT_SIDE(rows), size = l->group_size;
    const uint32_t end = LESS_OF((group + 1) * size, l->dim_pad);
    struct float_operands f;
    VF bias[MAX_ROWS];
    uint32_t t, c;

    clear_floats(bias, rows);
    for (t = 0; t < n_tokens; t += KIVI_TILE) {
        const char *block = blocks + (size_t)(t / KIVI_TILE) * l->block_bytes;
        const size_t at = (size_t)group * KIVI_TILE;

        fold_floats(&f, kivi_scales_const(l, block) + at, kivi_minima_const(l, block) + at, p, t,
                    KIVI_TILE, &next, bias, 1, rows, bits);
    }
    store_biases(&f, bias, rows);
    for (c = group * size; c + side * LANES <= end; c += side * LANES)
        sum_vectors(&f, l, blocks, n_tokens, c, &next, out, rows, side, bits);
    if (side * LANES > 16 && c < end)
        sum_vectors(&f, l, blocks, n_tokens, c, &next, out, rows, VECTORS, bits);
}

/* ------------------------------------------------------------------ by bits and rows */

typedef void score_float_loop(const struct kivi_layout *l, const float *const *q,
                              const char *blocks, uint32_t n_blocks, struct ahead next,
                              float *const *scores);
typedef void sum_float_loop(const struct kivi_layout *l, const float *const *p, const char *blocks,
                            uint32_t n_tokens, uint32_t group, struct ahead next, float *out);

#define FLOAT_LOOPS(rows, bits)                                                                    \
    KIVI_APART void score_floats_##rows##_##bits(                                                  \
        const struct kivi_layout *l, const float *const *q, const char *blocks, uint32_t n_blocks, \
        struct ahead next, float *const *scores)                                                   \
    {                                                                                              \
        score_floats(l, q, blocks, n_blocks, next, scores, rows, bits);                            \
    }                                                                                              \
    KIVI_APART void sum_floats_##rows##_##bits(const struct kivi_layout *l, const float *const *p, \
                                               const char *blocks, uint32_t n_tokens,              \
                                               uint32_t group, struct ahead next, float *out)      \
    {                                                                                              \
        sum_floats(l, p, blocks, n_tokens, group, next, out, rows, bits);                          \
    }

#define FLOAT_ROWS(bits)                                                                           \
    FLOAT_LOOPS(1, bits)                                                                           \
    FLOAT_LOOPS(2, bits)                                                                           \
    FLOAT_LOOPS(3, bits)                                                                           \
    FLOAT_LOOPS(4, bits)

FLOAT_ROWS(2)
FLOAT_ROWS(4)
FLOAT_ROWS(8)

/* [bits / 4][rows - 1] */
static score_float_loop *const score_float_loops[3][MAX_ROWS] = {
    {score_floats_1_2, score_floats_2_2, score_floats_3_2, score_floats_4_2},
    {score_floats_1_4, score_floats_2_4, score_floats_3_4, score_floats_4_4},
    {score_floats_1_8, score_floats_2_8, score_floats_3_8, score_floats_4_8},
};
static sum_float_loop *const sum_float_loops[3][MAX_ROWS] = {
    {sum_floats_1_2, sum_floats_2_2, sum_floats_3_2, sum_floats_4_2},
    {sum_floats_1_4, sum_floats_2_4, sum_floats_3_4, sum_floats_4_4},
    {sum_floats_1_8, sum_floats_2_8, sum_floats_3_8, sum_floats_4_8},
};

/* Scores of all blocks for n rows, at most MAX_ROWS. Asks for what is read after them; if nothing is left to be, that
 * is the blocks. */
static void score_in_floats(const struct kivi_layout *l, const float *const *q, uint32_t n,
                            const char *blocks, uint32_t n_blocks, struct ahead next,
                            float *const *scores)
{
    score_float_loops[l->bits / 4][n - 1](l, q, blocks, n_blocks, next, scores);
}

/* Adds a group of values to n rows, likewise. */
static void sum_in_floats(const struct kivi_layout *l, const float *const *p, uint32_t n,
                          const char *blocks, uint32_t n_tokens, uint32_t group, struct ahead next,
                          float *out)
{
    sum_float_loops[l->bits / 4][n - 1](l, p, blocks, n_tokens, group, next, out);
}

#endif
