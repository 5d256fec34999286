/* Reads NumPy's .npy files, format 1.0: what the golden vectors are stored in. */
#ifndef KIVI_TESTS_NPY_H
#define KIVI_TESTS_NPY_H

#include <stddef.h>
#include <stdint.h>

struct npy {
    char type[4]; /* "f2", "f4", "i4" or "i8" */
    size_t rank;
    size_t shape[8];
    size_t count; /* elements */
    void *data;   /* in the byte order of this machine */
};

/* Loads tests/vectors/<directory>/<name>.npy, of the given type; fails the test if it cannot. */
struct npy npy_load(const char *directory, const char *name, const char *type);

void npy_free(struct npy *array);

#endif
