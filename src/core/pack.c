/* Quantization without a cache, and conversion to and from the official code's arrays. */
#include <stdlib.h>
#include <string.h>

#include "../cpu/scalar.h"
#include "error.h"
#include "half.h"
#include "registry.h"

#define MAX_TOKENS ((uint64_t)1 << 32)

static int layout_of(const kivi_packing *p, struct kivi_layout *l)
{
    if (!p || p->size != sizeof *p || (p->bits != 2 && p->bits != 4 && p->bits != 8)
        || (p->group_size != 32 && p->group_size != 64 && p->group_size != 128) || p->dim < 8
        || p->dim > 512 || p->dim % 8 || p->n_tokens == 0 || p->n_tokens > MAX_TOKENS)
        return 0;
    if (p->axis == KIVI_PER_CHANNEL && p->n_tokens % p->group_size == 0)
        *l = kivi_layout_keys(p->bits, p->dim, p->group_size);
    else if (p->axis == KIVI_PER_TOKEN)
        *l = kivi_layout_values(p->bits, p->dim, p->group_size);
    else
        return 0;
    return 1;
}

static kivi_status check(const kivi_packing *p, struct kivi_layout *l, const void *a, const void *b,
                         const void *c, const void *d, kivi_error *error)
{
    if (!p || !a || !b || !c || !d)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "an argument is NULL");
    if (!layout_of(p, l))
        return kivi_fail(
            error, KIVI_ERROR_ARGUMENT,
            "no such packing: size %zu, axis %d, bits %u, group_size %u, dim %u, %llu tokens",
            p->size, (int)p->axis, p->bits, p->group_size, p->dim, (unsigned long long)p->n_tokens);
    return KIVI_OK;
}

static uint64_t n_blocks(const kivi_packing *p, const struct kivi_layout *l)
{
    return (p->n_tokens + l->tokens - 1) / l->tokens;
}

static uint32_t tokens_in(const kivi_packing *p, const struct kivi_layout *l, uint64_t block)
{
    const uint64_t left = p->n_tokens - block * l->tokens;

    return left < l->tokens ? (uint32_t)left : l->tokens;
}

uint64_t kivi_packed_size(const kivi_packing *packing)
{
    struct kivi_layout l;

    return layout_of(packing, &l) ? n_blocks(packing, &l) * l.block_bytes : 0;
}

static const struct kivi_kernels *best_kernels(void)
{
    const char *why;
    kivi_error ignored;

    return kivi_host_kernels(kivi_backend_choose(NULL, &why, &ignored));
}

kivi_status kivi_pack(const kivi_packing *packing, kivi_in rows, void *packed, kivi_error *error)
{
    const size_t sizes[] = {4, 2, 2};
    const struct kivi_kernels *kernels;
    uint16_t *block_rows;
    struct kivi_layout l;
    uint64_t b, n;
    int pass;
    kivi_status status = check(packing, &l, rows.data, packed, packed, packed, error);

    if (status != KIVI_OK)
        return status;
    if (rows.dtype != KIVI_F32 && rows.dtype != KIVI_F16 && rows.dtype != KIVI_BF16)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "rows.dtype is %d", (int)rows.dtype);
    if (rows.token_stride == 0)
        rows.token_stride = (ptrdiff_t)l.dim;
    block_rows = malloc((size_t)l.tokens * l.dim * sizeof *block_rows);
    if (!block_rows)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a block of %u tokens", l.tokens);
    kernels = best_kernels();
    n = n_blocks(packing, &l);
    status = kivi_succeed(error);
    for (pass = 0; pass < 2 && status == KIVI_OK;
         pass++) { /* nothing is written before all has been found finite */
        for (b = 0; b < n && status == KIVI_OK; b++) {
            char *block = (char *)packed + b * l.block_bytes;
            const uint32_t count = tokens_in(packing, &l, b);
            uint32_t t;

            for (t = 0; t < count && status == KIVI_OK; t++) {
                const uint64_t token = b * l.tokens + t;
                const char *row =
                    (const char *)rows.data
                    + (ptrdiff_t)token * rows.token_stride * (ptrdiff_t)sizes[rows.dtype];

                if (!kernels->to_f16[rows.dtype](block_rows + (size_t)t * l.dim, row, l.dim))
                    status = kivi_fail(error, KIVI_ERROR_NOT_FINITE,
                                       "rows: token %llu is not finite in f16",
                                       (unsigned long long)token);
            }
            if (pass == 0)
                continue;
            if (packing->axis == KIVI_PER_CHANNEL)
                kernels->quantize_k(&l, block_rows, l.dim, 0, block);
            else
                kernels->quantize_v(&l, block_rows, l.dim, 0, count, block);
        }
    }
    free(block_rows);
    return status;
}

kivi_status kivi_unpack(const kivi_packing *packing, const void *packed, float *rows,
                        kivi_error *error)
{
    struct kivi_layout l;
    uint64_t b, n;
    const kivi_status status = check(packing, &l, packed, rows, rows, rows, error);

    if (status != KIVI_OK)
        return status;
    n = n_blocks(packing, &l);
    for (b = 0; b < n; b++) {
        const char *block = (const char *)packed + b * l.block_bytes;
        const uint32_t count = tokens_in(packing, &l, b);

        if (packing->axis == KIVI_PER_CHANNEL)
            kivi_dequantize_k(&l, block, 0, count, rows);
        else
            kivi_dequantize_v(&l, block, 0, count, rows);
        rows += (size_t)count * l.dim;
    }
    return kivi_succeed(error);
}

