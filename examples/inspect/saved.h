/* A saved cache, as docs/format.md has it, and what its scales say. */
#ifndef INSPECT_SAVED_H
#define INSPECT_SAVED_H

#include <stddef.h>
#include <stdint.h>

#define BINS 80        /* of the histogram: half powers of two */
#define LOWEST_BIN -24 /* scales below 2^-24 do not exist in f16 */

struct fault {
    char text[320];
};

/* Statistics of the scales of one layer's keys, or values, over all sequences. */
struct scales {
    uint32_t bits;
    uint64_t n, zero;    /* scales, and those that are 0: constant groups */
    double sum, squares; /* of the scales */
    double least, most;  /* of those above 0 */
    uint64_t bin[BINS];  /* by log2(scale): bin i begins at 2^(LOWEST_BIN + i / 2) */
    uint32_t n_channels; /* keys: n_kv_heads * k_dim; values: n_kv_heads * groups */
    double *channel;     /* mean scale of each */
    uint64_t *count;
};

struct layer_report {
    struct scales keys, values;
    uint64_t packed_bytes, row_bytes; /* of the payload */
};

struct sequence_report {
    uint64_t handle, tokens, bytes; /* tokens of the first layer */
    int layers_differ;              /* in tokens */
};

struct saved {
    uint64_t bytes, n_sequences;
    uint32_t n_layers, n_kv_heads, k_dim, v_dim, group_size, residual_length, n_sink;
    struct sequence_report *sequences;
    struct layer_report *layers;
};

/* Reads a file, checks it by loading it into a cache, and gathers the statistics. Returns 0, or -1 with the
 * reason. saved_free in either case. */
int saved_read(const char *path, struct saved *saved, struct fault *fault);
void saved_free(struct saved *saved);

/* Estimated root mean square error of a number: that of rounding, scale / sqrt(12). */
double rms_error(const struct scales *s);

/* The median of the channels' mean scales, and the channel with the largest. */
double median_channel(const struct scales *s);
uint32_t largest_channel(const struct scales *s);

#endif
