/*
 * Attention over packed codes, for any vector length. Nothing is dequantized. With x the queries (the
 * contraction runs over channels) or the weights (over tokens),
 *
 *     sum x * (code * scale + min) = sum (x * scale) * code + sum x * min
 *
 * fold.h makes integers of x * scale and cuts them into digits of 8 bits. The sum of a digit over codes is
 * an integer dot product of four codes to a lane. The second sum, the bias, is done in floats.
 *
 * Rows of one kv head share the unpacked codes: as many go through them together as OPERANDS allows, each
 * with its digits. Several blocks are folded before the first codes are read, so that one block's
 * arithmetic hides the latency of the other's.
 */
#ifndef KIVI_SIMD_ATTENTION_H
#define KIVI_SIMD_ATTENTION_H

#include "fold.h"

#define ROWS_AT_ONCE 8
#define BLOCKS_AT_ONCE 8
#define DIGIT_BYTES (2 * ROWS_AT_ONCE * MAX_DIGITS * MAX_DIM) /* of what is folded together */

/* A row over a block, folded. */
struct operand {
    const uint8_t *digits;
    uint32_t width; /* from digit to digit */
    float step;     /* what 1 of the first digit is worth */
    float bias;     /* keys: what the codes' sum is added to */
    float *result;
};

/* The rows of a block, by their number of digits: two or three. */
struct operands {
    struct operand of[2][ROWS_AT_ONCE];
    uint32_t n[2];
};

/* Blocks that are folded together. */
struct batch {
    uint8_t digits[DIGIT_BYTES];
    uint32_t width, n_rows;
    struct operands operands[BLOCKS_AT_ONCE];
};

/* Begins with blocks of n numbers. Returns how many of n_blocks fit, at least one. */
static uint32_t begin_batch(struct batch *b, uint32_t n, uint32_t n_rows, uint32_t n_blocks)
{
    const uint32_t width = (n + 31) / 32 * 32, room = DIGIT_BYTES / (MAX_DIGITS * width * n_rows);
    uint32_t i;

    b->width = width;
    b->n_rows = n_rows;
    n_blocks = n_blocks < BLOCKS_AT_ONCE ? n_blocks : BLOCKS_AT_ONCE;
    n_blocks = n_blocks < room ? n_blocks : room;
    for (i = 0; i < n_blocks; i++)
        b->operands[i].n[0] = b->operands[i].n[1] = 0;
    return n_blocks;
}

/* Where the digits of a row over a block go. */
static uint8_t *digits_of(struct batch *b, uint32_t block, uint32_t row)
{
    return b->digits + (size_t)(block * b->n_rows + row) * MAX_DIGITS * b->width;
}

static void add_operand(struct batch *b, uint32_t block, uint32_t row, struct cut cut, float bias,
                        float *result)
{
    struct operands *to = &b->operands[block];
    const uint32_t which = cut.n_digits - 2;

    to->of[which][to->n[which]++] =
        (struct operand){digits_of(b, block, row), b->width, cut.step, bias, result};
}

/* Four codes to a lane: number i of the four of a unit of 16 codes whose first word is at `word`; the
 * words of the unit are `stride` apart. */
KIVI_INLINE VI codes_at(const uint32_t *word, size_t stride, uint32_t i, uint32_t bits)
{
    const uint32_t per_word = 8 / bits;
    VI codes = vi_load(word + i / per_word * stride);

    if (i % per_word > 0)
        codes = vi_shift_right(codes, (int)(bits * (i % per_word)));
    return bits < 8 ? vi_and(codes, vi_set((int)(0x01010101u * ((1u << bits) - 1u)))) : codes;
}

/* The sum of a row from those of its digits. */
KIVI_INLINE VF join_digits(const VI *digit, uint32_t n_digits)
{
    VF sum = vf_of(digit[n_digits - 1]);
    uint32_t d;

    KIVI_UNROLL
    for (d = n_digits - 1; d > 0; d--)
        sum = vf_fma(sum, vf_set(256), vf_of(digit[d - 1]));
    return sum;
}

