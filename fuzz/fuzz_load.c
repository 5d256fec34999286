/* Loading of any bytes: a status, no crash, and a cache that is as it was. What is loaded can be attended to
 * and saved again. Checksums are made right first, or few inputs would get past them. */
#include <kivi/kivi.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc32c.h"
#include "core/format.h"

enum { LAYERS = 2, DIM = 16, CAPACITY = 8 };

struct bytes {
    unsigned char *data;
    size_t size, at;
};

static int read_bytes(void *context, void *to, size_t n)
{
    struct bytes *b = context;

    if (n > b->size - b->at)
        return -1;
    memcpy(to, b->data + b->at, n);
    b->at += n;
    return 0;
}

static int count_bytes(void *context, const void *data, size_t n)
{
    (void)data;
    *(size_t *)context += n;
    return 0;
}

static void put_crc(struct bytes *b, size_t from, size_t to)
{
    if (to <= b->size && b->size - to >= 4)
        kivi_put32(b->data + to, kivi_crc32c(0, b->data + from, to - from));
}

/* Follows the records as far as they make sense. */
static void mend(struct bytes *b)
{
    uint64_t i, n;
    size_t at = KIVI_HEADER_BYTES;
    int layer;

    put_crc(b, 0, 52);
    if (b->size < at)
        return;
    n = kivi_get64(b->data + 40);
    for (i = 0; i < n && i < CAPACITY; i++) {
        put_crc(b, at, at + 8);
        at += KIVI_SEQUENCE_BYTES;
        for (layer = 0; layer < LAYERS; layer++) {
            uint64_t payload;

            if (at > b->size || b->size - at < KIVI_LAYER_BYTES)
                return;
            payload = kivi_get64(b->data + at + 56);
            put_crc(b, at, at + 68);
            at += KIVI_LAYER_BYTES;
            if (payload > b->size - at)
                return;
            put_crc(b, at, at + (size_t)payload);
            at += (size_t)payload + 4;
        }
    }
}

static kivi_cache *new_cache(void)
{
    static const uint8_t k_bits[LAYERS] = {2, 16}, v_bits[LAYERS] = {4, 2};
    kivi_config config;
    kivi_cache *cache = NULL;

    kivi_config_init(&config);
    config.backend = "scalar";
    config.n_layers = LAYERS;
    config.n_q_heads = config.n_kv_heads = 1;
    config.k_dim = config.v_dim = DIM;
    config.residual_length = 32;
    config.n_sink = 2;
    config.n_threads = 1;
    config.layer_k_bits = k_bits;
    config.layer_v_bits = v_bits;
    config.capacity = 1u << 16;
    if (kivi_cache_create(&config, &cache, NULL) != KIVI_OK)
        abort();
    return cache;
}

static void use(kivi_cache *cache, kivi_seq seq)
{
    float q[DIM] = {1, -1, 0.5f}, out[DIM];
    const kivi_in in = {q, KIVI_F32, DIM, DIM};
    const kivi_out to = {out, KIVI_F32, DIM, DIM};
    kivi_stats stats = {.size = sizeof stats};
    uint32_t layer;
    uint64_t size;
    size_t written = 0;

    if (kivi_seq_stats(cache, seq, &stats, NULL) != KIVI_OK)
        abort();
    for (layer = 0; layer < LAYERS; layer++)
        if (kivi_attend(cache, layer, seq, 1, in, to, NULL, NULL) != KIVI_OK && stats.tokens > 0)
            continue; /* this layer may be empty */
    if (kivi_seq_save(cache, seq, count_bytes, &written, NULL) != KIVI_OK
        || kivi_seq_save_size(cache, seq, &size, NULL) != KIVI_OK || size != written)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kivi_cache *cache = new_cache();
    kivi_seq olds[CAPACITY], news[CAPACITY];
    kivi_stats stats = {.size = sizeof stats};
    struct bytes b = {malloc(size + 1), size, 0};
    kivi_error error;
    size_t n, i;

    if (!b.data)
        abort();
    memcpy(b.data, data, size);
    if (size % 2)
        mend(&b);
    if (kivi_cache_load(cache, read_bytes, &b, olds, news, CAPACITY, &n, &error) == KIVI_OK) {
        for (i = 0; i < n; i++)
            use(cache, news[i]);
    } else if (kivi_cache_stats(cache, &stats, NULL) != KIVI_OK || stats.sequences != 0
               || stats.tokens != 0 || error.message[0] == '\0') {
        abort();
    }
    kivi_cache_destroy(cache);
    free(b.data);
    return 0;
}
