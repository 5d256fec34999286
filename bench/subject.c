#include "subject.h"

#include <stdio.h>
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "machine.h"

#define MAX_LAYERS 4096u

void type_name(struct cache_type type, char *name, size_t capacity)
{
    if (type_is_f16(type))
        snprintf(name, capacity, "f16");
    else if (type.k_bits == type.v_bits)
        snprintf(name, capacity, "%u", type.k_bits);
    else
        snprintf(name, capacity, "k%uv%u", type.k_bits, type.v_bits);
}

int type_is_f16(struct cache_type type)
{
    return type.k_bits == 16 && type.v_bits == 16;
}

/* Bytes of the rows of one head, of which the first `packed` are quantized. */
static uint64_t rows_bytes(kivi_axis axis, uint32_t bits, uint32_t group, uint32_t dim,
                           uint64_t packed, uint64_t n_tokens)
{
    const kivi_packing block = {sizeof block, axis, bits, group, dim, 128};

    if (bits == 16)
        return n_tokens * dim * 2;
    return kivi_packed_size(&block) * packed / block.n_tokens + (n_tokens - packed) * dim * 2;
}

uint64_t layer_bytes(const struct shape *s, struct cache_type type, uint64_t n_tokens)
{
    kivi_config defaults;
    uint64_t residual;

    kivi_config_init(&defaults);
    residual = defaults.residual_length;
    return s->kv_heads
           * (rows_bytes(KIVI_PER_CHANNEL, type.k_bits, s->group, s->k_dim,
                         n_tokens - n_tokens % residual, n_tokens)
              + rows_bytes(KIVI_PER_TOKEN, type.v_bits, s->group, s->v_dim,
                           n_tokens > residual ? n_tokens - residual : 0, n_tokens));
}

uint32_t layers_for(const struct shape *s, struct cache_type type, uint64_t n_tokens,
                    uint64_t footprint)
{
    const uint64_t bytes = layer_bytes(s, type, n_tokens);
    const uint64_t n = (footprint + bytes - 1) / bytes;

    return n < 1 ? 1 : n > MAX_LAYERS ? MAX_LAYERS : (uint32_t)n;
}

int subject_open(struct subject *s)
{
    kivi_config config;

    kivi_config_init(&config);
    config.n_layers = s->n_layers;
    config.n_q_heads = s->shape.q_heads;
    config.n_kv_heads = s->shape.kv_heads;
    config.k_dim = s->shape.k_dim;
    config.v_dim = s->shape.v_dim;
    config.k_bits = s->type.k_bits;
    config.v_bits = s->type.v_bits;
    config.group_size = s->shape.group;
    config.max_sequences = 1;
    config.backend = s->backend;
    s->layer = 0;
    s->length = 0;
    return kivi_cache_create(&config, &s->cache, &s->error) == KIVI_OK
           && kivi_seq_create(s->cache, &s->seq, &s->error) == KIVI_OK;
}

void subject_close(struct subject *s)
{
    kivi_cache_destroy(s->cache);
    s->cache = NULL;
}

int subject_restart(struct subject *s)
{
    s->layer = 0;
    s->length = 0;
    return kivi_seq_destroy(s->cache, s->seq, &s->error) == KIVI_OK
           && kivi_seq_create(s->cache, &s->seq, &s->error) == KIVI_OK;
}

void subject_input(const struct subject *s, kivi_item *item, uint64_t n)
{
    item->n_new = n;
    item->k = (kivi_in){s->chunk->k, KIVI_F16, 0, 0};
    item->v = (kivi_in){s->chunk->v, KIVI_F16, 0, 0};
}

/* What an engine with its own threads does in place of kivi_run. */
static kivi_status run_on_own_threads(struct subject *s, const kivi_item *item,
                                      const kivi_attention *attention)
{
    const uint32_t n_parts = machine_threads();
    kivi_work *work;
    kivi_status status =
        kivi_work_begin(s->cache, s->layer, item, 1, attention, n_parts, &work, &s->error);
    uint32_t n_phases;

    if (status != KIVI_OK)
        return status;
    n_phases = kivi_work_phases(work);
#if defined(_OPENMP)
#pragma omp parallel num_threads((int)n_parts)
#endif
    {
        uint32_t phase;

        for (phase = 0; phase < n_phases; phase++) {
            int part;

            /* The loop ends with the barrier that has to stand between phases. */
#if defined(_OPENMP)
#pragma omp for schedule(static, 1)
#endif
            for (part = 0; part < (int)n_parts; part++)
                kivi_work_part(work, phase, (uint32_t)part);
        }
    }
    return kivi_work_end(work, &s->error);
}

int subject_run(struct subject *s, kivi_item *item, const kivi_attention *attention)
{
    item->seq = s->seq;
    if (s->host_threads)
        return run_on_own_threads(s, item, attention) == KIVI_OK;
    return kivi_run(s->cache, s->layer, item, 1, attention, &s->error) == KIVI_OK;
}

void subject_advance(struct subject *s, uint64_t n_new)
{
    if (++s->layer == s->n_layers) {
        s->layer = 0;
        s->length += n_new;
    }
}

int subject_fill(struct subject *s, uint64_t n_tokens, double seconds)
{
    const double start = machine_now();
    uint64_t n, at;

    for (s->layer = 0; s->layer < s->n_layers; s->layer++) {
        for (at = 0; at < n_tokens; at += n) {
            kivi_item item = {.q_position = KIVI_NEWEST};

            n = n_tokens - at < s->chunk->tokens ? n_tokens - at : s->chunk->tokens;
            subject_input(s, &item, n);
            if (!subject_run(s, &item, NULL))
                return 0;
        }
        if (machine_now() - start > seconds)
            s->n_layers = s->layer + 1;
    }
    s->layer = 0;
    s->length = n_tokens;
    return 1;
}
