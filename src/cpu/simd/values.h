/*
 * Weighted sums of packed values, for any vector length: the weights of some blocks are folded into the scales
 * of a group at a time (fold.h), and lanes are channels. Steps are those of a unit of 128 tokens, in which a
 * place has 32.
 */
#ifndef KIVI_SIMD_VALUES_H
#define KIVI_SIMD_VALUES_H

#define UNIT_TOKENS (MAX_SETS * SET)
#define UNITS 2u /* that are folded together */
#define VALUE_TOKENS (UNITS * UNIT_TOKENS)

/* Weights are not negative. At 2 bits their digits are unsigned, and the codes the signed side of the dot
 * product; two digits can spare the bit. */
#define SIGNED_WEIGHTS(bits) ((bits) > 2)

/* Tokens whose weights are folded together, for one group of channels: the scales in floats, and the digits of
 * some rows. */
struct value_batch {
    const struct kivi_layout *l;
    const char *blocks;
    uint32_t n_tokens; /* of whole blocks */
    uint32_t channel, end;
    uint32_t n_rows;
    uintptr_t ahead;
    int is_skewed;
    float scale[VALUE_TOKENS], middle[VALUE_TOKENS];
    uint8_t digits[MAX_ROWS][MAX_DIGITS][VALUE_TOKENS];
    float steps[MAX_ROWS][UNITS][STEPS];
    float bias[MAX_ROWS];
};

/* ------------------------------------------------------------------ summing */

/* Adds one word of each 16 tokens of a block, `half` words apart, in `side` vectors of channels. */
KIVI_INLINE void add_block(VD sum[MAX_SIDE][MAX_SUMS], const uint32_t *word, size_t half,
                           uintptr_t ahead, const struct operands *o, size_t offset, uint32_t rows,
                           uint32_t side, uint32_t n_digits, uint32_t bits)
{
    uint32_t i, v;

    KIVI_UNROLL
    for (i = 0; i < 2; i++, word += half) {
        KIVI_UNROLL
        for (v = 0; v < side * LANES; v += 16)
            prefetch_ahead(word + v, ahead);
        add_dots(sum, word, o, offset + 4 * i, rows, side, n_digits, bits, SIGNED_WEIGHTS(bits));
    }
}

/* Adds one word of each 16 tokens of the n blocks of a unit. */
KIVI_INLINE void add_words(VD sum[MAX_SIDE][MAX_SUMS], const uint32_t *word, uint32_t n,
                           const struct value_batch *b, const struct operands *o, size_t offset,
                           uint32_t rows, uint32_t side, uint32_t n_digits, uint32_t bits)
{
    const size_t half = (size_t)WORDS(bits) * b->l->dim_pad;
    const size_t block = b->l->block_bytes / sizeof *word;

    for (; n >= 2; n -= 2, offset += SET) {
        add_block(sum, word, half, b->ahead, o, offset, rows, side, n_digits, bits);
        add_block(sum, word + block, half, b->ahead, o, offset + 8, rows, side, n_digits, bits);
        word += 2 * block;
    }
    if (n > 0)
        add_block(sum, word, half, b->ahead, o, offset, rows, side, n_digits, bits);
}

/* Adds the codes of `side` vectors of channels, weighted, to rows from `row` on. side and the last three are
 * constants. */
