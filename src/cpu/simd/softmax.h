/* The functions of the softmax, for any vector length. */
#ifndef KIVI_SIMD_SOFTMAX_H
#define KIVI_SIMD_SOFTMAX_H

/* The last n < LANES numbers, and `padding` for the rest of the vector. */
KIVI_INLINE VF load_last(const float *x, size_t n, float padding)
{
    float whole[LANES];

    vf_store(whole, vf_set(padding));
    memcpy(whole, x, n * sizeof *x);
    return vf_load(whole);
}

KIVI_INLINE void store_last(float *x, size_t n, VF a)
{
    float whole[LANES];

    vf_store(whole, a);
    memcpy(x, whole, n * sizeof *x);
}

/* exp(x) for x <= 0; 0 where the result would be subnormal. With x = n ln 2 + r, |r| <= ln 2 / 2, it is
 * 2^n times a polynomial in r: of those of degree 5 that are 1 at 0, the one whose largest relative error is least,
 * 1e-7. That of ln 2 as one float makes 2e-7 at most. */
KIVI_INLINE VF exp_of(VF x)
{
    const VM is_normal = vm_less(vf_set(-87.3365f), x); /* ln 2^-126 = -87.33654 */
    const VF n = vf_nearest(vf_mul(x, vf_set(1.44269504f)));
    const VF r = vf_fma(n, vf_set(-0.693147181f), x);
    VF y = vf_set(8.2902721e-3f);

    y = vf_fma(y, r, vf_set(4.1898160e-2f));
    y = vf_fma(y, r, vf_set(1.6667638e-1f));
    y = vf_fma(y, r, vf_set(4.9999148e-1f));
    y = vf_fma(y, r, vf_set(9.9999971e-1f));
    y = vf_fma(y, r, vf_set(1));
    return vf_times_power(y, n, is_normal);
}

/* tanh(x): from exp(-2|x|), or where that would cancel from Cephes' polynomial for |x| < 0.625. */
KIVI_INLINE VF tanh_of(VF x)
{
    const VF size = vf_abs(x), square = vf_mul(x, x);
    const VF power = exp_of(vf_mul(size, vf_set(-2)));
    const VF large = vf_div(vf_sub(vf_set(1), power), vf_add(vf_set(1), power));
    const VF sign = vf_bits(vi_and(vi_bits(x), vi_set(INT32_MIN)));
    VF y = vf_set(-5.70498872745e-3f);

    y = vf_fma(y, square, vf_set(2.06390887954e-2f));
    y = vf_fma(y, square, vf_set(-5.37397155531e-2f));
    y = vf_fma(y, square, vf_set(1.33314422036e-1f));
    y = vf_fma(y, square, vf_set(-3.33332819422e-1f));
    y = vf_fma(vf_mul(y, square), x, x);
    return vf_select(vm_less(size, vf_set(0.625f)), y,
                     vf_bits(vi_or(vi_bits(large), vi_bits(sign))));
}

static void softcap(float *x, size_t n, float cap)
{
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES)
        vf_store(x + i, vf_mul(tanh_of(vf_div(vf_load(x + i), vf_set(cap))), vf_set(cap)));
    if (i < n)
        store_last(x + i, n - i,
                   vf_mul(tanh_of(vf_div(load_last(x + i, n - i, 0), vf_set(cap))), vf_set(cap)));
}

#define CHAINS 4u /* vectors side by side: one after the other, each would wait for the one before */

static float largest(const float *x, size_t n)
{
    VF max[CHAINS];
    size_t i;
    uint32_t k;

    for (k = 0; k < CHAINS; k++)
        max[k] = vf_set(x[0]);
    for (i = 0; i + CHAINS * LANES <= n; i += CHAINS * LANES) {
        KIVI_UNROLL
        for (k = 0; k < CHAINS; k++)
            max[k] = vf_max(max[k], vf_load(x + i + k * LANES));
    }
    for (; i + LANES <= n; i += LANES)
        max[0] = vf_max(max[0], vf_load(x + i));
    if (i < n)
        max[0] = vf_max(max[0], load_last(x + i, n - i, x[0]));
    return vf_largest(vf_max(vf_max(max[0], max[1]), vf_max(max[2], max[3])));
}

static float exp_sum(float *x, size_t n, float max)
{
    const VF top = vf_set(max);
    VF sum = vf_zero(), y[CHAINS];
    size_t i;
    uint32_t k;

    for (i = 0; i + CHAINS * LANES <= n; i += CHAINS * LANES) {
        KIVI_UNROLL
        for (k = 0; k < CHAINS; k++)
            y[k] = exp_of(vf_sub(vf_load(x + i + k * LANES), top));
        KIVI_UNROLL
        for (k = 0; k < CHAINS; k++)
            vf_store(x + i + k * LANES, y[k]);
        sum = vf_add(sum, vf_add(vf_add(y[0], y[1]), vf_add(y[2], y[3])));
    }
    for (; i + LANES <= n; i += LANES) {
        y[0] = exp_of(vf_sub(vf_load(x + i), top));
        vf_store(x + i, y[0]);
        sum = vf_add(sum, y[0]);
    }
    if (i < n) {
        y[0] = exp_of(vf_sub(load_last(x + i, n - i, -INFINITY), top));
        store_last(x + i, n - i, y[0]);
        sum = vf_add(sum, y[0]);
    }
    return vf_sum(sum);
}

static void scale(float *x, size_t n, float factor)
{
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES)
        vf_store(x + i, vf_mul(vf_load(x + i), vf_set(factor)));
    for (; i < n; i++)
        x[i] *= factor;
}

#endif
