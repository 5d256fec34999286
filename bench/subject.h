/* What is measured: a cache of one type, with as many sequences as are rotated. */
#ifndef BENCH_SUBJECT_H
#define BENCH_SUBJECT_H

#include <kivi/kivi.h>

#include "data.h"
#include "options.h"

/* The shape of one model's attention. */
struct shape {
    uint32_t q_heads, kv_heads, k_dim, v_dim, group;
};

struct subject {
    struct shape shape;
    struct cache_type type;
    const char *backend;
    const struct chunk *chunk; /* what is appended, over and over */
    int host_threads;          /* drive kivi_work_* instead of kivi_run */
    kivi_cache *cache;
    kivi_seq *seqs;
    uint64_t *lengths;
    uint32_t n_seqs, next; /* the sequence whose turn it is */
    kivi_error error;      /* of the last call */
};

/* "2", "k4v2" or "f16". */
void type_name(struct cache_type type, char *name, size_t capacity);
int type_is_f16(struct cache_type type);

/* Bytes of one sequence of `n_tokens` tokens by the documented layout: packed blocks, and f16 rows of
 * what is in the window. */
uint64_t sequence_bytes(const struct shape *shape, struct cache_type type, uint64_t n_tokens);

/* How many such sequences `footprint` bytes need: at least one. */
uint32_t sequences_for(const struct shape *shape, struct cache_type type, uint64_t n_tokens,
                       uint64_t footprint);

/* Creates the cache from shape, type, backend and n_seqs, with empty sequences of one layer. Like
 * all that follow, returns 0 after a failure, with `error` set. */
int subject_open(struct subject *subject);
void subject_close(struct subject *subject);

/* Appends `n_tokens` to every sequence; with `stagger` up to a residual length more, differently
 * many, so that key groups are not completed in all of them at once. A backend that takes more than
 * so many seconds is left with the sequences that it has done: n_seqs becomes lower. */
int subject_fill(struct subject *subject, uint64_t n_tokens, int stagger, double seconds);

/* Makes the next sequence `n_tokens` long. */
int subject_truncate(struct subject *subject, uint64_t n_tokens);

/* One kivi_run on the next sequence, and on to the one after it. */
int subject_run(struct subject *subject, kivi_item *item, const kivi_attention *attention);

/* The first `n` tokens of the chunk as input. */
void subject_input(const struct subject *subject, kivi_item *item, uint64_t n);

#endif
