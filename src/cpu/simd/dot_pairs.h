/*
 * Four-way dot products for x86 without VNNI: products of bytes are summed by pairs in 16 bits, and
 * these, before they can overflow, in 32.
 */
#ifndef KIVI_DOT_PAIRS_H
#define KIVI_DOT_PAIRS_H

typedef VI VD;

/* Two are coarser than floats, and from memory seldom faster. */
#define MOST_DIGITS(bits) ((bits) == 2 ? 1u : 0u)

/* A sum takes the 8 products of a place, 2 * 128 * 3 each, or 2 * 255 * 3 of unsigned digits, and more. */
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
