/*
 * Four-way dot products for x86 without VNNI: products of bytes are summed by pairs in 16 bits, and
 * these, before they can overflow, in 32.
 */
#ifndef KIVI_DOT_PAIRS_H
#define KIVI_DOT_PAIRS_H

typedef struct {
    VI low, high; /* of the codes' nibbles; `high` only at 8 bits */
} VD;

/* A sum takes 8 products of signed digits, 2 * 128 * 15 each: those of a place. At 2 bits, 2 * 255 * 3 fit, too. */
#define SHIFT_SIGNED(bits, place) ((bits) * (place))
#define SHIFT_UNSIGNED(bits, place) ((bits) * (place))

/* a, of which compilers then know nothing more: they would add in another order, and keep words for the next
 * place, until most of it is in memory. */
KIVI_INLINE VI vi_opaque(VI a)
{
    __asm__("" : "+v"(a)); /* any vector register */
    return a;
}

/* Words are read again for each place. */
KIVI_INLINE VI vd_load(const uint32_t *words)
{
    return vi_opaque(vi_load(words));
}
#define vd_load vd_load

KIVI_INLINE VD vd_zero(void)
{
    return (VD){vi_zero(), vi_zero()};
}

KIVI_INLINE VD vd_signed(VD sum, VI codes, VQ digits, uint32_t bits)
{
    if (bits < 8) {
        sum.low = vi_opaque(vi_add16(sum.low, vi_pairs(codes, digits)));
    } else {
        const VI low = vi_low_nibbles(codes), high = vi_low_nibbles(vi_shift_right(codes, 4));

        sum.low = vi_opaque(vi_add16(sum.low, vi_pairs(low, digits)));
        sum.high = vi_opaque(vi_add16(sum.high, vi_pairs(high, digits)));
    }
    return sum;
}

KIVI_INLINE VD vd_unsigned(VD sum, VI codes, VQ digits, uint32_t bits)
{
    (void)bits;
    sum.low = vi_opaque(vi_add16(sum.low, vi_pairs(digits, codes)));
    return sum;
}

/* Numbers of two digits are not cut: pairs of 16 bits are multiplied, those of a word's even bytes
 * and those of its odd ones, and summed in 32. */
#define WIDE(n_digits, bits) ((n_digits) == 2)

KIVI_INLINE VD vd_wide(VD sum, VI codes, VQ numbers, uint32_t odd)
{
    const VI bytes = odd ? vi_odd_bytes(codes) : vi_even_bytes(codes);

    sum.low = vi_opaque(vi_add(sum.low, vi_multiply(bytes, numbers)));
    return sum;
}

KIVI_INLINE VI vd_sum_wide(VD sum)
{
    return sum.low;
}

KIVI_INLINE VI vd_sum(VD sum, uint32_t bits)
{
    const VI low = vi_widen(sum.low, 1);

    return bits < 8 ? low : vi_add(low, vi_widen(sum.high, 16));
}

#endif
