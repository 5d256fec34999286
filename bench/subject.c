#include "subject.h"

#include <stdio.h>
#include <stdlib.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "machine.h"

#define MAX_SEQUENCES 4096u
#define STAGGER 37u /* tokens by which neighbouring sequences differ, modulo the residual length */

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

static uint32_t residual_length(void)
{
    kivi_config defaults;

    kivi_config_init(&defaults);
    return defaults.residual_length;
}

uint64_t sequence_bytes(const struct shape *s, struct cache_type type, uint64_t n_tokens)
{
    const uint64_t residual = residual_length();

    return s->kv_heads
           * (rows_bytes(KIVI_PER_CHANNEL, type.k_bits, s->group, s->k_dim,
                         n_tokens - n_tokens % residual, n_tokens)
              + rows_bytes(KIVI_PER_TOKEN, type.v_bits, s->group, s->v_dim,
                           n_tokens > residual ? n_tokens - residual : 0, n_tokens));
}

uint32_t sequences_for(const struct shape *s, struct cache_type type, uint64_t n_tokens,
                       uint64_t footprint)
{
    const uint64_t bytes = sequence_bytes(s, type, n_tokens);
    const uint64_t n = (footprint + bytes - 1) / bytes;

    return n < 1 ? 1 : n > MAX_SEQUENCES ? MAX_SEQUENCES : (uint32_t)n;
}

static int out_of_memory(struct subject *s)
{
    s->error.status = KIVI_ERROR_MEMORY;
    snprintf(s->error.message, sizeof s->error.message, "no memory for %u sequences", s->n_seqs);
    return 0;
}

int subject_open(struct subject *s)
{
    kivi_config config;
    uint32_t i;

    kivi_config_init(&config);
    config.n_layers = 1;
    config.n_q_heads = s->shape.q_heads;
    config.n_kv_heads = s->shape.kv_heads;
    config.k_dim = s->shape.k_dim;
    config.v_dim = s->shape.v_dim;
    config.k_bits = s->type.k_bits;
    config.v_bits = s->type.v_bits;
    config.group_size = s->shape.group;
    config.max_sequences = s->n_seqs;
    config.backend = s->backend;
    s->next = 0;
    s->seqs = calloc(s->n_seqs, sizeof *s->seqs);
    s->lengths = calloc(s->n_seqs, sizeof *s->lengths);
    if (!s->seqs || !s->lengths)
        return out_of_memory(s);
    if (kivi_cache_create(&config, &s->cache, &s->error) != KIVI_OK)
        return 0;
    for (i = 0; i < s->n_seqs; i++) {
        if (kivi_seq_create(s->cache, &s->seqs[i], &s->error) != KIVI_OK)
            return 0;
    }
    return 1;
}

void subject_close(struct subject *s)
{
    kivi_cache_destroy(s->cache);
    free(s->seqs);
    free(s->lengths);
    s->cache = NULL;
    s->seqs = NULL;
    s->lengths = NULL;
}

int subject_truncate(struct subject *s, uint64_t n_tokens)
{
    s->lengths[s->next] = n_tokens;
    return kivi_seq_truncate(s->cache, s->seqs[s->next], n_tokens, &s->error) == KIVI_OK;
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
        kivi_work_begin(s->cache, 0, item, 1, attention, n_parts, &work, &s->error);
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
    kivi_status status;

    item->seq = s->seqs[s->next];
    if (s->host_threads)
        status = run_on_own_threads(s, item, attention);
    else
        status = kivi_run(s->cache, 0, item, 1, attention, &s->error);
    s->lengths[s->next] += item->n_new;
    s->next = s->next + 1 < s->n_seqs ? s->next + 1 : 0;
    return status == KIVI_OK;
}

int subject_fill(struct subject *s, uint64_t n_tokens, int stagger, double seconds)
{
    const double start = machine_now();
    uint32_t i;

    for (i = 0; i < s->n_seqs; i++) {
        const uint64_t wanted = n_tokens + (stagger ? i * STAGGER % residual_length() : 0);

        while (s->lengths[i] < wanted) {
            const uint64_t left = wanted - s->lengths[i];
            kivi_item item = {0};

            s->next = i;
            subject_input(s, &item, left < s->chunk->tokens ? left : s->chunk->tokens);
            if (!subject_run(s, &item, NULL))
                return 0;
        }
        if (machine_now() - start > seconds)
            s->n_seqs = i + 1;
    }
    s->next = 0;
    return 1;
}
