#include "npy.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX_BYTES 10 /* magic, version, length of the header */

static uint64_t read_little_endian(const unsigned char *bytes, size_t n)
{
    uint64_t x = 0;

    while (n-- > 0)
        x = x << 8 | bytes[n];
    return x;
}

/* The part of the header after 'key': */
static const char *field(const char *header, const char *key, const char *path)
{
    const char *at = strstr(header, key);

    ck_assert_msg(at != NULL, "%s: no %s", path, key);
    at = strchr(at, ':');
    ck_assert_msg(at != NULL, "%s: no %s", path, key);
    return at + 1;
}

static void parse_header(struct npy *array, const char *header, const char *path)
{
    const char *at = strchr(field(header, "descr", path), '<');

    ck_assert_msg(at != NULL, "%s is not little-endian", path);
    snprintf(array->type, sizeof array->type, "%.2s", at + 1);
    ck_assert_msg(strstr(field(header, "fortran_order", path), "False") != NULL,
                  "%s is not in C order", path);
    at = strchr(field(header, "shape", path), '(');
    ck_assert_msg(at != NULL, "%s: no shape", path);
    array->count = 1;
    for (at++; *at != ')'; at += strcspn(at, "0123456789)")) {
        char *end;

        ck_assert_msg(array->rank < 8, "%s: too many dimensions", path);
        array->shape[array->rank] = strtoul(at, &end, 10);
        array->count *= array->shape[array->rank++];
        at = end;
    }
}

static void *decode(const unsigned char *bytes, size_t count, size_t size)
{
    void *data = malloc(count * size + 1);
    size_t i;

    ck_assert_ptr_nonnull(data);
    for (i = 0; i < count; i++) {
        const uint64_t x = read_little_endian(bytes + i * size, size);

        if (size == 2)
            ((uint16_t *)data)[i] = (uint16_t)x;
        else if (size == 4)
            ((uint32_t *)data)[i] = (uint32_t)x;
        else
            ((uint64_t *)data)[i] = x;
    }
    return data;
}

struct npy npy_load(const char *directory, const char *name, const char *type)
{
    struct npy array = {.rank = 0};
    char path[1024], header[65536];
    unsigned char *bytes;
    size_t header_bytes, size;
    long length;
    FILE *file;

    snprintf(path, sizeof path, "%s/%s/%s.npy", KIVI_TEST_VECTORS, directory, name);
    file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "cannot open %s", path);
    ck_assert_int_eq(fseek(file, 0, SEEK_END), 0);
    length = ftell(file);
    rewind(file);
    ck_assert_msg(length > PREFIX_BYTES, "%s is too short", path);
    bytes = malloc((size_t)length);
    ck_assert_ptr_nonnull(bytes);
    ck_assert_uint_eq(fread(bytes, 1, (size_t)length, file), (size_t)length);
    fclose(file);

    ck_assert_msg(memcmp(bytes, "\x93NUMPY\x01\x00", 8) == 0, "%s is not .npy 1.0", path);
    header_bytes = (size_t)read_little_endian(bytes + 8, 2);
    ck_assert_uint_le(PREFIX_BYTES + header_bytes, (size_t)length);
    memcpy(header, bytes + PREFIX_BYTES, header_bytes);
    header[header_bytes] = '\0';
    parse_header(&array, header, path);
    ck_assert_msg(strcmp(array.type, type) == 0, "%s holds %s, not %s", path, array.type, type);
    size = (size_t)(type[1] - '0');
    ck_assert_uint_eq(PREFIX_BYTES + header_bytes + array.count * size, (size_t)length);
    array.data = decode(bytes + PREFIX_BYTES + header_bytes, array.count, size);
    free(bytes);
    return array;
}

void npy_free(struct npy *array)
{
    free(array->data);
    array->data = NULL;
}
