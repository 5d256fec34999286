/* Configurations and attention parameters at random. */
#include <math.h>
#include <string.h>

#include "model.h"

static const uint8_t all_bits[] = {2, 4, 8, 16};

void random_config(struct rng *rng, kivi_config *config, uint8_t bits[2][MODEL_LAYERS])
{
    static const uint32_t dims[] = {8, 24, 40, 64, 64, 72, 80, 96, 112, 128, 128, 192, 256, 512};
    static const uint32_t per_kv[] = {1, 1, 2, 4, 7, 8};
    static const uint32_t groups[] = {32, 32, 64, 128};
    static const uint32_t sinks[] = {0, 0, 0, 1, 4, 33, 130};
    static const uint32_t rollbacks[] = {0, 0, 5, 40, 200};
    uint32_t i;

    kivi_config_init(config);
    config->n_layers = (uint32_t)rng_between(rng, 1, MODEL_LAYERS);
    config->k_dim = RNG_PICK(rng, dims);
    config->v_dim = rng_one_in(rng, 2) ? config->k_dim : RNG_PICK(rng, dims);
    config->n_kv_heads = (uint32_t)rng_between(rng, 1, config->k_dim > 128 ? 2 : 4);
    config->n_q_heads = config->n_kv_heads * RNG_PICK(rng, per_kv);
    config->k_bits = RNG_PICK(rng, all_bits);
    config->v_bits = RNG_PICK(rng, all_bits);
    for (i = 0; i < MODEL_LAYERS; i++) {
        bits[0][i] = RNG_PICK(rng, all_bits);
        bits[1][i] = RNG_PICK(rng, all_bits);
    }
    if (rng_one_in(rng, 3))
        config->layer_k_bits = bits[0];
    if (rng_one_in(rng, 3))
        config->layer_v_bits = bits[1];
    config->group_size = RNG_PICK(rng, groups);
    config->residual_length = config->group_size * (uint32_t)rng_between(rng, 1, 3);
    config->n_sink = RNG_PICK(rng, sinks);
    config->rollback = RNG_PICK(rng, rollbacks);
    config->page_tokens = 128 * (uint32_t)rng_between(rng, 1, 3);
    config->n_threads = (uint32_t)rng_between(rng, 1, 3);
    config->max_sequences = MODEL_SEQS;
}

void random_attention(struct rng *rng, const kivi_config *config, float *sinks,
                      kivi_attention *attention)
{
    static const uint64_t windows[] = {0, 0, 0, 1, 17, 100, 1000};
    uint32_t i;

    kivi_attention_init(attention);
    attention->precision = rng_one_in(rng, 2) ? KIVI_PRECISE : KIVI_STANDARD;
    attention->window = RNG_PICK(rng, windows);
    if (rng_one_in(rng, 4))
        attention->scale = (float)(rng_normal(rng) / sqrt(config->k_dim));
    if (rng_one_in(rng, 4))
        attention->softcap = (float)(1 + 29 * rng_uniform(rng));
    if (rng_one_in(rng, 3)) {
        for (i = 0; i < config->n_q_heads; i++) {
            const double size = rng_one_in(rng, 8) ? 200 : 4;

            sinks[i] = rng_one_in(rng, 4) ? (float)-INFINITY : (float)(size * rng_normal(rng));
        }
        attention->sink_logits = sinks;
    }
}