KIVI_INLINE void sum_columns(const struct value_batch *b, uint32_t channel, uint32_t side,
                             float *out, uint32_t row, uint32_t rows, uint32_t n_digits,
                             uint32_t bits)
{
    const struct operands o = {b->digits[row][0], sizeof b->digits[0], sizeof b->digits[0][0],
                               b->steps[row][0], UNITS * STEPS};
    const size_t stride = b->l->dim_pad;
    const char *block = b->blocks;
    uint32_t left = b->n_tokens / KIVI_TILE, unit, i, r, v;
    VF total[MAX_SIDE][MAX_ROWS];

    out += channel;
    KIVI_UNROLL
    for (r = 0; r < rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < side; v++)
            total[v][r] = vf_add(vf_load(out + r * stride + v * LANES), vf_set(b->bias[row + r]));
    }
    for (unit = 0; left > 0; unit++) {
        const uint32_t n = left < UNIT_TOKENS / KIVI_TILE ? left : UNIT_TOKENS / KIVI_TILE;

        KIVI_UNROLL
        for (i = 0; i < WORDS(bits); i++) {
            const uint32_t place = i * PLACES(bits);
            VD sum[MAX_SIDE][MAX_SUMS];

            clear_dots(sum, rows * SUMS(n_digits, bits), side);
            add_words(sum, (const uint32_t *)(const void *)block + i * stride + channel, n, b, &o,
                      (size_t)unit * UNIT_TOKENS + 16 * place, rows, side, n_digits, bits);
            add_sums(total, sum, &o, unit, place, rows, side, n_digits, bits);
        }
        block += (size_t)n * b->l->block_bytes;
        left -= n;
    }
    KIVI_UNROLL
    for (r = 0; r < rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < side; v++)
            vf_store(out + r * stride + v * LANES, total[v][r]);
    }
}

/* The same for all channels of the group. */
KIVI_INLINE void sum_codes(const struct value_batch *b, uint32_t row, float *out, uint32_t rows,
                           uint32_t n_digits, uint32_t bits)
{
    const uint32_t side = SIDE_BY_SIDE(rows, n_digits, bits);
    uint32_t c;

    for (c = b->channel; c + side * LANES <= b->end; c += side * LANES)
        sum_columns(b, c, side, out, row, rows, n_digits, bits);
    if (side * LANES > 16 && c < b->end)
        sum_columns(b, c, VECTORS, out, row, rows, n_digits, bits);
}

typedef void sum_loop(const struct value_batch *b, uint32_t row, float *out);

/* ------------------------------------------------------------------ folding */

/* Folds a row of weights. */
KIVI_INLINE void fold_weights(struct value_batch *b, const float *p, uint32_t row,
                              uint32_t n_digits, uint32_t bits, const float *places)
{
    uint8_t *digits = b->digits[row][0];
    struct folded all = nothing_folded();
    uint32_t t;

    for (t = 0; t + UNIT_TOKENS <= b->n_tokens; t += UNIT_TOKENS)
        fold(p + t, b->scale + t, b->middle + t, UNIT_TOKENS, MAX_SETS, n_digits, bits,
             SIGNED_WEIGHTS(bits), places, digits + t, VALUE_TOKENS, b->steps[row][t / UNIT_TOKENS],
             &all);
    if (t < b->n_tokens)
        fold(p + t, b->scale + t, b->middle + t, b->n_tokens - t, MAX_SETS, n_digits, bits,
             SIGNED_WEIGHTS(bits), places, digits + t, VALUE_TOKENS, b->steps[row][t / UNIT_TOKENS],
             &all);
    b->bias[row] = vf_sum(all.bias);
}

/* Adds the batch to its rows. The last two are constants. */
KIVI_INLINE void sum_weights(struct value_batch *b, const float *p, size_t ld, float *out,
                             sum_loop *of_4, sum_loop *of_2, sum_loop *of_1, uint32_t n_digits,
                             uint32_t bits)
{
    const size_t stride = b->l->dim_pad;
    float places[STEPS];
    uint32_t r;

    find_places(places, bits, SIGNED_WEIGHTS(bits));
    for (r = 0; r < b->n_rows; r++)
        fold_weights(b, p + r * ld, r, n_digits, bits, places);
    r = 0;
    for (; ROWS_TOGETHER(n_digits, bits) >= 4 && r + 4 <= b->n_rows; r += 4)
        of_4(b, r, out + r * stride);
    for (; ROWS_TOGETHER(n_digits, bits) >= 2 && r + 2 <= b->n_rows; r += 2)
        of_2(b, r, out + r * stride);
    for (; r < b->n_rows; r++)
        of_1(b, r, out + r * stride);
}

#define SUM_LOOP(rows, n_digits, bits)                                                             \
    KIVI_APART void sum_##rows##_##n_digits##_##bits(const struct value_batch *b, uint32_t row,    \
                                                     float *out)                                   \
    {                                                                                              \
        if (ROWS_TOGETHER(n_digits, bits) >= rows)                                                 \
            sum_codes(b, row, out, rows, n_digits, bits);                                          \
    }

