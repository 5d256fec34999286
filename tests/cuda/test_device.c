/*
 * What only a device has: arrays in its memory and calls that do not wait, streams, graphs, and its
 * own ways to fail. Codes are compared with those of the scalar backend by ==, attention by the
 * bound of "precise".
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/buffer.h"
#include "support/contents.h"
#include "support/numbers.h"
#include "support/random.h"
#include "support/session.h"
#include "support/suite.h"
#include "twins.h"

/* ------------------------------------------------------------------- steps */

static const struct {
    uint32_t kv_heads, dim, bits;
} shapes[] = {{2, 128, 2}, {8, 128, 2}, {1, 64, 2},  {2, 128, 4},  {2, 128, 8},
              {2, 80, 2},  {4, 96, 16}, {2, 256, 4}, {2, 256, 16}, {1, 264, 2}};

START_TEST(steps_do_not_wait)
{
    struct call pending[40];
    struct twins t;
    uint32_t i, j;

    twins_open(&t, shapes[_i].kv_heads, shapes[_i].dim, shapes[_i].bits);
    pending[0] = call_begin(&t, 0, SEQS, 300, t.stream);
    call_end(&pending[0], "prompt");
    for (i = 0; i < 4; i++) {
        for (j = 0; j < 40; j++)
            pending[j] = call_begin(&t, 0, SEQS - j % 2, 1 + j % 3 / 2, t.stream);
        for (j = 0; j < 40; j++)
            call_end(&pending[j], "step");
        twins_check_contents(&t, "steps");
    }
    twins_close(&t);
}
END_TEST

/* Calls on changing streams keep their order, as do copies that a fork brings. */
START_TEST(streams_keep_order)
{
    struct call pending[24];
    struct twins t;
    cudaStream_t streams[3];
    kivi_error error;
    uint32_t i;

    twins_open(&t, 2, 128, 2);
    for (i = 0; i < 3; i++)
        cuda_ok(cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking));
    for (i = 0; i < 24; i++) {
        pending[i] = call_begin(&t, 0, SEQS, i % 5 ? 1 : 150, i % 4 ? streams[i % 3] : NULL);
        if (i % 6 == 5) { /* the last sequence becomes a fork of the first */
            session_ok(kivi_seq_destroy(t.device, t.on_device[2], &error), &error);
            session_ok(kivi_seq_destroy(t.host, t.on_host[2], &error), &error);
            session_ok(kivi_seq_fork(t.device, t.on_device[0], &t.on_device[2], &error), &error);
            session_ok(kivi_seq_fork(t.host, t.on_host[0], &t.on_host[2], &error), &error);
        }
    }
    for (i = 0; i < 24; i++)
        call_end(&pending[i], "streams");
    twins_check_contents(&t, "streams");
    twins_close(&t);
    for (i = 0; i < 3; i++)
        cuda_ok(cudaStreamDestroy(streams[i]));
}
END_TEST

/* All layers of a decode step in one graph, also the first call of its size. */
START_TEST(step_in_a_graph)
{
    struct call prompt[2], step[2];
    struct twins t;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    uint32_t layer;

    twins_open(&t, 2, 128, 2);
    for (layer = 0; layer < 2; layer++)
        prompt[layer] = call_begin(&t, layer, SEQS, 200 + 183 * layer, t.stream);
    cuda_ok(cudaStreamSynchronize(t.stream));
    cuda_ok(cudaStreamBeginCapture(t.stream, cudaStreamCaptureModeRelaxed));
    for (layer = 0; layer < 2; layer++)
        step[layer] = call_begin(&t, layer, SEQS, 1, t.stream);
    cuda_ok(cudaStreamEndCapture(t.stream, &graph));
    cuda_ok(cudaGraphInstantiate(&exec, graph, 0));
    cuda_ok(cudaGraphLaunch(exec, t.stream));
    for (layer = 0; layer < 2; layer++) {
        call_end(&prompt[layer], "prompt before a graph");
        call_end(&step[layer], "step in a graph");
    }
    twins_check_contents(&t, "graph");
    cuda_ok(cudaGraphExecDestroy(exec));
    cuda_ok(cudaGraphDestroy(graph));
    twins_close(&t);
}
END_TEST

