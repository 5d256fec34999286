/*
 * Several devices: a cache belongs to one, and heads or tokens are divided over caches. With a single GPU all
 * caches are on it, which the program says.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/buffer.h"
#include "support/contents.h"
#include "support/session.h"
#include "support/suite.h"
#include "twins.h"

#define KV_HEADS 4u
#define DIM 128u
#define Q_ROW (Q_HEADS * DIM)
#define KV_ROW (KV_HEADS * DIM)
#define MOST_SHARDS 4

static int n_devices;

/* ------------------------------------------------------------------ shards */

/* A cache with a part of the heads or of the tokens, and its device's arrays. */
struct shard {
    int device;
    kivi_cache *cache, *host;
    kivi_seq seq, on_host;
    cudaStream_t stream;
    float *k, *v, *q, *out, *lse;
};

static uint32_t n_shards(void)
{
    return n_devices > 2 ? MOST_SHARDS : 2;
}

static void configure(kivi_config *config, uint32_t kv_heads, uint32_t q_heads)
{
    kivi_config_init(config);
    config->n_layers = 1;
    config->n_q_heads = q_heads;
    config->n_kv_heads = kv_heads;
    config->k_dim = config->v_dim = DIM;
    config->k_bits = config->v_bits = 2;
    config->n_threads = 1;
}

static kivi_cache *create(kivi_config config, const char *backend, int device, kivi_memory memory,
                          kivi_seq *seq)
{
    kivi_cache *cache;
    kivi_error error;

    config.backend = backend;
    config.device = device;
    config.memory = memory;
    session_ok(kivi_cache_create(&config, &cache, &error), &error);
    session_ok(kivi_seq_create(cache, seq, &error), &error);
    return cache;
}

/* The numbers in memory of the device that is current; without numbers, room for them. */
static float *on_device(const float *host, size_t n)
{
    float *device;

    cuda_ok(cudaMalloc((void **)&device, n * sizeof *device));
    if (host)
        cuda_ok(cudaMemcpy(device, host, n * sizeof *device, cudaMemcpyHostToDevice));
    cuda_ok(cudaDeviceSynchronize());
    return device;
}

/* Inputs of all heads and tokens, as every device has them. */
struct inputs {
    float *k, *v, *q;
    size_t n_kv, n_q;
};

static float *normal(struct rng *rng, size_t n)
{
    float *x = malloc(n * sizeof *x);
    size_t i;

    ck_assert_ptr_nonnull(x);
    for (i = 0; i < n; i++)
        x[i] = (float)rng_normal(rng);
    return x;
}

static struct inputs inputs_new(uint64_t n_tokens, uint64_t n_queries)
{
    struct rng rng = {test_seed(0xde1)};
    struct inputs x = {NULL, NULL, NULL, n_tokens * KV_ROW, n_queries * Q_ROW};

    x.k = normal(&rng, x.n_kv);
    x.v = normal(&rng, x.n_kv);
    x.q = normal(&rng, x.n_q);
    return x;
}

static void inputs_free(struct inputs *x)
{
    free(x->k);
    free(x->v);
    free(x->q);
}

/* Leaves device 0 current, whatever the shard's. */
static struct shard shard_open(const kivi_config *config, uint32_t i, const struct inputs *x)
{
    struct shard s = {.device = (int)i % n_devices};

    s.cache = create(*config, "cuda", s.device, KIVI_MEMORY_DEVICE, &s.seq);
    s.host = create(*config, "scalar", 0, KIVI_MEMORY_HOST, &s.on_host);
    cuda_ok(cudaSetDevice(s.device));
    cuda_ok(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking));
    s.k = on_device(x->k, x->n_kv);
    s.v = on_device(x->v, x->n_kv);
    s.q = on_device(x->q, x->n_q);
    s.out = on_device(NULL, x->n_q);
    s.lse = on_device(NULL, x->n_q / DIM);
    cuda_ok(cudaSetDevice(0));
    return s;
}

