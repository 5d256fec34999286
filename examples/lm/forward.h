/* The model's arithmetic on a batch of tokens; attention is somebody else's. */
#ifndef LM_FORWARD_H
#define LM_FORWARD_H

#include "model.h"

/* One layer's queries, keys and values, rotated: row r of the batch is at q + r * stride (heads are
 * dense), and its attention goes to out + r * n_heads * v_dim. */
struct lm_heads {
    const float *q, *k, *v;
    size_t stride;
    float *out;
};

/* Appends k and v of every row to its sequence and attends with q. Returns 0, or -1 with *error. */
typedef int (*lm_attend_fn)(void *context, uint32_t layer, const struct lm_heads *heads,
                            struct lm_error *error);

/* Buffers for batches of up to max_rows tokens at positions below max_positions. */
struct lm_forward;

int lm_forward_create(const struct lm_model *model, size_t max_rows, uint32_t max_positions,
                      struct lm_forward **forward, struct lm_error *error);

/* NULL is ignored. */
void lm_forward_destroy(struct lm_forward *forward);

/* logits[rows][LM_VOCABULARY] of the byte after tokens[row], which stands at positions[row]. */
int lm_forward_run(struct lm_forward *forward, const uint8_t *tokens, const uint32_t *positions,
                   size_t rows, lm_attend_fn attend, void *context, float *logits,
                   struct lm_error *error);

#endif
