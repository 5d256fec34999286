/* What one layer of one sequence holds, code by code: read from the library, or computed by the
 * oracle, so that the two can be compared with ==. */
#ifndef KIVI_TESTS_CONTENTS_H
#define KIVI_TESTS_CONTENTS_H

#include <kivi/kivi.h>

struct contents {
    uint32_t heads, k_dim, v_dim, k_bits, v_bits, group_size, n_sink, v_groups;
    uint64_t n;        /* tokens */
    uint64_t k_packed; /* tokens whose keys have left the window; sinks among them stay f16 */
    uint64_t v_packed; /* likewise values */
    uint64_t room;     /* tokens that the arrays have room for */

    uint8_t *k_code;           /* [token][head][k_dim] */
    uint16_t *k_scale, *k_min; /* [token / group_size][head][k_dim] */
    uint8_t *v_code;           /* [token][head][v_dim] */
    uint16_t *v_scale, *v_min; /* [token][head][v_groups] */
    uint16_t *k_row, *v_row;   /* f16 [token][head][dim]: tokens held in full */
};

/* Empty contents with the shape of a layer of the configuration. */
void contents_init(struct contents *c, const kivi_config *config, uint32_t layer);

/* Makes room for n tokens; new room is zero. */
void contents_reserve(struct contents *c, uint64_t n);

void contents_free(struct contents *c);

/* Whether the key (value) of the token is held in f16. */
int contents_k_is_full(const struct contents *c, uint64_t token);
int contents_v_is_full(const struct contents *c, uint64_t token);

/* Reads a layer of a sequence from the library's own pages and window. */
void contents_read(struct contents *c, const kivi_config *config, const kivi_cache *cache,
                   kivi_seq seq, uint32_t layer);

/* Fails the test, naming `what` and the first place, unless the two hold the same. */
void contents_check_equal(const struct contents *a, const struct contents *b, const char *what);

#endif