static void shard_close(struct shard *s)
{
    kivi_cache_destroy(s->cache);
    kivi_cache_destroy(s->host);
    cuda_ok(cudaStreamDestroy(s->stream));
    cuda_ok(cudaFree(s->k));
    cuda_ok(cudaFree(s->v));
    cuda_ok(cudaFree(s->q));
    cuda_ok(cudaFree(s->out));
    cuda_ok(cudaFree(s->lse));
}

static void run(kivi_cache *cache, const kivi_item *item, cudaStream_t stream)
{
    kivi_attention attention;
    kivi_error error;

    kivi_attention_init(&attention);
    attention.precision = KIVI_PRECISE;
    attention.stream = stream;
    session_ok(kivi_run(cache, 0, item, 1, &attention, &error), &error);
}

/* Waits for the shard and takes `n` numbers of its memory. */
static float *fetch(const struct shard *s, const float *device, size_t n)
{
    float *host = malloc(n * sizeof *host);

    ck_assert_ptr_nonnull(host);
    cuda_ok(cudaStreamSynchronize(s->stream));
    cuda_ok(cudaMemcpy(host, device, n * sizeof *host, cudaMemcpyDeviceToHost));
    return host;
}

/* Each shard has some of the heads: a prompt, then steps that wait for nothing, all into the columns of its heads. */
START_TEST(heads_over_devices)
{
    const uint64_t prompt = 700, steps = 40;
    const uint32_t n = n_shards(), kv = KV_HEADS / n * DIM, q = Q_HEADS / n * DIM;
    struct inputs x = inputs_new(prompt + steps, steps);
    struct shard shards[MOST_SHARDS];
    kivi_config whole, part;
    kivi_cache *reference;
    kivi_item item = {0};
    float *wanted = malloc(x.n_q * sizeof *wanted);
    uint64_t step;
    uint32_t i;

    ck_assert_ptr_nonnull(wanted);
    configure(&whole, KV_HEADS, Q_HEADS);
    configure(&part, KV_HEADS / n, Q_HEADS / n);
    reference = create(whole, "scalar", 0, KIVI_MEMORY_HOST, &item.seq);
    for (i = 0; i < n; i++)
        shards[i] = shard_open(&part, i, &x);
    for (step = 0; step <= steps; step++) {
        const uint64_t at = step ? prompt + step - 1 : 0, query = step ? step - 1 : 0;

        item.n_new = step ? 1 : prompt;
        item.n_q = step != 0;
        item.k = (kivi_in){x.k + at * KV_ROW, KIVI_F32, 0, 0};
        item.v = (kivi_in){x.v + at * KV_ROW, KIVI_F32, 0, 0};
        item.q = (kivi_in){x.q + query * Q_ROW, KIVI_F32, 0, 0};
        item.out = (kivi_out){wanted + query * Q_ROW, KIVI_F32, 0, 0};
        run(reference, &item, NULL);
        for (i = 0; i < n; i++) {
            const struct shard *s = &shards[i];
            kivi_item mine = item;

            mine.seq = s->seq;
            mine.k = (kivi_in){s->k + at * KV_ROW + i * kv, KIVI_F32, KV_ROW, DIM};
            mine.v = (kivi_in){s->v + at * KV_ROW + i * kv, KIVI_F32, KV_ROW, DIM};
            mine.q = (kivi_in){s->q + query * Q_ROW + i * q, KIVI_F32, Q_ROW, DIM};
            mine.out = (kivi_out){s->out + query * Q_ROW + i * q, KIVI_F32, Q_ROW, DIM};
            run(s->cache, &mine, s->stream);
        }
    }
    for (i = 0; i < n; i++) {
        float *got = fetch(&shards[i], shards[i].out, x.n_q);

        for (step = 0; step < steps; step++)
            check_rows_near(got + step * Q_ROW + i * q, wanted + step * Q_ROW + i * q, Q_HEADS / n,
                            DIM, "heads of a device");
        free(got);
        shard_close(&shards[i]);
    }
    kivi_cache_destroy(reference);
    free(wanted);
    inputs_free(&x);
}
END_TEST

