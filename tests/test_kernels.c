/*
 * Attention and the softmax of every kernel table that this machine can run, against the scalar
 * table and against double precision: all bits, groups and dimensions, random and adversarial
 * numbers, any alignment, between guard pages. Equality classes are those of src/cpu/kernels.h.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/blocks.h"
#include "support/guard.h"
#include "support/numbers.h"
#include "support/program.h"
#include "support/suite.h"
#include "support/tables.h"

#define MAX_BLOCKS 9u
#define LENGTH(array) (sizeof(array) / sizeof(array)[0])

static const uint32_t all_bits[] = {2, 4, 8};
static const uint32_t all_groups[] = {32, 64, 128};
static const uint32_t all_rows[] = {1, 2, 3, 4, 5, 8, 16, 33};
static const uint32_t all_blocks[] = {1, 2, 3, 5};

/* What the operations took of their bounds, by table. */
static struct margin k_margins[MAX_TABLES], v_margins[MAX_TABLES];

static void print_margins(void)
{
    int i;

    printf("shares of the error bounds that were used: k_scores standard, precise; v_accumulate "
           "standard, precise\n");
    for (i = 0; i < n_tables; i++)
        printf("  %-14s %.3f %.3f  %.3f %.3f\n", tables[i]->name, k_margins[i].standard,
               k_margins[i].precise, v_margins[i].standard, v_margins[i].precise);
}

/* ----------------------------------------------------- attention over codes */

/* A shape and its numbers. */
struct attention_case {
    struct kivi_layout l;
    uint32_t n_rows, n_blocks;
    int rows_fill, other_fill; /* other: of queries or weights */
    int scrambled;
    enum accuracy_rule rule;
    char what[160];
};

static void describe(struct attention_case *c, const char *operation)
{
    snprintf(c->what, sizeof c->what,
             "%s: %u bits, group %u, dimension %u, %u rows, %u blocks, fills %d and %d%s",
             operation, c->l.bits, c->l.group_size, c->l.dim, c->n_rows, c->n_blocks, c->rows_fill,
             c->other_fill, c->scrambled ? ", scrambled" : "");
}

/* Runs all tables in both precisions, n_rows queries over the blocks. */
static void compare_scores(struct rng *rng, const struct attention_case *c, const void *blocks,
                           const float *q, const struct expected *expected)
{
    const size_t tokens = (size_t)c->n_blocks * c->l.tokens;
    const size_t ld = tokens + rng_below(rng, 3) * 7;
    const struct kivi_next next = {.data = blocks, .is_amd = (int)rng_below(rng, 2)};
    const int exact_values = (int)rng_below(rng, 2);
    int i, precision;

    for (i = 0; i < n_tables; i++) {
        for (precision = KIVI_STANDARD; precision <= KIVI_PRECISE; precision++) {
            float *scores = guard_new(rng, ((c->n_rows - 1) * ld + tokens) * sizeof *scores, 4);
            uint32_t r;
            size_t t;

            tables[i]->k_scores(&c->l, q, c->n_rows, blocks, c->n_blocks, next, scores, ld,
                                exact_values, precision);
            check_rows(expected, c->n_rows, tokens, scores, NULL, ld, i, precision, c->rule,
                       k_margins, c->what);
            for (r = 0; r + 1 < c->n_rows; r++)
                for (t = tokens; t < ld; t++)
                    CHECK(isnan(scores[r * ld + t]), "%s: %s: written between rows",
                          tables[i]->name, c->what);
        }
    }
}

static void check_k_scores(struct rng *rng, struct attention_case *c)
{
    const struct kivi_layout *l = &c->l;
    const size_t tokens = (size_t)c->n_blocks * l->tokens;
    char *blocks = guard_new(rng, (size_t)c->n_blocks * l->block_bytes, 16);
    const uint16_t *rows = guarded_rows(rng, c->rows_fill, tokens, l->dim, l->dim);
    float *q = guard_new(rng, (size_t)c->n_rows * l->dim_pad * sizeof *q, 4);
    struct expected *expected = expected_new(c->n_rows, tokens);
    struct unpacked keys;
    uint32_t b, r;

    describe(c, "k_scores");
    unpacked_init(&keys, tokens, l->dim);
    for (b = 0; b < c->n_blocks; b++) {
        char *block = blocks + (size_t)b * l->block_bytes;

        kivi_kernels_scalar.quantize_k(l, rows + (size_t)b * l->tokens * l->dim, l->dim, 0, block);
        if (c->scrambled)
            scramble_keys(rng, l, block);
        unpack_keys(rng, l, blocks, b, &keys);
    }
    for (r = 0; r < c->n_rows; r++) {
        fill_query(rng, c->other_fill, q + (size_t)r * l->dim_pad, l->dim, l->dim_pad);
        expected_scores(&expected[r], &keys, q + (size_t)r * l->dim_pad, tokens, l->dim);
    }
    guard_read_only(blocks);
    guard_read_only(q);
    compare_scores(rng, c, blocks, q, expected);
    unpacked_free(&keys);
    expected_free(expected, c->n_rows);
    guard_release();
}

