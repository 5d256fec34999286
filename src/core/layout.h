/*
 * The packed layout, for every backend and for saved files. docs/layout.md draws it.
 *
 * A key block is `group_size` tokens of one kv head; a value block is 32 tokens of one kv head.
 * Codes are kept in 32-bit words (native in memory, little-endian when saved) of n = 32 / bits codes.
 * Code i of a word is in byte i % 4, at bit bits * (i / 4) of that byte: a shift by bits * j and a
 * mask leave codes 4j .. 4j+3 in the four bytes of the word, which is what a four-way integer dot
 * product wants. The codes of one word are neighbours along the axis that attention contracts:
 *
 *   keys    contract channels: word (tile, channel block, token), n channels of one token;
 *           a tile is 32 tokens. Then scale[dim_pad], min[dim_pad] in f16.
 *   values  contract tokens: word (token block, channel), n tokens of one channel.
 *           Then scale[n_groups][32], min[n_groups][32] in f16: a group is group_size channels.
 *
 * Channels are padded to a multiple of 16; padding has code, scale and minimum 0.
 * At 16 bits nothing is quantized: a block is f16 rows [tokens][dim], without padding.
 */
#ifndef KIVI_LAYOUT_H
#define KIVI_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define KIVI_MAX_DIM 512u /* channels of a head, at most */
#define KIVI_TILE 32u     /* tokens of a tile of key codes, and of a value block */

struct kivi_layout {
    uint32_t bits;         /* 2, 4, 8 or 16 */
    uint32_t dim, dim_pad; /* channels, and the same rounded up to 16 */
    uint32_t group_size;   /* keys: tokens of a group; values: channels of a group */
    uint32_t n_groups;     /* values: groups of one token, the last may be short; keys: 1 */
    uint32_t tokens;       /* tokens of a block: group_size for keys, 32 for values */
    uint32_t code_bytes;   /* offset of the scales */
    uint32_t scale_bytes;  /* of scales, and as many again of minima */
    uint32_t block_bytes;  /* a multiple of 16; of 64 unless bits is 16 */
};

static inline struct kivi_layout kivi_layout_make(uint32_t bits, uint32_t dim, uint32_t group_size,
                                                  uint32_t tokens, uint32_t n_groups,
                                                  uint32_t scales)
{
    struct kivi_layout l;
    l.bits = bits;
    l.dim = dim;
    l.dim_pad = (dim + 15u) / 16u * 16u;
    l.group_size = group_size;
    l.n_groups = n_groups;
    l.tokens = tokens;
    l.code_bytes = bits == 16 ? tokens * dim * 2u : tokens * l.dim_pad * bits / 8u;
    l.scale_bytes = bits == 16 ? 0u : scales * 2u;
    l.block_bytes = l.code_bytes + 2u * l.scale_bytes;
    return l;
}

static inline struct kivi_layout kivi_layout_keys(uint32_t bits, uint32_t dim, uint32_t group_size)
{
    return kivi_layout_make(bits, dim, group_size, group_size, 1, (dim + 15u) / 16u * 16u);
}

static inline struct kivi_layout kivi_layout_values(uint32_t bits, uint32_t dim,
                                                    uint32_t group_size)
{
    const uint32_t n_groups = (dim + group_size - 1u) / group_size;
    return kivi_layout_make(bits, dim, group_size, KIVI_TILE, n_groups, n_groups * KIVI_TILE);
}

/* Where code i of a word lies. */
static inline uint32_t kivi_code_shift(uint32_t bits, uint32_t i)
{
    return 8u * (i % 4u) + bits * (i / 4u);
}

/* Index of the word that holds (token, channel) of a key block, and the code's place in it. */
static inline size_t kivi_key_word(const struct kivi_layout *l, uint32_t token, uint32_t channel,
                                   uint32_t *shift)
{
    const uint32_t n = 32u / l->bits;
    *shift = kivi_code_shift(l->bits, channel % n);
    return ((size_t)(token / KIVI_TILE) * (l->dim_pad / n) + channel / n) * KIVI_TILE
           + token % KIVI_TILE;
}

/* The same for a value block. */
static inline size_t kivi_value_word(const struct kivi_layout *l, uint32_t token, uint32_t channel,
                                     uint32_t *shift)
{
    const uint32_t n = 32u / l->bits;
    *shift = kivi_code_shift(l->bits, token % n);
    return (size_t)(token / n) * l->dim_pad + channel;
}

/* The block's scales: keys index them by channel, values by group * 32 + token. */
static inline uint16_t *kivi_scales(const struct kivi_layout *l, void *block)
{
    return (uint16_t *)((char *)block + l->code_bytes);
}
static inline const uint16_t *kivi_scales_const(const struct kivi_layout *l, const void *block)
{
    return (const uint16_t *)((const char *)block + l->code_bytes);
}

/* The block's minima, indexed as the scales. */
static inline uint16_t *kivi_minima(const struct kivi_layout *l, void *block)
{
    return (uint16_t *)((char *)block + l->code_bytes + l->scale_bytes);
}
static inline const uint16_t *kivi_minima_const(const struct kivi_layout *l, const void *block)
{
    return (const uint16_t *)((const char *)block + l->code_bytes + l->scale_bytes);
}

#endif
