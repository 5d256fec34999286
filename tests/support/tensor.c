#include "tensor.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#define GAP 0xff /* four or two of these bytes are a NaN in every type */

static size_t size_of(kivi_dtype dtype)
{
    return dtype == KIVI_F32 ? 4 : 2;
}

static struct tensor make(kivi_dtype dtype, uint64_t tokens, uint32_t heads, uint32_t dim,
                          size_t elements)
{
    struct tensor t = {dtype, tokens, heads, dim, 0, 0, elements, 0, NULL};

    t.memory = malloc(elements * size_of(dtype) + 1);
    ck_assert_ptr_nonnull(t.memory);
    memset(t.memory, GAP, elements * size_of(dtype));
    return t;
}

struct tensor tensor_dense(kivi_dtype dtype, uint64_t tokens, uint32_t heads, uint32_t dim)
{
    struct tensor t = make(dtype, tokens, heads, dim, (size_t)tokens * heads * dim);

    t.head_stride = (ptrdiff_t)dim;
    t.token_stride = (ptrdiff_t)heads * t.head_stride;
    return t;
}

struct tensor tensor_strided(struct rng *rng, kivi_dtype dtype, uint64_t tokens, uint32_t heads,
                             uint32_t dim)
{
    const ptrdiff_t row = (ptrdiff_t)(dim + rng_below(rng, 9));
    const ptrdiff_t start = (ptrdiff_t)rng_below(rng, 4);
    const ptrdiff_t span = row * (ptrdiff_t)heads + (ptrdiff_t)rng_below(rng, 3);
    const uint64_t order = rng_below(rng, 4);
    struct tensor t;

    if (order == 0)
        return tensor_dense(dtype, tokens, heads, dim);
    t = make(dtype, tokens, heads, dim, (size_t)start + (size_t)span * (size_t)tokens);
    t.start = start;
    if (order == 1) {
        t.head_stride = row * (ptrdiff_t)tokens;
        t.token_stride = row;
    } else {
        t.head_stride = row;
        t.token_stride = span;
    }
    if (order == 3 && tokens > 0) {
        t.start += span * (ptrdiff_t)(tokens - 1);
        t.token_stride = -span;
    }
    return t;
}

void tensor_free(struct tensor *t)
{
    free(t->memory);
    t->memory = NULL;
}

static size_t index_of(const struct tensor *t, uint64_t token, uint32_t head, uint32_t channel)
{
    return (size_t)(t->start + (ptrdiff_t)token * t->token_stride + (ptrdiff_t)head * t->head_stride
                    + (ptrdiff_t)channel);
}

double tensor_get(const struct tensor *t, uint64_t token, uint32_t head, uint32_t channel)
{
    const size_t i = index_of(t, token, head, channel);

    switch (t->dtype) {
    case KIVI_F16:
        return number_from_f16(((const uint16_t *)t->memory)[i]);
    case KIVI_BF16:
        return number_from_bf16(((const uint16_t *)t->memory)[i]);
    default:
        return ((const float *)t->memory)[i];
    }
}

void tensor_set(struct tensor *t, uint64_t token, uint32_t head, uint32_t channel, double x)
{
    const size_t i = index_of(t, token, head, channel);

    switch (t->dtype) {
    case KIVI_F16:
        ((uint16_t *)t->memory)[i] = number_to_f16(x);
        break;
    case KIVI_BF16:
        ((uint16_t *)t->memory)[i] = number_to_bf16(x);
        break;
    default:
        ((float *)t->memory)[i] = (float)x;
    }
}

double *tensor_decode(const struct tensor *t)
{
    double *dense = malloc((size_t)(t->tokens * t->heads * t->dim) * sizeof *dense + 1),
           *to = dense;
    uint64_t token;
    uint32_t head, channel;

    ck_assert_ptr_nonnull(dense);
    for (token = 0; token < t->tokens; token++)
        for (head = 0; head < t->heads; head++)
            for (channel = 0; channel < t->dim; channel++)
                *to++ = tensor_get(t, token, head, channel);
    return dense;
}

void tensor_encode(struct tensor *t, const double *dense)
{
    uint64_t token;
    uint32_t head, channel;

    for (token = 0; token < t->tokens; token++)
        for (head = 0; head < t->heads; head++)
            for (channel = 0; channel < t->dim; channel++)
                tensor_set(t, token, head, channel, *dense++);
}

static void *address(const struct tensor *t, uint64_t token)
{
    return (char *)t->memory
           + (t->start + (ptrdiff_t)token * t->token_stride) * (ptrdiff_t)size_of(t->dtype);
}

kivi_in tensor_in(const struct tensor *t, uint64_t first)
{
    const kivi_in in = {address(t, first), t->dtype, t->token_stride, t->head_stride};

    return in;
}

kivi_out tensor_out(const struct tensor *t)
{
    const kivi_out out = {address(t, 0), t->dtype, t->token_stride, t->head_stride};

    return out;
}

void tensor_check_gaps(const struct tensor *t)
{
    const size_t size = size_of(t->dtype);
    unsigned char *row = calloc(t->elements + 1, 1); /* 1: belongs to a row */
    uint64_t token;
    uint32_t head;
    size_t i, b;

    ck_assert_ptr_nonnull(row);
    for (token = 0; token < t->tokens; token++)
        for (head = 0; head < t->heads; head++)
            memset(row + index_of(t, token, head, 0), 1, t->dim);
    for (i = 0; i < t->elements; i++)
        for (b = 0; b < size && !row[i]; b++)
            if (((unsigned char *)t->memory)[i * size + b] != GAP)
                ck_abort_msg("element %zu, between the rows, was written", i);
    free(row);
}
