/* Four-way dot products for x86 with VNNI: vi_dot adds those of unsigned with signed bytes. */
#ifndef KIVI_DOT_VNNI_H
#define KIVI_DOT_VNNI_H

typedef VI VD;

/* At 8 bits floats do as well from memory. */
#define MOST_DIGITS(bits) ((bits) == 8 ? 0u : 2u)

/* Codes are unsigned beside signed digits, and signed beside unsigned ones. */
#define SHIFT_SIGNED(bits, place) 0
#define SHIFT_UNSIGNED(bits, place) ((bits) * ((place) + 1) == 8 ? (bits) : 0)

KIVI_INLINE VD vd_zero(void)
{
    return vi_zero();
}

KIVI_INLINE VD vd_signed(VD sum, VI codes, VQ digits, uint32_t bits)
{
    (void)bits;
    return vi_dot(sum, codes, digits);
}

KIVI_INLINE VD vd_unsigned(VD sum, VI codes, VQ digits)
{
    return vi_dot(sum, digits, codes);
}

KIVI_INLINE VI vd_sum(VD sum)
{
    return sum;
}

#endif
