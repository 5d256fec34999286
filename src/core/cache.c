/* The cache object: configuration, creation, description. */
#include "cache.h"

#include <stdio.h>
#include <string.h>

#include "registry.h"

#define MAX_SEQUENCES (1u << 20)
#define MAX_THREADS 1024u

void kivi_config_init(kivi_config *config)
{
    if (!config)
        return;
    memset(config, 0, sizeof *config);
    config->size = sizeof *config;
    config->k_bits = 2;
    config->v_bits = 2;
    config->group_size = 32;
    config->residual_length = 128;
    config->max_sequences = 64;
    config->page_tokens = 256;
}

static kivi_status check(const kivi_config *config, kivi_error *error)
{
    if (config->size != sizeof *config)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT,
                         "config.size is %zu, not %zu: kivi_config_init was not called, or is of a "
                         "later version",
                         config->size, sizeof *config);
    if (config->max_sequences < 1 || config->max_sequences > MAX_SEQUENCES)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "max_sequences is %u, not 1 to %u",
                         config->max_sequences, MAX_SEQUENCES);
    if (config->n_threads > MAX_THREADS)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "n_threads is %u, above %u", config->n_threads,
                         MAX_THREADS);
    if (config->memory != KIVI_MEMORY_HOST && config->memory != KIVI_MEMORY_DEVICE)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "memory is %d, not host or device",
                         (int)config->memory);
    if (!config->allocator.alloc != !config->allocator.release)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT,
                         "allocator: one of alloc and release is NULL and the other is not");
    return KIVI_OK;
}

/* Everything that hangs on the cache object, of which any part may be missing. */
static void release(kivi_cache *cache)
{
    struct kivi_heap heap = cache->heap;
    const uint32_t n_layers = cache->geometry.n_layers;

    if (cache->context)
        cache->backend->close(cache->context);
    kivi_heap_free(&heap, cache->sequences, cache->max_sequences * sizeof *cache->sequences);
    kivi_heap_free(&heap, cache->generations, cache->max_sequences * sizeof *cache->generations);
    kivi_heap_free(&heap, cache->layer_tokens, n_layers * sizeof *cache->layer_tokens);
    kivi_heap_free(&heap, cache->geometry.layers, n_layers * sizeof *cache->geometry.layers);
    kivi_heap_free(&heap, cache, sizeof *cache);
}

/* The backend and all tables of an otherwise filled-in cache. */
static kivi_status open_backend(kivi_cache *cache, const kivi_config *config, kivi_error *error)
{
    kivi_config own = *config;
    kivi_status status;

    own.allocator = kivi_heap_allocator(&cache->heap);
    status = cache->backend->open(cache->backend, &cache->geometry, &own, &cache->context, error);
    if (status != KIVI_OK) {
        cache->context = NULL;
        return status;
    }
    cache->source.backend = cache->backend;
    cache->source.context = cache->context;
    cache->source.heap = &cache->heap;
    cache->source.budget = config->memory_budget;
    kivi_pool_init(&cache->page_pool, &cache->source, cache->geometry.page_bytes);
    kivi_pool_init(&cache->window_pool, &cache->source, cache->geometry.window_bytes);
    if (kivi_lock_init(&cache->lock) != 0)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no lock could be made");
    return KIVI_OK;
}

