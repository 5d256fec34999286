/* The quantization rule for one group of f16 numbers: docs/numerics.md, paper section 3.1. */
#ifndef KIVI_QUANTIZE_H
#define KIVI_QUANTIZE_H

#include <math.h>
#include <stdint.h>

#include "../core/half.h"

struct kivi_range {
    float min, scale; /* both exact in f16 */
    float levels;     /* 2^bits - 1 */
    int wide;         /* max - min is beyond f16: differences are not rounded to f16 */
};

/* The scale and minimum of a group whose smallest and largest elements are min and max. */
static inline struct kivi_range kivi_range_of(float min, float max, uint32_t bits)
{
    struct kivi_range r;
    const float exact = max - min;
    const float rounded = kivi_round_to_f16(exact);

    r.min = min + 0.0f; /* -0 becomes +0 */
    r.levels = (float)((1u << bits) - 1u);
    r.wide = isinf(rounded) ? 1 : 0;
    r.scale = kivi_round_to_f16((r.wide ? exact : rounded) / r.levels);
    return r;
}

/* The code of element x of that group. */
static inline uint32_t kivi_code_of(const struct kivi_range *r, float x)
{
    const float exact = x - r->min;
    const float above = r->wide ? exact : kivi_round_to_f16(exact);
    float quotient;

    if (above == 0.0f) /* also where the scale is 0 */
        return 0;
    if (r->scale == 0.0f) /* a range so small that its scale rounds to 0 */
        return (uint32_t)r->levels;
    quotient = kivi_round_to_f16(above / r->scale);
    return (uint32_t)nearbyintf(quotient < r->levels ? quotient : r->levels);
}

#endif
