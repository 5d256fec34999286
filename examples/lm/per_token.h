/*
 * What KIVI argues against (paper, section 3): keys quantized per token, like the values. The
 * library does not attend over that, so this variant packs and unpacks through the stateless
 * packing API, keeps the rows as f32 and attends in plain C. Windows, sinks and rounding to f16
 * are those of the library's cache, so that the grouping of the keys is the only difference.
 */
#ifndef LM_PER_TOKEN_H
#define LM_PER_TOKEN_H

#include "store.h"

struct lm_per_token;

int lm_per_token_create(const struct lm_model *model, const struct lm_cache_type *type,
                        const struct lm_cache_options *options, size_t n_sequences,
                        uint32_t max_tokens, struct lm_per_token **cache, struct lm_error *error);

/* NULL is ignored. */
void lm_per_token_destroy(struct lm_per_token *cache);

/* Appends one token to each sequence and attends: row s of the batch belongs to sequence s. */
int lm_per_token_attend(struct lm_per_token *cache, uint32_t layer, const struct lm_heads *heads,
                        struct lm_error *error);

/* The bytes of the same tokens packed; the window as the library lays it out (it has room for
 * twice residual_length values). */
void lm_per_token_usage(const struct lm_per_token *cache, struct lm_usage *usage);

#endif