/* A long context, where every part has a share: against the scalar backend. */
START_TEST(million_tokens)
{
    const uint64_t chunk = 65536, n = test_is_long() ? 4u << 20 : 1u << 20;
    struct twins t;
    struct call c;
    uint64_t i;

    twins_open(&t, 1, 64, 2);
    for (i = 0; i < n; i += chunk) {
        struct array k = array_new(&t.rng, chunk * 64), v = array_new(&t.rng, chunk * 64);
        kivi_error error;

        session_ok(kivi_append(t.device, 0, t.on_device[0], chunk,
                               (kivi_in){k.device, KIVI_F32, 0, 0},
                               (kivi_in){v.device, KIVI_F32, 0, 0}, &error),
                   &error);
        session_ok(kivi_append(t.host, 0, t.on_host[0], chunk, (kivi_in){k.host, KIVI_F32, 0, 0},
                               (kivi_in){v.host, KIVI_F32, 0, 0}, &error),
                   &error);
        cuda_ok(cudaDeviceSynchronize());
        array_free(&k);
        array_free(&v);
    }
    c = call_begin(&t, 0, 1, 3, NULL);
    call_end(&c, "a million tokens");
    twins_check_contents(&t, "a million tokens");
    twins_close(&t);
}
END_TEST

/* ------------------------------------------------------------------ prompts */

/* Tokens of new f16 rows; the token's stride is `gap` numbers more than its row, and one of values `v_gap` more. */
static const struct prompt_shape {
    uint32_t kv_heads, dim, k_bits, v_bits, sinks, gap, v_gap;
    uint64_t tokens[4]; /* of the first sequence in each call; the others take fewer */
} prompts[] = {
    {2, 128, 2, 2, 0, 0, 0, {1024, 700, 1, 1300}}, {1, 64, 2, 4, 0, 8, 8, {1000, 129, 511, 600}},
    {2, 128, 4, 2, 5, 0, 0, {130, 1000, 3, 640}},  {1, 192, 8, 8, 0, 16, 16, {900, 383, 384, 257}},
    {2, 256, 8, 2, 130, 0, 0, {640, 640, 1, 1}},   {2, 128, 16, 4, 0, 0, 0, {640, 500, 300, 1}},
    {1, 128, 4, 8, 0, 3, 3, {640, 500, 300, 1}}, /* rows are not aligned */
    {2, 128, 2, 2, 0, 0, 5, {640, 500, 300, 1}}, /* values are not */
    {2, 80, 2, 2, 0, 0, 0, {640, 500, 300, 1}},
};

/* f16 rows of all sequences, on both sides. */
struct f16_array {
    uint16_t *host, *device;
    size_t bytes;
};

/* With what is rare: groups that are constant, of signed zeros, of a few subnormals, and, if `wide`, beyond
 * f16. */
static struct f16_array f16_rows(struct rng *rng, uint64_t tokens, uint32_t row, uint32_t stride,
                                 int wide)
{
    struct f16_array a = {NULL, NULL, (size_t)tokens * stride * 2};
    uint64_t t;
    uint32_t c;

    a.host = malloc(a.bytes);
    ck_assert_ptr_nonnull(a.host);
    for (t = 0; t < tokens; t++)
        for (c = 0; c < stride; c++) {
            double x = rng_normal(rng);

            if (c % 64 == 3)
                x = 30 + 10 * x;
            else if (c == 5 || t % 100 == 50)
                x = 0.3;
            else if (c == 6 || t % 100 == 51)
                x = (double)((t + c) % 4) * 0x1p-24;
            else if (c == 7 || t % 100 == 52)
                x = (t + c) % 3 ? 0.0 : -0.0;
            else if (wide && (c == row - 1 || t == 300))
                x = (t + c) % 2 ? 65504 - 100 * fabs(x) : -60000 + 50 * x;
            a.host[t * stride + c] = number_to_f16(x);
        }
    cuda_ok(cudaMalloc((void **)&a.device, a.bytes));
    return a;
}

static void f16_free(struct f16_array *a)
{
    free(a->host);
    cuda_ok(cudaFree(a->device));
}

