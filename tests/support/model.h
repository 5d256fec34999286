/* A cache on every backend, and the oracle, driven side by side with random data. */
#ifndef KIVI_TESTS_MODEL_H
#define KIVI_TESTS_MODEL_H

#include <kivi/kivi.h>

#include "accuracy.h"
#include "oracle.h"
#include "random.h"

#define MODEL_BACKENDS 16
#define MODEL_SEQS 3
#define MODEL_LAYERS 3
#define MODEL_ITEMS 4

enum role { ROLE_K, ROLE_V, ROLE_Q };

/* The numbers that go in: one element of one role. */
struct fill {
    const char *name;
    enum accuracy_rule rule;
    double (*at)(struct rng *rng, enum role role, uint64_t token, uint32_t head, uint32_t channel);
};

/* Normal values; keys with some channels of ten times the size and a large mean, as models have. */
extern const struct fill fill_ordinary;

/* Tokens that are not independent. */
extern const struct fill fill_kinds, fill_repeating;

/* Data that is hard on integer arithmetic, and how much there is. */
extern const struct fill fill_adversarial[];
extern const size_t n_fill_adversarial;

/* The cache of one backend. */
struct subject {
    char name[128]; /* of the model and the backend, for messages */
    kivi_cache *cache;
    kivi_seq seqs[MODEL_SEQS];
    struct rng rng;                 /* its own: data are the same however many backends there are */
    struct accuracy out[2], lse[2]; /* by precision */
};

struct model {
    struct rng rng;
    const struct fill *fill;
    kivi_config config;
    uint8_t layer_k_bits[MODEL_LAYERS], layer_v_bits[MODEL_LAYERS];
    size_t n_seqs, n_subjects;
    struct oracle oracles[MODEL_SEQS][MODEL_LAYERS];
    struct subject subjects[MODEL_BACKENDS];
};

/* One item of a call. The rest of it is drawn at random. */
struct model_item {
    size_t seq;
    uint64_t n_new, n_q, q_end; /* as in kivi_item */
};

/* One layer, keys and values alike, and a residual of one group. */
kivi_config model_plain_config(uint32_t n_q_heads, uint32_t n_kv_heads, uint32_t dim,
                               uint32_t bits);

/* Creates caches of n_seqs sequences on all available backends. The configuration is copied, arrays
 * included. */
void model_open(struct model *m, const char *name, const kivi_config *config, size_t n_seqs,
                const struct fill *fill, uint64_t seed);

/*
 * Does the call on every backend and on the oracle, on arrays of random types and strides, through
 * kivi_run (n_parts 0) or through kivi_work with its parts in random order.
 */
void model_call(struct model *m, uint32_t layer, const struct model_item *items, size_t n_items,
                const kivi_attention *attention, uint32_t n_parts);

/* Checks what the sequences hold, and the errors so far. Raises worst[backend][precision] to the
 * largest share of its bound that a row took. */
void model_check(struct model *m, double worst[MODEL_BACKENDS][2]);

void model_close(struct model *m);

/* ------------------------------------------------------------------ at random */

/* A small configuration of any kind; the layers' bits point into `bits`. */
void random_config(struct rng *rng, kivi_config *config, uint8_t bits[2][MODEL_LAYERS]);

/* Any combination of parameters; `sinks` is the room for sink logits. */
void random_attention(struct rng *rng, const kivi_config *config, float *sinks,
                      kivi_attention *attention);

#endif
