/* Quantization and its inverse in scalar C: the specification. */
#include <string.h>

#include "quantize.h"
#include "scalar.h"

static uint32_t read_code(const uint32_t *codes, size_t word, uint32_t shift, uint32_t bits)
{
    return codes[word] >> shift & ((1u << bits) - 1u);
}

static void write_code(uint32_t *codes, size_t word, uint32_t shift, uint32_t bits, uint32_t code)
{
    codes[word] = (codes[word] & ~(((1u << bits) - 1u) << shift)) | code << shift;
}

void kivi_quantize_k_scalar(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                            uint32_t skip, void *block)
{
    uint32_t *codes = block;
    uint16_t *scales = kivi_scales(l, block), *minima = kivi_minima(l, block);
    uint32_t t, c, shift;

    memset(block, 0, l->block_bytes);
    if (skip >= l->tokens)
        return;
    for (c = 0; c < l->dim; c++) {
        float min = kivi_f32_from_f16(rows[skip * stride + c]), max = min;
        struct kivi_range range;

        for (t = skip + 1; t < l->tokens; t++) {
            const float x = kivi_f32_from_f16(rows[t * stride + c]);
            min = x < min ? x : min;
            max = x > max ? x : max;
        }
        range = kivi_range_of(min, max, l->bits);
        scales[c] = kivi_f16_from_f32(range.scale);
        minima[c] = kivi_f16_from_f32(range.min);
        for (t = skip; t < l->tokens; t++) {
            const size_t word = kivi_key_word(l, t, c, &shift);
            const float x = kivi_f32_from_f16(rows[t * stride + c]);
            write_code(codes, word, shift, l->bits, kivi_code_of(&range, x));
        }
    }
}

void kivi_quantize_v_scalar(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                            uint32_t first, uint32_t count, void *block)
{
    uint32_t *codes = block;
    uint16_t *scales = kivi_scales(l, block), *minima = kivi_minima(l, block);
    uint32_t t, g, c, shift;

    if (first == 0)
        memset(block, 0, l->block_bytes);
    for (t = first; t < first + count; t++, rows += stride) {
        for (g = 0; g < l->n_groups; g++) {
            const uint32_t begin = g * l->group_size;
            const uint32_t end = begin + l->group_size < l->dim ? begin + l->group_size : l->dim;
            float min = kivi_f32_from_f16(rows[begin]), max = min;
            struct kivi_range range;

            for (c = begin + 1; c < end; c++) {
                const float x = kivi_f32_from_f16(rows[c]);
                min = x < min ? x : min;
                max = x > max ? x : max;
            }
            range = kivi_range_of(min, max, l->bits);
            scales[g * KIVI_TILE + t] = kivi_f16_from_f32(range.scale);
            minima[g * KIVI_TILE + t] = kivi_f16_from_f32(range.min);
            for (c = begin; c < end; c++) {
                const size_t word = kivi_value_word(l, t, c, &shift);
                const float x = kivi_f32_from_f16(rows[c]);
                write_code(codes, word, shift, l->bits, kivi_code_of(&range, x));
            }
        }
    }
}

static void widen(const struct kivi_layout *l, const void *block, uint32_t first, uint32_t count,
                  float *rows)
{
    const uint16_t *from = (const uint16_t *)block + (size_t)first * l->dim;
    size_t i;

    for (i = 0; i < (size_t)count * l->dim; i++)
        rows[i] = kivi_f32_from_f16(from[i]);
}

void kivi_dequantize_k(const struct kivi_layout *l, const void *block, uint32_t first,
                       uint32_t count, float *rows)
{
    const uint32_t fields = ((1u << l->bits) - 1u) * 0x01010101u; /* a code in each byte */
    float scales[KIVI_MAX_DIM], minima[KIVI_MAX_DIM];
    uint32_t t, c, i, shift;

    if (l->bits == 16) {
        widen(l, block, first, count, rows);
        return;
    }
    for (c = 0; c < l->dim; c++) {
        scales[c] = kivi_f32_from_f16(kivi_scales_const(l, block)[c]);
        minima[c] = kivi_f32_from_f16(kivi_minima_const(l, block)[c]);
    }
    for (t = first; t < first + count; t++, rows += l->dim) {
        for (c = 0; c < l->dim; c += 4) { /* a multiple of 8 */
            const size_t word = kivi_key_word(l, t, c, &shift);
            const uint32_t four = ((const uint32_t *)block)[word] >> shift & fields;

            for (i = 0; i < 4; i++)
                rows[c + i] =
                    (float)(int32_t)(four >> 8 * i & 0xffu) * scales[c + i] + minima[c + i];
        }
    }
}

void kivi_dequantize_v(const struct kivi_layout *l, const void *block, uint32_t first,
                       uint32_t count, float *rows)
{
    const uint16_t *scales = kivi_scales_const(l, block), *minima = kivi_minima_const(l, block);
    uint32_t t, c, shift;

    if (l->bits == 16) {
        widen(l, block, first, count, rows);
        return;
    }
    for (t = first; t < first + count; t++) {
        for (c = 0; c < l->dim; c++) {
            const uint32_t at = c / l->group_size * KIVI_TILE + t;
            const size_t word = kivi_value_word(l, t, c, &shift);
            const float code = (float)read_code(block, word, shift, l->bits);
            *rows++ = code * kivi_f32_from_f16(scales[at]) + kivi_f32_from_f16(minima[at]);
        }
    }
}