static void append_f16(const struct twins *t, struct f16_array *k, struct f16_array *v,
                       uint32_t stride, uint32_t v_stride, uint64_t n)
{
    kivi_item on_device[SEQS], on_host[SEQS];
    kivi_attention attention;
    kivi_error error;
    uint32_t i;

    kivi_attention_init(&attention);
    cuda_ok(cudaMemcpy(k->device, k->host, k->bytes, cudaMemcpyHostToDevice));
    cuda_ok(cudaMemcpy(v->device, v->host, v->bytes, cudaMemcpyHostToDevice));
    cuda_ok(cudaDeviceSynchronize());
    for (i = 0; i < SEQS; i++) {
        const kivi_item item = {
            .seq = t->on_host[i],
            .n_new = i == 0 ? n : (n + 1) / (2 * i),
            .k = {k->host, KIVI_F16, stride, 0},
            .v = {v->host, KIVI_F16, v_stride, 0},
        };

        on_host[i] = on_device[i] = item;
        on_device[i].seq = t->on_device[i];
        on_device[i].k.data = k->device;
        on_device[i].v.data = v->device;
    }
    session_ok(kivi_run(t->host, 0, on_host, SEQS, &attention, &error), &error);
    attention.stream = t->stream;
    session_ok(kivi_run(t->device, 0, on_device, SEQS, &attention, &error), &error);
    cuda_ok(cudaDeviceSynchronize());
}

/* Prompts one after the other on the same sequences. */
START_TEST(prompts_of_f16)
{
    const struct prompt_shape *shape = &prompts[_i / 2];
    const uint32_t row = shape->kv_heads * shape->dim, stride = row + shape->gap;
    const uint32_t v_stride = row + shape->v_gap;
    struct twins t;
    uint32_t i;

    twins_configure(&t, shape->kv_heads, shape->dim, shape->k_bits);
    t.config.v_bits = shape->v_bits;
    t.config.n_sink = shape->sinks;
    twins_create(&t);
    for (i = 0; i < 4; i++) {
        struct f16_array k = f16_rows(&t.rng, shape->tokens[i], row, stride, _i % 2);
        struct f16_array v = f16_rows(&t.rng, shape->tokens[i], row, v_stride, _i % 2);

        append_f16(&t, &k, &v, stride, v_stride, shape->tokens[i]);
        twins_check_contents(&t, "prompt");
        f16_free(&k);
        f16_free(&v);
    }
    twins_close(&t);
}
END_TEST

/* Attention behind an append sees what attention sees later, bit for bit: kernels of a stream overlap, and what it
 * reads ahead must not be codes that are still being written. Pages are used again, so that they hold others. */
START_TEST(attention_follows_at_once)
{
    const uint32_t bits[] = {2, 4, 8, 16}, heads = 4, dim = 128, stride = heads * dim + _i % 2;
    const uint64_t n = 6000, chunks[] = {n, 32, n - 32, 1500};
    const size_t out_bytes = (size_t)Q_HEADS * dim * sizeof(float);
    struct f16_array k[2], v[2];
    struct array q, out[2];
    struct twins t;
    float *rows[2];
    uint32_t i, j, different = 0;

    twins_configure(&t, heads, dim, bits[_i / 2]); /* an odd stride: rows are not aligned */
    twins_create(&t);
    for (i = 0; i < 2; i++) {
        k[i] = f16_rows(&t.rng, n, heads * dim, stride, 0);
        v[i] = f16_rows(&t.rng, n, heads * dim, stride, 0);
        cuda_ok(cudaMemcpy(k[i].device, k[i].host, k[i].bytes, cudaMemcpyHostToDevice));
        cuda_ok(cudaMemcpy(v[i].device, v[i].host, v[i].bytes, cudaMemcpyHostToDevice));
        out[i] = array_new(NULL, (size_t)Q_HEADS * dim);
        rows[i] = malloc(out_bytes);
        ck_assert_ptr_nonnull(rows[i]);
    }
    q = array_new(&t.rng, (size_t)Q_HEADS * dim);
    cuda_ok(cudaDeviceSynchronize());
    for (i = 0; i < 40; i++) {
        const uint64_t chunk = chunks[i / 2 % 4];
        kivi_attention attention;
        kivi_error error;
        uint64_t at;

        kivi_attention_init(&attention);
        attention.stream = t.stream;
        session_ok(kivi_seq_truncate(t.device, t.on_device[0], 0, &error), &error);
        for (at = 0; at + chunk <= n; at += chunk) {
            const kivi_item append = {
                .seq = t.on_device[0],
                .n_new = chunk,
                .k = {k[i % 2].device + at * stride, KIVI_F16, stride, 0},
                .v = {v[i % 2].device + at * stride, KIVI_F16, stride, 0},
            };

            session_ok(kivi_run(t.device, 0, &append, 1, &attention, &error), &error);
            if (chunk == 32)
                break;
        }
        for (j = 0; j < 2; j++) {
            session_ok(kivi_attend(t.device, 0, t.on_device[0], 1,
                                   (kivi_in){q.device, KIVI_F32, 0, 0},
                                   (kivi_out){out[j].device, KIVI_F32, 0, 0}, &attention, &error),
                       &error);
            if (j == 0)
                cuda_ok(cudaStreamSynchronize(t.stream));
        }
        cuda_ok(cudaStreamSynchronize(t.stream));
        for (j = 0; j < 2; j++)
            cuda_ok(cudaMemcpy(rows[j], out[j].device, out_bytes, cudaMemcpyDeviceToHost));
        different += memcmp(rows[0], rows[1], out_bytes) != 0;
    }
    ck_assert_msg(different == 0, "%u of %u times attention behind an append saw something else",
                  different, i);
    for (i = 0; i < 2; i++) {
        f16_free(&k[i]);
        f16_free(&v[i]);
        array_free(&out[i]);
        free(rows[i]);
    }
    array_free(&q);
    twins_close(&t);
}
END_TEST

