/* A small cache in use, for tests of what must not change it: two layers of two sequences, with tokens
 * packed and in the window, on an allocator that counts. */
#ifndef KIVI_TESTS_FIXTURE_H
#define KIVI_TESTS_FIXTURE_H

#include <kivi/kivi.h>

#include "contents.h"
#include "memory.h"

#define FIXTURE_Q_HEADS 4
#define FIXTURE_KV_HEADS 2
#define FIXTURE_K_DIM 24
#define FIXTURE_V_DIM 40
#define FIXTURE_TOKENS 800 /* that the arrays have */

struct fixture {
    struct memory memory;
    kivi_config config;
    kivi_cache *cache;
    kivi_seq seq, other; /* 90 and 70 tokens; 33 and 40 */
    kivi_seq stale;      /* destroyed */
    float k[FIXTURE_TOKENS * FIXTURE_KV_HEADS * FIXTURE_K_DIM];
    float v[FIXTURE_TOKENS * FIXTURE_KV_HEADS * FIXTURE_V_DIM];
    float q[FIXTURE_TOKENS * FIXTURE_Q_HEADS * FIXTURE_K_DIM];
    float out[FIXTURE_TOKENS * FIXTURE_Q_HEADS * FIXTURE_V_DIM];
    float lse[FIXTURE_TOKENS * FIXTURE_Q_HEADS];
};

/* The configuration and the arrays alone. */
void fixture_init(struct fixture *f, const char *backend);

/* The same, and the cache with its sequences. */
void fixture_open(struct fixture *f, const char *backend);

/* A cache with that budget, and of sequences only `seq`: n tokens in layer 0. */
void fixture_open_with_budget(struct fixture *f, const char *backend, uint64_t budget, uint64_t n);

/* Destroys the cache; fails the test if that leaves anything allocated. */
void fixture_close(struct fixture *f);

/* Appends n tokens and attends with 2 queries. */
kivi_item fixture_item(struct fixture *f, kivi_seq seq, uint64_t n);

/* Appends n tokens, which succeeds. */
void fixture_append(struct fixture *f, uint32_t layer, kivi_seq seq, uint64_t n);

kivi_stats fixture_stats(const struct fixture *f);

/* What a cache shows to its user. */
struct snapshot {
    kivi_stats stats;
    size_t n_seqs;
    kivi_seq seqs[4];
    struct contents contents[4][2];
};

/* Takes a snapshot of the sequences given; 0 is left out. Allocations do not fail during it. */
struct snapshot snapshot_take(struct fixture *f, const kivi_seq *seqs, size_t n);

/* Fails the test, naming `what`, unless the cache is as it was; frees the snapshot. The pool may have
 * more free blocks than it had. */
void snapshot_check(struct snapshot *s, struct fixture *f, const char *what);

void snapshot_free(struct snapshot *s);

#endif
