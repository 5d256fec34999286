/* What is measured: a cache of one type, with as many layers as the measurement rotates. */
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
    kivi_cache *cache;
    kivi_seq seq;
    uint32_t n_layers, layer; /* the layer that comes next */
    uint64_t length;          /* tokens of the layers from `layer` on */
    int host_threads;         /* drive kivi_work_* instead of kivi_run */
    kivi_error error;         /* of the last call */
};

/* "2", "k4v2" or "f16". */
void type_name(struct cache_type type, char *name, size_t capacity);
int type_is_f16(struct cache_type type);

/* Bytes of one layer of `n_tokens` tokens by the documented layout: packed blocks, and f16 rows of
 * what is in the window. */
uint64_t layer_bytes(const struct shape *shape, struct cache_type type, uint64_t n_tokens);

/* Layers of so many tokens that `footprint` bytes need: at least one. */
uint32_t layers_for(const struct shape *shape, struct cache_type type, uint64_t n_tokens,
                    uint64_t footprint);

/* Creates the cache from shape, type, backend and n_layers, with one empty sequence. Like all that
 * follow, returns 0 after a failure, with `error` set. */
int subject_open(struct subject *subject);
void subject_close(struct subject *subject);

/* Appends `n_tokens` to every layer of an empty sequence. A backend that takes more than so many
 * seconds is left with the layers that it has done: n_layers becomes lower. */
int subject_fill(struct subject *subject, uint64_t n_tokens, double seconds);

/* Starts over with an empty sequence. */
int subject_restart(struct subject *subject);

/* One kivi_run on the layer that comes next. */
int subject_run(struct subject *subject, kivi_item *item, const kivi_attention *attention);

/* On to the layer after it, to which `n_new` tokens were appended like to all others. */
void subject_advance(struct subject *subject, uint64_t n_new);

/* The first `n` tokens of the chunk as input. */
void subject_input(const struct subject *subject, kivi_item *item, uint64_t n);

#endif