/* Steps of a few tokens on one or two layers, queued at once on one sequence and one by one on another: the same
 * bits. */
START_TEST(steps_follow_at_once)
{
    const uint32_t bits[] = {2, 4, 8, 16}, heads = 4, dim = 128, stride = heads * dim + _i % 2;
    const uint32_t n_steps = 150, prompt = 16000, layers = 1 + _i % 2, most = 3;
    const uint64_t n = prompt + (uint64_t)n_steps * most;
    const size_t out_row = (size_t)Q_HEADS * dim, all = (size_t)n_steps * layers * most * out_row;
    struct f16_array k, v;
    struct array q, out[2];
    struct twins t;
    float *rows[2];
    uint32_t seq, layer, step;

    twins_configure(&t, heads, dim, bits[_i / 2]);
    twins_create(&t);
    k = f16_rows(&t.rng, n, heads * dim, stride, 0);
    v = f16_rows(&t.rng, n, heads * dim, stride, 0);
    cuda_ok(cudaMemcpy(k.device, k.host, k.bytes, cudaMemcpyHostToDevice));
    cuda_ok(cudaMemcpy(v.device, v.host, v.bytes, cudaMemcpyHostToDevice));
    q = array_new(&t.rng, most * out_row);
    for (seq = 0; seq < 2; seq++) {
        out[seq] = array_new(NULL, all);
        rows[seq] = calloc(all, sizeof(float));
        ck_assert_ptr_nonnull(rows[seq]);
        cuda_ok(cudaMemset(out[seq].device, 0, out[seq].bytes));
    }
    cuda_ok(cudaDeviceSynchronize());
    for (seq = 0; seq < 2; seq++) {
        uint64_t at = 0;

        for (step = 0; step <= n_steps; step++) {
            const uint64_t n_new = step ? 1 + step % most : prompt;

            for (layer = 0; layer < layers; layer++) {
                const kivi_item item = {
                    .seq = t.on_device[seq],
                    .n_new = n_new,
                    .k = {k.device + at * stride, KIVI_F16, stride, 0},
                    .v = {v.device + at * stride, KIVI_F16, stride, 0},
                    .n_q = step ? n_new : 0,
                    .q = {q.device, KIVI_F32, 0, 0},
                    .out = {out[seq].device
                                + ((step ? step - 1 : 0) * layers + layer) * most * out_row,
                            KIVI_F32, 0, 0},
                };
                kivi_attention attention;
                kivi_error error;

                kivi_attention_init(&attention);
                attention.stream = t.stream;
                session_ok(kivi_run(t.device, layer, &item, 1, &attention, &error), &error);
                if (seq == 1)
                    cuda_ok(cudaStreamSynchronize(t.stream));
            }
            at += n_new;
        }
    }
    cuda_ok(cudaStreamSynchronize(t.stream));
    for (seq = 0; seq < 2; seq++)
        cuda_ok(cudaMemcpy(rows[seq], out[seq].device, out[seq].bytes, cudaMemcpyDeviceToHost));
    for (step = 0; step < n_steps; step++)
        ck_assert_msg(memcmp(rows[0] + step * layers * most * out_row,
                             rows[1] + step * layers * most * out_row,
                             layers * most * out_row * sizeof(float))
                          == 0,
                      "step %u: not the bits of steps that follow one another", step);
    for (layer = 0; layer < layers; layer++) {
        struct contents a, b;

        contents_read(&a, &t.config, t.device, t.on_device[0], layer);
        contents_read(&b, &t.config, t.device, t.on_device[1], layer);
        contents_check_equal(&a, &b, "steps that follow at once");
        contents_free(&a);
        contents_free(&b);
    }
    for (seq = 0; seq < 2; seq++) {
        array_free(&out[seq]);
        free(rows[seq]);
    }
    f16_free(&k);
    f16_free(&v);
    array_free(&q);
    twins_close(&t);
}
END_TEST

