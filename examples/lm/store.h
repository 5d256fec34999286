/* A cache type under test: the library's cache, or the variant with keys per token. */
#ifndef LM_STORE_H
#define LM_STORE_H

#include <kivi/kivi.h>

#include "forward.h"

/* f16, kivi8, kivi4, kivi2, kXvY; with a t after the keys' bits: keys grouped per token. */
struct lm_cache_type {
    char name[16];
    uint32_t k_bits, v_bits;
    int keys_per_token;
};

int lm_cache_type_parse(const char *text, size_t size, struct lm_cache_type *type,
                        struct lm_error *error);

/* What all types of a run share. */
struct lm_cache_options {
    uint32_t group_size, residual_length, n_sink;
    uint32_t n_threads; /* 0: OpenMP's choice */
    kivi_precision precision;
    const char *backend; /* NULL: the library's choice */
};

/* Bytes at rest, summed over the sequences. */
struct lm_usage {
    uint64_t tokens;
    uint64_t code_bytes, scale_bytes, window_bytes; /* as in kivi_stats */
    uint64_t f16_bytes;
};

/* A cache of some sequences that advance together. */
struct lm_store;

int lm_store_create(const struct lm_model *model, const struct lm_cache_type *type,
                    const struct lm_cache_options *options, size_t n_sequences, uint32_t max_tokens,
                    struct lm_store **store, struct lm_error *error);

/* NULL is ignored. */
void lm_store_destroy(struct lm_store *store);

/* Appends n tokens to each sequence and attends: row s * n + t of the batch is token t of sequence
 * s. With keys per token, n must be 1. */
int lm_store_attend(struct lm_store *store, uint32_t layer, const struct lm_heads *heads, size_t n,
                    struct lm_error *error);

int lm_store_usage(const struct lm_store *store, struct lm_usage *usage, struct lm_error *error);

/* Writes the cache to a file, in the library's format. Not with keys per token. */
int lm_store_save(const struct lm_store *store, FILE *file, struct lm_error *error);

/* Wall-clock time spent so far in lm_store_attend. */
double lm_store_seconds(const struct lm_store *store);

/* The library's version and backend, in words: the first sentence of kivi_describe. "" with keys
 * per token. */
void lm_store_describe(const struct lm_store *store, char *text, size_t capacity);

#endif