/* Each shard has some of the tokens, and sees them all; what they make is merged by the log-sum-exp. */
START_TEST(tokens_over_devices)
{
    const uint64_t tokens = 3000;
    const uint32_t n = n_shards();
    struct inputs x = inputs_new(tokens, 1);
    struct shard shards[MOST_SHARDS];
    float out[Q_ROW], lse[Q_HEADS], got[Q_ROW], got_lse[Q_HEADS];
    kivi_config config;
    kivi_error error;
    uint32_t i;

    configure(&config, KV_HEADS, Q_HEADS);
    for (i = 0; i < n; i++) {
        const uint64_t begin = tokens * i / n, end = tokens * (i + 1) / n;
        struct shard *s = &shards[i];
        float *scalar_out = i ? got : out, *scalar_lse = i ? got_lse : lse;
        kivi_item mine = {.n_new = end - begin, .n_q = 1, .q_end = tokens + 1}, host = mine;

        *s = shard_open(&config, i, &x);
        mine.seq = s->seq;
        mine.k = (kivi_in){s->k + begin * KV_ROW, KIVI_F32, 0, 0};
        mine.v = (kivi_in){s->v + begin * KV_ROW, KIVI_F32, 0, 0};
        mine.q = (kivi_in){s->q, KIVI_F32, 0, 0};
        mine.out = (kivi_out){s->out, KIVI_F32, 0, 0};
        mine.lse = s->lse;
        run(s->cache, &mine, s->stream);
        host.seq = s->on_host;
        host.k = (kivi_in){x.k + begin * KV_ROW, KIVI_F32, 0, 0};
        host.v = (kivi_in){x.v + begin * KV_ROW, KIVI_F32, 0, 0};
        host.q = (kivi_in){x.q, KIVI_F32, 0, 0};
        host.out = (kivi_out){scalar_out, KIVI_F32, 0, 0};
        host.lse = scalar_lse;
        run(s->host, &host, NULL);
        if (i)
            session_ok(kivi_merge(Q_HEADS, DIM, out, lse, got, got_lse, &error), &error);
    }
    for (i = 0; i < n; i++) {
        float *rows = fetch(&shards[i], shards[i].out, Q_ROW);
        float *sums = fetch(&shards[i], shards[i].lse, Q_HEADS);

        if (i) {
            session_ok(kivi_merge(Q_HEADS, DIM, got, got_lse, rows, sums, &error), &error);
        } else {
            memcpy(got, rows, sizeof got);
            memcpy(got_lse, sums, sizeof got_lse);
        }
        free(rows);
        free(sums);
        shard_close(&shards[i]);
    }
    check_rows_near(got, out, Q_HEADS, DIM, "tokens of all devices");
    check_rows_near(got_lse, lse, 1, Q_HEADS, "log-sum-exp of all devices");
    inputs_free(&x);
}
END_TEST

/* ----------------------------------------------------------------- devices */

/* One thread that has calls in flight on every device: nothing of one is in another's way. */
START_TEST(devices_in_turns)
{
    struct twins twins[MOST_SHARDS];
    struct call pending[MOST_SHARDS][30];
    const int n = (int)n_shards();
    int i, j;

    for (i = 0; i < n; i++) {
        cuda_ok(cudaSetDevice(i % n_devices));
        twins_configure(&twins[i], 2, 128, i % 2 ? 4 : 2);
        twins[i].config.device = i % n_devices;
        twins_create(&twins[i]);
    }
    for (j = 0; j < 30; j++)
        for (i = 0; i < n; i++) {
            cuda_ok(cudaSetDevice(i % n_devices));
            pending[i][j] = call_begin(&twins[i], 0, SEQS, j % 10 ? 1 : 150, twins[i].stream);
        }
    for (i = 0; i < n; i++) {
        cuda_ok(cudaSetDevice(i % n_devices));
        for (j = 0; j < 30; j++)
            call_end(&pending[i][j], "devices in turns");
        twins_check_contents(&twins[i], "devices in turns");
        twins_close(&twins[i]);
    }
    cuda_ok(cudaSetDevice(0));
}
END_TEST

