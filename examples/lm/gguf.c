#define _POSIX_C_SOURCE 200809L

#include "gguf.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "half.h"

/* What fits in the smallest entry: bounds counts, and with them memory, by the file's size. */
#define MIN_VALUE_BYTES (8u + 4u + 1u)
#define MIN_TENSOR_BYTES (8u + 4u + 8u + 4u + 8u)
#define MAX_NAME_BYTES 65535u

#define Q8_0_ELEMENTS 32u
#define Q8_0_BYTES 34u

enum value_type {
    VALUE_U8 = 0,
    VALUE_I8 = 1,
    VALUE_U16 = 2,
    VALUE_I16 = 3,
    VALUE_U32 = 4,
    VALUE_I32 = 5,
    VALUE_F32 = 6,
    VALUE_BOOL = 7,
    VALUE_STRING = 8,
    VALUE_ARRAY = 9,
    VALUE_U64 = 10,
    VALUE_I64 = 11,
    VALUE_F64 = 12
};

/* Bytes of a value of each type; 0 if that varies. */
static const unsigned char value_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
#define N_VALUE_TYPES (sizeof value_bytes)

struct value {
    struct gguf_string key;
    uint32_t type;
    uint64_t count;            /* elements of an array, bytes of a string, else 1 */
    const unsigned char *data; /* of a string or number */
};

struct gguf {
    void *mapping; /* NULL over the caller's memory */
    size_t mapping_bytes;
    struct value *values;
    size_t n_values;
    struct gguf_tensor *tensors;
    size_t n_tensors;
};

/* Bytes not yet read. */
struct cursor {
    const unsigned char *at;
    size_t left;
};

/* --------------------------------------------------------- little-endian */

static uint64_t little_endian(const unsigned char *bytes, size_t n)
{
    uint64_t value = 0;

    for (size_t i = n; i-- > 0;)
        value = value << 8 | bytes[i];
    return value;
}

static const unsigned char *take(struct cursor *c, uint64_t n)
{
    const unsigned char *bytes = c->at;

    if (n > c->left)
        return NULL;
    c->at += n;
    c->left -= (size_t)n;
    return bytes;
}

static int take_uint(struct cursor *c, size_t n, uint64_t *value)
{
    const unsigned char *bytes = take(c, n);

    if (!bytes)
        return -1;
    *value = little_endian(bytes, n);
    return 0;
}

static int take_string(struct cursor *c, struct gguf_string *string)
{
    const unsigned char *text;
    uint64_t size;

    if (take_uint(c, 8, &size))
        return -1;
    text = take(c, size);
    if (!text)
        return -1;
    string->text = (const char *)text;
    string->size = (size_t)size;
    return 0;
}

/* ---------------------------------------------------------------- values */

/* Steps over the elements of an array. */
static int take_array(struct cursor *c, struct value *value, struct lm_error *error)
{
    const int key = value->key.size > 60 ? 60 : (int)value->key.size;
    uint64_t type;

    if (take_uint(c, 4, &type) || take_uint(c, 8, &value->count))
        return lm_fail(error, "truncated in the key '%.*s'", key, value->key.text);
    if (type >= N_VALUE_TYPES || type == VALUE_ARRAY)
        return lm_fail(error, "the key '%.*s' is an array of unsupported type %u", key,
                       value->key.text, (unsigned)type);
    if (type != VALUE_STRING) {
        if (value->count > c->left / value_bytes[type])
            return lm_fail(error, "the key '%.*s' is an array of %llu elements, beyond the file",
                           key, value->key.text, (unsigned long long)value->count);
        value->data = take(c, value->count * value_bytes[type]);
        return 0;
    }
    for (uint64_t i = 0; i < value->count; i++) {
        struct gguf_string element;

        if (take_string(c, &element))
            return lm_fail(error, "string %llu of the key '%.*s' lies beyond the file",
                           (unsigned long long)i, key, value->key.text);
    }
    return 0;
}

