/* Sizes and offsets that follow from a configuration. Pure arithmetic, shared with every backend. */
#ifndef KIVI_GEOMETRY_H
#define KIVI_GEOMETRY_H

#include <kivi/kivi.h>

#include "layout.h"

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}
static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}
static inline uint64_t round_up(uint64_t n, uint64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/*
 * A page holds page_tokens tokens of one layer of one sequence: for each kv head its key blocks,
 * then its value blocks. Pages of all layers have the same size in bytes; a layer with fewer
 * bits has more tokens to a page.
 */
struct kivi_layer_geometry {
    struct kivi_layout k, v;
    uint32_t page_tokens;    /* a multiple of 128 */
    size_t page_v_offset;    /* bytes from a head's start in the page to its value blocks */
    size_t page_head_stride; /* bytes from one kv head to the next */
};

/*
 * A window holds the f16 rows of one layer of one sequence. For each kv head:
 *   sink keys   [n_sink][k_dim]    token t < n_sink in row t
 *   sink values [n_sink][v_dim]
 *   keys        [k_ring][k_dim]    a ring: token t in row t % k_ring
 *   values      [v_ring][v_dim]    a ring: token t in row t % v_ring
 * k_ring is a multiple of group_size, so a key group never wraps.
 */
struct kivi_geometry {
    uint32_t n_layers, n_q_heads, n_kv_heads, heads_per_kv;
    uint32_t k_dim, v_dim, group_size, residual_length, n_sink;
    uint32_t k_ring, v_ring;
    size_t page_bytes, window_bytes, window_head_stride;
    size_t window_sink_v, window_k, window_v; /* offsets from a head's start */
    struct kivi_layer_geometry *layers;       /* n_layers */
};

/* What is quantized of the first n tokens: a rule of the tokens' number alone. `base` is the
 * remainder modulo residual_length at which key flushes fall (0 unless tokens were dropped). */
static inline uint64_t kivi_keys_packed(const struct kivi_geometry *g, uint64_t n, uint64_t base)
{
    return n < base ? 0 : base + (n - base) / g->residual_length * g->residual_length;
}
static inline uint64_t kivi_values_packed(const struct kivi_geometry *g, uint64_t n)
{
    return n < g->residual_length ? 0 : n - g->residual_length;
}

/* Block that holds token `position` of a kv head, in that token's page. */
static inline void *kivi_page_keys(const struct kivi_layer_geometry *l, void *page, uint32_t head,
                                   uint64_t position)
{
    return (char *)page + head * l->page_head_stride
           + (size_t)(position % l->page_tokens) / l->k.tokens * l->k.block_bytes;
}
static inline void *kivi_page_values(const struct kivi_layer_geometry *l, void *page, uint32_t head,
                                     uint64_t position)
{
    return (char *)page + head * l->page_head_stride + l->page_v_offset
           + (size_t)(position % l->page_tokens) / l->v.tokens * l->v.block_bytes;
}

/* Rows of the window of a kv head. */
static inline uint16_t *kivi_window_key(const struct kivi_geometry *g, void *window, uint32_t head,
                                        uint64_t position)
{
    return (uint16_t *)((char *)window + head * g->window_head_stride + g->window_k)
           + (size_t)(position % g->k_ring) * g->k_dim;
}
static inline uint16_t *kivi_window_value(const struct kivi_geometry *g, void *window,
                                          uint32_t head, uint64_t position)
{
    return (uint16_t *)((char *)window + head * g->window_head_stride + g->window_v)
           + (size_t)(position % g->v_ring) * g->v_dim;
}
static inline uint16_t *kivi_sink_key(const struct kivi_geometry *g, void *window, uint32_t head,
                                      uint64_t position)
{
    return (uint16_t *)((char *)window + head * g->window_head_stride)
           + (size_t)position * g->k_dim;
}
static inline uint16_t *kivi_sink_value(const struct kivi_geometry *g, void *window, uint32_t head,
                                        uint64_t position)
{
    return (uint16_t *)((char *)window + head * g->window_head_stride + g->window_sink_v)
           + (size_t)position * g->v_dim;
}

/* Whether a configuration describes a model, a quantization and pages. */
kivi_status kivi_geometry_check(const kivi_config *config, kivi_error *error);

/* Derives the geometry of a checked configuration. `layers` has room for config->n_layers. Fails
 * only if a page would not fit the address space. */
kivi_status kivi_geometry_init(struct kivi_geometry *geometry, const kivi_config *config,
                               struct kivi_layer_geometry *layers, kivi_error *error);

#endif
