/*
 * A reader of GGUF files, version 3, little-endian, that believes nothing it reads: every count,
 * size and offset is checked against the file before it is used. Tensors of F32, F16 and Q8_0.
 */
#ifndef LM_GGUF_H
#define LM_GGUF_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct gguf;

enum gguf_type { GGUF_F32 = 0, GGUF_F16 = 1, GGUF_Q8_0 = 8 };

/* Text in the file; not NUL-terminated. */
struct gguf_string {
    const char *text;
    size_t size;
};

struct gguf_tensor {
    struct gguf_string name;
    enum gguf_type type;
    uint32_t n_dims;
    uint64_t dims[4]; /* the first is contiguous; those past n_dims are 1 */
    uint64_t n_elements;
    const unsigned char *data;
};

/* Maps a file. It must not be truncated by others while it is open. On failure *file is NULL. */
int gguf_open(const char *path, struct gguf **file, struct lm_error *error);

/* The same over memory, which must stay as it is until gguf_close. */
int gguf_open_memory(const void *data, size_t size, struct gguf **file, struct lm_error *error);

/* NULL is ignored. */
void gguf_close(struct gguf *file);

size_t gguf_tensor_count(const struct gguf *file);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *file, size_t index);

/* The tensor of that name, or NULL. */
const struct gguf_tensor *gguf_find_tensor(const struct gguf *file, const char *name);

/* All elements as f32, in the order of the file: n_elements of them. */
void gguf_read_tensor(const struct gguf_tensor *tensor, float *out);

/* 1 if the file has the key. */
int gguf_has(const struct gguf *file, const char *key);

/* The value of a key of an integer type (not negative), a float type, a string. */
int gguf_get_uint(const struct gguf *file, const char *key, uint64_t *value,
                  struct lm_error *error);
int gguf_get_float(const struct gguf *file, const char *key, double *value, struct lm_error *error);
int gguf_get_string(const struct gguf *file, const char *key, struct gguf_string *value,
                    struct lm_error *error);

/* The number of elements of an array. */
int gguf_get_count(const struct gguf *file, const char *key, uint64_t *count,
                   struct lm_error *error);

/* 1 if equal. */
int gguf_string_is(struct gguf_string string, const char *text);

#endif
