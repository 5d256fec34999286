#include "format.h"

#include <string.h>

#include "crc32c.h"

struct kivi_saved_layer kivi_saved_layer_of(const struct kivi_cache *cache, uint32_t index,
                                            const struct kivi_layer *layer)
{
    const struct kivi_layer_geometry *l = &cache->geometry.layers[index];
    struct kivi_saved_layer saved = {
        .k_bits = l->k.bits,
        .v_bits = l->v.bits,
        .n = layer->span.n,
        .k_packed = layer->span.k_packed,
        .v_packed = layer->span.v_packed,
        .k_base = layer->k_base,
        .k_low = layer->k_low,
        .v_low = layer->v_low,
    };

    saved.payload = kivi_payload_bytes(&cache->geometry, index, &saved);
    return saved;
}

uint64_t kivi_payload_bytes(const struct kivi_geometry *g, uint32_t index,
                            const struct kivi_saved_layer *s)
{
    const struct kivi_layer_geometry *l = &g->layers[index];
    const uint64_t sinks = s->n < g->n_sink ? s->n : g->n_sink;
    uint64_t bytes = s->k_packed / l->k.tokens * l->k.block_bytes
                     + (s->v_packed + l->v.tokens - 1) / l->v.tokens * l->v.block_bytes;

    bytes += sinks * 2 * (g->k_dim + g->v_dim);
    bytes += (s->n - s->k_low) * 2 * g->k_dim + (s->n - s->v_low) * 2 * g->v_dim;
    return bytes * g->n_kv_heads;
}

kivi_status kivi_format_slab(const struct kivi_geometry *g, uint32_t index,
                             const struct kivi_layer *layer, uint64_t slab,
                             kivi_format_visit *visit, void *context, kivi_error *error)
{
    const struct kivi_layer_geometry *l = &g->layers[index];
    const uint64_t k_end = min_u64(slab + KIVI_FORMAT_SLAB, layer->span.k_packed);
    const uint64_t v_end = min_u64(slab + KIVI_FORMAT_SLAB, layer->span.v_packed);
    void *page = layer->pages[slab / l->page_tokens];
    kivi_status status = KIVI_OK;
    uint32_t head;
    uint64_t t;

    for (head = 0; head < g->n_kv_heads; head++) {
        for (t = slab; t < k_end && status == KIVI_OK; t += l->k.tokens)
            status = visit(context, &l->k, kivi_page_keys(l, page, head, t), l->k.tokens, error);
        for (t = slab; t < v_end && status == KIVI_OK; t += l->v.tokens)
            status = visit(context, &l->v, kivi_page_values(l, page, head, t),
                           (uint32_t)min_u64(v_end - t, l->v.tokens), error);
    }
    return status;
}

void kivi_format_header(const struct kivi_geometry *g, uint64_t n_sequences,
                        unsigned char header[KIVI_HEADER_BYTES])
{
    memcpy(header, KIVI_FORMAT_MAGIC, 8);
    kivi_put32(header + 8, KIVI_FORMAT_VERSION);
    kivi_put32(header + 12, g->n_layers);
    kivi_put32(header + 16, g->n_kv_heads);
    kivi_put32(header + 20, g->k_dim);
    kivi_put32(header + 24, g->v_dim);
    kivi_put32(header + 28, g->group_size);
    kivi_put32(header + 32, g->residual_length);
    kivi_put32(header + 36, g->n_sink);
    kivi_put64(header + 40, n_sequences);
    kivi_put32(header + 48, 0); /* reserved */
    kivi_put32(header + 52, kivi_crc32c(0, header, 52));
}

void kivi_format_layer(const struct kivi_saved_layer *s, unsigned char record[KIVI_LAYER_BYTES])
{
    kivi_put32(record, s->k_bits);
    kivi_put32(record + 4, s->v_bits);
    kivi_put64(record + 8, s->n);
    kivi_put64(record + 16, s->k_packed);
    kivi_put64(record + 24, s->v_packed);
    kivi_put64(record + 32, s->k_base);
    kivi_put64(record + 40, s->k_low);
    kivi_put64(record + 48, s->v_low);
    kivi_put64(record + 56, s->payload);
    kivi_put32(record + 64, 0); /* reserved */
    kivi_put32(record + 68, kivi_crc32c(0, record, 68));
}

static void reverse(unsigned char *p, size_t n, size_t width)
{
    size_t i, j;

    for (i = 0; i + width <= n; i += width) {
        for (j = 0; j < width / 2; j++) {
            const unsigned char x = p[i + j];

            p[i + j] = p[i + width - 1 - j];
            p[i + width - 1 - j] = x;
        }
    }
}

void kivi_format_swap(void *data, size_t word_bytes, size_t half_bytes)
{
    if (!kivi_is_big_endian())
        return;
    reverse(data, word_bytes, 4);
    reverse((unsigned char *)data + word_bytes, half_bytes, 2);
}