static int take_value(struct cursor *c, size_t index, struct value *value, struct lm_error *error)
{
    struct gguf_string string;
    uint64_t type;
    int key;

    if (take_string(c, &value->key) || take_uint(c, 4, &type))
        return lm_fail(error, "truncated in key %zu", index);
    key = value->key.size > 60 ? 60 : (int)value->key.size;
    if (type >= N_VALUE_TYPES)
        return lm_fail(error, "the key '%.*s' has unknown type %u", key, value->key.text,
                       (unsigned)type);
    value->type = (uint32_t)type;
    if (type == VALUE_ARRAY)
        return take_array(c, value, error);
    if (type == VALUE_STRING) {
        if (take_string(c, &string))
            return lm_fail(error, "truncated in the key '%.*s'", key, value->key.text);
        value->data = (const unsigned char *)string.text;
        value->count = string.size;
        return 0;
    }
    value->count = 1;
    value->data = take(c, value_bytes[type]);
    if (!value->data)
        return lm_fail(error, "truncated in the key '%.*s'", key, value->key.text);
    return 0;
}

static const struct value *find_value(const struct gguf *file, const char *key)
{
    for (size_t i = 0; i < file->n_values; i++) {
        if (gguf_string_is(file->values[i].key, key))
            return &file->values[i];
    }
    return NULL;
}

static const struct value *get_value(const struct gguf *file, const char *key,
                                     struct lm_error *error)
{
    const struct value *value = find_value(file, key);

    if (!value)
        lm_fail(error, "the key '%s' is missing", key);
    return value;
}

int gguf_has(const struct gguf *file, const char *key)
{
    return find_value(file, key) != NULL;
}

int gguf_get_uint(const struct gguf *file, const char *key, uint64_t *out, struct lm_error *error)
{
    const struct value *value = get_value(file, key, error);
    size_t bytes;

    if (!value)
        return -1;
    bytes = value_bytes[value->type];
    switch (value->type) {
    case VALUE_I8:
    case VALUE_I16:
    case VALUE_I32:
    case VALUE_I64:
        if (value->data[bytes - 1] & 0x80u)
            return lm_fail(error, "the key '%s' is negative", key);
        break;
    case VALUE_U8:
    case VALUE_U16:
    case VALUE_U32:
    case VALUE_U64:
    case VALUE_BOOL:
        break;
    default:
        return lm_fail(error, "the key '%s' is not an integer", key);
    }
    *out = little_endian(value->data, bytes);
    return 0;
}

int gguf_get_float(const struct gguf *file, const char *key, double *out, struct lm_error *error)
{
    const struct value *value = get_value(file, key, error);

    if (!value)
        return -1;
    if (value->type == VALUE_F32) {
        *out = (double)lm_float_of_bits((uint32_t)little_endian(value->data, 4));
    } else if (value->type == VALUE_F64) {
        const uint64_t bits = little_endian(value->data, 8);
        memcpy(out, &bits, sizeof bits);
    } else {
        return lm_fail(error, "the key '%s' is not a number", key);
    }
    return 0;
}

int gguf_get_string(const struct gguf *file, const char *key, struct gguf_string *out,
                    struct lm_error *error)
{
    const struct value *value = get_value(file, key, error);

    if (!value)
        return -1;
    if (value->type != VALUE_STRING)
        return lm_fail(error, "the key '%s' is not a string", key);
    out->text = (const char *)value->data;
    out->size = (size_t)value->count;
    return 0;
}

int gguf_get_count(const struct gguf *file, const char *key, uint64_t *count,
                   struct lm_error *error)
{
    const struct value *value = get_value(file, key, error);

    if (!value)
        return -1;
    if (value->type != VALUE_ARRAY)
        return lm_fail(error, "the key '%s' is not an array", key);
    *count = value->count;
    return 0;
}

int gguf_string_is(struct gguf_string string, const char *text)
{
    return string.size == strlen(text) && memcmp(string.text, text, string.size) == 0;
}

/* --------------------------------------------------------------- tensors */

/* Bytes of `tensor`'s data, or 0 if its type is not one of ours or its size is absurd. */
static uint64_t tensor_bytes(const struct gguf_tensor *tensor)
{
    const uint64_t n = tensor->n_elements;

    switch (tensor->type) {
    case GGUF_F32:
        return n > UINT64_MAX / 4 ? 0 : n * 4;
    case GGUF_F16:
        return n > UINT64_MAX / 2 ? 0 : n * 2;
    case GGUF_Q8_0:
        return n / Q8_0_ELEMENTS > UINT64_MAX / Q8_0_BYTES ? 0 : n / Q8_0_ELEMENTS * Q8_0_BYTES;
    }
    return 0;
}

