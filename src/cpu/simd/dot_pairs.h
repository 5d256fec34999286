/*
 * Four-way dot products for x86 without VNNI: products of bytes are summed by pairs in 16 bits, and
 * these, before they can overflow, in 32.
 */
#ifndef KIVI_DOT_PAIRS_H
#define KIVI_DOT_PAIRS_H

typedef VI VD;

/* Two are coarser than floats, and from memory seldom faster. */
#define MOST_DIGITS(bits) ((bits) == 2 ? 1u : 0u)

/* A place adds 4 pairs to a sum, 2 * 128 * 12 each, or 2 * 255 * 12 of unsigned digits: codes of place 1 stay where they
 * are. */
#define SHIFT_SIGNED(bits, place) ((place) < 2 ? 0 : (bits) * (place))
#define SHIFT_UNSIGNED(bits, place) SHIFT_SIGNED(bits, place)

/* a, of which compilers then know nothing more: they would add in another order, until most of it is in memory. */
KIVI_INLINE VI vi_opaque(VI a)
{
    __asm__("" : "+v"(a)); /* any vector register */
    return a;
}

KIVI_INLINE VD vd_zero(void)
{
    return vi_zero();
}

KIVI_INLINE VD vd_signed(VD sum, VI codes, VQ digits, uint32_t bits)
{
    (void)bits;
    return vi_opaque(vi_add16(sum, vi_pairs(codes, digits)));
}

KIVI_INLINE VD vd_unsigned(VD sum, VI codes, VQ digits)
{
    return vi_opaque(vi_add16(sum, vi_pairs(digits, codes)));
}

KIVI_INLINE VI vd_sum(VD sum)
{
    return vi_widen(sum);
}

#endif
