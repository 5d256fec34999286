/*
 * Weighted sums of packed values, for any vector length: the weights of some blocks are folded into the scales
 * of a group at a time (fold.h), and lanes are channels. A unit of tokens is a set of weights: it has two blocks,
 * and a place of it has 16 tokens.
 */
#ifndef KIVI_SIMD_VALUES_H
#define KIVI_SIMD_VALUES_H

#define BLOCKS_OF_UNIT (SET / KIVI_TILE)
#define UNITS 4u /* that are folded together */
#define VALUE_TOKENS (UNITS * SET)

_Static_assert(VALUE_TOKENS <= KIVI_MAX_DIM, "numbers of floats.h");

/* Of fewer channels none averages what digits do to a few weights: these go in floats. */
#define FEWEST_CHANNELS 32u

/* Weights are not negative. At 2 bits their digits are unsigned, and the codes the signed side of the dot
 * product; two digits can spare the bit. */
#define SIGNED_WEIGHTS(bits) ((bits) > 2)

/* Tokens whose weights are folded together, for one group of channels and some rows. */
struct value_batch {
    const struct kivi_layout *l;
    const char *blocks;
    uint32_t n_tokens, n_used; /* of whole blocks; those that count */
    uint32_t group;
    int in_digits;
    uint32_t n_rows;
    struct ahead ahead;
    _Alignas(KIVI_LINE) uint8_t digits[MAX_ROWS][MAX_DIGITS][VALUE_TOKENS];
    float steps[MAX_ROWS][UNITS][STEPS];
    float bias[MAX_ROWS];
};

/* ------------------------------------------------------------------ summing */

/* Adds one place of the n blocks of a unit. */
KIVI_INLINE void add_place(VD sum[MAX_SIDE][MAX_SUMS], const uint32_t *word, size_t half,
                           size_t block, uint32_t n, struct ahead *ahead, const struct operands *o,
                           uint32_t place, uint32_t rows, uint32_t side, uint32_t n_digits,
                           uint32_t bits)
{
    uint32_t i, h;

    KIVI_UNROLL
    for (i = 0; i < BLOCKS_OF_UNIT && i < n; i++, word += block) {
        KIVI_UNROLL
        for (h = 0; h < 2; h++) {
            if (place % PLACES(bits) == 0)
                ask(ahead, side * LANES * sizeof *word, rows, bits);
            add_dots(sum, word + h * half, o, i / 2 * SET + 16 * place, i % 2 * 2 + h, place, rows,
                     side, n_digits, bits, SIGNED_WEIGHTS(bits));
        }
    }
}