kivi_status kivi_cache_create(const kivi_config *config, kivi_cache **cache, kivi_error *error)
{
    const struct kivi_backend *backend;
    struct kivi_layer_geometry *layers;
    struct kivi_heap heap;
    const char *why;
    kivi_cache *c;
    kivi_status status;
    KIVI_DETAIL(error);

    if (cache)
        *cache = NULL;
    if (!config || !cache)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", config ? "cache" : "config");
    status = check(config, error);
    if (status == KIVI_OK)
        status = kivi_geometry_check(config, error);
    if (status != KIVI_OK)
        return status;
    backend = kivi_backend_choose(config->backend, &why, error);
    if (!backend)
        return error->status;
    kivi_heap_init(&heap, &config->allocator);
    c = kivi_heap_alloc(&heap, sizeof *c, 1);
    if (!c)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a cache");
    c->heap = heap;
    c->n_threads = config->n_threads;
    c->max_sequences = config->max_sequences;
    c->capacity = config->capacity;
    c->memory = config->memory;
    c->backend = backend;
    c->why_backend = why;
    c->geometry.n_layers = config->n_layers;
    layers = kivi_heap_alloc(&c->heap, config->n_layers * sizeof *layers, 1);
    c->geometry.layers = layers;
    c->sequences = kivi_heap_alloc(&c->heap, c->max_sequences * sizeof *c->sequences, 1);
    c->generations = kivi_heap_alloc(&c->heap, c->max_sequences * sizeof *c->generations, 1);
    c->layer_tokens = kivi_heap_alloc(&c->heap, config->n_layers * sizeof *c->layer_tokens, 1);
    if (!layers || !c->sequences || !c->generations || !c->layer_tokens)
        status = kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for %u layers and %u sequences",
                           config->n_layers, config->max_sequences);
    if (status == KIVI_OK)
        status = kivi_geometry_init(&c->geometry, config, layers, error);
    if (status == KIVI_OK)
        status = open_backend(c, config, error);
    if (status != KIVI_OK) {
        release(c);
        return status;
    }
    *cache = c;
    return kivi_succeed(error);
}

void kivi_cache_destroy(kivi_cache *cache)
{
    uint32_t i;

    if (!cache)
        return;
    for (i = 0; i < cache->max_sequences; i++)
        if (cache->sequences[i])
            kivi_sequence_remove(cache, cache->sequences[i]);
    kivi_pools_trim(&cache->source);
    kivi_lock_destroy(&cache->lock);
    release(cache);
}

uint64_t kivi_cache_trim(kivi_cache *cache)
{
    uint64_t bytes;

    if (!cache)
        return 0;
    kivi_lock_take(&cache->lock);
    bytes = kivi_pools_trim(&cache->source);
    kivi_lock_release(&cache->lock);
    return bytes;
}

/* snprintf that goes on where the text so far ends. */
#define ADD(...)                                                                                   \
    do {                                                                                           \
        const int n_ = snprintf(text && at < capacity ? text + at : NULL,                          \
                                text && at < capacity ? capacity - at : 0, __VA_ARGS__);           \
        at += n_ > 0 ? (size_t)n_ : 0;                                                             \
    } while (0)

size_t kivi_describe(const kivi_cache *cache, char *text, size_t capacity)
{
    const struct kivi_geometry *g;
    double token_bytes = 0, f16_bytes;
    uint32_t i;
    size_t at = 0;
    int n;

    if (text && capacity)
        text[0] = '\0';
    if (!cache)
        return 0;
    g = &cache->geometry;
    for (i = 0; i < g->n_layers; i++) {
        const struct kivi_layer_geometry *l = &g->layers[i];

        token_bytes +=
            g->n_kv_heads
            * ((double)l->k.block_bytes / l->k.tokens + (double)l->v.block_bytes / l->v.tokens);
    }
    f16_bytes = 2.0 * g->n_layers * g->n_kv_heads * (g->k_dim + g->v_dim);
    ADD("libkivi %s, backend %s (%s; %s). ", KIVI_VERSION_STRING, cache->backend->name,
        cache->backend->description, cache->why_backend);
    ADD("%u layers, %u query heads, %u kv heads, dimensions %u and %u; ", g->n_layers, g->n_q_heads,
        g->n_kv_heads, g->k_dim, g->v_dim);
    ADD("layer 0 has %u-bit keys and %u-bit values, groups of %u, residual %u. ",
        g->layers[0].k.bits, g->layers[0].v.bits, g->group_size, g->residual_length);
    ADD("%.1f bytes a packed token (f16: %.1f), pages of %zu bytes, windows of %zu.", token_bytes,
        f16_bytes, g->page_bytes, g->window_bytes);
    n = cache->backend->describe(cache->context, text && at < capacity ? text + at : NULL,
                                 text && at < capacity ? capacity - at : 0);
    return at + (n > 0 ? (size_t)n : 0);
}
