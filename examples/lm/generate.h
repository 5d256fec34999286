/* kivi-lm generate. */
#ifndef LM_GENERATE_H
#define LM_GENERATE_H

#include "options.h"

/* Writes the prompt and what follows to standard output, a byte at a time. */
int lm_generate(const struct lm_model *model, const struct lm_options *options,
                struct lm_error *error);

#endif
