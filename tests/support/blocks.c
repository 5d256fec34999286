#include "blocks.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "numbers.h"

/* ------------------------------------------------------------------- fills */

/* The finite f16 number with these 16 bits, or one close to it. */
static uint16_t finite(uint64_t bits)
{
    return (bits & 0x7c00) == 0x7c00 ? (uint16_t)(bits & 0xfbff) : (uint16_t)bits;
}

static double element(struct rng *rng, enum rows_fill fill, uint32_t c, uint32_t special)
{
    static const double extremes[] = {65504, -65504, 0x1p-24, -0x1p-24, 0x1p-14, 1, 0, 65472};
    const double x = rng_normal(rng);

    switch (fill) {
    case ROWS_OUTLIERS:
        return c % 24 == special % 24 ? 25 + 10 * x : x;
    case ROWS_THOUSAND:
        return c == special ? 1000 * x : x;
    case ROWS_CONSTANT:
        return c % 5 == special % 5 ? x : 1.5 + special % 3;
    case ROWS_SUBNORMAL:
        return x * 0x1p-20;
    case ROWS_EXTREME:
        return rng_one_in(rng, 4) ? RNG_PICK(rng, extremes) : x;
    case ROWS_OVERFLOW:
        return fmax(-65504, fmin(65504, x * 50000));
    case ROWS_TINY_RANGE:
        return 0x1p-16 + (double)rng_below(rng, 6) * 0x1p-24;
    case ROWS_ZERO:
        return rng_one_in(rng, 2) ? -0.0 : 0.0;
    default:
        return x;
    }
}

void fill_rows(struct rng *rng, enum rows_fill fill, uint16_t *rows, size_t n, uint32_t dim,
               size_t stride)
{
    const uint32_t special = (uint32_t)rng_below(rng, dim);
    size_t t;
    uint32_t c;

    for (t = 0; t < n; t++) {
        for (c = 0; c < dim; c++)
            rows[t * stride + c] = fill == ROWS_BITS
                                       ? finite(rng_next(rng))
                                       : number_to_f16(element(rng, fill, c, special));
    }
}

const uint16_t *guarded_rows(struct rng *rng, enum rows_fill fill, size_t n, uint32_t dim,
                             size_t stride)
{
    uint16_t *rows = guard_new(rng, ((n - 1) * stride + dim) * 2, 2);

    fill_rows(rng, fill, rows, n, dim, stride);
    guard_read_only(rows);
    return rows;
}

size_t any_stride(struct rng *rng, uint32_t dim)
{
    return dim + (rng_one_in(rng, 2) ? 0 : rng_below(rng, 40));
}

void fill_query(struct rng *rng, enum query_fill fill, float *row, uint32_t dim, uint32_t dim_pad)
{
    const uint32_t special = (uint32_t)rng_below(rng, dim);
    uint32_t c;

    for (c = 0; c < dim; c++) {
        const double x = rng_normal(rng);

        switch (fill) {
        case QUERY_SCALED:
            row[c] = (float)(x / sqrt(dim));
            break;
        case QUERY_THOUSAND:
            row[c] = (float)(c == special ? 1000 * x : x);
            break;
        case QUERY_ONE_HOT:
            row[c] = (float)(c == special ? x : 0);
            break;
        case QUERY_HUGE:
            row[c] = (float)fmax(-1e30, fmin(1e30, x * 1e30));
            break;
        case QUERY_TINY:
            row[c] = (float)(x * (c % 2 ? 1e-30 : 1e-41));
            break;
        case QUERY_ZERO:
            row[c] = 0;
            break;
        default:
            row[c] = (float)x;
        }
    }
    for (; c < dim_pad; c++)
        row[c] = 0;
}

void fill_weights(struct rng *rng, enum weight_fill fill, float *weights, uint32_t n)
{
    const uint32_t special = (uint32_t)rng_below(rng, n);
    uint32_t t;

    for (t = 0; t < n; t++) {
        const double x = exp(fmin(rng_normal(rng) - 3, 0));

        switch (fill) {
        case WEIGHT_SPARSE:
            weights[t] = (float)(rng_one_in(rng, 2) ? x : 0);
            break;
        case WEIGHT_ONES:
            weights[t] = 1;
            break;
        case WEIGHT_ONE:
            weights[t] = (float)(t == special ? 1 : x * 1e-6);
            break;
        case WEIGHT_TINY:
            weights[t] = (float)(x * (t % 2 ? 1e-30 : 1e-41));
            break;
        case WEIGHT_ZERO:
            weights[t] = 0;
            break;
        default:
            weights[t] = (float)x;
        }
    }
}