/* Numbers of the size of the results, to add these to; they are rounded too. */
static float *new_sums(struct rng *rng, const struct attention_case *c, struct expected *expected)
{
    const struct kivi_layout *l = &c->l;
    float *sums = guard_new(rng, (size_t)c->n_rows * l->dim_pad * sizeof *sums, 4);
    double magnitude[MAX_DIM];
    uint32_t r, i;

    for (r = 0; r < c->n_rows; r++) {
        float *row = sums + (size_t)r * l->dim_pad;

        for (i = 0; i < l->dim; i++) {
            row[i] = (float)(expected[r].value[i] * rng_normal(rng));
            magnitude[i] = row[i];
        }
        for (; i < l->dim_pad; i++)
            row[i] = 0;
        expected_add_rounding(&expected[r], magnitude, l->dim);
    }
    return sums;
}

static void compare_sums(struct rng *rng, const struct attention_case *c, const void *blocks,
                         const float *weights, size_t ld, size_t n_tokens,
                         struct expected *expected)
{
    const struct kivi_layout *l = &c->l;
    const size_t bytes = (size_t)c->n_rows * l->dim_pad * sizeof(float);
    const float *before = new_sums(rng, c, expected);
    const struct kivi_next next = {.data = blocks, .is_amd = (int)rng_below(rng, 2)};
    int i, precision;

    for (i = 0; i < n_tables; i++) {
        for (precision = KIVI_STANDARD; precision <= KIVI_PRECISE; precision++) {
            float *out = guard_new(rng, bytes, 4);

            memcpy(out, before, bytes);
            tables[i]->v_accumulate(l, weights, ld, c->n_rows, blocks, (uint32_t)n_tokens, next,
                                    out, precision);
            check_rows(expected, c->n_rows, l->dim, out, before, l->dim_pad, i, precision, c->rule,
                       v_margins, c->what);
        }
    }
}

static void check_v_accumulate(struct rng *rng, struct attention_case *c)
{
    const struct kivi_layout *l = &c->l;
    const size_t tokens = (size_t)c->n_blocks * KIVI_TILE, ld = tokens + rng_below(rng, 3) * 7;
    const size_t used = tokens - (rng_one_in(rng, 2) ? 0 : rng_below(rng, KIVI_TILE));
    char *blocks = guard_new(rng, (size_t)c->n_blocks * l->block_bytes, 16);
    const uint16_t *rows = guarded_rows(rng, c->rows_fill, tokens, l->dim, l->dim);
    float *weights = guard_new(rng, ((c->n_rows - 1) * ld + tokens) * sizeof *weights, 4);
    struct expected *expected = expected_new(c->n_rows, l->dim);
    struct unpacked values;
    uint32_t b, r;
    size_t t;

    describe(c, "v_accumulate");
    unpacked_init(&values, tokens, l->dim);
    for (b = 0; b < c->n_blocks; b++) {
        char *block = blocks + (size_t)b * l->block_bytes;

        kivi_kernels_scalar.quantize_v(l, rows + (size_t)b * KIVI_TILE * l->dim, l->dim, 0,
                                       KIVI_TILE, block);
        if (c->scrambled)
            scramble_values(rng, l, 0, block);
        else if (b + 1 == c->n_blocks && used < tokens)
            scramble_values(rng, l, (uint32_t)(used - (size_t)b * KIVI_TILE), block);
        unpack_values(rng, l, blocks, b, &values);
    }
    for (r = 0; r < c->n_rows; r++) {
        fill_weights(rng, c->other_fill, weights + r * ld, (uint32_t)tokens);
        for (t = used; t < tokens; t++)
            weights[r * ld + t] = 0;
        expected_sums(&expected[r], &values, weights + r * ld, tokens, l->dim);
    }
    guard_read_only(blocks);
    guard_read_only(weights);
    compare_sums(rng, c, blocks, weights, ld, used, expected);
    unpacked_free(&values);
    expected_free(expected, c->n_rows);
    guard_release();
}

