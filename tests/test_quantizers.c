/*
 * Conversion and quantization of every kernel table that this machine can run, equal to the scalar
 * table's: all bits, groups and dimensions, random and adversarial numbers, any alignment, between
 * guard pages.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "cpu/quantize.h"
#include "support/blocks.h"
#include "support/guard.h"
#include "support/numbers.h"
#include "support/program.h"
#include "support/suite.h"
#include "support/tables.h"

#define LENGTH(array) (sizeof(array) / sizeof(array)[0])

static const uint32_t all_bits[] = {2, 4, 8};
static const uint32_t all_groups[] = {32, 64, 128};

/* --------------------------------------------------------------- conversion */

/* Bits of all NaNs are equal: the caller learns of them by the result. */
static int same_f16(uint16_t a, uint16_t b)
{
    return a == b || ((a & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7c00);
}

static void check_to_f16(struct rng *rng, kivi_dtype type, const void *numbers, size_t n)
{
    const size_t size = type == KIVI_F32 ? 4 : 2;
    void *src = guard_new(rng, n * size, size);
    uint16_t *expected = malloc((n + 1) * sizeof *expected);
    int finite, i;

    ck_assert_ptr_nonnull(expected);
    memcpy(src, numbers, n * size);
    guard_read_only(src);
    finite = kivi_kernels_scalar.to_f16[type](expected, src, n);
    for (i = 0; i < n_tables; i++) {
        uint16_t *dst = guard_new(rng, n * 2, 2);
        size_t at;

        CHECK(tables[i]->to_f16[type](dst, src, n) == finite,
              "%s: to_f16[%d] of %zu elements: wrong result", tables[i]->name, type, n);
        for (at = 0; at < n; at++)
            CHECK(same_f16(dst[at], expected[at]),
                  "%s: to_f16[%d]: element %zu of %zu is 0x%04x, not 0x%04x", tables[i]->name, type,
                  at, n, dst[at], expected[at]);
        if (type != KIVI_F16)
            continue;
        memcpy(dst, numbers, n * 2);
        ck_assert_int_eq(tables[i]->to_f16[type](dst, dst, n), finite);
        CHECK(memcmp(dst, numbers, n * 2) == 0, "%s: to_f16 in place", tables[i]->name);
    }
    free(expected);
    guard_release();
}

/* All numbers of 16 bits, some lengths at a time. */
START_TEST(converts_all_of_16_bits)
{
    struct rng rng = {test_seed(1)};
    uint16_t numbers[1024];
    uint32_t first, n, i;

    for (first = 0; first < 65536; first += n) {
        n = (uint32_t)rng_between(&rng, 1, rng_one_in(&rng, 2) ? 70 : LENGTH(numbers));
        for (i = 0; i < n; i++)
            numbers[i] = (uint16_t)(first + i);
        check_to_f16(&rng, KIVI_F16, numbers, n);
        check_to_f16(&rng, KIVI_BF16, numbers, n);
    }
}
END_TEST

/* Every f16 number, the middle between it and the next, and the f32 numbers beside these. */
START_TEST(rounds_f32_to_nearest_even)
{
    struct rng rng = {test_seed(2)};
    float numbers[6 * 64];
    uint32_t first, i, j;

    for (first = 0; first < 65536; first += 64) {
        for (i = 0; i < 64; i++) {
            const uint32_t exact = kivi_bits_of_f32(kivi_f32_from_f16((uint16_t)(first + i)));
            const double step = number_from_f16((uint16_t)((first + i) ^ 1))
                                - number_from_f16((uint16_t)(first + i));
            const uint32_t half = kivi_bits_of_f32((float)(kivi_f32_of_bits(exact) + step / 2));

            for (j = 0; j < 3; j++) {
                numbers[6 * i + j] = kivi_f32_of_bits(exact + j - 1);
                numbers[6 * i + 3 + j] = kivi_f32_of_bits(half + j - 1);
            }
        }
        check_to_f16(&rng, KIVI_F32, numbers, LENGTH(numbers));
    }
    for (i = 0; i < 300; i++) {
        const uint32_t n = (uint32_t)rng_between(&rng, 0, 70);

        for (j = 0; j < n; j++) /* one array in four has only finite numbers, small ones too */
            numbers[j] = i % 4
                             ? kivi_f32_of_bits((uint32_t)rng_next(&rng))
                             : (float)(rng_normal(&rng) * pow(10, (double)rng_below(&rng, 13) - 9));
        check_to_f16(&rng, KIVI_F32, numbers, n);
    }
}
END_TEST

/* ------------------------------------------------------------- quantization */

static void check_block(const struct kivi_layout *l, const void *got, const void *expected,
                        const char *table, const char *what, int fill)
{
    const unsigned char *a = got, *b = expected;
    uint32_t i;

    for (i = 0; i < l->block_bytes && a[i] == b[i]; i++)
        ;
    CHECK(i == l->block_bytes,
          "%s: %s: %u bits, group %u, dimension %u, fill %d: byte %u (%s) is 0x%02x, "
          "not 0x%02x",
          table, what, l->bits, l->group_size, l->dim, fill, i,
          i < l->code_bytes                    ? "codes"
          : i < l->code_bytes + l->scale_bytes ? "scales"
                                               : "minima",
          a[i], b[i]);
}

static void check_quantize_k(struct rng *rng, const struct kivi_layout *l, enum rows_fill fill)
{
    const size_t stride = any_stride(rng, l->dim);
    const uint16_t *rows = guarded_rows(rng, fill, l->tokens, l->dim, stride);
    const uint32_t skips[] = {0, 0, 0, 1, 5, l->tokens / 2, l->tokens - 1, l->tokens};
    const uint32_t skip = RNG_PICK(rng, skips);
    void *expected = guard_new(rng, l->block_bytes, 16);
    int i;

    kivi_kernels_scalar.quantize_k(l, rows, stride, skip, expected);
    for (i = 0; i < n_tables; i++) {
        void *block = guard_new(rng, l->block_bytes, 16);

        tables[i]->quantize_k(l, rows, stride, skip, block);
        check_block(l, block, expected, tables[i]->name, "quantize_k", fill);
    }
    guard_release();
}

static void check_quantize_v(struct rng *rng, const struct kivi_layout *l, enum rows_fill fill)
{
    const uint32_t first = rng_one_in(rng, 2) ? 0 : (uint32_t)rng_below(rng, KIVI_TILE);
    const uint32_t count =
        rng_one_in(rng, 2) ? KIVI_TILE - first : (uint32_t)rng_between(rng, 1, KIVI_TILE - first);
    const size_t stride = any_stride(rng, l->dim);
    const uint16_t *rows = guarded_rows(rng, fill, KIVI_TILE, l->dim, stride);
    void *before = guard_new(rng, l->block_bytes, 16);
    void *expected = guard_new(rng, l->block_bytes, 16);
    int i;

    if (first > 0) { /* other tokens stay as they are, also those that are not there yet */
        kivi_kernels_scalar.quantize_v(l, rows, stride, 0, first, before);
        if (rng_one_in(rng, 2))
            scramble_values(rng, l, first, before);
    }
    guard_read_only(before);
    memcpy(expected, before, l->block_bytes);
    kivi_kernels_scalar.quantize_v(l, rows, stride, first, count, expected);
    for (i = 0; i < n_tables; i++) {
        void *block = guard_new(rng, l->block_bytes, 16);

        memcpy(block, before, l->block_bytes);
        tables[i]->quantize_v(l, rows, stride, first, count, block);
        check_block(l, block, expected, tables[i]->name, "quantize_v", fill);
    }
    guard_release();
}

START_TEST(quantizes_as_the_scalar_table)
{
    struct rng rng = {test_seed(3) + (unsigned)_i};
    const uint32_t bits = all_bits[_i];
    uint32_t dim;
    size_t g;
    int fill, round;

    for (g = 0; g < LENGTH(all_groups); g++) {
        for (dim = 8; dim <= MAX_DIM; dim += 8) {
            const struct kivi_layout k = kivi_layout_keys(bits, dim, all_groups[g]);
            const struct kivi_layout v = kivi_layout_values(bits, dim, all_groups[g]);

            for (round = 0; round < (test_is_long() ? 4 * ROWS_FILLS : 2); round++) {
                fill = test_is_long() ? round % ROWS_FILLS : (int)rng_below(&rng, ROWS_FILLS);
                check_quantize_k(&rng, &k, fill);
                check_quantize_v(&rng, &v, fill);
            }
        }
    }
}
END_TEST

/* f16 numbers by their order; 0 is both zeros. */
static int order_of(uint16_t half)
{
    return half & 0x8000 ? -(half & 0x7fff) : half;
}

static uint16_t half_at(struct rng *rng, int order)
{
    if (order == 0)
        return rng_one_in(rng, 2) ? 0x8000 : 0;
    return (uint16_t)(order < 0 ? 0x8000 - order : order);
}

#define MOST 0x7bff /* the largest finite number */

/* Two finite f16 numbers, of any bits, of one size, or close to each other. */
static void choose_ends(struct rng *rng, int *least, int *largest)
{
    const double size = ldexp(1, (int)rng_below(rng, 36) - 22);
    int a = (int)rng_below(rng, 2 * MOST + 1) - MOST, b;

    switch (rng_below(rng, 3)) {
    case 0:
        b = (int)rng_below(rng, 2 * MOST + 1) - MOST;
        break;
    case 1:
        a = order_of(number_to_f16(rng_normal(rng) * size));
        b = order_of(number_to_f16(rng_normal(rng) * size));
        break;
    default:
        b = a + (int)rng_below(rng, 4000);
    }
    a = a < -MOST ? -MOST : a > MOST ? MOST : a;
    b = b < -MOST ? -MOST : b > MOST ? MOST : b;
    *least = a < b ? a : b;
    *largest = a < b ? b : a;
}

/* A group's least and largest number, and those at which its codes of 2 bits change, each with its neighbours. */
static void fill_beside_thresholds(struct rng *rng, uint16_t *group, size_t stride)
{
    const size_t turn = rng_below(rng, 32);
    int least, largest, code, i, n = 2;
    struct kivi_range range;

    choose_ends(rng, &least, &largest);
    range = kivi_range_of(kivi_f32_from_f16(half_at(rng, least)),
                          kivi_f32_from_f16(half_at(rng, largest)), 2);
    group[turn * stride] = half_at(rng, least);
    group[(turn + 1) % 32 * stride] = half_at(rng, largest);
    for (code = 1; code <= 3; code++) {
        int below = least, at = largest; /* if there is such a code, it begins in (below, at] */

        while (at - below > 1) {
            const int middle = below + (at - below) / 2;

            if (kivi_code_of(&range, kivi_f32_from_f16(half_at(rng, middle))) >= (uint32_t)code)
                at = middle;
            else
                below = middle;
        }
        for (i = -5; i < 5; i++, n++) {
            const int x = at + i < least ? least : at + i > largest ? largest : at + i;

            group[(turn + (size_t)n) % 32 * stride] = half_at(rng, x);
        }
    }
}

START_TEST(quantizes_beside_thresholds)
{
    struct rng rng = {test_seed(4)};
    const struct kivi_layout k = kivi_layout_keys(2, 128, 32), v = kivi_layout_values(2, 128, 32);
    const int rounds = test_is_long() ? 20000 : 400;
    uint16_t *rows = malloc(32 * 128 * sizeof *rows);
    char *expected = aligned_alloc(64, k.block_bytes), *block = aligned_alloc(64, k.block_bytes);
    uint32_t g, t;
    int round, i;

    ck_assert(rows && expected && block && v.block_bytes <= k.block_bytes);
    for (round = 0; round < rounds; round++) {
        for (g = 0; g < 128; g++)
            fill_beside_thresholds(&rng, rows + g, 128);
        kivi_kernels_scalar.quantize_k(&k, rows, 128, 0, expected);
        for (i = 0; i < n_tables; i++) {
            tables[i]->quantize_k(&k, rows, 128, 0, block);
            check_block(&k, block, expected, tables[i]->name, "quantize_k", -1);
        }
        for (t = 0; t < 32; t++) {
            for (g = 0; g < 4; g++)
                fill_beside_thresholds(&rng, rows + t * 128 + g * 32, 1);
        }
        kivi_kernels_scalar.quantize_v(&v, rows, 128, 0, 32, expected);
        for (i = 0; i < n_tables; i++) {
            tables[i]->quantize_v(&v, rows, 128, 0, 32, block);
            check_block(&v, block, expected, tables[i]->name, "quantize_v", -1);
        }
    }
    free(block);
    free(expected);
    free(rows);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantizers");
    TCase *tcase = tables_case();

    tcase_add_test(tcase, converts_all_of_16_bits);
    tcase_add_test(tcase, rounds_f32_to_nearest_even);
    tcase_add_loop_test(tcase, quantizes_as_the_scalar_table, 0, LENGTH(all_bits));
    tcase_add_test(tcase, quantizes_beside_thresholds);
    suite_add_tcase(suite, tcase);
    return run_suite(suite, CK_NOFORK);
}
