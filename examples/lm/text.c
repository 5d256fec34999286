#include "text.h"

#include <stdio.h>
#include <stdlib.h>

#define MOST ((size_t)1 << 30)

void lm_text_free(struct lm_text *text)
{
    free(text->bytes);
    text->bytes = NULL;
    text->size = 0;
}

/* Makes room for more: 0 if there is none to be had. */
static int grow(struct lm_text *text, size_t *capacity)
{
    const size_t larger = *capacity ? *capacity * 2 : 1u << 16;
    uint8_t *bytes = larger > 2 * MOST ? NULL : realloc(text->bytes, larger);

    if (!bytes)
        return 0;
    text->bytes = bytes;
    *capacity = larger;
    return 1;
}

int lm_text_read(struct lm_text *text, const char *path, struct lm_error *error)
{
    FILE *file = fopen(path, "rb");
    size_t capacity = 0;
    int failed;

    text->bytes = NULL;
    text->size = 0;
    if (!file)
        return lm_fail(error, "%s: cannot be opened", path);
    do {
        failed = text->size == capacity && !grow(text, &capacity);
        if (!failed)
            text->size += fread(text->bytes + text->size, 1, capacity - text->size, file);
    } while (!failed && text->size == capacity);
    failed = failed || ferror(file) || text->size > MOST;
    fclose(file);
    if (failed) {
        lm_text_free(text);
        return lm_fail(error, "%s: cannot be read, or is larger than 1 GiB", path);
    }
    return 0;
}