/* Sums of the first `used` tokens of some blocks, all as heavy. */
static void sum_values(const struct kivi_kernels *table, const struct kivi_layout *l,
                       const void *blocks, uint32_t used, float *out)
{
    const struct kivi_next next = {.data = NULL};
    float weights[MAX_BLOCKS * KIVI_TILE];
    uint32_t t;

    for (t = 0; t < MAX_BLOCKS * KIVI_TILE; t++)
        weights[t] = t < used ? 1 : 0;
    memset(out, 0, l->dim_pad * sizeof *out);
    table->v_accumulate(l, weights, MAX_BLOCKS * KIVI_TILE, 1, blocks, used, next, out,
                        KIVI_STANDARD);
}

/* Tokens that were truncated leave codes, scales and minima behind in their block. */
START_TEST(forgets_tokens_that_are_gone)
{
    struct rng rng = {test_seed(19)};
    const int n = test_rounds(40, 4000);
    int i, j;

    for (i = 0; i < n; i++) {
        const uint32_t dim = 8 * (1 + rng_below(&rng, 32)), bits = all_bits[i % LENGTH(all_bits)];
        const struct kivi_layout l = kivi_layout_values(bits, dim, all_groups[i % 3]);
        const uint32_t n_blocks = 1 + rng_below(&rng, MAX_BLOCKS);
        const uint32_t last = 1 + rng_below(&rng, KIVI_TILE - 1);
        const uint32_t used = (n_blocks - 1) * KIVI_TILE + last;
        const size_t bytes = (size_t)n_blocks * l.block_bytes;
        char *blocks = guard_new(&rng, bytes, 16), *other = guard_new(&rng, bytes, 16);
        float out[2][MAX_DIM];
        uint32_t b;

        for (b = 0; b < n_blocks; b++)
            kivi_kernels_scalar.quantize_v(&l, guarded_rows(&rng, 0, KIVI_TILE, dim, dim), dim, 0,
                                           KIVI_TILE, blocks + (size_t)b * l.block_bytes);
        memcpy(other, blocks, bytes);
        scramble_values(&rng, &l, last, other + bytes - l.block_bytes);
        for (j = 0; j < n_tables; j++) {
            sum_values(tables[j], &l, blocks, used, out[0]);
            sum_values(tables[j], &l, other, used, out[1]);
            CHECK(memcmp(out[0], out[1], dim * sizeof out[0][0]) == 0,
                  "%s: %u bits, dimension %u: %u tokens depend on what follows them",
                  tables[j]->name, bits, dim, used);
        }
        guard_release();
    }
}
END_TEST

/* What the data are: random, or outside of it in a way that the second bound names, or in another. */
static enum accuracy_rule rule_of(const struct attention_case *c, int n_other_random)
{
    if (c->scrambled || (c->rows_fill > ROWS_THOUSAND && c->rows_fill < ROWS_FILLS))
        return RULE_EITHER;
    return c->rows_fill < ROWS_RANDOM && c->other_fill < n_other_random ? RULE_RANDOM
                                                                        : RULE_ADVERSARIAL;
}

/* Draws what is not given: fills at random, half of them random data. */
static void draw_fills(struct rng *rng, struct attention_case *c, int n_other, int n_other_random)
{
    const int any = !rng_one_in(rng, 2);

    c->rows_fill = (int)rng_below(rng, any ? ROWS_FILLS : ROWS_RANDOM);
    c->other_fill = (int)rng_below(rng, any ? (unsigned)n_other : (unsigned)n_other_random);
    c->scrambled = any && rng_one_in(rng, 8);
    c->rule = rule_of(c, n_other_random);
}

static void draw_and_check(struct rng *rng, uint32_t bits, uint32_t group, uint32_t dim,
                           uint32_t n_rows, uint32_t n_blocks)
{
    struct attention_case c = {.n_rows = n_rows, .n_blocks = n_blocks};

    c.l = kivi_layout_keys(bits, dim, group);
    draw_fills(rng, &c, QUERY_FILLS, QUERY_RANDOM);
    check_k_scores(rng, &c);
    c.l = kivi_layout_values(bits, dim, group);
    draw_fills(rng, &c, WEIGHT_FILLS, WEIGHT_RANDOM);
    check_v_accumulate(rng, &c);
}

