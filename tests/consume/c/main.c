/* A program of someone who has installed libkivi: one token through the cache comes back. */
#include <kivi/kivi.h>

#include <stdio.h>
#include <string.h>

enum { DIM = 64 };

static int check(kivi_cache *cache)
{
    float k[DIM], v[DIM], q[DIM], out[DIM];
    kivi_error error;
    kivi_seq seq;
    int i;

    for (i = 0; i < DIM; i++) {
        k[i] = (float)(i % 5) - 2.0f;
        v[i] = (float)i / 8.0f;
        q[i] = 1.0f;
    }
    if (kivi_seq_create(cache, &seq, &error) != KIVI_OK
        || kivi_forward(cache, 0, seq, 1, k, v, q, out, NULL, &error) != KIVI_OK) {
        fprintf(stderr, "%s: %s\n", kivi_status_string(error.status), error.message);
        return 1;
    }
    /* Attention over one token is its value, and these values are exact in f16. */
    return memcmp(out, v, sizeof v) != 0;
}

int main(void)
{
    kivi_config config;
    kivi_cache *cache;
    kivi_error error;
    int failed;

    if (strcmp(kivi_version(), KIVI_VERSION_STRING) != 0) {
        fprintf(stderr, "headers %s, library %s\n", KIVI_VERSION_STRING, kivi_version());
        return 1;
    }
    kivi_config_init(&config);
    config.n_layers = config.n_q_heads = config.n_kv_heads = 1;
    config.k_dim = config.v_dim = DIM;
    if (kivi_cache_create(&config, &cache, &error) != KIVI_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    failed = check(cache);
    kivi_cache_destroy(cache);
    puts(failed ? "wrong result" : "ok");
    return failed;
}