static int take_dims(struct cursor *c, struct gguf_tensor *tensor, int name, struct lm_error *error)
{
    uint64_t n_dims;

    if (take_uint(c, 4, &n_dims))
        return lm_fail(error, "truncated in the tensor '%.*s'", name, tensor->name.text);
    if (n_dims < 1 || n_dims > 4)
        return lm_fail(error, "the tensor '%.*s' has %llu dimensions", name, tensor->name.text,
                       (unsigned long long)n_dims);
    tensor->n_dims = (uint32_t)n_dims;
    tensor->n_elements = 1;
    for (uint32_t d = 0; d < 4; d++) {
        tensor->dims[d] = 1;
        if (d < n_dims && take_uint(c, 8, &tensor->dims[d]))
            return lm_fail(error, "truncated in the tensor '%.*s'", name, tensor->name.text);
        if (tensor->dims[d] == 0 || tensor->n_elements > UINT64_MAX / tensor->dims[d])
            return lm_fail(error, "the tensor '%.*s' has an absurd dimension, %llu", name,
                           tensor->name.text, (unsigned long long)tensor->dims[d]);
        tensor->n_elements *= tensor->dims[d];
    }
    return 0;
}

/* Reads a tensor's description; *offset is where its data lie in the data section. */
static int take_tensor(struct cursor *c, size_t index, struct gguf_tensor *tensor, uint64_t *offset,
                       struct lm_error *error)
{
    uint64_t type;
    int name;

    if (take_string(c, &tensor->name) || tensor->name.size > MAX_NAME_BYTES)
        return lm_fail(error, "truncated in tensor %zu", index);
    name = tensor->name.size > 60 ? 60 : (int)tensor->name.size;
    if (take_dims(c, tensor, name, error))
        return -1;
    if (take_uint(c, 4, &type) || take_uint(c, 8, offset))
        return lm_fail(error, "truncated in the tensor '%.*s'", name, tensor->name.text);
    if (type != GGUF_F32 && type != GGUF_F16 && type != GGUF_Q8_0)
        return lm_fail(error,
                       "the tensor '%.*s' has type %u; F32 (0), F16 (1) and Q8_0 (8) are "
                       "supported",
                       name, tensor->name.text, (unsigned)type);
    tensor->type = (enum gguf_type)type;
    if (type == GGUF_Q8_0 && tensor->dims[0] % Q8_0_ELEMENTS)
        return lm_fail(error, "the rows of the Q8_0 tensor '%.*s' are not whole blocks", name,
                       tensor->name.text);
    return 0;
}

/* Finds the data of all tensors in the rest of the file. */
static int place_tensors(struct gguf *file, struct cursor *c, const uint64_t *offsets,
                         size_t header_bytes, struct lm_error *error)
{
    uint64_t alignment = 32, total = 0;

    if (gguf_has(file, "general.alignment")
        && gguf_get_uint(file, "general.alignment", &alignment, error))
        return -1;
    if (alignment == 0 || alignment > 65536 || (alignment & (alignment - 1)) != 0)
        return lm_fail(error, "the alignment %llu is not a power of two up to 65536",
                       (unsigned long long)alignment);
    if (file->n_tensors > 0 && !take(c, (alignment - header_bytes % alignment) % alignment))
        return lm_fail(error, "truncated before the tensors' data");
    for (size_t i = 0; i < file->n_tensors; i++) {
        struct gguf_tensor *tensor = &file->tensors[i];
        const int name = tensor->name.size > 60 ? 60 : (int)tensor->name.size;
        const uint64_t bytes = tensor_bytes(tensor);

        if (offsets[i] % alignment)
            return lm_fail(error, "the tensor '%.*s' is not aligned", name, tensor->name.text);
        if (bytes == 0 || bytes > c->left || offsets[i] > c->left - bytes)
            return lm_fail(error, "the data of the tensor '%.*s' lie beyond the file", name,
                           tensor->name.text);
        if (bytes > c->left - total)
            return lm_fail(error, "the tensors overlap");
        total += bytes;
        tensor->data = c->at + offsets[i];
    }
    return 0;
}

static int take_tensors(struct gguf *file, struct cursor *c, size_t size, struct lm_error *error)
{
    uint64_t *offsets = calloc(file->n_tensors + 1, sizeof *offsets);
    int result = 0;

    if (!offsets)
        return lm_fail(error, "out of memory");
    for (size_t i = 0; !result && i < file->n_tensors; i++)
        result = take_tensor(c, i, &file->tensors[i], &offsets[i], error);
    if (!result)
        result = place_tensors(file, c, offsets, size - c->left, error);
    free(offsets);
    return result;
}

