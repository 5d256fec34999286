/*
 * Folding, for any vector length. Nothing is dequantized: with x the queries (attention sums over channels)
 * or the weights (over tokens), and the codes centred about the middle of their range, L / 2,
 *
 *     sum x * (code * scale + min) = sum (x * scale) * (code - L / 2) + sum x * middle
 *     middle = min + L / 2 * scale
 *
 * The products x * scale are rounded to integers times a step and cut into digits of 8 bits, so that their
 * sum over codes is an integer dot product for each digit (codes.h). The rest, the bias, is done in floats.
 * Centring halves what the rounding does: it counts times code - L / 2, and the middle is exact.
 *
 * 16 products have a step of their own, so that at 2 bits one digit often does (docs/numerics.md).
 * Otherwise, and with more bits, there are two. Where that is not enough, or no faster, codes go in floats (floats.h).
 *
 * Numbers go by sets of 64: four vectors of 16, each of which the codes of bits / 2 words belong to. Which four
 * of the 16 is a number's place: fours of one place have the same shift in their words, lie in the same
 * lanes, share a step, and have their digits side by side. So nothing is moved across lanes.
 */
#ifndef KIVI_SIMD_FOLD_H
#define KIVI_SIMD_FOLD_H

#define VECTORS (16 / LANES) /* of 16 lanes, the unit in which numbers are rounded */

#define SET 64u
#define STEPS (SET / 4) /* floats that the steps of a set take: place i at 4 * i */
#define MAX_DIGITS 2

/* Below this all numbers count as this: their inverse might overflow. */
#define SMALLEST 1e-30f

/* Whether codes go in digits. Floats are read in the order of addresses: where memory is the limit that is faster on an
 * AMD, which is asked for lines in one stream (ahead.h). */
KIVI_INLINE int in_digits(uint32_t bits, uint32_t n_rows, struct kivi_next next,
                          kivi_precision precision)
{
    return precision == KIVI_STANDARD && MOST_DIGITS(bits) > 0
           && (bits == 2 || n_rows > FEW_ROWS || !next.is_amd);
}

/* The largest number of so many digits, with room for the carry between two, or for dithers (values.h). */
KIVI_INLINE float largest_number(uint32_t n_digits, int is_signed)
{
    return n_digits == 2 ? 32639.0f : is_signed ? 127.0f : 254.0f;
}

/* What the codes count from: the middle of their range. */
KIVI_INLINE float middle_code(uint32_t bits)
{
    return (float)((1u << bits) - 1u) / 2;
}

/* Scales of a set in floats, and the middles of their ranges: sixteens of numbers. */
struct unfolded {
    VF scale[4][VECTORS], middle[4][VECTORS];
};

/* Sixteen i of a set. */
KIVI_INLINE void unfold(struct unfolded *u, uint32_t i, const uint16_t *scales,
                        const uint16_t *minima, uint32_t bits)
{
    uint32_t v;

    KIVI_UNROLL
    for (v = 0; v < VECTORS; v++) {
        u->scale[i][v] = vf_load_half(scales + v * LANES);
        u->middle[i][v] =
            vf_fma(u->scale[i][v], vf_set(middle_code(bits)), vf_load_half(minima + v * LANES));
    }
}

/* A sixteen that is not there. */
KIVI_INLINE void unfold_none(struct unfolded *u, uint32_t i)
{
    uint32_t v;

    KIVI_UNROLL
    for (v = 0; v < VECTORS; v++)
        u->scale[i][v] = u->middle[i][v] = vf_zero();
}

/* The lower of two digits of numbers in four vectors. Leaves the upper one, which is signed. */
KIVI_INLINE VI cut_lower(VI *number)
{
    const VI byte = vi_set(255), carry = vi_set(128);
    VI low[4];
    uint32_t w;

    KIVI_UNROLL
    for (w = 0; w < 4; w++) {
        low[w] = vi_and(number[w], byte);
        number[w] = vi_shift_signed(vi_add(number[w], carry), 8);
    }
    return vi_pack_unsigned(low);
}

/* The digits' sums by fours. */
KIVI_INLINE VF sum_digits(VI digits, int is_signed)
{
    return vf_of(is_signed ? vi_sum_signed(digits) : vi_sum_unsigned(digits));
}

/* All digits of numbers in four vectors, `width` apart. Two are signed. Returns the numbers' sums by fours. */
KIVI_INLINE VF cut(VI *number, uint32_t n_digits, int is_signed, uint8_t *to, size_t width)
{
    VF sum = vf_zero();
    VI digits;

    if (n_digits == 2) {
        digits = cut_lower(number);
        vi_store(to, digits);
        sum = sum_digits(digits, 1);
        to += width;
    }
    digits = is_signed ? vi_pack_signed(number) : vi_pack_unsigned(number);
    vi_store(to, digits);
    return n_digits == 2 ? vf_fma(sum_digits(digits, is_signed), vf_set(256), sum)
                         : sum_digits(digits, is_signed);
}

/* Steps whose multiples hold the largest of each four lanes' products, `top`. *inverse receives what products are
 * multiplied with to count them in steps. */
KIVI_INLINE VF find_steps(VF top, uint32_t n_digits, int is_signed, VF *inverse)
{
    const float top_number = largest_number(n_digits, is_signed);

    top = vf_largest_of_four(vf_max(top, vf_set(SMALLEST)));
    *inverse = vf_div(vf_set(top_number), top);
    return vf_mul(top, vf_set(1 / top_number));
}

/* What codes count from, times the steps: the digits' sum times this belongs to the bias. */
KIVI_INLINE VF centre_steps(VF step, uint32_t bits)
{
    return vf_mul(step, vf_set(CODE_OFFSET(bits) - middle_code(bits)));
}

/*
 * Rounds and cuts the products of a set, counted in steps; adds to the bias what centring takes. Digit d of number
 * 16 * w + 4 * i + k of a set is byte d * width + 16 * i + 4 * w + k, so that fours of one place are next to each
 * other. v is one of VECTORS, and the last two are constants.
 */
KIVI_INLINE VF round_set(const VF *product, VF centre, uint8_t *digits, size_t width, VF bias,
                         uint32_t v, uint32_t n_digits, int is_signed)
{
    VI number[4];
    uint32_t w;

    KIVI_UNROLL
    for (w = 0; w < 4; w++)
        number[w] = vi_round(product[w]);
    return vf_fma(cut(number, n_digits, is_signed, digits + v * 4 * LANES, width), centre, bias);
}

#endif
