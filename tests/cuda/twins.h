/*
 * What tests of a device share: arrays on both sides, and the same sequences on a device and on the scalar
 * backend. All of it is on the CUDA device that is current when it is made.
 */
#ifndef KIVI_TESTS_CUDA_TWINS_H
#define KIVI_TESTS_CUDA_TWINS_H

#include <check.h>
#include <cuda_runtime_api.h>
#include <kivi/kivi.h>
#include <stddef.h>
#include <stdint.h>

#include "support/random.h"

#define Q_HEADS 8u
#define SEQS 3u

#define cuda_ok(call)                                                                              \
    do {                                                                                           \
        const cudaError_t code_ = (call);                                                          \
        ck_assert_msg(code_ == cudaSuccess, "%s: %s", #call, cudaGetErrorString(code_));           \
    } while (0)

/* The same sequences on the device and on the scalar backend. */
struct twins {
    kivi_config config;
    kivi_cache *device, *host;
    kivi_seq on_device[SEQS], on_host[SEQS];
    struct rng rng;
    cudaStream_t stream;
};

/* Two layers, Q_HEADS query heads and no limits; a test may change `config` before twins_create. */
void twins_configure(struct twins *t, uint32_t kv_heads, uint32_t dim, uint32_t bits);
void twins_create(struct twins *t);

/* Both of them. */
void twins_open(struct twins *t, uint32_t kv_heads, uint32_t dim, uint32_t bits);
void twins_close(struct twins *t);

/* Fails the test unless both hold the same, bit for bit. */
void twins_check_contents(const struct twins *t, const char *what);

/* An array on both sides. */
struct array {
    float *host, *device;
    size_t bytes;
};

/* n numbers, the same on both sides: normal ones, or NaN without a generator. */
struct array array_new(struct rng *rng, size_t n);
void array_free(struct array *a);

/* One call in flight: its arrays, and what the scalar backend made of the same. */
struct call {
    struct array k, v, q, out, lse;
    size_t rows;
    uint32_t dim;
};

/* n new tokens and as many queries for the first `n_seqs` sequences. Nothing waits for the device. */
struct call call_begin(struct twins *t, uint32_t layer, uint32_t n_seqs, uint64_t n,
                       cudaStream_t stream);

/* The same with weights of another kind, on the stream named there; precisely, whatever it says. */
struct call call_begin_as(struct twins *t, uint32_t layer, uint32_t n_seqs, uint64_t n,
                          const kivi_attention *attention);

/* Waits, and fails the test unless rows and log-sum-exp are near those of the scalar backend. */
void call_end(struct call *c, const char *what);

/* Rows of n numbers against one another, as far apart as two backends at KIVI_PRECISE may be. */
void check_rows_near(const float *got, const float *wanted, size_t rows, size_t n,
                     const char *what);

#endif