/* Calls `function` for all rows of a block, with the number of rows and of digits as constants. */
#define FOR_OPERANDS(function, l, block, operands, bits, ahead)                                    \
    do {                                                                                           \
        const struct operand *two_ = (operands)->of[0], *three_ = (operands)->of[1];               \
        uint32_t n_ = (operands)->n[0];                                                            \
                                                                                                   \
        for (; OPERANDS >= 8 && n_ >= 4; two_ += 4, n_ -= 4)                                       \
            function(l, block, two_, 4, 2, bits, ahead);                                           \
        for (; OPERANDS >= 4 && n_ >= 2; two_ += 2, n_ -= 2)                                       \
            function(l, block, two_, 2, 2, bits, ahead);                                           \
        for (; n_ > 0; two_++, n_--)                                                               \
            function(l, block, two_, 1, 2, bits, ahead);                                           \
        n_ = (operands)->n[1];                                                                     \
        for (; OPERANDS >= 8 && n_ >= 2; three_ += 2, n_ -= 2)                                     \
            function(l, block, three_, 2, 3, bits, ahead);                                         \
        for (; n_ > 0; three_++, n_--)                                                             \
            function(l, block, three_, 1, 3, bits, ahead);                                         \
    } while (0)

/* -------------------------------------------------------------------- keys */

#define SIDE_BY_SIDE 2 /* vectors of tokens */
#define MAX_SUMS (OPERANDS < 3 ? 3 : OPERANDS)

/* Dot products of n rows with the codes of a key block; n, n_digits and bits are constants. */
KIVI_INLINE void score_codes(const struct kivi_layout *l, const void *block,
                             const struct operand *operands, uint32_t n, uint32_t n_digits,
                             uint32_t bits, uintptr_t ahead)
{
    const uint32_t n_sums = n * n_digits, chains = n_sums <= 3 ? 2 : 1; /* against latency */
    const uint32_t units = l->dim_pad / 16, run = DOTS_SIGNED(bits) * chains / 4;
    uint32_t token, u, i, v, k, c;

    for (token = 0; token < l->tokens; token += SIDE_BY_SIDE * LANES) {
        const uint32_t *word = (const uint32_t *)block
                               + (size_t)(token / KIVI_TILE) * units * (bits / 2) * KIVI_TILE
                               + token % KIVI_TILE;
        VI total[SIDE_BY_SIDE][MAX_SUMS];

        KIVI_UNROLL
        for (k = 0; k < n_sums; k++)
            total[0][k] = total[1][k] = vi_zero();
        for (u = 0; u < units;) {
            const uint32_t end = run >= MAX_DIM / 16 || units - u < run ? units : u + run;
            VD part[SIDE_BY_SIDE][MAX_SUMS][2];

            KIVI_UNROLL
            for (k = 0; k < n_sums; k++)
                part[0][k][0] = part[0][k][1] = part[1][k][0] = part[1][k][1] = vd_zero();
            for (; u < end; u++, word += bits / 2 * KIVI_TILE) {
                KIVI_UNROLL
                for (i = 0; i < bits / 2 * SIDE_BY_SIDE * LANES; i += 16)
                    prefetch_ahead(word + i / (SIDE_BY_SIDE * LANES) * KIVI_TILE
                                       + i % (SIDE_BY_SIDE * LANES),
                                   ahead);
                KIVI_UNROLL
                for (i = 0; i < 4; i++) {
                    VI codes[SIDE_BY_SIDE];

                    KIVI_UNROLL
                    for (v = 0; v < SIDE_BY_SIDE; v++)
                        codes[v] = codes_at(word + v * LANES, KIVI_TILE, i, bits);
                    KIVI_UNROLL
                    for (k = 0; k < n_sums; k++) {
                        const struct operand *o = &operands[k / n_digits];
                        const VI digits =
                            vi_repeat4(o->digits + k % n_digits * o->width + 16 * u + 4 * i);

                        KIVI_UNROLL
                        for (v = 0; v < SIDE_BY_SIDE; v++)
                            part[v][k][i % chains] =
                                vd_signed(part[v][k][i % chains], codes[v], digits, bits);
                    }
                }
            }
            KIVI_UNROLL
            for (k = 0; k < n_sums; k++) {
                KIVI_UNROLL
                for (v = 0; v < SIDE_BY_SIDE; v++) {
                    KIVI_UNROLL
                    for (c = 0; c < chains; c++)
                        total[v][k] = vi_add(total[v][k], vd_sum(part[v][k][c], bits));
                }
            }
        }
        KIVI_UNROLL
        for (k = 0; k < n; k++) {
            KIVI_UNROLL
            for (v = 0; v < SIDE_BY_SIDE; v++)
                vf_store(operands[k].result + token + v * LANES,
                         vf_fma(join_digits(&total[v][k * n_digits], n_digits),
                                vf_set(operands[k].step), vf_set(operands[k].bias)));
        }
    }
}

