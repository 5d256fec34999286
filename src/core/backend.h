/*
 * The device seam. The core knows sequences, pages and windows; a backend owns the memory they lie
 * in and does the arithmetic. There are two: the CPU (over one of the kernel tables) and CUDA.
 */
#ifndef KIVI_BACKEND_H
#define KIVI_BACKEND_H

#include <kivi/kivi.h>

#include "geometry.h"

#define KIVI_BACKEND_ABI 1u

struct kivi_kernels;

/* How many tokens one layer of a sequence holds, and how many of them are codes. */
struct kivi_span {
    uint64_t n;        /* tokens */
    uint64_t k_packed; /* keys of tokens [0, k_packed) are codes, the rest are rows of the window */
    uint64_t v_packed; /* likewise values */
};

/* One item of kivi_run, resolved. Strides are filled in. */
struct kivi_step_item {
    kivi_item io;
    uint64_t q_position; /* of the first query; below 2^63 with all that is added to it */
    struct kivi_span before, after; /* around the append */
    void *const *pages;             /* enough for after.k_packed; those to be written are private */
    void *window;                   /* private if n_new > 0; NULL only if before.n and n_new are 0 */
};

/* One call of kivi_run. The backend may read everything, and owns `scratch`. */
struct kivi_step {
    const struct kivi_geometry *geometry;
    uint32_t layer;
    struct kivi_step_item *items;
    size_t n_items;
    kivi_attention attention; /* scale resolved, every field valid */
    uint32_t n_parts;  /* begin may lower it: parts beyond do nothing */
    uint32_t n_phases; /* set by begin */
    void *scratch;     /* set by begin, released by end */
};

/*
 * Order of calls on one step: begin; part for each phase and part (parts of a phase in parallel,
 * phases in order); end. begin validates nothing but what only the device can know, and takes
 * all memory. Nothing that is visible before the step's `after` spans are may be written
 * until every input has been found finite. end(apply = 0) abandons the step.
 */
struct kivi_backend {
    uint32_t abi;  /* KIVI_BACKEND_ABI */
    uint32_t size; /* sizeof(struct kivi_backend) */
    const char *name, *description;
    const struct kivi_kernels *kernels; /* CPU backends; NULL elsewhere */

    /* 1 if this machine can run it, else 0 and *reason (static). */
    int (*available)(const struct kivi_backend *self, const char **reason);

    kivi_status (*open)(const struct kivi_backend *self, const struct kivi_geometry *geometry,
                        const kivi_config *config, void **context, kivi_error *error);
    void (*close)(void *context);

    /* Blocks: pages and windows, 64-byte aligned. The core counts references. */
    void *(*block_alloc)(void *context, size_t bytes);
    void (*block_free)(void *context, void *block, size_t bytes);
    kivi_status (*block_copy)(void *context, void *to, const void *from, size_t bytes,
                              kivi_error *error);
    kivi_status (*block_read)(void *context, void *host, const void *block, size_t offset,
                              size_t bytes, kivi_error *error);
    kivi_status (*block_write)(void *context, void *block, size_t offset, const void *host,
                               size_t bytes, kivi_error *error);

    kivi_status (*begin)(void *context, struct kivi_step *step, kivi_error *error);
    void (*part)(void *context, struct kivi_step *step, uint32_t phase, uint32_t part);
    kivi_status (*end)(void *context, struct kivi_step *step, int apply, kivi_error *error);

    /* Appends to kivi_describe what is slower than its neighbours in this configuration, as snprintf. */
    int (*describe)(void *context, char *text, size_t capacity);
};

/* The one symbol of a loadable module. */
#define KIVI_MODULE_ENTRY "kivi_module_backend"
typedef const struct kivi_backend *(*kivi_module_entry)(void);

#endif
