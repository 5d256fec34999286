#include "buffer.h"

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buffer_init(struct buffer *b)
{
    memset(b, 0, sizeof *b);
    b->limit = SIZE_MAX;
}

void buffer_free(struct buffer *b)
{
    free(b->data);
    buffer_init(b);
}

int buffer_write(void *buffer, const void *data, size_t bytes)
{
    struct buffer *b = buffer;

    if (bytes > b->limit - b->size)
        return -1;
    if (b->size + bytes > b->room) {
        b->room = 2 * (b->size + bytes);
        b->data = realloc(b->data, b->room);
        ck_assert_ptr_nonnull(b->data);
    }
    memcpy(b->data + b->size, data, bytes);
    b->size += bytes;
    return 0;
}

int buffer_read(void *buffer, void *data, size_t bytes)
{
    struct buffer *b = buffer;
    const size_t end = b->size < b->limit ? b->size : b->limit;

    if (bytes > end - b->at)
        return -1;
    memcpy(data, b->data + b->at, bytes);
    b->at += bytes;
    return 0;
}

void buffer_load(struct buffer *b, const char *path)
{
    char chunk[4096];
    size_t n;
    FILE *file = fopen(path, "rb");

    ck_assert_msg(file != NULL, "cannot open %s", path);
    buffer_init(b);
    while ((n = fread(chunk, 1, sizeof chunk, file)) > 0)
        ck_assert_int_eq(buffer_write(b, chunk, n), 0);
    fclose(file);
}