static float bias_of_query(const struct folding *f, const float *q, uint32_t n)
{
    VF sum = vf_zero();
    uint32_t c;

    for (c = 0; c < n; c += LANES)
        sum = vf_fma(vf_load(q + c), vf_load_half(f->minima + c), sum);
    return vf_sum(sum);
}

/* A score's error as such is a relative one of its weight: scores that are so large that two digits leave
 * more than a thousandth of it take three. */
static int small_enough(float step, uint32_t n, uint32_t bits)
{
    const float levels = (float)((1u << bits) - 1u), error = step * levels / 1e-3f;

    return error * error * (float)n <= 12;
}

/* Folds a query row into a block. */
KIVI_INLINE struct cut cut_query(const struct folding *f, const float *q, const struct fixed *fixed,
                                 uint32_t n, uint32_t bits, kivi_precision precision,
                                 uint8_t *digits, uint32_t width)
{
    const float step = 32768 * fixed->step * f->fixed.step;

    if (takes_two_digits(precision, bits) && small_enough(step, n, bits)
        && fine_enough(multiply_fixed(f, fixed->number, MAX_DIM, n, 1, digits, width), (float)n,
                       bits))
        return (struct cut){2, step};
    return (struct cut){3, multiply_floats(f, q, MAX_DIM, n, 1, digits, width)};
}

/* At most ROWS_AT_ONCE rows; bits is a constant. */
KIVI_INLINE void score_blocks(const struct kivi_layout *l, const float *q, uint32_t n_rows,
                              const char *blocks, uint32_t n_blocks, uintptr_t ahead, float *scores,
                              size_t ld, kivi_precision precision, uint32_t bits)
{
    struct fixed fixed[ROWS_AT_ONCE];
    struct folding f;
    struct batch batch;
    uint32_t b, r, i, n;

    for (r = 0; r < n_rows; r++)
        fix(q + (size_t)r * l->dim_pad, l->dim_pad, &fixed[r]);
    for (b = 0; b < n_blocks; b += n) {
        n = begin_batch(&batch, l->dim_pad, n_rows, n_blocks - b);
        for (i = 0; i < n; i++) {
            unfold(l, blocks + (size_t)(b + i) * l->block_bytes, l->dim_pad, l->tokens, ahead, &f);
            for (r = 0; r < n_rows; r++) {
                const float *row = q + (size_t)r * l->dim_pad;

                add_operand(&batch, i, r,
                            cut_query(&f, row, &fixed[r], l->dim_pad, bits, precision,
                                      digits_of(&batch, i, r), batch.width),
                            bias_of_query(&f, row, l->dim_pad),
                            scores + r * ld + (size_t)(b + i) * l->tokens);
            }
        }
        for (i = 0; i < n; i++)
            FOR_OPERANDS(score_codes, l, blocks + (size_t)(b + i) * l->block_bytes,
                         &batch.operands[i], bits, ahead);
    }
}

KIVI_INLINE void score_all(const struct kivi_layout *l, const float *q, uint32_t n_rows,
                           const void *blocks, uint32_t n_blocks, const void *next, float *scores,
                           size_t ld, kivi_precision precision, uint32_t bits)
{
    uint32_t r;

    for (r = 0; r < n_rows; r += ROWS_AT_ONCE)
        score_blocks(l, q + (size_t)r * l->dim_pad,
                     n_rows - r < ROWS_AT_ONCE ? n_rows - r : ROWS_AT_ONCE, blocks, n_blocks,
                     ahead_of(blocks, next), scores + r * ld, ld, precision, bits);
}

static void k_scores(const struct kivi_layout *l, const float *q, uint32_t n_rows,
                     const void *blocks, uint32_t n_blocks, const void *next, float *scores,
                     size_t ld, kivi_precision precision)
{
    if (l->bits == 2)
        score_all(l, q, n_rows, blocks, n_blocks, next, scores, ld, precision, 2);
    else if (l->bits == 4)
        score_all(l, q, n_rows, blocks, n_blocks, next, scores, ld, precision, 4);
    else
        score_all(l, q, n_rows, blocks, n_blocks, next, scores, ld, precision, 8);
}

/* ------------------------------------------------------------------ values */

/* Weights are not negative. At 2 and 4 bits their digits are unsigned, and the codes are the signed side
 * of the dot product, which spares a carry. */
#define SIGNED_WEIGHTS(bits) ((bits) == 8)