/* In the short tier each dimension with one of the groups. */
START_TEST(attends_at_every_dimension)
{
    struct rng rng = {test_seed(4) + (unsigned)_i};
    const uint32_t bits = all_bits[_i];
    const int rounds = test_rounds(1, 20);
    uint32_t dim;
    size_t g;
    int round;

    for (g = 0; g < LENGTH(all_groups); g++) {
        const uint32_t first = test_is_short() ? 8 * ((uint32_t)g + 1) : 8;
        const uint32_t step = test_is_short() ? 8 * (uint32_t)LENGTH(all_groups) : 8;

        for (dim = first; dim <= MAX_DIM; dim += step) {
            for (round = 0; round < rounds; round++) {
                const uint32_t n_rows = RNG_PICK(&rng, all_rows);
                const uint32_t n_blocks = RNG_PICK(&rng, all_blocks);

                draw_and_check(&rng, bits, all_groups[g], dim, n_rows,
                               n_rows > 8 ? 1 + n_blocks % 2 : n_blocks);
            }
        }
    }
}
END_TEST

START_TEST(attends_with_every_number_of_rows_and_blocks)
{
    static const uint32_t dims[] = {8, 24, 128};
    struct rng rng = {test_seed(5) + (unsigned)_i};
    size_t d, r, b;

    for (d = 0; d < LENGTH(dims); d++)
        for (r = 0; r < LENGTH(all_rows); r++)
            for (b = 0; b < LENGTH(all_blocks); b++)
                draw_and_check(&rng, all_bits[_i], RNG_PICK(&rng, all_groups), dims[d], all_rows[r],
                               all_blocks[b]);
}
END_TEST

/* Random data, every fill of rows and of queries or weights, at the dimension of most models. */
START_TEST(attends_with_every_fill)
{
    struct rng rng = {test_seed(6) + (unsigned)_i};
    struct attention_case c = {.n_rows = 3, .n_blocks = 2};
    int other;

    for (c.rows_fill = 0; c.rows_fill < ROWS_FILLS; c.rows_fill++) {
        for (other = 0; other < QUERY_FILLS || other < WEIGHT_FILLS; other++) {
            c.other_fill = other;
            if (other < QUERY_FILLS) {
                c.l = kivi_layout_keys(all_bits[_i], 128, RNG_PICK(&rng, all_groups));
                c.rule = rule_of(&c, QUERY_RANDOM);
                check_k_scores(&rng, &c);
            }
            if (other < WEIGHT_FILLS) {
                c.l = kivi_layout_values(all_bits[_i], 128, RNG_PICK(&rng, all_groups));
                c.rule = rule_of(&c, WEIGHT_RANDOM);
                check_v_accumulate(&rng, &c);
            }
        }
    }
}
END_TEST

/* ------------------------------------------------------ attention over rows */

static void check_f16_attention(struct rng *rng, uint32_t dim, uint32_t n_rows, uint32_t tokens,
                                enum rows_fill fill)
{
    const size_t stride = any_stride(rng, dim), q_stride = any_stride(rng, dim);
    const size_t out_stride = any_stride(rng, dim), ld = tokens + rng_below(rng, 3) * 7;
    const uint16_t *rows = guarded_rows(rng, fill, tokens, dim, stride);
    float *q = guard_new(rng, ((n_rows - 1) * q_stride + dim) * sizeof *q, 4);
    float *p = guard_new(rng, ((n_rows - 1) * ld + tokens) * sizeof *p, 4);
    struct expected *scores = expected_new(n_rows, tokens), *sums = expected_new(n_rows, dim);
    struct margin unused[MAX_TABLES] = {{0, 0}};
    struct unpacked u;
    char what[100];
    uint32_t r, t, c;
    int i;