/* ---------------------------------------------------------------- failures */

/* In a prompt, a number that is not finite counts as the nearest that is, and NaN as 0: one that is quantized, and
 * one that stays in the window. */
START_TEST(not_finite_in_a_prompt)
{
    static const uint16_t bad[] = {0x7e00, 0x7c00, 0xfc00}, instead[] = {0, 0x7bff, 0xfbff};
    const uint64_t n = 1024, at = _i % 4 < 2 ? 333 : n - 3;
    const uint32_t bits = 2u << _i / 12, which = (uint32_t)_i % 2, what = (uint32_t)_i / 4 % 3;
    struct twins t;
    struct f16_array rows[2];
    char message[64];
    uint16_t *x;
    kivi_in in;
    kivi_error error;
    uint32_t i;

    twins_open(&t, 2, 128, bits);
    for (i = 0; i < 2; i++)
        rows[i] = f16_rows(&t.rng, n, 256, 256, 0);
    x = &rows[which].host[at * 256 + 200];
    *x = bad[what];
    for (i = 0; i < 2; i++)
        cuda_ok(cudaMemcpy(rows[i].device, rows[i].host, rows[i].bytes, cudaMemcpyHostToDevice));
    cuda_ok(cudaDeviceSynchronize());
    session_ok(kivi_append(t.device, 0, t.on_device[0], n,
                           (kivi_in){rows[0].device, KIVI_F16, 0, 0},
                           (kivi_in){rows[1].device, KIVI_F16, 0, 0}, &error),
               &error);
    cuda_ok(cudaDeviceSynchronize());
    in = (kivi_in){rows[1 - which].device, KIVI_F16, 0, 0};
    ck_assert_int_eq(kivi_append(t.device, 0, t.on_device[0], 1, in, in, &error),
                     KIVI_ERROR_NOT_FINITE);
    snprintf(message, sizeof message, "items[0].%s: token %u", which ? "v" : "k", (unsigned)at);
    ck_assert_ptr_nonnull(strstr(error.message, message));
    *x = instead[what];
    session_ok(kivi_append(t.host, 0, t.on_host[0], n, (kivi_in){rows[0].host, KIVI_F16, 0, 0},
                           (kivi_in){rows[1].host, KIVI_F16, 0, 0}, &error),
               &error);
    twins_check_contents(&t, "not finite");
    for (i = 0; i < 2; i++)
        f16_free(&rows[i]);
    twins_close(&t);
}
END_TEST

/* What is not finite in device memory is found later: by the next call, which then does nothing. */
START_TEST(not_finite_is_told_later)
{
    struct twins t;
    struct array k, v;
    kivi_in in_k, in_v;
    kivi_error error;
    uint64_t n;

    twins_open(&t, 2, 128, 2);
    k = array_new(&t.rng, 3 * 2 * 128);
    v = array_new(&t.rng, 3 * 2 * 128);
    k.host[2 * 128 + 5] = INFINITY;
    cuda_ok(cudaMemcpy(k.device, k.host, k.bytes, cudaMemcpyHostToDevice));
    in_k = (kivi_in){k.device, KIVI_F32, 0, 0};
    in_v = (kivi_in){v.device, KIVI_F32, 0, 0};
    session_ok(kivi_append(t.device, 0, t.on_device[0], 3, in_k, in_v, &error), &error);
    cuda_ok(cudaDeviceSynchronize());
    ck_assert_int_eq(kivi_append(t.device, 0, t.on_device[0], 3, in_k, in_v, &error),
                     KIVI_ERROR_NOT_FINITE);
    ck_assert_ptr_nonnull(strstr(error.message, "items[0].k: token 1"));
    ck_assert_uint_eq(error.item, SIZE_MAX); /* none of this call's */
    ck_assert_int_eq(kivi_seq_length(t.device, t.on_device[0], 0, &n, NULL), KIVI_OK);
    ck_assert_uint_eq(n, 3);
    session_ok(kivi_append(t.device, 0, t.on_device[0], 3, in_v, in_v, &error), &error);
    array_free(&k);
    array_free(&v);
    twins_close(&t);
}
END_TEST