size_t gguf_tensor_count(const struct gguf *file)
{
    return file->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *file, size_t index)
{
    return &file->tensors[index];
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *file, const char *name)
{
    for (size_t i = 0; i < file->n_tensors; i++) {
        if (gguf_string_is(file->tensors[i].name, name))
            return &file->tensors[i];
    }
    return NULL;
}

void gguf_read_tensor(const struct gguf_tensor *tensor, float *out)
{
    const unsigned char *data = tensor->data;

    switch (tensor->type) {
    case GGUF_F32:
        for (uint64_t i = 0; i < tensor->n_elements; i++)
            out[i] = lm_float_of_bits((uint32_t)little_endian(data + 4 * i, 4));
        break;
    case GGUF_F16:
        for (uint64_t i = 0; i < tensor->n_elements; i++)
            out[i] = lm_float_of_half((uint16_t)little_endian(data + 2 * i, 2));
        break;
    case GGUF_Q8_0: /* blocks of an f16 scale and 32 signed bytes */
        for (uint64_t i = 0; i < tensor->n_elements; i += Q8_0_ELEMENTS, data += Q8_0_BYTES) {
            const float scale = lm_float_of_half((uint16_t)little_endian(data, 2));

            for (uint32_t j = 0; j < Q8_0_ELEMENTS; j++)
                out[i + j] = scale * (float)(signed char)data[2 + j];
        }
        break;
    }
}

/* ------------------------------------------------------------------ open */

static int parse(struct gguf *file, const unsigned char *data, size_t size, struct lm_error *error)
{
    struct cursor c = {data, size};
    const unsigned char *magic = take(&c, 4);
    uint64_t version, n_tensors, n_values;

    if (!magic || memcmp(magic, "GGUF", 4) != 0)
        return lm_fail(error, "not a GGUF file");
    if (take_uint(&c, 4, &version) || take_uint(&c, 8, &n_tensors) || take_uint(&c, 8, &n_values))
        return lm_fail(error, "truncated in the header");
    if (version != 3)
        return lm_fail(error, "GGUF version %llu; version 3, little-endian, is supported",
                       (unsigned long long)version);
    if (n_values > c.left / MIN_VALUE_BYTES || n_tensors > c.left / MIN_TENSOR_BYTES)
        return lm_fail(error, "%llu keys and %llu tensors do not fit in a file of %zu bytes",
                       (unsigned long long)n_values, (unsigned long long)n_tensors, size);
    file->values = calloc((size_t)n_values + 1, sizeof *file->values);
    file->tensors = calloc((size_t)n_tensors + 1, sizeof *file->tensors);
    if (!file->values || !file->tensors)
        return lm_fail(error, "out of memory");
    for (size_t i = 0; i < n_values; i++) {
        if (take_value(&c, i, &file->values[i], error))
            return -1;
        file->n_values = i + 1;
    }
    file->n_tensors = (size_t)n_tensors;
    return take_tensors(file, &c, size, error);
}

static int open_with(void *mapping, const void *data, size_t size, struct gguf **file,
                     struct lm_error *error)
{
    struct gguf *opened = calloc(1, sizeof *opened);

    *file = NULL;
    if (!opened) {
        if (mapping)
            munmap(mapping, size);
        return lm_fail(error, "out of memory");
    }
    opened->mapping = mapping;
    opened->mapping_bytes = size;
    if (parse(opened, data, size, error)) {
        gguf_close(opened);
        return -1;
    }
    *file = opened;
    return 0;
}

int gguf_open_memory(const void *data, size_t size, struct gguf **file, struct lm_error *error)
{
    return open_with(NULL, data, size, file, error);
}

int gguf_open(const char *path, struct gguf **file, struct lm_error *error)
{
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    void *mapping;

    *file = NULL;
    if (descriptor < 0)
        return lm_fail(error, "cannot be opened");
    if (fstat(descriptor, &status) || !S_ISREG(status.st_mode) || status.st_size <= 0) {
        close(descriptor);
        return lm_fail(error, "not a GGUF file");
    }
    mapping = (uint64_t)status.st_size > SIZE_MAX
                  ? MAP_FAILED
                  : mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    close(descriptor);
    if (mapping == MAP_FAILED)
        return lm_fail(error, "cannot be mapped into memory");
    return open_with(mapping, mapping, (size_t)status.st_size, file, error);
}

void gguf_close(struct gguf *file)
{
    if (!file)
        return;
    if (file->mapping)
        munmap(file->mapping, file->mapping_bytes);
    free(file->values);
    free(file->tensors);
    free(file);
}
