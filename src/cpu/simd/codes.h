/*
 * Dot products of packed codes with digits (fold.h), for any vector length. Codes stay where they are in
 * their bytes as far as the instruction takes them: masked and not shifted, they count 2^shift times, for
 * which their step makes up. Codes of one place go together, and each word is read again for the next place: so
 * few sums are under way that rows share the masked codes, and vectors the digits.
 */
#ifndef KIVI_SIMD_CODES_H
#define KIVI_SIMD_CODES_H

#define MAX_ROWS 4 /* that go together */
#define MAX_SIDE 4 /* vectors side by side */
#define MAX_SUMS (MAX_ROWS * MAX_DIGITS)

/* The places of one word, and the words that 16 numbers have. */
#define PLACES(bits) (8 / (bits))
#define WORDS(bits) ((bits) / 2)

/* Vectors of codes that go together with so many rows: as many as there are registers for. */
#define FITS(rows, side, n_digits) ((rows) * (side) * (n_digits) <= ACCUMULATORS)
#define SIDE_BY_SIDE(rows, n_digits)                                                               \
    (LANES <= 8 && FITS(rows, 4, n_digits) ? 4u : FITS(rows, 2, n_digits) ? 2u : 1u)

/* By how much the codes of a place are shifted to the right, and how far to the left they stay. */
KIVI_INLINE uint32_t shift_right(uint32_t place, uint32_t bits, int is_signed)
{
    (void)place; /* some instruction sets shift nothing */
    (void)bits;
    return is_signed ? SHIFT_SIGNED(bits, place % PLACES(bits))
                     : SHIFT_UNSIGNED(bits, place % PLACES(bits));
}

KIVI_INLINE uint32_t shift_left_over(uint32_t place, uint32_t bits, int is_signed)
{
    return bits * (place % PLACES(bits)) - shift_right(place, bits, is_signed);
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

/* Adds the dot products of one place of `side` vectors of words with fours i of their digits, which begin at `offset`.
 * The last seven are constants. */
KIVI_INLINE void add_dots(VD sum[MAX_SIDE][MAX_SUMS], const uint32_t *word,
                          const struct operands *o, size_t offset, uint32_t i, uint32_t place,
                          uint32_t rows, uint32_t side, uint32_t n_digits, uint32_t bits,
                          int is_signed)
{
    const uint32_t kept = shift_left_over(place, bits, is_signed);
    const uint32_t shift = shift_right(place, bits, is_signed);
    const int mask = (int)(0x01010101u * (((1u << bits) - 1u) << kept));
    VI codes[MAX_SIDE];
    uint32_t v, k;

    KIVI_UNROLL
    for (v = 0; v < side; v++) {
        codes[v] = vi_load(word + v * LANES);
        if (shift > 0)
            codes[v] = vi_shift_right(codes[v], (int)shift);
        if (bits < 8)
            codes[v] = vi_and(codes[v], vi_set(mask));
    }
    KIVI_UNROLL
    for (k = 0; k < rows * n_digits; k++) {
        const uint32_t r = k / n_digits, d = k % n_digits;
        const VQ digits = vq_load(o->digits + r * o->row + d * o->width + offset, i);

        KIVI_UNROLL
        for (v = 0; v < side; v++)
            sum[v][k] = is_signed ? vd_signed(sum[v][k], codes[v], digits, bits)
                                  : vd_unsigned(sum[v][k], codes[v], digits);
    }
}

/* Adds the sums of a place, times its steps in a unit, to the rows' totals. The last four are constants. */
KIVI_INLINE void add_sums(VF total[MAX_SIDE][MAX_ROWS], VD sum[MAX_SIDE][MAX_SUMS],
                          const struct operands *o, size_t unit, uint32_t place, uint32_t rows,
                          uint32_t side, uint32_t n_digits)
{
    const float *steps = o->steps + unit * STEPS + 4 * place;
    uint32_t r, v;

    KIVI_UNROLL
    for (r = 0; r < rows; r++) {
        const VF step = vf_set(steps[r * o->steps_row]);

        KIVI_UNROLL
        for (v = 0; v < side; v++) {
            const VD *of_row = &sum[v][r * n_digits];
            VI all = vd_sum(of_row[0]);

            if (n_digits == 2) /* fits: digits are of 8 bits, and a place has 16 products at most */
                all = vi_add(all, vi_shift_left(vd_sum(of_row[1]), 8));
            total[v][r] = vf_fma(vf_of(all), step, total[v][r]);
        }
    }
}

#endif