START_TEST(refused)
{
    kivi_cache *cache;
    kivi_error error;
    kivi_config config;
    struct twins t;
    float x[2 * 128] = {0};
    cudaGraph_t graph;

    twins_open(&t, 2, 128, 2);
    config = t.config;
    config.device = 99;
    ck_assert_int_eq(kivi_cache_create(&config, &cache, &error), KIVI_ERROR_DEVICE);
    ck_assert_ptr_null(cache);
    ck_assert_ptr_nonnull(strstr(error.message, "device 99"));
    config.device = -1;
    ck_assert_int_eq(kivi_cache_create(&config, &cache, &error), KIVI_ERROR_DEVICE);
    config = t.config;
    config.backend = "scalar";
    ck_assert_int_eq(kivi_cache_create(&config, &cache, &error), KIVI_ERROR_UNSUPPORTED);

    /* Arrays in host memory cannot be captured, and a refused call leaves the capture whole. */
    config = t.config;
    config.memory = KIVI_MEMORY_HOST;
    session_ok(kivi_cache_create(&config, &cache, &error), &error);
    cuda_ok(cudaStreamBeginCapture(t.stream, cudaStreamCaptureModeRelaxed));
    {
        kivi_attention attention;
        kivi_item item = {.n_new = 1,
                          .k = {x, KIVI_F32, 0, 0},
                          .v = {x, KIVI_F32, 0, 0}};

        kivi_attention_init(&attention);
        attention.stream = t.stream;
        session_ok(kivi_seq_create(cache, &item.seq, &error), &error);
        ck_assert_int_eq(kivi_run(cache, 0, &item, 1, &attention, &error), KIVI_ERROR_UNSUPPORTED);
    }
    cuda_ok(cudaStreamEndCapture(t.stream, &graph));
    cuda_ok(cudaGraphDestroy(graph));
    kivi_cache_destroy(cache);
    twins_close(&t);
}
END_TEST

/* A prompt that the device, or the budget, has no room for changes nothing. */
START_TEST(out_of_memory)
{
    const uint64_t n = 1 << 17;
    const uint32_t heads = Q_HEADS, dim = 128;
    struct twins t;
    struct call c;
    struct array rows;
    kivi_in in;
    kivi_error error;
    kivi_status status = KIVI_OK;
    void *hogs[4096];
    size_t n_hogs = 0, bytes = (size_t)1 << 34, free_bytes, total;
    uint64_t before, after;

    twins_open(&t, heads, dim, 4);
    c = call_begin(&t, 0, SEQS, 140, t.stream);
    call_end(&c, "before");
    rows = array_new(&t.rng, (size_t)n * heads * dim);
    in = (kivi_in){rows.device, KIVI_F32, 0, 0};
    while (bytes >= (size_t)1 << 20 && n_hogs < 4096) {
        if (cudaMalloc(&hogs[n_hogs], bytes) == cudaSuccess) {
            n_hogs++;
        } else {
            cudaGetLastError();
            bytes /= 2;
        }
    }
    ck_assert_int_eq(kivi_seq_length(t.device, t.on_device[0], 0, &before, NULL), KIVI_OK);
    status = kivi_append(t.device, 0, t.on_device[0], n, in, in, &error);
    ck_assert_int_eq(status, KIVI_ERROR_MEMORY);
    ck_assert_int_eq(kivi_seq_length(t.device, t.on_device[0], 0, &after, NULL), KIVI_OK);
    ck_assert_uint_eq(before, after);
    ck_assert_int_eq(cudaGetLastError(),
                     cudaSuccess); /* nothing is left for the host application */
    while (n_hogs > 0)
        cuda_ok(cudaFree(hogs[--n_hogs]));
    twins_check_contents(&t, "after the failure");
    session_ok(kivi_append(t.device, 0, t.on_device[0], n, in, in, &error), &error);
    cuda_ok(cudaMemGetInfo(&free_bytes, &total));
    ck_assert_uint_gt(free_bytes, 0);
    array_free(&rows);
    twins_close(&t);
}
END_TEST

