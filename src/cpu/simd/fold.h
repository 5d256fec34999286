/*
 * Folding, for any vector length: the scales of a block are multiplied into the other operand, and the
 * products, rounded to integers times one step for the whole block, are cut into digits of 8 bits.
 *
 * KIVI_STANDARD multiplies in fixed point: operand and scales are rounded to 16 bits of their largest
 * number, and so are the products: two digits. Where that is too coarse, at 8 bits and for KIVI_PRECISE,
 * products are floats, rounded to three digits. docs/numerics.md has the bounds.
 */
#ifndef KIVI_SIMD_FOLD_H
#define KIVI_SIMD_FOLD_H

#define MAX_DIM 512
#define MAX_DIGITS 3
#define VECTORS (16 / LANES) /* of 16 lanes, the unit in which numbers are rounded */

/* The largest numbers of two digits and of three, with room for the carry and for rounding. */
#define TOP_2 32639
#define TOP_3 8355700

/* Below this all numbers count as 0: their inverse might overflow. */
#define SMALLEST 1e-33f

/* Numbers as integers times a step. Up to a multiple of 32 they are padded with 0. */
struct fixed {
    float step;
    int16_t number[MAX_DIM];
};

/* A block's scales and minima. */
struct folding {
    const uint16_t *scales, *minima;
    struct fixed fixed;           /* the scales */
    uint16_t present[2][MAX_DIM]; /* copies of which some are 0 */
};

/* What became of a row. */
struct cut {
    uint32_t n_digits;
    float step; /* of the first digit; 0 if all products are 0 */
};

/* Number i, a vector of them, of floats or of halves: one of the two pointers is NULL. */
KIVI_INLINE VF load_from(const float *floats, const uint16_t *halves, uint32_t i)
{
    return floats ? vf_load(floats + i) : vf_load_half(halves + i);
}

/* Rounds n numbers, a multiple of 16. */
KIVI_INLINE void fix_any(const float *floats, const uint16_t *halves, uint32_t n, struct fixed *to)
{
    VI number[VECTORS];
    VF top = vf_zero(), inverse;
    float max;
    uint32_t i;
    int v;

    for (i = 0; i < n; i += LANES)
        top = vf_max(top, vf_abs(load_from(floats, halves, i)));
    max = vf_largest(top);
    inverse = vf_set(max < SMALLEST ? 0 : TOP_2 / max);
    for (i = 0; i < n; i += 16) {
        KIVI_UNROLL
        for (v = 0; v < VECTORS; v++)
            number[v] = vi_round(vf_mul(load_from(floats, halves, i + v * LANES), inverse));
        vi_store_words(to->number + i, number);
    }
    if (n % 32)
        memset(to->number + n, 0, 16 * sizeof *to->number);
    to->step = max < SMALLEST ? 0 : max * (1.0f / TOP_2);
}

static void fix(const float *x, uint32_t n, struct fixed *to)
{
    fix_any(x, NULL, n, to);
}

/* Where what is read next lies, from what is read now. CPUs do not guess it: scales are read before codes,
 * and the next blocks are elsewhere. */
static uintptr_t ahead_of(const void *blocks, const void *next)
{
    return next ? (uintptr_t)next - (uintptr_t)blocks : 0;
}

KIVI_INLINE void prefetch_ahead(const void *address, uintptr_t ahead)
{
    kivi_prefetch((const void *)((uintptr_t)address + ahead));
}

/* Whether 0 is at the end of a range or outside, as where one channel dwarfs its group. */
static int is_skewed(const struct folding *f, uint32_t n, uint32_t bits)
{
    const VF half = vf_set((float)((1u << bits) - 1u) / 2);
    VF skew = vf_zero();
    uint32_t i;

    for (i = 0; i < n; i += LANES) {
        const VF reach = vf_mul(vf_load_half(f->scales + i), half);
        const VF middle = vf_add(vf_load_half(f->minima + i), reach);

        skew = vf_max(skew, vf_fma(reach, vf_set(-0.9f), vf_abs(middle)));
    }
    return vm_any(vm_less(vf_zero(), skew));
}