/* Adds the codes of a value block, weighted, to n rows; n, n_digits and bits are constants. */
KIVI_INLINE void sum_codes(const struct kivi_layout *l, const void *block,
                           const struct operand *operands, uint32_t n, uint32_t n_digits,
                           uint32_t bits, uintptr_t ahead)
{
    const uint32_t run = SIGNED_WEIGHTS(bits) ? DOTS_SIGNED(bits) : DOTS_UNSIGNED(bits);
    const uint32_t n_sums = n * n_digits;
    uint32_t channel, i, v, k;

    for (channel = 0; channel < l->dim_pad; channel += 16) {
        const uint32_t *word = (const uint32_t *)block + channel;
        const uint32_t group = channel / l->group_size * KIVI_TILE;
        VI total[VECTORS][MAX_SUMS];
        VD part[VECTORS][MAX_SUMS];

        KIVI_UNROLL
        for (i = 0; i < bits; i++)
            prefetch_ahead(word + (size_t)i * l->dim_pad, ahead);
        KIVI_UNROLL
        for (i = 0; i < KIVI_TILE / 4; i++) {
            VI codes[VECTORS];

            KIVI_UNROLL
            for (v = 0; v < VECTORS; v++)
                codes[v] = codes_at(word + (size_t)(i / 4) * (bits / 2) * l->dim_pad + v * LANES,
                                    l->dim_pad, i % 4, bits);
            KIVI_UNROLL
            for (k = 0; k < n_sums; k++) {
                const struct operand *o = &operands[k / n_digits];
                const VI digits = vi_repeat4(o->digits + k % n_digits * o->width + group + 4 * i);

                KIVI_UNROLL
                for (v = 0; v < VECTORS; v++) {
                    if (i % run == 0)
                        part[v][k] = vd_zero();
                    part[v][k] = SIGNED_WEIGHTS(bits)
                                     ? vd_signed(part[v][k], codes[v], digits, bits)
                                     : vd_unsigned(part[v][k], codes[v], digits, bits);
                    if (i + 1 == run || i + 1 == KIVI_TILE / 4)
                        total[v][k] = i < run ? vd_sum(part[v][k], bits)
                                              : vi_add(total[v][k], vd_sum(part[v][k], bits));
                }
            }
        }
        KIVI_UNROLL
        for (k = 0; k < n; k++) {
            float *to = operands[k].result + channel;

            KIVI_UNROLL
            for (v = 0; v < VECTORS; v++)
                vf_store(to + v * LANES, vf_fma(join_digits(&total[v][k * n_digits], n_digits),
                                                vf_set(operands[k].step), vf_load(to + v * LANES)));
        }
    }
}

/* Adds to the bias of each group, a vector to a group. */
static void add_bias(const struct folding *f, const float *p, uint32_t n, VF *bias)
{
    uint32_t g, t;

    for (g = 0; g < n; g += KIVI_TILE) {
        VF sum = bias[g / KIVI_TILE];

        KIVI_UNROLL
        for (t = 0; t < KIVI_TILE; t += LANES)
            sum = vf_fma(vf_load(p + t), vf_load_half(f->minima + g + t), sum);
        bias[g / KIVI_TILE] = sum;
    }
}

/* Tokens of block `index`, of n_tokens in all. */
static uint32_t tokens_of(uint32_t n_tokens, uint32_t index)
{
    const uint32_t n = n_tokens - index * KIVI_TILE;

    return n < KIVI_TILE ? n : KIVI_TILE;
}

/* Folds the weights of all rows into n_blocks blocks, and adds to the biases. The weights of the blocks
 * share a step, and so the blocks are judged together: what is coarse in one with small weights may not
 * matter beside another. */
