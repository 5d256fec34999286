/*
 * A group's range, and the codes of its numbers, for any vector length: the same bits as the scalar table
 * (../quantize.h). By division, operation by operation; or, at 2 bits, by comparison with the least numbers that have
 * each code: codes never fall from one number to the next larger one.
 */
#ifndef KIVI_SIMD_RANGES_H
#define KIVI_SIMD_RANGES_H

/* struct kivi_range, lane by lane. */
struct ranges {
    VF min, scale;
    VF divisor; /* the scale; where that is 0 so small a number that every quotient but 0 is clamped */
    VM wide;
};

/* min is not -0. */
KIVI_INLINE struct ranges ranges_of(VF min, VF max, VF levels)
{
    const VF exact = vf_sub(max, min), rounded = vf_round_half(exact);
    struct ranges r;

    r.min = min;
    r.wide = vm_equal(rounded, vf_set(INFINITY));
    r.scale = vf_round_half(vf_div(vf_select(r.wide, exact, rounded), levels));
    r.divisor = vf_max(r.scale, vf_set(1e-30f));
    return r;
}

KIVI_INLINE VF levels_of(uint32_t bits)
{
    return vf_set((float)((1u << bits) - 1u));
}

/* The codes of numbers that lie `above` their minimum. */
KIVI_INLINE VI codes_of(VF above, VF divisor, VF levels)
{
    return vi_round(vf_min(vf_round_half(vf_div(above, divisor)), levels));
}

/* ------------------------------------------------- 2 bits without division */

#define THRESHOLDS 3

/*
 * What x - min, rounded to f16, has to exceed for threshold i. A quotient q is rounded to f16 and then to an integer,
 * both times to even, so that its code is
 *   1 or more  if q > 0.5, and does not round to it:  q > 0.5 + 2^-12
 *   2 or more  if q >= 1.5, or rounds to it:          q >= 1.5 - 2^-11
 *   3          if q > 2.5, and does not round to it:  q > 2.5 + 2^-10
 * These numbers have 12 bits and a divisor 11: products with it are exact, and so are comparisons with them.
 */
KIVI_INLINE VF step_of(VF divisor, uint32_t i)
{
    if (i == 0)
        return vf_mul(divisor, vf_set(0.5f + 0x1p-12f));
    if (i == 2)
        return vf_mul(divisor, vf_set(2.5f + 0x1p-10f));
    /* the number before, to be exceeded */
    return vf_bits(vi_add(vi_bits(vf_mul(divisor, vf_set(1.5f - 0x1p-11f))), vi_set(-1)));
}

/* Where x - min begins to be rounded to more than the step: in the middle of two f16 numbers. Below the least normal
 * one, where differences are not rounded, this is within 2^-26 of the step. */
KIVI_INLINE VF edge_of(VF step)
{
    return vf_bits(vi_or(vi_and(vi_bits(step), vi_set(~0x1fff)), vi_set(0x1000)));
}

/*
 * The numbers that those of 16 groups, none of them wide, have to exceed for threshold i. min + edge falls on an f16
 * number or between two, and is rounded to one of them: the number below that one is below the threshold, and the one
 * above is above, since both are further away than what edges and sums are off by. Of itself the rule tells.
 */
KIVI_INLINE VS find_threshold(const struct ranges *r, uint32_t i)
{
    VF place[VECTORS];
    VI is_above[VECTORS];
    uint32_t v;

    KIVI_UNROLL
    for (v = 0; v < VECTORS; v++) {
        const VF step = step_of(r[v].divisor, i);
        VF above;

        place[v] = vf_add(r[v].min, edge_of(step));
        above = vf_round_half(vf_sub(vf_round_half(place[v]), r[v].min));
        is_above[v] = vi_count(vi_zero(), vm_less(step, above));
    }
    return vs_sub(vs_of_floats(place), vs_narrow(is_above));
}

/* The codes of 16 numbers. */
KIVI_INLINE VS count_thresholds(VS x, VS first, VS second, VS third)
{
    return vs_count(vs_count(vs_count(vs_zero(), x, first), x, second), x, third);
}

#endif