/* Adds the codes of `side` vectors of channels, weighted, to all rows. side and the last three are constants. */
KIVI_INLINE void sum_columns(const struct value_batch *b, uint32_t channel, uint32_t side,
                             struct ahead *ahead, float *out, uint32_t rows, uint32_t n_digits,
                             uint32_t bits)
{
    struct operands o = {b->digits[0][0], sizeof b->digits[0], sizeof b->digits[0][0],
                         b->steps[0][0], UNITS * STEPS};
    const size_t stride = b->l->dim_pad, half = WORDS(bits) * stride;
    const size_t block = b->l->block_bytes / sizeof(uint32_t);
    const uint32_t *words = (const uint32_t *)(const void *)b->blocks + channel;
    uint32_t left = b->n_tokens / KIVI_TILE, place, r, v;
    VF total[MAX_SIDE][MAX_ROWS];

    out += channel;
    KIVI_UNROLL
    for (r = 0; r < rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < side; v++)
            total[v][r] = vf_add(vf_load(out + r * stride + v * LANES), vf_set(b->bias[r]));
    }
    while (left > 0) {
        const uint32_t n = left < BLOCKS_OF_UNIT ? left : BLOCKS_OF_UNIT;

        KIVI_UNROLL
        for (place = 0; place < 4; place++) {
            const uint32_t *word = vd_again(words + place / PLACES(bits) * stride, side);
            VD sum[MAX_SIDE][MAX_SUMS];

            clear_dots(sum, rows * n_digits, side);
            if (n == BLOCKS_OF_UNIT) /* without a loop: compilers would copy its sums */
                add_place(sum, word, half, block, BLOCKS_OF_UNIT, ahead, &o, place, rows, side,
                          n_digits, bits);
            else
                add_place(sum, word, half, block, n, ahead, &o, place, rows, side, n_digits, bits);
            add_sums(total, sum, &o, 0, place, rows, side, n_digits);
        }
        words += n * block;
        o.digits += SET;
        o.steps += STEPS;
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
KIVI_INLINE void sum_codes(struct value_batch *b, float *out, uint32_t rows, uint32_t n_digits,
                           uint32_t bits)
{
    const uint32_t side = SIDE_BY_SIDE(rows, n_digits);
    const uint32_t size = b->l->group_size, dim = b->l->dim_pad;
    const uint32_t end = (b->group + 1) * size < dim ? (b->group + 1) * size : dim;
    struct ahead ahead = b->ahead;
    uint32_t c;

    for (c = b->group * size; c + side * LANES <= end; c += side * LANES)
        sum_columns(b, c, side, &ahead, out, rows, n_digits, bits);
    if (side * LANES > 16 && c < end)
        sum_columns(b, c, VECTORS, &ahead, out, rows, n_digits, bits);
    end_ahead(&b->ahead, b->blocks);
}

typedef void sum_loop(struct value_batch *b, float *out);

/* ------------------------------------------------------------------ folding */

/* Grows to more than 0 where 0 is outside of the middle nine tenths of a range. */
KIVI_INLINE VF skew_of(const struct unfolded *u, uint32_t i, uint32_t bits, VF skew)
{
    uint32_t v;

    KIVI_UNROLL
    for (v = 0; v < VECTORS; v++)
        skew = vf_max(skew, vf_fma(u->scale[i][v], vf_set(-0.9f * middle_code(bits)),
                                   vf_abs(u->middle[i][v])));
    return skew;
}

/*
 * What is added to weights in steps before they are rounded to one digit. Weights that are alike, as those of most
 * tokens are beside a large one, would all be rounded the same way, and where tokens' codes are alike as well, that
 * adds up. Of 16 alike in a place as many are rounded up as their sum asks for: its lanes and the sixteens of a unit
 * have every 16th once (ordered dither). Tokens may be alike with a period: two sixteens on, a lane has the opposite
 * of what it has, and so it has in the same place of other units, half of them. 0 stays 0, and the largest is a whole
 * number and stays, too.
 */
#define DITHER(i) ((2 * (i) + 1) / 32.0f - 0.5f)
#define DITHERS(a, b, c, d)                                                                        \
    {                                                                                              \
        DITHER(a), DITHER(b), DITHER(c), DITHER(d), DITHER(a), DITHER(b), DITHER(c), DITHER(d),    \
            DITHER(a), DITHER(b), DITHER(c), DITHER(d), DITHER(a), DITHER(b), DITHER(c), DITHER(d) \
    }

/* The sixteens' of a unit, from its first row on. */
static const float dithers[6][16] = {
    DITHERS(0, 13, 4, 9), DITHERS(14, 3, 10, 7), DITHERS(15, 2, 11, 6),
    DITHERS(1, 12, 5, 8), DITHERS(0, 13, 4, 9),  DITHERS(14, 3, 10, 7),
};
static const uint8_t first_dither[UNITS] = {0, 2, 2, 0};

/* Folds n weights of a unit. Adds to the bias, and leaves the steps times `places`. n may, and the last two are constants.
 */
KIVI_INLINE VF fold_weights(const float *p, const struct unfolded *u, uint32_t n, VF bias,
                            const float (*dither)[16], const float *places, uint8_t *digits,
                            float *steps, uint32_t n_digits, uint32_t bits)
{
    VF product[VECTORS][4], top[VECTORS], step, inverse;
    uint32_t i, v;

    KIVI_UNROLL
    for (v = 0; v < VECTORS; v++)
        top[v] = vf_zero();
    KIVI_UNROLL
    for (i = 0; i < 4; i++) {
        KIVI_UNROLL
        for (v = 0; v < VECTORS; v++) {
            const VF weight = 16 * i < n ? vf_load(p + 16 * i + v * LANES) : vf_zero();

            product[v][i] = vf_mul(weight, u->scale[i][v]);
            bias = vf_fma(weight, u->middle[i][v], bias);
            top[v] = SIGNED_WEIGHTS(bits) ? vf_larger(top[v], product[v][i])
                                          : vf_max(top[v], product[v][i]);
        }
    }
    KIVI_UNROLL
    for (v = 0; v < VECTORS; v++) {
        step = find_steps(top[v], n_digits, SIGNED_WEIGHTS(bits), &inverse);
        vf_store(steps + v * LANES, vf_mul(step, vf_load(places + v * LANES)));
        KIVI_UNROLL
        for (i = 0; i < 4; i++)
            product[v][i] = n_digits == 1 ? vf_fma(product[v][i], inverse, vf_load(dither[i]))
                                          : vf_mul(product[v][i], inverse);
        bias = round_set(product[v], centre_steps(step, bits), digits, VALUE_TOKENS, bias, v,
                         n_digits, SIGNED_WEIGHTS(bits));
    }
    return bias;
}

/* Scales or minima of a block's first n tokens, in `room` with zeros after them if these are not all: tokens that are
 * gone leave theirs behind. */
KIVI_INLINE const uint16_t *first_of(const uint16_t *from, uint32_t n, uint16_t *room)
{
    if (n >= KIVI_TILE)
        return from;
    memcpy(room, from, n * sizeof *room);
    memset(room + n, 0, (KIVI_TILE - n) * sizeof *room);
    return room;
}

/* Folds a unit's tokens from t on, of which n are there and `used` count, for n_rows rows of p. n and `used` may, and
 * the last three are constants. */
KIVI_INLINE VF fold_unit(struct value_batch *b, const float *p, size_t ld, uint32_t t, uint32_t n,
                         uint32_t used, VF *bias, const float *places, VF skew, uint32_t n_rows,
                         uint32_t n_digits, uint32_t bits)
{
    const char *block = b->blocks + (size_t)(t / KIVI_TILE) * b->l->block_bytes;
    struct unfolded u;
    uint32_t i, r;

    KIVI_UNROLL
    for (i = 0; i < 4; i += 2) {
        const size_t at = (size_t)b->group * KIVI_TILE;
        const uint16_t *scales = kivi_scales_const(b->l, block) + at;
        const uint16_t *minima = kivi_minima_const(b->l, block) + at;
        uint16_t room[2][KIVI_TILE];

        if (16 * i < n) {
            scales = first_of(scales, used - 16 * i, room[0]);
            minima = first_of(minima, used - 16 * i, room[1]);
            ask(&b->ahead, 2 * KIVI_TILE * sizeof *scales, n_rows, bits);
            unfold(&u, i, scales, minima, bits);
            unfold(&u, i + 1, scales + 16, minima + 16, bits);
            skew = skew_of(&u, i, bits, skew);
            skew = skew_of(&u, i + 1, bits, skew);
        } else {
            unfold_none(&u, i);
            unfold_none(&u, i + 1);
        }
        block += b->l->block_bytes;
    }
    for (r = 0; r < n_rows; r++)
        bias[r] = fold_weights(p + r * ld + t, &u, n, bias[r], dithers + first_dither[t / SET],
                               places, b->digits[r][0] + t, b->steps[r][t / SET], n_digits, bits);
    return skew;
}

/* Folds n_rows rows. Returns 1 if the ranges are skewed, as where one channel dwarfs its group: the others' codes are
 * then all at the same end, and what rounding does to them adds up. The last two are constants. */
KIVI_INLINE int fold_group(struct value_batch *b, const float *p, size_t ld, uint32_t n_rows,
                           uint32_t n_digits, uint32_t bits)
{
    VF bias[MAX_ROWS];
    float places[STEPS];
    VF skew = vf_zero();
    uint32_t t, r;

    find_places(places, bits, SIGNED_WEIGHTS(bits));
    for (r = 0; r < n_rows; r++)
        bias[r] = vf_zero();
    for (t = 0; t + SET <= b->n_used; t += SET)
        skew = fold_unit(b, p, ld, t, SET, SET, bias, places, skew, n_rows, n_digits, bits);
    if (t < b->n_tokens)
        skew = fold_unit(b, p, ld, t, b->n_tokens - t, b->n_used - t, bias, places, skew, n_rows,
                         n_digits, bits);
    for (r = 0; r < n_rows; r++)
        b->bias[r] = vf_sum(bias[r]);
    return vm_lanes(vm_less(vf_zero(), skew)) != 0;
}

/* Adds the batch to its rows, unless digits are too few: then returns 0. The last two are constants. */
KIVI_INLINE int sum_weights(struct value_batch *b, const float *p, size_t ld, float *out,
                            sum_loop *const *loops, uint32_t n_digits, uint32_t bits)
{
    const int is_skewed = b->n_rows == 1 /* whose sums compilers then keep in registers */
                              ? fold_group(b, p, ld, 1, n_digits, bits)
                              : fold_group(b, p, ld, b->n_rows, n_digits, bits);

    if (is_skewed)
        return 0;
    loops[b->n_rows - 1](b, out);
    return 1;
}

#define SUM_LOOP(rows, n_digits, bits)                                                             \
    KIVI_APART void sum_##rows##_##n_digits##_##bits(struct value_batch *b, float *out)            \
    {                                                                                              \
        if (n_digits <= MOST_DIGITS(bits))                                                         \
            sum_codes(b, out, rows, n_digits, bits);                                               \
    }

#define SUM_ROWS(n_digits, bits)                                                                   \
    SUM_LOOP(1, n_digits, bits)                                                                    \
    SUM_LOOP(2, n_digits, bits)                                                                    \
    SUM_LOOP(3, n_digits, bits)                                                                    \
    SUM_LOOP(4, n_digits, bits)                                                                    \
    KIVI_APART int sum_##n_digits##_##bits(struct value_batch *b, const float *p, size_t ld,       \
                                           float *out)                                             \
    {                                                                                              \
        static sum_loop *const loops[MAX_ROWS] = {                                                 \
            sum_1_##n_digits##_##bits, sum_2_##n_digits##_##bits, sum_3_##n_digits##_##bits,       \
            sum_4_##n_digits##_##bits};                                                            \
                                                                                                   \
        return sum_weights(b, p, ld, out, loops, n_digits, bits);                                  \
    }

SUM_ROWS(1, 2)
SUM_ROWS(2, 4)
SUM_ROWS(2, 8)

/* Of the batch's blocks; as many are asked for meanwhile. */
static size_t bytes_of_group(const struct value_batch *b)
{
    return (size_t)b->n_tokens / KIVI_TILE * b->l->block_bytes / b->l->n_groups;
}

static void sum_batch(struct value_batch *b, const float *p, size_t ld, float *out)
{
    const struct kivi_layout *l = b->l;
    const float *weights[MAX_ROWS];
    uint32_t r;

    if (b->in_digits
        && (l->bits == 2   ? sum_1_2(b, p, ld, out)
            : l->bits == 4 ? sum_2_4(b, p, ld, out)
                           : sum_2_8(b, p, ld, out)))
        return;
    for (r = 0; r < b->n_rows; r++)
        weights[r] = p + r * ld;
    sum_in_floats(l, weights, b->n_rows, b->blocks, b->n_tokens, b->group, b->ahead, out);
    end_ahead(&b->ahead, b->blocks);
}

static void v_accumulate(const struct kivi_layout *l, const float *p, size_t ld, uint32_t n_rows,
                         const void *blocks, uint32_t n_tokens, struct kivi_next next, float *out,
                         kivi_precision precision)
{
    const uint32_t whole = (n_tokens + KIVI_TILE - 1) / KIVI_TILE * KIVI_TILE;
    struct ahead ahead =
        ahead_of(next, blocks, (size_t)whole / KIVI_TILE * l->block_bytes, n_rows, l->bits);
    struct value_batch b;
    uint32_t t, g, r;

    b.l = l;
    b.in_digits = l->dim >= FEWEST_CHANNELS && in_digits(l->bits, n_rows, next, precision);
    for (t = 0; t < whole; t += VALUE_TOKENS) {
        b.blocks = (const char *)blocks + (size_t)(t / KIVI_TILE) * l->block_bytes;
        b.n_tokens = whole - t < VALUE_TOKENS ? whole - t : VALUE_TOKENS;
        b.n_used = n_tokens - t < VALUE_TOKENS ? n_tokens - t : VALUE_TOKENS;
        for (g = 0; g < l->n_groups; g++) {
            b.group = g;
            b.ahead = ahead;
            for (r = 0; r < n_rows; r += MAX_ROWS) {
                b.n_rows = n_rows - r < MAX_ROWS ? n_rows - r : MAX_ROWS;
                sum_batch(&b, p + r * ld + t, ld, out + (size_t)r * l->dim_pad);
            }
            move_ahead(&ahead, bytes_of_group(&b), l->bits);
        }
    }
}

#endif
