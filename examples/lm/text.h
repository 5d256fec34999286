/* A file, whole. */
#ifndef LM_TEXT_H
#define LM_TEXT_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct lm_text {
    uint8_t *bytes;
    size_t size;
};

/* Reads a file of at most 1 GiB. On failure the text is empty. */
int lm_text_read(struct lm_text *text, const char *path, struct lm_error *error);

void lm_text_free(struct lm_text *text);

#endif
