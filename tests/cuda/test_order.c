/*
 * What must not meet on a device: streams, threads, graphs and caches that work at the same time, and a call that
 * fails while its kernels overlap.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "support/buffer.h"
#include "support/numbers.h"
#include "support/random.h"
#include "support/session.h"
#include "support/suite.h"
#include "twins.h"

/* ----------------------------------------------------------------- streams */

/* A thread that appends to a sequence, again and again, on its own cudaStreamPerThread. */
struct appender {
    const struct twins *t;
    const struct array *rows;
    uint64_t n; /* tokens of a call */
    uint32_t n_calls;
    kivi_status status;
    atomic_int appended, done;
};

static void *append_on_own_stream(void *context)
{
    struct appender *a = context;
    kivi_attention attention;
    uint32_t i;

    kivi_attention_init(&attention);
    attention.stream = cudaStreamPerThread;
    for (i = 0; i < a->n_calls && a->status == KIVI_OK; i++) {
        const kivi_item item = {
            .seq = a->t->on_device[0],
            .n_new = a->n,
            .k = {a->rows[0].device, KIVI_F32, 0, 0},
            .v = {a->rows[1].device, KIVI_F32, 0, 0},
        };

        a->status = kivi_run(a->t->device, 0, &item, 1, &attention, NULL);
    }
    atomic_store(&a->appended, 1);
    while (!atomic_load(&a->done)) /* a stream of a thread that ended might have been waited for */
        ;
    return NULL;
}

/* cudaStreamPerThread is one handle, and a stream of its own in every thread. */
START_TEST(a_stream_of_each_thread)
{
    struct array rows[2], q, out;
    struct twins t;
    struct appender a = {.t = &t, .rows = rows, .n = 65536, .n_calls = 8};
    size_t bytes;
    float *seen[2];
    kivi_attention attention;
    kivi_error error;
    pthread_t thread;
    uint32_t i;

    twins_open(&t, 2, 128, 2);
    rows[0] = array_new(&t.rng, (size_t)a.n * 2 * 128);
    rows[1] = array_new(&t.rng, (size_t)a.n * 2 * 128);
    q = array_new(&t.rng, Q_HEADS * 128);
    out = array_new(NULL, Q_HEADS * 128);
    bytes = out.bytes;
    kivi_attention_init(&attention);
    attention.stream = cudaStreamPerThread;
    ck_assert_int_eq(pthread_create(&thread, NULL, append_on_own_stream, &a), 0);
    while (!atomic_load(&a.appended))
        ;
    for (i = 0; i < 2; i++) {
        seen[i] = malloc(bytes);
        ck_assert_ptr_nonnull(seen[i]);
        session_ok(kivi_attend(t.device, 0, t.on_device[0], 1, (kivi_in){q.device, KIVI_F32, 0, 0},
                               (kivi_out){out.device, KIVI_F32, 0, 0}, &attention, &error),
                   &error);
        cuda_ok(cudaStreamSynchronize(cudaStreamPerThread));
        cuda_ok(cudaMemcpy(seen[i], out.device, bytes, cudaMemcpyDeviceToHost));
        cuda_ok(cudaDeviceSynchronize());
    }
    atomic_store(&a.done, 1);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_int_eq(a.status, KIVI_OK);
    ck_assert_msg(memcmp(seen[0], seen[1], bytes) == 0,
                  "attention on a thread's stream did not wait for another thread's appends");
    for (i = 0; i < 2; i++) {
        free(seen[i]);
        array_free(&rows[i]);
    }
    array_free(&q);
    array_free(&out);
    twins_close(&t);
}
END_TEST

/* A call that has nothing to do launches nothing: attention behind it is still right behind the append before. */
START_TEST(a_call_of_nothing_between)
{
    const uint32_t heads = 4, dim = 128;
    const uint64_t n = 6000;
    const size_t row = heads * dim;
    struct array q, out;
    uint16_t *rows[2];
    float *seen[2];
    struct twins t;
    uint32_t i, j, different = 0;

    twins_configure(&t, heads, dim, 2u << _i);
    twins_create(&t);
    q = array_new(&t.rng, Q_HEADS * dim);
    out = array_new(NULL, Q_HEADS * dim);
    for (i = 0; i < 2; i++) { /* of one, then of the other: pages are used again */
        uint16_t *host = malloc(n * row * sizeof *host);
        size_t x;

        seen[i] = malloc(out.bytes);
        ck_assert(host && seen[i]);
        for (x = 0; x < n * row; x++)
            host[x] = number_to_f16(rng_normal(&t.rng));
        cuda_ok(cudaMalloc((void **)&rows[i], n * row * sizeof *host));
        cuda_ok(cudaMemcpy(rows[i], host, n * row * sizeof *host, cudaMemcpyHostToDevice));
        free(host);
    }
    cuda_ok(cudaDeviceSynchronize());
    for (i = 0; i < 40; i++) {
        const kivi_in in = {rows[i % 2], KIVI_F16, 0, 0};
        const kivi_item append = {.seq = t.on_device[0], .n_new = n, .k = in, .v = in};
        const kivi_item nothing = {.seq = t.on_device[1]};
        kivi_attention attention;
        kivi_error error;

        kivi_attention_init(&attention);
        attention.stream = t.stream;
        session_ok(kivi_seq_truncate(t.device, t.on_device[0], 0, &error), &error);
        session_ok(kivi_run(t.device, 0, &append, 1, &attention, &error), &error);
        session_ok(kivi_run(t.device, 0, &nothing, 1, &attention, &error), &error);
        for (j = 0; j < 2; j++) {
            session_ok(kivi_attend(t.device, 0, t.on_device[0], 1,
                                   (kivi_in){q.device, KIVI_F32, 0, 0},
                                   (kivi_out){out.device, KIVI_F32, 0, 0}, &attention, &error),
                       &error);
            cuda_ok(cudaStreamSynchronize(t.stream));
            cuda_ok(cudaMemcpy(seen[j], out.device, out.bytes, cudaMemcpyDeviceToHost));
        }
        different += memcmp(seen[0], seen[1], out.bytes) != 0;
    }
    ck_assert_msg(different == 0,
                  "%u of %u times attention saw codes that were still being written", different, i);
    for (i = 0; i < 2; i++) {
        cuda_ok(cudaFree(rows[i]));
        free(seen[i]);
    }
    array_free(&q);
    array_free(&out);
    twins_close(&t);
}
END_TEST