#define SUM_ROWS(n_digits, bits)                                                                   \
    SUM_LOOP(1, n_digits, bits)                                                                    \
    SUM_LOOP(2, n_digits, bits)                                                                    \
    SUM_LOOP(4, n_digits, bits)                                                                    \
    KIVI_APART void sum_##n_digits##_##bits(struct value_batch *b, const float *p, size_t ld,      \
                                            float *out)                                            \
    {                                                                                              \
        sum_weights(b, p, ld, out, sum_4_##n_digits##_##bits, sum_2_##n_digits##_##bits,           \
                    sum_1_##n_digits##_##bits, n_digits, bits);                                    \
    }

SUM_ROWS(1, 2)
SUM_ROWS(3, 2)
SUM_ROWS(2, 4)
SUM_ROWS(3, 4)
SUM_ROWS(2, 8)
SUM_ROWS(3, 8)

static void sum_batch(struct value_batch *b, const float *p, size_t ld, float *out,
                      kivi_precision precision)
{
    const int fine = precision == KIVI_PRECISE || b->is_skewed;

    if (b->l->bits == 2)
        (fine ? sum_3_2 : sum_1_2)(b, p, ld, out);
    else if (b->l->bits == 4)
        (fine ? sum_3_4 : sum_2_4)(b, p, ld, out);
    else
        (fine ? sum_3_8 : sum_2_8)(b, p, ld, out);
}

/* Reads the scales of a group. Tokens that are not there have a weight of 0. */
KIVI_INLINE void unfold_values(struct value_batch *b, uint32_t group, uint32_t bits)
{
    const struct kivi_layout *l = b->l;
    const size_t at = (size_t)group * KIVI_TILE;
    const char *block = b->blocks;
    VF skew = vf_zero();
    uint32_t t, k;

    b->channel = group * l->group_size;
    b->end = b->channel + l->group_size < l->dim_pad ? b->channel + l->group_size : l->dim_pad;
    for (t = 0; t < b->n_tokens; t += KIVI_TILE, block += l->block_bytes) {
        const uint16_t *scales = kivi_scales_const(l, block) + at;
        const uint16_t *minima = kivi_minima_const(l, block) + at;

        prefetch_ahead(scales, b->ahead);
        prefetch_ahead(minima, b->ahead);
        KIVI_UNROLL
        for (k = 0; k < KIVI_TILE; k += 16)
            unfold_16(scales + k, minima + k, bits, b->scale + t + k, b->middle + t + k, &skew);
    }
    /* As where one channel dwarfs its group: the others' codes are then all at the same end, and what rounding
     * does to them adds up. */
    b->is_skewed = vm_any(vm_less(vf_zero(), skew));
}

static void v_accumulate(const struct kivi_layout *l, const float *p, size_t ld, uint32_t n_rows,
                         const void *blocks, uint32_t n_tokens, const void *next, float *out,
                         kivi_precision precision)
{
    const uint32_t whole = (n_tokens + KIVI_TILE - 1) / KIVI_TILE * KIVI_TILE;
    const uintptr_t ahead = ahead_of(blocks, next);
    struct value_batch b;
    uint32_t t, g, r;

    b.l = l;
    for (t = 0; t < whole; t += VALUE_TOKENS) {
        b.blocks = (const char *)blocks + (size_t)(t / KIVI_TILE) * l->block_bytes;
        b.n_tokens = whole - t < VALUE_TOKENS ? whole - t : VALUE_TOKENS;
        for (g = 0; g < l->n_groups; g++) {
            b.ahead = ahead;
            if (l->bits == 2)
                unfold_values(&b, g, 2);
            else if (l->bits == 4)
                unfold_values(&b, g, 4);
            else
                unfold_values(&b, g, 8);
            for (r = 0; r < n_rows; r += MAX_ROWS) {
                b.n_rows = n_rows - r < MAX_ROWS ? n_rows - r : MAX_ROWS;
                sum_batch(&b, p + r * ld + t, ld, out + (size_t)r * l->dim_pad, precision);
                b.ahead = 0; /* was asked for */
            }
        }
    }
}

#endif