static void put_code(struct rng *rng, const struct kivi_layout *l, uint32_t *word, uint32_t shift)
{
    const uint32_t mask = (1u << l->bits) - 1;

    *word = (*word & ~(mask << shift)) | ((uint32_t)rng_next(rng) & mask) << shift;
}

void scramble_keys(struct rng *rng, const struct kivi_layout *l, void *block)
{
    uint16_t *scales = kivi_scales(l, block), *minima = kivi_minima(l, block);
    uint32_t t, c, shift;

    for (c = 0; c < l->dim; c++) {
        scales[c] = finite(rng_next(rng)) & 0x7fff;
        minima[c] = finite(rng_next(rng));
        for (t = 0; t < l->tokens; t++) {
            const size_t word = kivi_key_word(l, t, c, &shift);

            put_code(rng, l, (uint32_t *)block + word, shift);
        }
    }
}

void scramble_values(struct rng *rng, const struct kivi_layout *l, uint32_t first, void *block)
{
    uint16_t *scales = kivi_scales(l, block), *minima = kivi_minima(l, block);
    uint32_t t, c, shift;

    for (t = first; t < l->tokens; t++) {
        for (c = 0; c < l->n_groups; c++) {
            scales[c * KIVI_TILE + t] = finite(rng_next(rng)) & 0x7fff;
            minima[c * KIVI_TILE + t] = finite(rng_next(rng));
        }
        for (c = 0; c < l->dim; c++) {
            const size_t word = kivi_value_word(l, t, c, &shift);

            put_code(rng, l, (uint32_t *)block + word, shift);
        }
    }
}

/* --------------------------------------------------------------- in double */

static double *numbers(size_t n)
{
    double *x = malloc(n * sizeof *x);

    ck_assert_ptr_nonnull(x);
    return x;
}

void unpacked_init(struct unpacked *u, size_t tokens, uint32_t dim)
{
    u->value = numbers(tokens * dim);
    u->magnitude = numbers(tokens * dim);
    u->original = numbers(tokens * dim);
}

void unpacked_free(struct unpacked *u)
{
    free(u->value);
    free(u->magnitude);
    free(u->original);
}

static void set(struct rng *rng, struct unpacked *u, size_t at, uint32_t code, double scale,
                double min)
{
    u->value[at] = code * scale + min;
    u->magnitude[at] = code * scale + fabs(min);
    u->original[at] = u->value[at] + (rng_uniform(rng) - 0.5) * scale;
}

void unpack_keys(struct rng *rng, const struct kivi_layout *l, const void *blocks, uint32_t index,
                 struct unpacked *u)
{
    const char *block = (const char *)blocks + (size_t)index * l->block_bytes;
    const uint32_t *codes = (const uint32_t *)(const void *)block, mask = (1u << l->bits) - 1;
    uint32_t t, c, shift;

    for (c = 0; c < l->dim; c++) {
        const double scale = number_from_f16(kivi_scales_const(l, block)[c]);
        const double min = number_from_f16(kivi_minima_const(l, block)[c]);

        for (t = 0; t < l->tokens; t++) {
            const size_t word = kivi_key_word(l, t, c, &shift);

            set(rng, u, ((size_t)index * l->tokens + t) * l->dim + c, codes[word] >> shift & mask,
                scale, min);
        }
    }
}

void unpack_values(struct rng *rng, const struct kivi_layout *l, const void *blocks, uint32_t index,
                   struct unpacked *u)
{
    const char *block = (const char *)blocks + (size_t)index * l->block_bytes;
    const uint32_t *codes = (const uint32_t *)(const void *)block, mask = (1u << l->bits) - 1;
    double scale = 0, min = 0;
    uint32_t t, c, shift;

    for (t = 0; t < l->tokens; t++) {
        for (c = 0; c < l->dim; c++) {
            const size_t word = kivi_value_word(l, t, c, &shift);

            if (c % l->group_size == 0) {
                const uint32_t at = c / l->group_size * KIVI_TILE + t;

                scale = number_from_f16(kivi_scales_const(l, block)[at]);
                min = number_from_f16(kivi_minima_const(l, block)[at]);
            }
            set(rng, u, ((size_t)index * l->tokens + t) * l->dim + c, codes[word] >> shift & mask,
                scale, min);
        }
    }
}