    unpacked_init(&u, tokens, dim);
    for (t = 0; t < tokens; t++) {
        for (c = 0; c < dim; c++) {
            const double x = number_from_f16(rows[t * stride + c]);

            u.value[t * dim + c] = u.original[t * dim + c] = x;
            u.magnitude[t * dim + c] = fabs(x);
        }
    }
    for (r = 0; r < n_rows; r++) {
        fill_query(rng, (int)rng_below(rng, QUERY_FILLS), q + r * q_stride, dim, dim);
        fill_weights(rng, (int)rng_below(rng, WEIGHT_FILLS), p + r * ld, tokens);
        expected_scores(&scores[r], &u, q + r * q_stride, tokens, dim);
        expected_sums(&sums[r], &u, p + r * ld, tokens, dim);
    }
    guard_read_only(q);
    guard_read_only(p);
    snprintf(what, sizeof what, "f16: dimension %u, %u rows, %u tokens, fill %d", dim, n_rows,
             tokens, fill);
    for (i = 0; i < n_tables; i++) {
        const struct kivi_next next = {.data = rng_below(rng, 2) ? rows + 1 : NULL,
                                       .is_amd = (int)rng_below(rng, 2)};
        float *got = guard_new(rng, ((n_rows - 1) * ld + tokens) * sizeof *got, 4);
        float *out = guard_new(rng, ((n_rows - 1) * out_stride + dim) * sizeof *out, 4);

        tables[i]->f16_scores(dim, q, q_stride, n_rows, rows, stride, tokens, next, got, ld);
        check_rows(scores, n_rows, tokens, got, NULL, ld, i, KIVI_PRECISE, RULE_RANDOM, unused,
                   what);
        for (r = 0; r < n_rows; r++)
            memset(out + r * out_stride, 0, dim * sizeof *out);
        tables[i]->f16_accumulate(dim, p, ld, n_rows, rows, stride, tokens, next, out, out_stride);
        check_rows(sums, n_rows, dim, out, NULL, out_stride, i, KIVI_PRECISE, RULE_RANDOM, unused,
                   what);
        for (r = 0; r + 1 < n_rows; r++) {
            for (t = tokens; t < ld; t++)
                CHECK(isnan(got[r * ld + t]), "%s: %s: written between rows", tables[i]->name,
                      what);
            for (c = dim; c < out_stride; c++)
                CHECK(isnan(out[r * out_stride + c]), "%s: %s: written between rows",
                      tables[i]->name, what);
        }
    }
    unpacked_free(&u);
    expected_free(scores, n_rows);
    expected_free(sums, n_rows);
    guard_release();
}

START_TEST(attends_over_f16_rows)
{
    static const uint32_t counts[] = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 128};
    struct rng rng = {test_seed(7)};
    const int rounds = test_rounds(4, 100);
    uint32_t dim;
    int round;

    for (dim = 8; dim <= MAX_DIM; dim += 8)
        for (round = 0; round < rounds; round++)
            check_f16_attention(&rng, dim, RNG_PICK(&rng, all_rows), RNG_PICK(&rng, counts),
                                (int)rng_below(&rng, ROWS_FILLS));
}
END_TEST

/* Rows of a cache's pages fill pages of memory, and what is read next is asked for in one order or another: results are
 * the same. */
START_TEST(hints_change_no_result)
{
    enum { DIM = 128, TOKENS = 192, PAGES = 16384, MOST_ROWS = 33 };
    static const uint32_t counts[] = {64, 128, TOKENS};
    uint16_t *rows = aligned_alloc(PAGES, TOKENS * DIM * sizeof *rows);
    float *q = malloc(MOST_ROWS * DIM * sizeof *q), *p = malloc(MOST_ROWS * TOKENS * sizeof *p);
    float *results = malloc(2 * MOST_ROWS * (TOKENS + DIM) * sizeof *results);
    struct rng rng = {test_seed(9)};
    int round, table, hint;

    CHECK(rows && q && p && results, "no memory");
    fill_rows(&rng, ROWS_GAUSSIAN, rows, TOKENS, DIM, DIM);
    for (round = 0; round < test_rounds(20, 200); round++) {
        const uint32_t n_rows = RNG_PICK(&rng, all_rows), tokens = RNG_PICK(&rng, counts);
        const size_t n = (size_t)n_rows * (tokens + DIM);
        uint32_t r;

        for (r = 0; r < n_rows; r++) {
            fill_query(&rng, QUERY_GAUSSIAN, q + r * DIM, DIM, DIM);
            fill_weights(&rng, WEIGHT_SOFTMAX, p + r * TOKENS, tokens);
        }
        for (table = 0; table < n_tables; table++) {
            for (hint = 0; hint < 2; hint++) {
                const struct kivi_next next = {.data = rows, .bytes = PAGES, .is_amd = hint};
                float *scores = results + (size_t)hint * n, *sums = scores + n_rows * tokens;

                memset(sums, 0, n_rows * DIM * sizeof *sums);
                tables[table]->f16_scores(DIM, q, DIM, n_rows, rows, DIM, tokens, next, scores,
                                          tokens);
                tables[table]->f16_accumulate(DIM, p, TOKENS, n_rows, rows, DIM, tokens, next, sums,
                                              DIM);
            }
            CHECK(memcmp(results, results + n, n * sizeof *results) == 0, "%s: %u rows, %u tokens",
                  tables[table]->name, n_rows, tokens);
        }
    }
    free(rows);
    free(q);
    free(p);
    free(results);
}
END_TEST

