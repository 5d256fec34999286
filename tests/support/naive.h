/*
 * One layer of one sequence as an oracle with a past: what truncating, dropping and moving to another
 * cache make of it. Written from docs/sequences.md, with every token in double precision.
 */
#ifndef KIVI_TESTS_NAIVE_H
#define KIVI_TESTS_NAIVE_H

#include <kivi/kivi.h>

#include "oracle.h"

struct naive {
    struct oracle oracle;
    uint64_t k_window, v_window; /* newest tokens whose f16 rows are kept, packed or not */
    uint64_t k_low, v_low;       /* the oldest tokens whose f16 rows are still there */
};

void naive_init(struct naive *n, const kivi_config *config, uint32_t layer);
void naive_free(struct naive *n);

/* *to, uninitialized, becomes equal to *from. */
void naive_copy(struct naive *to, const struct naive *from);

/* The end of a call that appended: oracle_append comes first, then the attention. */
void naive_flush(struct naive *n);

/* Keeps the first n_tokens. */
void naive_truncate(struct naive *n, uint64_t n_tokens);

/* Whether kivi_seq_drop may drop [begin, end), and the dropping. `rope` may be NULL. */
int naive_may_drop(const struct naive *n, uint64_t begin, uint64_t end);
void naive_drop(struct naive *n, uint64_t begin, uint64_t end, const kivi_rope *rope);

/* Turns a row of keys forward by `distance` positions, in f32 as the library does. */
void naive_turn(float *row, const kivi_rope *rope, double distance);

/* The layer was saved, and loaded into a cache of this configuration. */
void naive_move(struct naive *n, const kivi_config *config);

/* Fails the test unless the library holds the same in this layer. */
void naive_check(const struct naive *n, const kivi_config *config, const kivi_cache *cache,
                 kivi_seq seq, uint32_t layer, const char *what);

#endif
