/*
 * The saved format, version 1: docs/format.md is its specification. Everything is little-endian.
 *
 *   file     = header, then for each sequence: sequence
 *   header   = magic, version, geometry, number of sequences, CRC-32C of the header
 *   sequence = handle, CRC-32C of it, then for each layer: layer
 *   layer    = bits, lengths, payload size, CRC-32C of these; payload; CRC-32C of the payload
 *   payload  = for each slab of 128 tokens, for each kv head: key blocks, value blocks;
 *              then for each kv head: sink rows, key rows, value rows
 */
#ifndef KIVI_FORMAT_H
#define KIVI_FORMAT_H

#include "cache.h"

#define KIVI_FORMAT_MAGIC "KIVICACH"
#define KIVI_FORMAT_VERSION 1u
#define KIVI_FORMAT_SLAB 128u
#define KIVI_HEADER_BYTES 56u
#define KIVI_SEQUENCE_BYTES 12u
#define KIVI_LAYER_BYTES 72u

static inline void kivi_put32(unsigned char *p, uint32_t x)
{
    p[0] = (unsigned char)x;
    p[1] = (unsigned char)(x >> 8);
    p[2] = (unsigned char)(x >> 16);
    p[3] = (unsigned char)(x >> 24);
}
static inline void kivi_put64(unsigned char *p, uint64_t x)
{
    kivi_put32(p, (uint32_t)x);
    kivi_put32(p + 4, (uint32_t)(x >> 32));
}
static inline uint32_t kivi_get32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline uint64_t kivi_get64(const unsigned char *p)
{
    return (uint64_t)kivi_get32(p) | (uint64_t)kivi_get32(p + 4) << 32;
}

/* What of a layer is saved. */
struct kivi_saved_layer {
    uint32_t k_bits, v_bits;
    uint64_t n, k_packed, v_packed, k_base;
    uint64_t k_low, v_low; /* rows of keys [k_low, n) and values [v_low, n) are saved */
    uint64_t payload;      /* bytes */
};

/* The record of a layer in memory. */
struct kivi_saved_layer kivi_saved_layer_of(const struct kivi_cache *cache, uint32_t index,
                                            const struct kivi_layer *layer);

/* Bytes of the payload that a record implies; the record has at most 2^52 tokens times kv heads. */
uint64_t kivi_payload_bytes(const struct kivi_geometry *geometry, uint32_t index,
                            const struct kivi_saved_layer *layer);

/* Takes a block of which the first `tokens` are of the sequence. */
typedef kivi_status kivi_format_visit(void *context, const struct kivi_layout *l, void *block,
                                      uint32_t tokens, kivi_error *error);

/* Visits the blocks of the slab that begins at token `slab` in the payload's order, until one fails. */
kivi_status kivi_format_slab(const struct kivi_geometry *geometry, uint32_t index,
                             const struct kivi_layer *layer, uint64_t slab,
                             kivi_format_visit *visit, void *context, kivi_error *error);

/* The header for n sequences. */
void kivi_format_header(const struct kivi_geometry *geometry, uint64_t n_sequences,
                        unsigned char header[KIVI_HEADER_BYTES]);

/* The fixed part of a layer. */
void kivi_format_layer(const struct kivi_saved_layer *layer,
                       unsigned char record[KIVI_LAYER_BYTES]);

/* Whether the host's byte order is not the format's. */
static inline int kivi_is_big_endian(void)
{
    const uint16_t one = 1;

    return *(const unsigned char *)&one == 0;
}

/* Turns a packed block, or f16 rows (words = 0), from the host's byte order to the format's or back. */
void kivi_format_swap(void *data, size_t word_bytes, size_t half_bytes);

#endif
