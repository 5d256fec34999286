#include "geometry.h"

#include "error.h"

#define MAX_LAYERS 4096u
#define MAX_HEADS 65536u
#define MAX_ROWS 4096u /* residual, sinks, rollback */

static int is_dim(uint32_t dim)
{
    return dim >= 8 && dim <= KIVI_MAX_DIM && dim % 8 == 0;
}

static int is_bits(uint32_t bits)
{
    return bits == 2 || bits == 4 || bits == 8 || bits == 16;
}

kivi_status kivi_geometry_check(const kivi_config *c, kivi_error *error)
{
    uint32_t i;

#define REQUIRE(condition, ...)                                                                    \
    if (!(condition))                                                                              \
    return kivi_fail(error, KIVI_ERROR_ARGUMENT, __VA_ARGS__)
    REQUIRE(c->n_layers >= 1 && c->n_layers <= MAX_LAYERS, "n_layers is %u, not 1 to %u",
            c->n_layers, MAX_LAYERS);
    REQUIRE(c->n_kv_heads >= 1 && c->n_kv_heads <= MAX_HEADS, "n_kv_heads is %u, not 1 to %u",
            c->n_kv_heads, MAX_HEADS);
    REQUIRE(c->n_q_heads >= 1 && c->n_q_heads <= MAX_HEADS, "n_q_heads is %u, not 1 to %u",
            c->n_q_heads, MAX_HEADS);
    REQUIRE(c->n_q_heads % c->n_kv_heads == 0, "n_q_heads %u is not a multiple of n_kv_heads %u",
            c->n_q_heads, c->n_kv_heads);
    REQUIRE(is_dim(c->k_dim), "k_dim is %u, not a multiple of 8 from 8 to %u", c->k_dim,
            KIVI_MAX_DIM);
    REQUIRE(is_dim(c->v_dim), "v_dim is %u, not a multiple of 8 from 8 to %u", c->v_dim,
            KIVI_MAX_DIM);
    REQUIRE(is_bits(c->k_bits), "k_bits is %u, not 2, 4, 8 or 16", c->k_bits);
    REQUIRE(is_bits(c->v_bits), "v_bits is %u, not 2, 4, 8 or 16", c->v_bits);
    for (i = 0; i < c->n_layers; i++) {
        REQUIRE(!c->layer_k_bits || is_bits(c->layer_k_bits[i]),
                "layer_k_bits[%u] is %u, not 2, 4, 8 or 16", i, c->layer_k_bits[i]);
        REQUIRE(!c->layer_v_bits || is_bits(c->layer_v_bits[i]),
                "layer_v_bits[%u] is %u, not 2, 4, 8 or 16", i, c->layer_v_bits[i]);
    }
    REQUIRE(c->group_size == 32 || c->group_size == 64 || c->group_size == 128,
            "group_size is %u, not 32, 64 or 128", c->group_size);
    REQUIRE(c->residual_length >= c->group_size && c->residual_length <= MAX_ROWS
                && c->residual_length % c->group_size == 0,
            "residual_length is %u, not a multiple of group_size %u up to %u", c->residual_length,
            c->group_size, MAX_ROWS);
    REQUIRE(c->n_sink <= MAX_ROWS, "n_sink is %u, above %u", c->n_sink, MAX_ROWS);
    REQUIRE(c->rollback <= MAX_ROWS, "rollback is %u, above %u", c->rollback, MAX_ROWS);
    REQUIRE(c->page_tokens >= 128 && c->page_tokens <= 65536 && c->page_tokens % 128 == 0,
            "page_tokens is %u, not a multiple of 128 up to 65536", c->page_tokens);
#undef REQUIRE
    return KIVI_OK;
}

/* Bytes of `tokens` tokens of all kv heads; tokens is a multiple of 128, so of every block. */
static uint64_t layer_bytes(const kivi_config *c, const struct kivi_layer_geometry *l,
                            uint64_t tokens)
{
    return c->n_kv_heads
           * (tokens / l->k.tokens * l->k.block_bytes + tokens / l->v.tokens * l->v.block_bytes);
}

kivi_status kivi_geometry_init(struct kivi_geometry *g, const kivi_config *c,
                               struct kivi_layer_geometry *layers, kivi_error *error)
{
    uint64_t page_bytes = 0, window_bytes;
    uint32_t i;

    g->n_layers = c->n_layers;
    g->n_q_heads = c->n_q_heads;
    g->n_kv_heads = c->n_kv_heads;
    g->heads_per_kv = c->n_q_heads / c->n_kv_heads;
    g->k_dim = c->k_dim;
    g->v_dim = c->v_dim;
    g->group_size = c->group_size;
    g->residual_length = c->residual_length;
    g->n_sink = c->n_sink;
    g->layers = layers;

    for (i = 0; i < c->n_layers; i++) {
        struct kivi_layer_geometry *l = &layers[i];
        uint64_t bytes;

        l->k = kivi_layout_keys(c->layer_k_bits ? c->layer_k_bits[i] : c->k_bits, c->k_dim,
                                c->group_size);
        l->v = kivi_layout_values(c->layer_v_bits ? c->layer_v_bits[i] : c->v_bits, c->v_dim,
                                  c->group_size);
        bytes = layer_bytes(c, l, c->page_tokens);
        page_bytes = bytes > page_bytes ? bytes : page_bytes;
    }
    page_bytes = round_up(page_bytes, 64);
    for (i = 0; i < c->n_layers; i++) {
        struct kivi_layer_geometry *l = &layers[i];

        l->page_tokens = (uint32_t)(page_bytes / layer_bytes(c, l, 128) * 128);
        l->page_v_offset = (size_t)l->page_tokens / l->k.tokens * l->k.block_bytes;
        l->page_head_stride =
            l->page_v_offset + (size_t)l->page_tokens / l->v.tokens * l->v.block_bytes;
    }

    /* `rollback` tokens may be taken back exactly, and with a second cut the rest of the keys' residual,
     * less than residual_length more: values are f16 from residual_length tokens before that cut on. */
    g->k_ring = (uint32_t)round_up((uint64_t)c->residual_length + c->rollback, c->group_size);
    g->v_ring = 2 * c->residual_length + c->rollback;
    g->window_sink_v = (size_t)c->n_sink * c->k_dim * 2;
    g->window_k = g->window_sink_v + (size_t)c->n_sink * c->v_dim * 2;
    g->window_v = g->window_k + (size_t)g->k_ring * c->k_dim * 2;
    g->window_head_stride = g->window_v + (size_t)g->v_ring * c->v_dim * 2;
    window_bytes = round_up((uint64_t)g->window_head_stride * c->n_kv_heads, 64);

    if (page_bytes > SIZE_MAX / 4 || window_bytes > SIZE_MAX / 4)
        return kivi_fail(
            error, KIVI_ERROR_ARGUMENT,
            "a page of %llu bytes or a window of %llu does not fit this machine's address space",
            (unsigned long long)page_bytes, (unsigned long long)window_bytes);
    g->page_bytes = (size_t)page_bytes;
    g->window_bytes = (size_t)window_bytes;
    return KIVI_OK;
}
