/* Attention over two disjoint sets of tokens from attention over each (log-sum-exp merge). */
#include <math.h>

#include "error.h"

kivi_status kivi_merge(size_t n_rows, uint32_t dim, float *out, float *lse, const float *other_out,
                       const float *other_lse, kivi_error *error)
{
    size_t r;
    uint32_t c;

    if (n_rows && (!out || !lse || !other_out || !other_lse))
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL",
                         !out         ? "out"
                         : !lse       ? "lse"
                         : !other_out ? "other_out"
                                      : "other_lse");
    if (n_rows && dim == 0)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "dim is 0");
    for (r = 0; r < n_rows; r++, out += dim, other_out += dim) {
        const float max = lse[r] > other_lse[r] ? lse[r] : other_lse[r];
        double a, b;

        if (isinf(max) && max < 0) /* neither saw a token */
            continue;
        a = exp((double)lse[r] - max);
        b = exp((double)other_lse[r] - max);
        for (c = 0; c < dim; c++)
            out[c] = (float)((a * out[c] + b * other_out[c]) / (a + b));
        lse[r] = (float)(max + log(a + b));
    }
    return kivi_succeed(error);
}
