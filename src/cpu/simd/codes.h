/*
 * Dot products of packed codes with digits (fold.h), for any vector length. Codes stay where they are in
 * their bytes as far as the instruction takes them: masked and not shifted, they count 2^shift times, for
 * which their step makes up. Rows of one kv head share the masked codes.
 */
#ifndef KIVI_SIMD_CODES_H
#define KIVI_SIMD_CODES_H

#define MAX_ROWS 4 /* that go together */
#define MAX_SIDE 4 /* vectors side by side */
#define MAX_SUMS (ACCUMULATORS > 4 * MAX_DIGITS ? ACCUMULATORS : 4 * MAX_DIGITS)

/* Where the lines that are read next lie, from those that are read now. CPUs do not guess it: scales are read
 * before codes, and the next blocks are elsewhere. */
static uintptr_t ahead_of(const void *blocks, const void *next)
{
    return next ? (uintptr_t)next - (uintptr_t)blocks : 0;
}

KIVI_INLINE void prefetch_ahead(const void *address, uintptr_t ahead)
{
    kivi_prefetch((const void *)((uintptr_t)address + ahead));
}

/* Sums that a row keeps for each vector of codes: digits, and places whose steps or shifts differ. */
#define SUMS(n_digits, bits) ((n_digits) * PLACES(bits))

/* Rows, and vectors of codes, that go together: as many as there are registers for. */
#define FITS(rows, side, n_digits, bits) ((rows) * (side) * SUMS(n_digits, bits) <= ACCUMULATORS)
#define ROWS_TOGETHER(n_digits, bits)                                                              \
    (FITS(4, 1, n_digits, bits) ? 4u : FITS(2, 1, n_digits, bits) ? 2u : 1u)
#define SIDE_BY_SIDE(rows, n_digits, bits)                                                         \
    (LANES <= 8 && FITS(rows, 4, n_digits, bits) ? 4u                                              \
     : FITS(rows, 2, n_digits, bits)             ? 2u                                              \
                                                 : 1u)

/* By how much the codes of place i stay shifted to the left. */
KIVI_INLINE uint32_t shift_left_over(uint32_t i, uint32_t bits, int is_signed)
{
    const uint32_t place = i % (8 / bits);

    return bits * place - (is_signed ? SHIFT_SIGNED(bits, place) : SHIFT_UNSIGNED(bits, place));
}

/* What steps are multiplied with to make up for the shift, a number for each lane. */
KIVI_INLINE void find_places(float *places, uint32_t bits, int is_signed)
{
    uint32_t i;

    KIVI_UNROLL
    for (i = 0; i < STEPS; i++)
        places[i] = 1.0f / (float)(1u << shift_left_over(i / 4, bits, is_signed));
}

/* Digits of rows, and their steps. */
struct operands {
    const uint8_t *digits;
    size_t row, width; /* bytes from row to row, from digit to digit */
    const float *steps;
    size_t steps_row;
};

/* Adds the dot products of 16 numbers: of their codes, in words from `word` on that are `stride` apart, with
 * their digits from `offset` on. rows, side, n_digits, bits, is_signed are constants. */
KIVI_INLINE void add_dots(VD sum[MAX_SIDE][MAX_SUMS], const uint32_t *word, size_t stride,
                              const struct operands *o, size_t offset, uint32_t rows, uint32_t side,
                              uint32_t n_digits, uint32_t bits, int is_signed)
{
    const uint32_t per_word = 8 / bits;
    uint32_t i, v, k;

    KIVI_UNROLL
    for (i = 0; i < 4; i++) {
        const uint32_t kept = shift_left_over(i, bits, is_signed);
        const uint32_t shift = bits * (i % per_word) - kept;
        VI codes[MAX_SIDE];

        KIVI_UNROLL
        for (v = 0; v < side; v++) {
            codes[v] = vi_load(word + i / per_word * stride + v * LANES);
            if (shift > 0)
                codes[v] = vi_shift_right(codes[v], (int)shift);
            if (bits < 8)
                codes[v] =
                    vi_and(codes[v], vi_set((int)(0x01010101u * (((1u << bits) - 1u) << kept))));
        }
        KIVI_UNROLL
        for (k = 0; k < rows * n_digits; k++) {
            const VI digits = vi_repeat4(o->digits + k / n_digits * o->row
                                         + k % n_digits * o->width + offset + 16 * i);
            const uint32_t at = k * PLACES(bits) + i % PLACES(bits);

            KIVI_UNROLL
            for (v = 0; v < side; v++)
                sum[v][at] = is_signed ? vd_signed(sum[v][at], codes[v], digits, bits)
                                       : vd_unsigned(sum[v][at], codes[v], digits, bits);
        }
    }
}

KIVI_INLINE void clear_dots(VD sum[MAX_SIDE][MAX_SUMS], uint32_t n, uint32_t side)
{
    uint32_t v, k;

    KIVI_UNROLL
    for (k = 0; k < n; k++) {
        KIVI_UNROLL
        for (v = 0; v < side; v++)
            sum[v][k] = vd_zero();
    }
}

/* Adds the sums of a unit, times its steps, to the rows' totals. */
KIVI_INLINE void add_unit(VF total[MAX_SIDE][MAX_ROWS], VD sum[MAX_SIDE][MAX_SUMS],
                          const struct operands *o, size_t unit, uint32_t rows, uint32_t side,
                          uint32_t n_digits, uint32_t bits)
{
    const float *steps = o->steps + unit * STEPS;
    const uint32_t n = rows * PLACES(bits);
    uint32_t k, v, d;

    KIVI_UNROLL
    for (k = 0; k < n; k++) {
        const uint32_t r = k / PLACES(bits), place = k % PLACES(bits);
        const VF step = vf_set(steps[r * o->steps_row + 4 * place]);

        KIVI_UNROLL
        for (v = 0; v < side; v++) {
            const uint32_t first = r * SUMS(n_digits, bits) + place;
            VF all = vf_of(vd_sum(sum[v][first + (n_digits - 1) * PLACES(bits)], bits));

            for (d = n_digits - 1; d > 0; d--)
                all = vf_fma(all, vf_set(256),
                             vf_of(vd_sum(sum[v][first + (d - 1) * PLACES(bits)], bits)));
            total[v][r] = vf_fma(all, step, total[v][r]);
        }
    }
}

#endif
