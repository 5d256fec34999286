/* Four-way dot products for x86 with VNNI: vi_dot adds those of unsigned with signed bytes. */
#ifndef KIVI_DOT_VNNI_H
#define KIVI_DOT_VNNI_H

typedef VI VD;

#define DOTS_SIGNED(bits) 1024 /* more than there are */
#define DOTS_UNSIGNED(bits) 1024

KIVI_INLINE VD vd_zero(void)
{
    return vi_zero();
}

KIVI_INLINE VD vd_signed(VD sum, VI codes, VI digits, uint32_t bits)
{
    (void)bits;
    return vi_dot(sum, codes, digits);
}

KIVI_INLINE VD vd_unsigned(VD sum, VI codes, VI digits, uint32_t bits)
{
    (void)bits;
    return vi_dot(sum, digits, codes);
}

KIVI_INLINE VI vd_sum(VD sum, uint32_t bits)
{
    (void)bits;
    return sum;
}

#endif