/* Layers on two streams of one capture: what the cache has for all its steps is used by one at a time. */
START_TEST(streams_in_one_capture)
{
    static const uint32_t dims[] = {128, 80, 264}; /* the last without tensor cores */
    struct twins t;
    cudaStream_t other;
    cudaEvent_t begin, end;
    uint32_t i, layer;

    twins_open(&t, 2, dims[_i], 2);
    cuda_ok(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    cuda_ok(cudaEventCreateWithFlags(&begin, cudaEventDisableTiming));
    cuda_ok(cudaEventCreateWithFlags(&end, cudaEventDisableTiming));
    for (layer = 0; layer < 2; layer++) {
        struct call prompt = call_begin(&t, layer, SEQS, 1500, t.stream);

        call_end(&prompt, "prompt");
    }
    for (i = 0; i < 12; i++) {
        struct call step[3];
        cudaGraph_t graph;
        cudaGraphExec_t exec;

        cuda_ok(cudaStreamBeginCapture(t.stream, cudaStreamCaptureModeRelaxed));
        cuda_ok(cudaEventRecord(begin, t.stream));
        cuda_ok(cudaStreamWaitEvent(other, begin, 0));
        step[0] = call_begin(&t, 0, SEQS, 1 + i % 2, t.stream);
        step[1] = call_begin(&t, 1, SEQS, 1, other);
        step[2] = call_begin(&t, 0, SEQS, 1,
                             t.stream); /* of a layer whose last step is on the same stream */
        cuda_ok(cudaEventRecord(end, other));
        cuda_ok(cudaStreamWaitEvent(t.stream, end, 0));
        cuda_ok(cudaStreamEndCapture(t.stream, &graph));
        cuda_ok(cudaGraphInstantiate(&exec, graph, 0));
        cuda_ok(cudaGraphLaunch(exec, t.stream));
        call_end(&step[0], "first step of a graph");
        call_end(&step[1], "step on another stream of its capture");
        call_end(&step[2], "last step of a graph");
        cuda_ok(cudaGraphExecDestroy(exec));
        cuda_ok(cudaGraphDestroy(graph));
    }
    twins_check_contents(&t, "two streams in a graph");
    cuda_ok(cudaEventDestroy(begin));
    cuda_ok(cudaEventDestroy(end));
    cuda_ok(cudaStreamDestroy(other));
    twins_close(&t);
}
END_TEST

/* ------------------------------------------------------------------ caches */

/* A thread that opens caches of the same kind and closes them. */
struct opener {
    kivi_config config;
    int n;
    kivi_status status;
    atomic_int done;
};

static void *open_caches(void *context)
{
    struct opener *o = context;
    int i;

    for (i = 0; i < o->n && o->status == KIVI_OK; i++) {
        kivi_cache *cache;

        o->status = kivi_cache_create(&o->config, &cache, NULL);
        kivi_cache_destroy(cache);
    }
    atomic_store(&o->done, 1);
    return NULL;
}

/* Kernels are the device's, not a cache's: one that opens must not change them for one at work. */
START_TEST(caches_open_beside_steps)
{
    struct twins t;
    struct opener o = {.n = test_rounds(60, 2000)};
    struct array q, out;
    struct call prompt;
    kivi_attention attention;
    kivi_error error;
    pthread_t thread;
    uint64_t n_steps = 0;

    twins_open(&t, 2, 128, 2);
    prompt = call_begin(&t, 0, 1, 4000, t.stream);
    call_end(&prompt, "prompt");
    q = array_new(&t.rng, Q_HEADS * 128);
    out = array_new(NULL, Q_HEADS * 128);
    o.config = t.config;
    kivi_attention_init(&attention);
    attention.stream = t.stream;
    ck_assert_int_eq(pthread_create(&thread, NULL, open_caches, &o), 0);
    while (!atomic_load(&o.done)) {
        attention.precision = n_steps % 2 ? KIVI_PRECISE : KIVI_STANDARD;
        session_ok(kivi_attend(t.device, 0, t.on_device[0], 1, (kivi_in){q.device, KIVI_F32, 0, 0},
                               (kivi_out){out.device, KIVI_F32, 0, 0}, &attention, &error),
                   &error);
        if (++n_steps % 64 == 0)
            cuda_ok(cudaStreamSynchronize(t.stream));
    }
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_int_eq(o.status, KIVI_OK);
    cuda_ok(cudaStreamSynchronize(t.stream));
    array_free(&q);
    array_free(&out);
    twins_close(&t);
}
END_TEST

/* ---------------------------------------------------------------- failures */

#define MANY_HEADS                                                                                 \
    100u /* times ITEMS: more than a device takes blocks at a time, so that a block has two tasks */
#define ITEMS 3u
#define DIM 64u

static void save_all(kivi_cache *cache, const kivi_seq *seqs, struct buffer *to)
{
    kivi_error error;
    uint32_t i;

    buffer_init(to);
    for (i = 0; i < ITEMS; i++)
        session_ok(kivi_seq_save(cache, seqs[i], buffer_write, to, &error), &error);
}

/* A query that is not finite, and that a block comes to late: nothing is appended beside the attention that may still
 * find it. Also of the window's oldest rows, which no attention reads, but truncation does, and a saved file has. */
START_TEST(refused_query_changes_nothing)
{
    const size_t row = MANY_HEADS * DIM, n = 1000;
    struct rng rng = {test_seed(0xbad9)};
    float *k = malloc(n * row * sizeof *k), *q = calloc(row, sizeof *q),
          *out = malloc(ITEMS * row * sizeof *out);
    float *bad = calloc(row, sizeof *bad);
    struct buffer before, after;
    kivi_item items[ITEMS];
    kivi_seq seqs[ITEMS];
    kivi_config config;
    kivi_cache *cache;
    kivi_error error;
    uint32_t i, head;

    ck_assert(k && q && out && bad);
    for (i = 0; i < n * row; i++)
        k[i] = (float)rng_normal(&rng);
    kivi_config_init(&config);
    config.n_layers = 1;
    config.n_q_heads = config.n_kv_heads = MANY_HEADS;
    config.k_dim = config.v_dim = DIM;
    config.residual_length = 32;
    config.backend = "cuda";
    session_ok(kivi_cache_create(&config, &cache, &error), &error);
    for (i = 0; i < ITEMS; i++) {
        const kivi_in rows = {k, KIVI_F32, 0, 0};

        session_ok(kivi_seq_create(cache, &seqs[i], &error), &error);
        session_ok(kivi_append(cache, 0, seqs[i], n, rows, rows, &error), &error);
    }
    save_all(cache, seqs, &before);
    for (head = MANY_HEADS - 6; head < MANY_HEADS; head++) {
        memset(bad, 0, row * sizeof *bad);
        bad[head * DIM] = NAN;
        for (i = 0; i < ITEMS; i++)
            items[i] = (kivi_item){
                .seq = seqs[i],
                .n_new = 1,
                .k = {k, KIVI_F32, 0, 0},
                .v = {k, KIVI_F32, 0, 0},
                .n_q = 1,
                .q = {i + 1 < ITEMS ? q : bad, KIVI_F32, 0, 0},
                .out = {out + i * row, KIVI_F32, 0, 0},
            };
        ck_assert_int_eq(kivi_run(cache, 0, items, ITEMS, NULL, &error), KIVI_ERROR_NOT_FINITE);
        ck_assert_uint_eq(error.item, ITEMS - 1);
        save_all(cache, seqs, &after);
        ck_assert_uint_eq(before.size, after.size);
        ck_assert_msg(memcmp(before.data, after.data, before.size) == 0,
                      "a call that was refused for query head %u has changed a window", head);
        buffer_free(&after);
    }
    buffer_free(&before);
    kivi_cache_destroy(cache);
    free(k);
    free(q);
    free(bad);
    free(out);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("order");
    TCase *streams = tcase_create("streams"), *caches = tcase_create("caches");
    TCase *failures = tcase_create("failures");

    tcase_set_timeout(streams, 600);
    tcase_set_timeout(caches, 600);
    tcase_set_timeout(failures, 600);
    tcase_add_test(streams, a_stream_of_each_thread);
    tcase_add_loop_test(streams, a_call_of_nothing_between, 0, 3);
    tcase_add_loop_test(streams, streams_in_one_capture, 0, 3);
    tcase_add_test(caches, caches_open_beside_steps);
    tcase_add_test(failures, refused_query_changes_nothing);
    suite_add_tcase(suite, failures);
    suite_add_tcase(suite, caches);
    suite_add_tcase(suite, streams);
    return test_main(suite);
}