/* Reads the n scales and minima of a block. Of values only the first n_tokens tokens are there: what the
 * others have left behind must not matter. */
static void unfold(const struct kivi_layout *l, const void *block, uint32_t n, uint32_t n_tokens,
                   uintptr_t ahead, struct folding *f)
{
    const char *line;
    uint32_t i;

    f->scales = kivi_scales_const(l, block);
    f->minima = kivi_minima_const(l, block);
    for (line = (const char *)f->scales; line < (const char *)block + l->block_bytes; line += 64)
        prefetch_ahead(line, ahead);
    if (n_tokens < KIVI_TILE) {
        for (i = 0; i < n; i++) {
            f->present[0][i] = i % KIVI_TILE < n_tokens ? f->scales[i] : 0;
            f->present[1][i] = i % KIVI_TILE < n_tokens ? f->minima[i] : 0;
        }
        f->scales = f->present[0];
        f->minima = f->present[1];
    }
    fix_any(NULL, f->scales, n, &f->fixed);
}

/* Two digits of the products of n scales with the numbers x, which repeat after `period`; those of one
 * place are `width` apart. Returns the sum of the products' squares. */
KIVI_INLINE float multiply_fixed(const struct folding *f, const int16_t *x, uint32_t period,
                                 uint32_t n, int is_signed, uint8_t *digits, uint32_t width)
{
    VF squares = vf_zero();
    uint32_t i;

    for (i = 0; i < n; i += 2 * LANES) {
        const VI product = vw_multiply(vi_load(x + i % period), vi_load(f->fixed.number + i));

        squares = vf_add(squares, vf_of(vw_squares(product)));
        if (is_signed)
            vw_store_signed_digits(digits + i, digits + width + i, product);
        else
            vw_store_digits(digits + i, digits + width + i, product);
    }
    return vf_sum(squares);
}

/* Three digits of the same products in floats. Returns the step. */
KIVI_INLINE float multiply_floats(const struct folding *f, const float *x, uint32_t period,
                                  uint32_t n, int is_signed, uint8_t *digits, uint32_t width)
{
    const VI carry = vi_set(is_signed ? 128 : 0);
    float product[MAX_DIM], max;
    VI number[VECTORS];
    VF top = vf_zero(), inverse;
    uint32_t i, d;
    int v;

    for (i = 0; i < n; i += LANES) {
        const VF y = vf_mul(vf_load(x + i % period), vf_load_half(f->scales + i));

        vf_store(product + i, y);
        top = vf_max(top, vf_abs(y));
    }
    max = vf_largest(top);
    inverse = vf_set(max < SMALLEST ? 0 : TOP_3 / max);
    for (i = 0; i < n; i += 16) {
        KIVI_UNROLL
        for (v = 0; v < VECTORS; v++)
            number[v] = vi_round(vf_mul(vf_load(product + i + v * LANES), inverse));
        vi_store_bytes(digits + i, number);
        for (d = 1; d < 3; d++) {
            KIVI_UNROLL
            for (v = 0; v < VECTORS; v++)
                number[v] = vi_shift_signed(vi_add(number[v], carry), 8);
            vi_store_bytes(digits + d * width + i, number);
        }
    }
    return max < SMALLEST ? 0 : max / TOP_3;
}

/* 8-bit codes leave so small an error that theirs takes three. */
KIVI_INLINE int takes_two_digits(kivi_precision precision, uint32_t bits)
{
    return precision == KIVI_STANDARD && bits < 8;
}

/* KIVI_STANDARD, all squared and times 12: what the products' rounding adds to a result against what the
 * codes' quantization does, for n numbers. A product is off by its own rounding and by those of its two
 * factors, 3 at most, and counts times a code, levels^2 / 3 in the mean; the quantization error is
 * the sum of the squares of the products. The share is 0.028^2, of 0.05^2 that are allowed. */
static int fine_enough(float squares, float n, uint32_t bits)
{
    const float levels = (float)((1u << bits) - 1u);

    return levels * levels * n <= 0.0008f * squares;
}

#endif