/* Where one code lies in the packed block and in the official arrays. */
struct place {
    uint32_t *word;
    uint32_t shift;
    size_t official_word;
    uint32_t official_shift;
};

static struct place place_of(const kivi_packing *p, const struct kivi_layout *l, void *packed,
                             uint64_t token, uint32_t channel)
{
    const uint32_t n = 32 / p->bits;
    uint32_t *codes = (uint32_t *)(void *)((char *)packed + token / l->tokens * l->block_bytes);
    const uint32_t in_block = (uint32_t)(token % l->tokens);
    struct place at;

    if (p->axis == KIVI_PER_CHANNEL) {
        at.word = codes + kivi_key_word(l, in_block, channel, &at.shift);
        at.official_word = (size_t)channel * (size_t)(p->n_tokens / n) + (size_t)(token / n);
        at.official_shift = p->bits * (uint32_t)(token % n);
    } else {
        at.word = codes + kivi_value_word(l, in_block, channel, &at.shift);
        at.official_word = (size_t)token * (p->dim / n) + channel / n;
        at.official_shift = p->bits * (channel % n);
    }
    return at;
}

/* Copies scales and minima one way or the other. */
static void convert_scales(const kivi_packing *p, const struct kivi_layout *l, void *packed,
                           uint16_t *scale, uint16_t *min, int to_official)
{
    const uint64_t n = n_blocks(p, l);
    uint64_t b;

    for (b = 0; b < n; b++) {
        char *block = (char *)packed + b * l->block_bytes;
        const uint32_t outer = p->axis == KIVI_PER_CHANNEL ? l->dim : tokens_in(p, l, b);
        const uint32_t inner = p->axis == KIVI_PER_CHANNEL ? 1 : l->n_groups;
        uint32_t o, i;

        for (o = 0; o < outer; o++) {
            for (i = 0; i < inner; i++) {
                const size_t ours = p->axis == KIVI_PER_CHANNEL ? o : (size_t)i * KIVI_TILE + o;
                const size_t theirs = p->axis == KIVI_PER_CHANNEL
                                          ? (size_t)o * (size_t)n + (size_t)b
                                          : ((size_t)b * l->tokens + o) * l->n_groups + i;

                if (to_official) {
                    scale[theirs] = kivi_scales(l, block)[ours];
                    min[theirs] = kivi_minima(l, block)[ours];
                } else {
                    kivi_scales(l, block)[ours] = scale[theirs];
                    kivi_minima(l, block)[ours] = min[theirs];
                }
            }
        }
    }
}

static kivi_status check_words(const kivi_packing *p, kivi_error *error)
{
    if (p->axis == KIVI_PER_TOKEN && p->dim % (32 / p->bits))
        return kivi_fail(error, KIVI_ERROR_UNSUPPORTED,
                         "the official order needs dim %u to be a multiple of %u", p->dim,
                         32 / p->bits);
    return KIVI_OK;
}

kivi_status kivi_pack_to_official(const kivi_packing *packing, const void *packed, uint32_t *code,
                                  uint16_t *scale, uint16_t *min, kivi_error *error)
{
    struct kivi_layout l;
    uint64_t t;
    uint32_t c;
    kivi_status status = check(packing, &l, packed, code, scale, min, error);

    if (status == KIVI_OK)
        status = check_words(packing, error);
    if (status != KIVI_OK)
        return status;
    memset(code, 0, (size_t)packing->n_tokens * packing->dim * packing->bits / 8);
    for (t = 0; t < packing->n_tokens; t++) {
        for (c = 0; c < packing->dim; c++) {
            const struct place at = place_of(packing, &l, (void *)packed, t, c);

            code[at.official_word] |= (*at.word >> at.shift & ((1u << packing->bits) - 1u))
                                      << at.official_shift;
        }
    }
    convert_scales(packing, &l, (void *)packed, scale, min, 1);
    return kivi_succeed(error);
}

kivi_status kivi_pack_from_official(const kivi_packing *packing, const uint32_t *code,
                                    const uint16_t *scale, const uint16_t *min, void *packed,
                                    kivi_error *error)
{
    struct kivi_layout l;
    uint64_t t;
    uint32_t c;
    kivi_status status = check(packing, &l, packed, code, scale, min, error);

    if (status == KIVI_OK)
        status = check_words(packing, error);
    if (status != KIVI_OK)
        return status;
    memset(packed, 0, (size_t)kivi_packed_size(packing));
    for (t = 0; t < packing->n_tokens; t++) {
        for (c = 0; c < packing->dim; c++) {
            const struct place at = place_of(packing, &l, packed, t, c);

            *at.word |= (code[at.official_word] >> at.official_shift & ((1u << packing->bits) - 1u))
                        << at.shift;
        }
    }
    convert_scales(packing, &l, packed, (uint16_t *)scale, (uint16_t *)min, 0);
    return kivi_succeed(error);
}
