/* A saved cache in memory, and callbacks over it that fail on demand. */
#ifndef KIVI_TESTS_BUFFER_H
#define KIVI_TESTS_BUFFER_H

#include <kivi/kivi.h>

struct buffer {
    unsigned char *data;
    size_t size, room;
    size_t at;    /* what has been read */
    size_t limit; /* reading and writing beyond it fails; SIZE_MAX: never */
};

void buffer_init(struct buffer *b);
void buffer_free(struct buffer *b);

/* A kivi_write_fn that appends, and a kivi_read_fn that takes from `at` on. */
int buffer_write(void *buffer, const void *data, size_t bytes);
int buffer_read(void *buffer, void *data, size_t bytes);

/* The whole of a file, which must be there. */
void buffer_load(struct buffer *b, const char *path);

#endif