/* What one device saved, every other one loads. */
START_TEST(saved_for_another_device)
{
    const uint64_t tokens = 900;
    struct inputs x = inputs_new(tokens, 1);
    struct shard from, to;
    struct contents saved, loaded;
    struct buffer file;
    kivi_config config;
    kivi_error error;
    kivi_seq seq;
    kivi_item item = {.n_new = tokens};
    int i;

    configure(&config, KV_HEADS, Q_HEADS);
    from = shard_open(&config, 0, &x);
    item.seq = from.seq;
    item.k = (kivi_in){from.k, KIVI_F32, 0, 0};
    item.v = (kivi_in){from.v, KIVI_F32, 0, 0};
    run(from.cache, &item, from.stream);
    buffer_init(&file);
    session_ok(kivi_seq_save(from.cache, from.seq, buffer_write, &file, &error), &error);
    contents_read(&saved, &config, from.cache, from.seq, 0);
    for (i = 1; i < (n_devices > 1 ? n_devices : 2); i++) {
        file.at = 0;
        to = shard_open(&config, (uint32_t)i, &x);
        session_ok(kivi_seq_load(to.cache, buffer_read, &file, &seq, &error), &error);
        contents_read(&loaded, &config, to.cache, seq, 0);
        contents_check_equal(&saved, &loaded, "loaded on another device");
        contents_free(&loaded);
        shard_close(&to);
    }
    contents_free(&saved);
    buffer_free(&file);
    shard_close(&from);
    inputs_free(&x);
}
END_TEST

/* A stream of another device is an error, and the cache stays as it was. */
START_TEST(stream_of_another_device)
{
    struct inputs x = inputs_new(200, 1);
    struct shard shards[2];
    kivi_attention attention;
    kivi_config config;
    kivi_error error;
    kivi_item item = {.n_new = 100};
    uint64_t length;
    uint32_t i;

    configure(&config, KV_HEADS, Q_HEADS);
    for (i = 0; i < 2; i++)
        shards[i] = shard_open(&config, i, &x);
    kivi_attention_init(&attention);
    for (i = 0; i < 2; i++) {
        item.seq = shards[i].seq;
        item.k = (kivi_in){shards[i].k, KIVI_F32, 0, 0};
        item.v = (kivi_in){shards[i].v, KIVI_F32, 0, 0};
        attention.stream = shards[1 - i].stream;
        ck_assert_int_eq(kivi_run(shards[i].cache, 0, &item, 1, &attention, &error),
                         KIVI_ERROR_ARGUMENT);
        ck_assert_ptr_nonnull(strstr(error.message, "attention.stream"));
        session_ok(kivi_seq_length(shards[i].cache, item.seq, 0, &length, &error), &error);
        ck_assert_uint_eq(length, 0);
        ck_assert_int_eq(cudaGetLastError(), cudaSuccess);
        run(shards[i].cache, &item, shards[i].stream);
        session_ok(kivi_seq_length(shards[i].cache, item.seq, 0, &length, &error), &error);
        ck_assert_uint_eq(length, 100);
    }
    for (i = 0; i < 2; i++)
        shard_close(&shards[i]);
    inputs_free(&x);
}
END_TEST

/* ---------------------------------------------------------------- contexts */

/* The driver, beneath the CUDA runtime. */
struct driver {
    int (*get_current)(void **context);
    int (*get_state)(int device, unsigned *flags, int *active);
    int (*create)(void **context, unsigned flags, int device);
    int (*destroy)(void *context);
};

static void driver_find(struct driver *d)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);

    ck_assert_ptr_nonnull(library);
    *(void **)&d->get_current = dlsym(library, "cuCtxGetCurrent");
    *(void **)&d->get_state = dlsym(library, "cuDevicePrimaryCtxGetState");
    *(void **)&d->create = dlsym(library, "cuCtxCreate_v2");
    *(void **)&d->destroy = dlsym(library, "cuCtxDestroy_v2");
    ck_assert(d->get_current && d->get_state && d->create && d->destroy);
}

