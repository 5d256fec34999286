/* A cache in an engine: a prompt of 1000 tokens, then one token more. */
#include <kivi/kivi.h>
#include <stdio.h>

static float k[1000 * 2 * 64], v[1000 * 2 * 64], q[1000 * 8 * 64], out[1000 * 8 * 64];

int main(void)
{
    kivi_config config;
    kivi_cache *cache = NULL;
    kivi_seq seq;
    kivi_stats stats = {.size = sizeof stats};
    kivi_error error;

    kivi_config_init(&config); /* 2 bits, groups of 32, the newest 128 tokens in full precision */
    config.n_layers = 1, config.n_q_heads = 8, config.n_kv_heads = 2;
    config.k_dim = config.v_dim = 64;
    for (int i = 0; i < 1000 * 2 * 64; i++)
        k[i] = (float)(i * 37 % 101) / 50 - 1, v[i] = (float)(i * 53 % 97) / 48 - 1;
    for (int i = 0; i < 1000 * 8 * 64; i++)
        q[i] = (float)(i * 29 % 103) / 51 - 1;
    if (kivi_cache_create(&config, &cache, &error) || kivi_seq_create(cache, &seq, &error)
        || kivi_forward(cache, 0, seq, 1000, k, v, q, out, NULL, &error)
        || kivi_forward(cache, 0, seq, 1, k, v, q, out, NULL, &error)
        || kivi_seq_stats(cache, seq, &stats, &error))
        fprintf(stderr, "%s\n", error.message);
    else
        printf("%llu tokens take %llu bytes; f16 would take %llu\n",
               (unsigned long long)stats.tokens, (unsigned long long)stats.total_bytes,
               (unsigned long long)stats.f16_bytes);
    kivi_cache_destroy(cache);
    return error.status != KIVI_OK;
}
