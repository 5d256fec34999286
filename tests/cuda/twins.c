#include "twins.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/accuracy.h"
#include "support/contents.h"
#include "support/session.h"
#include "support/suite.h"

#define ROUNDING (3 * PRECISE_RELATIVE) /* two roundings of "precise", and that of f32 */

void twins_configure(struct twins *t, uint32_t kv_heads, uint32_t dim, uint32_t bits)
{
    memset(t, 0, sizeof *t);
    kivi_config_init(&t->config);
    t->config.n_layers = 2;
    t->config.n_q_heads = Q_HEADS;
    t->config.n_kv_heads = kv_heads;
    t->config.k_dim = t->config.v_dim = dim;
    t->config.k_bits = t->config.v_bits = bits;
    t->config.n_threads = 1;
    t->config.backend = "cuda";
    t->config.memory = KIVI_MEMORY_DEVICE;
    t->rng.state = test_seed(0xd0 + dim + bits);
}

void twins_create(struct twins *t)
{
    kivi_config host = t->config;
    kivi_error error;
    uint32_t i;

    host.backend = "scalar";
    host.memory = KIVI_MEMORY_HOST;
    session_ok(kivi_cache_create(&t->config, &t->device, &error), &error);
    session_ok(kivi_cache_create(&host, &t->host, &error), &error);
    for (i = 0; i < SEQS; i++) {
        session_ok(kivi_seq_create(t->device, &t->on_device[i], &error), &error);
        session_ok(kivi_seq_create(t->host, &t->on_host[i], &error), &error);
    }
    cuda_ok(cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking));
}

void twins_open(struct twins *t, uint32_t kv_heads, uint32_t dim, uint32_t bits)
{
    twins_configure(t, kv_heads, dim, bits);
    twins_create(t);
}

void twins_close(struct twins *t)
{
    kivi_cache_destroy(t->device);
    kivi_cache_destroy(t->host);
    cuda_ok(cudaStreamDestroy(t->stream));
}

void twins_check_contents(const struct twins *t, const char *what)
{
    uint32_t i, layer;

    for (i = 0; i < SEQS; i++) {
        for (layer = 0; layer < t->config.n_layers; layer++) {
            struct contents a, b;

            contents_read(&a, &t->config, t->device, t->on_device[i], layer);
            contents_read(&b, &t->config, t->host, t->on_host[i], layer);
            contents_check_equal(&a, &b, what);
            contents_free(&a);
            contents_free(&b);
        }
    }
}

struct array array_new(struct rng *rng, size_t n)
{
    struct array a = {malloc(n * sizeof *a.host), NULL, n * sizeof *a.host};
    size_t i;

    ck_assert_ptr_nonnull(a.host);
    for (i = 0; i < n; i++)
        a.host[i] = rng ? (float)rng_normal(rng) : NAN;
    cuda_ok(cudaMalloc((void **)&a.device, a.bytes));
    cuda_ok(cudaMemcpy(a.device, a.host, a.bytes, cudaMemcpyHostToDevice));
    cuda_ok(cudaStreamSynchronize(NULL)); /* streams that do not wait for this one are to see it */
    return a;
}

void array_free(struct array *a)
{
    free(a->host);
    cuda_ok(cudaFree(a->device));
}

/* The distance relative to the row, which may be short where numbers of size 1 cancel that f32 cannot add up
 * better. */
void check_rows_near(const float *got, const float *wanted, size_t rows, size_t n, const char *what)
{
    size_t r, i;

    for (r = 0; r < rows; r++) {
        double error = 0, length = 0;

        for (i = 0; i < n; i++) {
            const double x = wanted[r * n + i], e = got[r * n + i] - x;

            error += e * e;
            length += x * x;
        }
        ck_assert_msg(sqrt(error) <= ROUNDING * sqrt(length) + 4 * 0x1p-24 * sqrt((double)n),
                      "%s: row %zu is off by %g of its length", what, r, sqrt(error / length));
    }
}

struct call call_begin(struct twins *t, uint32_t layer, uint32_t n_seqs, uint64_t n,
                       cudaStream_t stream)
{
    kivi_attention attention;

    kivi_attention_init(&attention);
    attention.stream = stream;
    return call_begin_as(t, layer, n_seqs, n, &attention);
}

struct call call_begin_as(struct twins *t, uint32_t layer, uint32_t n_seqs, uint64_t n,
                          const kivi_attention *how)
{
    const kivi_config *g = &t->config;
    const size_t q_row = (size_t)n * g->n_q_heads * g->k_dim;
    const size_t kv_row = (size_t)n * g->n_kv_heads * g->k_dim, lse_row = (size_t)n * g->n_q_heads;
    struct call c = {.rows = n_seqs * lse_row, .dim = g->v_dim};
    kivi_item on_device[SEQS], on_host[SEQS];
    kivi_attention attention = *how;
    kivi_error error;
    uint32_t i;

    c.k = array_new(&t->rng, n_seqs * kv_row);
    c.v = array_new(&t->rng, n_seqs * kv_row);
    c.q = array_new(&t->rng, n_seqs * q_row);
    c.out = array_new(NULL, n_seqs * q_row);
    c.lse = array_new(NULL, n_seqs * lse_row);
    for (i = 0; i < n_seqs; i++) {
        const kivi_item item = {
            .n_new = n,
            .k = {c.k.host + i * kv_row, KIVI_F32, 0, 0},
            .v = {c.v.host + i * kv_row, KIVI_F32, 0, 0},
            .n_q = n,
            .q = {c.q.host + i * q_row, KIVI_F32, 0, 0},
            .out = {c.out.host + i * q_row, KIVI_F32, 0, 0},
            .lse = c.lse.host + i * lse_row,
        };

        on_host[i] = on_device[i] = item;
        on_host[i].seq = t->on_host[i];
        on_device[i].seq = t->on_device[i];
        on_device[i].k.data = c.k.device + i * kv_row;
        on_device[i].v.data = c.v.device + i * kv_row;
        on_device[i].q.data = c.q.device + i * q_row;
        on_device[i].out.data = c.out.device + i * q_row;
        on_device[i].lse = c.lse.device + i * lse_row;
    }
    attention.precision = KIVI_PRECISE;
    session_ok(kivi_run(t->host, layer, on_host, n_seqs, &attention, &error), &error);
    session_ok(kivi_run(t->device, layer, on_device, n_seqs, &attention, &error), &error);
    return c;
}

void call_end(struct call *c, const char *what)
{
    float *got = malloc(c->out.bytes), *lse = malloc(c->lse.bytes);

    ck_assert(got && lse);
    cuda_ok(cudaDeviceSynchronize());
    cuda_ok(cudaMemcpy(got, c->out.device, c->out.bytes, cudaMemcpyDeviceToHost));
    cuda_ok(cudaMemcpy(lse, c->lse.device, c->lse.bytes, cudaMemcpyDeviceToHost));
    check_rows_near(got, c->out.host, c->rows, c->dim, what);
    check_rows_near(lse, c->lse.host, 1, c->rows, "log-sum-exp");
    free(got);
    free(lse);
    array_free(&c->k);
    array_free(&c->v);
    array_free(&c->q);
    array_free(&c->out);
    array_free(&c->lse);
}