/* ------------------------------------------------------------------ softmax */

#define FUNCTION_RELATIVE 1e-6
#define MAX_N 300u

static void check_close(const char *table, const char *what, double got, double expected, double x)
{
    CHECK(fabs(got - expected) <= FUNCTION_RELATIVE * fabs(expected) + (double)0x1p-126f,
          "%s: %s(%.9g) is %.9g, not %.9g", table, what, x, got, expected);
}

/* A copy of the numbers, between guard pages. */
static float *copy_of(struct rng *rng, const float *x, uint32_t n)
{
    float *copy = guard_new(rng, n * sizeof *copy, 4);

    memcpy(copy, x, n * sizeof *copy);
    return copy;
}

static void check_functions(struct rng *rng, const struct kivi_kernels *table, const float *x,
                            uint32_t n, float cap)
{
    float *scaled = copy_of(rng, x, n), *capped = copy_of(rng, x, n), *powers = copy_of(rng, x, n);
    float max = x[0];
    double sum = 0;
    uint32_t i;

    for (i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    CHECK(table->max(scaled, n) == max, "%s: max of %u numbers", table->name, n);

    table->scale(scaled, n, cap);
    for (i = 0; i < n; i++)
        CHECK(scaled[i] == x[i] * cap, "%s: scale, %u of %u", table->name, i, n);

    table->softcap(capped, n, cap);
    for (i = 0; i < n; i++)
        check_close(table->name, "softcap", capped[i], cap * tanh((double)x[i] / cap), x[i]);

    if (max == -INFINITY) /* a row that sees nothing is not summed */
        max = 0;
    sum = table->exp_sum(powers, n, max);
    for (i = 0; i < n; i++) {
        const float difference = x[i] - max; /* rounded, as the kernels have it */
        const double power = exp(difference);

        check_close(table->name, "exp", powers[i], power, difference);
        CHECK(x[i] != -INFINITY || powers[i] == 0, "%s: exp(-inf)", table->name);
        sum -= power;
    }
    CHECK(fabs(sum) <= 2 * FUNCTION_RELATIVE * n, "%s: sum of %u powers is off by %g", table->name,
          n, sum);
}

START_TEST(softmax_is_accurate)
{
    static const double sizes[] = {1e-30, 1e-6, 1e-3, 0.1, 0.5, 1, 5, 20, 100, 1e4, 1e30};
    struct rng rng = {test_seed(8)};
    const uint32_t rounds = (uint32_t)test_rounds(1500, 20000);
    float x[MAX_N];
    uint32_t round, n, i;
    int table;

    for (round = 0; round < rounds; round++) {
        const double size = RNG_PICK(&rng, sizes);
        const float cap = (float)(rng_one_in(&rng, 2) ? 30 : size * (0.1 + rng_uniform(&rng)));

        n = round < MAX_N ? round + 1 : (uint32_t)rng_between(&rng, 1, MAX_N);
        for (i = 0; i < n; i++) {
            x[i] = (float)(rng_normal(&rng) * size);
            if (rng_one_in(&rng, 50))
                x[i] = rng_one_in(&rng, 2) ? -INFINITY : 0;
        }
        for (table = 0; table < n_tables; table++)
            check_functions(&rng, tables[table], x, n, cap);
        guard_release();
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kernels");
    TCase *tcase = tables_case();
    int result;

    tcase_add_loop_test(tcase, attends_at_every_dimension, 0, LENGTH(all_bits));
    tcase_add_loop_test(tcase, attends_with_every_number_of_rows_and_blocks, 0, LENGTH(all_bits));
    tcase_add_loop_test(tcase, attends_with_every_fill, 0, LENGTH(all_bits));
    tcase_add_test(tcase, forgets_tokens_that_are_gone);
    tcase_add_test(tcase, attends_over_f16_rows);
    tcase_add_test(tcase, hints_change_no_result);
    tcase_add_test(tcase, softmax_is_accurate);
    suite_add_tcase(suite, tcase);
    result = run_suite(suite, CK_NOFORK); /* margins are of all tests */
    print_margins();
    return result;
}
