/*
 * Random operations on a cache, each held against a naive model of what every token should be. An
 * actor owns some sequences; several actors may share a cache, each on its own thread.
 */
#ifndef KIVI_TESTS_STRESS_H
#define KIVI_TESTS_STRESS_H

#include <kivi/kivi.h>

#include "accuracy.h"
#include "memory.h"
#include "naive.h"
#include "random.h"

#define STRESS_LAYERS 2
#define STRESS_SEQS 5

struct stress_seq {
    kivi_seq id; /* 0: none */
    struct naive layers[STRESS_LAYERS];
};

/* What actors share. */
struct stress_cache {
    kivi_cache *cache;
    kivi_config config; /* of `cache` */
    uint8_t bits[2][STRESS_LAYERS];
    struct memory memory;
    int injects; /* 1: allocations fail now and then */
    int shared;  /* 1: several actors: the cache stays, and what it reports is not exact */
    struct stress_seq prompt; /* which all actors may fork and none may change */
};

struct stress_counts {
    uint64_t steps, calls, tokens, queries, forks, truncations, drops, reorders, saves, loads,
        moves, refused, injected, damaged, checks;
};

struct stress_actor {
    struct stress_cache *shared;
    struct rng rng;
    struct stress_seq seqs[STRESS_SEQS];
    struct accuracy out[2]; /* by precision */
    struct stress_counts counts;
    uint64_t seed; /* for messages */
    char what[96];
};

/* A cache of any kind that is small, with the model of a prompt if actors are to share it. */
void stress_open(struct stress_cache *s, uint64_t seed, int injects, int shared);
void stress_close(struct stress_cache *s);

void stress_actor_open(struct stress_actor *a, struct stress_cache *s, uint64_t seed);

/* So many random operations, then a check of everything that the actor has. */
void stress_run(struct stress_actor *a, uint64_t steps);

/* Adds the actor's counts to *total, and removes its sequences. */
void stress_actor_close(struct stress_actor *a, struct stress_counts *total);

void stress_print(const char *what, const struct stress_counts *counts);

#endif