KIVI_INLINE void fold_weights(const struct kivi_layout *l, const float *p, size_t ld,
                              const char *blocks, uint32_t n_blocks, uint32_t n_tokens,
                              uintptr_t ahead, float *out, VF bias[][MAX_DIM / KIVI_TILE],
                              kivi_precision precision, uint32_t bits, struct batch *batch)
{
    const uint32_t n = l->n_groups * KIVI_TILE, width = batch->width;
    struct fixed fixed[ROWS_AT_ONCE];
    struct cut cut[ROWS_AT_ONCE][BLOCKS_AT_ONCE];
    float squares[ROWS_AT_ONCE] = {0}, numbers = 0;
    struct folding f;
    int skewed = 0;
    uint32_t r, i;

    for (r = 0; r < batch->n_rows; r++)
        fix(p + r * ld, n_blocks * KIVI_TILE, &fixed[r]);
    for (i = 0; i < n_blocks; i++) {
        float unit;

        unfold(l, blocks + (size_t)i * l->block_bytes, n, tokens_of(n_tokens, i), ahead, &f);
        unit = f.fixed.step;
        numbers += unit * unit * (float)n;
        skewed |= is_skewed(&f, n, bits);
        for (r = 0; r < batch->n_rows; r++) {
            add_bias(&f, p + r * ld + i * KIVI_TILE, n, bias[r]);
            if (takes_two_digits(precision, bits))
                squares[r] += unit * unit
                              * multiply_fixed(&f, fixed[r].number + i * KIVI_TILE, KIVI_TILE, n,
                                               SIGNED_WEIGHTS(bits), digits_of(batch, i, r), width);
            cut[r][i] = (struct cut){2, 32768 * fixed[r].step * unit};
        }
    }
    for (r = 0; r < batch->n_rows; r++) {
        if (takes_two_digits(precision, bits) && !skewed && fine_enough(squares[r], numbers, bits))
            continue;
        for (i = 0; i < n_blocks; i++) {
            unfold(l, blocks + (size_t)i * l->block_bytes, n, tokens_of(n_tokens, i), ahead, &f);
            cut[r][i] = (struct cut){3, multiply_floats(&f, p + r * ld + i * KIVI_TILE, KIVI_TILE,
                                                        n, SIGNED_WEIGHTS(bits),
                                                        digits_of(batch, i, r), width)};
        }
    }
    for (i = 0; i < n_blocks; i++)
        for (r = 0; r < batch->n_rows; r++)
            add_operand(batch, i, r, cut[r][i], 0, out + (size_t)r * l->dim_pad);
}

/* At most ROWS_AT_ONCE rows; bits is a constant. */
KIVI_INLINE void sum_blocks(const struct kivi_layout *l, const float *p, size_t ld, uint32_t n_rows,
                            const char *blocks, uint32_t n_tokens, uintptr_t ahead, float *out,
                            kivi_precision precision, uint32_t bits)
{
    VF bias[ROWS_AT_ONCE][MAX_DIM / KIVI_TILE];
    struct batch batch;
    uint32_t b, r, g, c, i, n;

    for (r = 0; r < n_rows; r++)
        for (g = 0; g < l->n_groups; g++)
            bias[r][g] = vf_zero();
    for (b = 0; b * KIVI_TILE < n_tokens; b += n, blocks += n * (size_t)l->block_bytes) {
        n = begin_batch(&batch, l->n_groups * KIVI_TILE, n_rows,
                        (n_tokens + KIVI_TILE - 1) / KIVI_TILE - b);
        fold_weights(l, p + (size_t)b * KIVI_TILE, ld, blocks, n, n_tokens - b * KIVI_TILE, ahead,
                     out, bias, precision, bits, &batch);
        for (i = 0; i < n; i++)
            FOR_OPERANDS(sum_codes, l, blocks + (size_t)i * l->block_bytes, &batch.operands[i],
                         bits, ahead);
    }
    for (r = 0; r < n_rows; r++, out += l->dim_pad) {
        for (g = 0; g < l->n_groups; g++) {
            const VF sum = vf_set(vf_sum(bias[r][g]));
            const uint32_t end = (g + 1) * l->group_size;

            for (c = g * l->group_size; c < end && c < l->dim_pad; c += LANES)
                vf_store(out + c, vf_add(vf_load(out + c), sum));
        }
    }
}

KIVI_INLINE void sum_all(const struct kivi_layout *l, const float *p, size_t ld, uint32_t n_rows,
                         const void *blocks, uint32_t n_tokens, const void *next, float *out,
                         kivi_precision precision, uint32_t bits)
{
    uint32_t r;

    for (r = 0; r < n_rows; r += ROWS_AT_ONCE)
        sum_blocks(l, p + r * ld, ld, n_rows - r < ROWS_AT_ONCE ? n_rows - r : ROWS_AT_ONCE, blocks,
                   n_tokens, ahead_of(blocks, next), out + (size_t)r * l->dim_pad, precision, bits);
}

static void v_accumulate(const struct kivi_layout *l, const float *p, size_t ld, uint32_t n_rows,
                         const void *blocks, uint32_t n_tokens, const void *next, float *out,
                         kivi_precision precision)
{
    if (l->bits == 2)
        sum_all(l, p, ld, n_rows, blocks, n_tokens, next, out, precision, 2);
    else if (l->bits == 4)
        sum_all(l, p, ld, n_rows, blocks, n_tokens, next, out, precision, 4);
    else
        sum_all(l, p, ld, n_rows, blocks, n_tokens, next, out, precision, 8);
}

#endif