START_TEST(budget_holds)
{
    struct twins t;
    kivi_cache *cache;
    kivi_config config;
    kivi_error error;
    kivi_seq seq;
    kivi_stats stats = {.size = sizeof stats};
    struct array rows;
    kivi_in in;
    int i, full = 0;

    twins_open(&t, 2, 128, 2);
    config = t.config;
    config.memory_budget = 4 << 20;
    session_ok(kivi_cache_create(&config, &cache, &error), &error);
    session_ok(kivi_seq_create(cache, &seq, &error), &error);
    rows = array_new(&t.rng, 1024 * 2 * 128);
    in = (kivi_in){rows.device, KIVI_F32, 0, 0};
    for (i = 0; i < 100 && !full; i++) {
        full = kivi_append(cache, 0, seq, 1024, in, in, &error) == KIVI_ERROR_CAPACITY;
        ck_assert_int_eq(kivi_cache_stats(cache, &stats, NULL), KIVI_OK);
        ck_assert_uint_le(stats.total_bytes + stats.free_bytes - stats.bookkeeping_bytes,
                          config.memory_budget);
    }
    ck_assert(full);
    cuda_ok(cudaDeviceSynchronize());
    kivi_cache_destroy(cache);
    array_free(&rows);
    twins_close(&t);
}
END_TEST

/* Saved on either side, loaded on the other: the same bytes, equal codes. */
START_TEST(saved_and_loaded)
{
    struct twins t;
    struct call c;
    struct buffer files[2];
    kivi_seq back;
    kivi_error error;

    twins_open(&t, 2, 128, 2);
    c = call_begin(&t, 0, 1, 777, t.stream);
    call_end(&c, "prompt");
    c = call_begin(&t, 1, 1, 777, t.stream);
    buffer_init(&files[0]);
    buffer_init(&files[1]);
    session_ok(kivi_seq_save(t.device, t.on_device[0], buffer_write, &files[0], &error), &error);
    session_ok(kivi_seq_save(t.host, t.on_host[0], buffer_write, &files[1], &error), &error);
    call_end(&c, "saved without waiting");
    ck_assert_uint_eq(files[0].size, files[1].size);
    ck_assert_mem_eq(files[0].data, files[1].data, files[0].size);
    session_ok(kivi_seq_load(t.device, buffer_read, &files[1], &back, &error), &error);
    session_ok(kivi_seq_destroy(t.device, t.on_device[1], &error), &error);
    session_ok(kivi_seq_destroy(t.host, t.on_host[1], &error), &error);
    t.on_device[1] = back;
    session_ok(kivi_seq_load(t.host, buffer_read, &files[0], &t.on_host[1], &error), &error);
    twins_check_contents(&t, "loaded");
    buffer_free(&files[0]);
    buffer_free(&files[1]);
    twins_close(&t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("device");
    TCase *steps = tcase_create("steps"), *failures = tcase_create("failures");
    TCase *prompts_case = tcase_create("prompts"), *overlap = tcase_create("overlap");

    tcase_set_timeout(steps, 1200);
    tcase_set_timeout(prompts_case, 1200);
    tcase_set_timeout(overlap, 1200);
    tcase_set_timeout(failures, 1200);
    tcase_add_loop_test(steps, steps_do_not_wait, 0, (int)(sizeof shapes / sizeof *shapes));
    tcase_add_test(steps, streams_keep_order);
    tcase_add_test(steps, step_in_a_graph);
    tcase_add_test(steps, saved_and_loaded);
    tcase_add_test(steps, million_tokens);
    tcase_add_loop_test(prompts_case, prompts_of_f16, 0,
                        2 * (int)(sizeof prompts / sizeof *prompts));
    tcase_add_loop_test(overlap, attention_follows_at_once, 0, 8);
    tcase_add_loop_test(overlap, steps_follow_at_once, 0, 8);
    tcase_add_loop_test(prompts_case, not_finite_in_a_prompt, 0, 36);
    tcase_add_test(failures, not_finite_is_told_later);
    tcase_add_test(failures, refused);
    tcase_add_test(failures, budget_holds);
    tcase_add_test(failures, out_of_memory);
    suite_add_tcase(suite, steps);
    suite_add_tcase(suite, prompts_case);
    suite_add_tcase(suite, overlap);
    suite_add_tcase(suite, failures);
    return test_main(suite);
}