static void *current(const struct driver *d)
{
    void *context;

    ck_assert_int_eq(d->get_current(&context), 0);
    return context;
}

static int is_active(const struct driver *d, int device)
{
    unsigned flags;
    int active;

    ck_assert_int_eq(d->get_state(device, &flags, &active), 0);
    return active;
}

/* All kinds of calls on a device, from host memory; the context `own`, or none, stays current. */
static void use_device(const struct driver *d, int device, const void *own, float out[Q_ROW])
{
    const uint64_t tokens = 400;
    struct inputs x = inputs_new(tokens, 1);
    struct buffer file;
    kivi_config config;
    kivi_cache *cache;
    kivi_error error;
    kivi_seq fork, loaded;
    kivi_item item = {.n_new = tokens, .n_q = 1};

    configure(&config, KV_HEADS, Q_HEADS);
    cache = create(config, "cuda", device, KIVI_MEMORY_HOST, &item.seq);
    ck_assert_ptr_eq(current(d), own);
    item.k = (kivi_in){x.k, KIVI_F32, 0, 0};
    item.v = (kivi_in){x.v, KIVI_F32, 0, 0};
    item.q = (kivi_in){x.q, KIVI_F32, 0, 0};
    item.out = (kivi_out){out, KIVI_F32, 0, 0};
    run(cache, &item, NULL);
    ck_assert_ptr_eq(current(d), own);
    session_ok(kivi_seq_fork(cache, item.seq, &fork, &error), &error);
    item.seq = fork;
    item.n_new = 1;
    run(cache, &item, NULL);
    buffer_init(&file);
    session_ok(kivi_seq_save(cache, fork, buffer_write, &file, &error), &error);
    session_ok(kivi_seq_load(cache, buffer_read, &file, &loaded, &error), &error);
    ck_assert_ptr_eq(current(d), own);
    session_ok(kivi_seq_destroy(cache, fork, &error), &error);
    kivi_cache_destroy(cache);
    ck_assert_ptr_eq(current(d), own);
    buffer_free(&file);
    inputs_free(&x);
}

/* Before anything else has made a context: a cache makes one on its own device alone, and leaves none current. */
START_TEST(no_context_elsewhere)
{
    struct driver d;
    float out[Q_ROW];
    int device, i;

    driver_find(&d);
    for (device = n_devices - 1; device >= 0; device--) {
        ck_assert(!is_active(&d, device));
        use_device(&d, device, NULL, out);
        for (i = 0; i < device; i++)
            ck_assert(!is_active(&d, i));
    }
}
END_TEST

/* A context that the application made itself stays current, and has no part in what the library does. */
START_TEST(context_of_the_application)
{
    struct driver d;
    float wanted[Q_ROW], got[Q_ROW];
    void *own;
    int device;

    driver_find(&d);
    for (device = 0; device < n_devices; device++) {
        use_device(&d, device, NULL, wanted);
        ck_assert_int_eq(d.create(&own, 0, 0), 0);
        use_device(&d, device, own, got);
        ck_assert_int_eq(d.destroy(own), 0);
        ck_assert_mem_eq(got, wanted, sizeof got);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("devices");
    TCase *contexts = tcase_create("contexts"), *devices = tcase_create("devices");

    if (cudaGetDeviceCount(&n_devices) != cudaSuccess)
        n_devices = 0;
    if (n_devices == 1)
        printf(
            "not run: a second GPU: there is one, which has all caches; streams of another one\n");
    tcase_set_timeout(contexts, 1200);
    tcase_set_timeout(devices, 1200);
    tcase_add_test(contexts, no_context_elsewhere); /* first */
    tcase_add_test(contexts, context_of_the_application);
    tcase_add_test(devices, heads_over_devices);
    tcase_add_test(devices, tokens_over_devices);
    tcase_add_test(devices, devices_in_turns);
    tcase_add_test(devices, saved_for_another_device);
    if (n_devices > 1)
        tcase_add_test(devices, stream_of_another_device);
    suite_add_tcase(suite, contexts);
    suite_add_tcase(suite, devices);
    return test_main(suite);
}
