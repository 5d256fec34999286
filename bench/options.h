/* What the user asked for: one sub-command and its options. */
#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#define LIST_MAX 16

enum command {
    COMMAND_DECODE = 1u << 0,
    COMMAND_APPEND = 1u << 1,
    COMMAND_PREFILL = 1u << 2,
    COMMAND_BANDWIDTH = 1u << 3,
    COMMAND_ALL = 1u << 4,
    COMMAND_SAVE = 1u << 5
};

enum {
    PRECISION_STANDARD = 1u << 0,
    PRECISION_PRECISE = 1u << 1,
    PRECISION_PRECISE_LAST = 1u << 2 /* precise for the last cache type only */
};

struct number_list {
    size_t n;
    uint32_t at[LIST_MAX];
};

struct name_list {
    size_t n;
    const char *at[LIST_MAX];
};

/* How a cache stores its tokens; 16 bits are f16, not quantized. */
struct cache_type {
    uint32_t k_bits, v_bits;
};

struct type_list {
    size_t n;
    struct cache_type at[LIST_MAX];
};

/* One table: a shape of model, and what is varied over it. */
struct scenario {
    uint32_t q_heads, k_dim, v_dim, group;
    struct number_list kv_heads, contexts, threads;
    struct type_list types;
    unsigned precisions;
    uint32_t queries; /* of one decode step */
    uint32_t tokens;  /* of one append or prefill call */
    int appends;      /* a decode step appends its tokens before it attends */
    int in_cache;     /* one sequence over and over, so that its data stays in the CPU's caches */
    uint32_t batch;   /* GPU: sequences of one step, */
    uint32_t
        shortest;  /* the first of so many tokens, and the last of the context; 0: of one length */
    int has_shape; /* GPU: heads, context or batch were given, and replace the standard shapes */
};

/* Settings of the run as a whole. */
struct settings {
    double seconds;     /* of measurement for a row */
    uint64_t footprint; /* bytes of a cache type that are rotated; 0: by the machine */
    int gauss;          /* keys without outlier channels */
    int host_threads;   /* kivi_work_* on the bench's own team instead of kivi_run */
    int quick, json;
    const char *plot;
};

struct options {
    enum command command;
    struct scenario scenario;
    struct settings settings;
    struct name_list backends;       /* at least one; NULL: the library's choice */
    const char *cpu_only, *gpu_only; /* an option given that means nothing elsewhere, or NULL */
};

/* Reads the command line. Returns 1 to go on, 0 if the answer was help, -1 after an error. */
int options_parse(struct options *options, int argc, char **argv);

#endif
