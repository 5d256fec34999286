/*
 * The instruction-set seam: one const table per instruction set. The scalar table is the
 * specification. Kernels work on the memory they are given: they never allocate, lock, log, start
 * threads or read the environment.
 *
 * The vector tables are made of the templates in src/cpu/simd. Equality classes (docs/numerics.md):
 * to_f16, quantize_* and crc32c equal the scalar table bit for bit; attention is within the bound of its
 * precision of exact arithmetic.
 */
#ifndef KIVI_KERNELS_H
#define KIVI_KERNELS_H

#include <kivi/kivi.h>

#include "../core/layout.h"
#include "features.h"

/* A hint that the line at `address` will be read, soon or later; the address need not be valid. What is read later
 * need not come nearer than the second-level cache. */
#if defined(__GNUC__)
#define kivi_prefetch(address) __builtin_prefetch(address, 0, 3)
#define kivi_prefetch_for_later(address) __builtin_prefetch(address, 0, 2)
#else
#define kivi_prefetch(address) ((void)(address))
#define kivi_prefetch_for_later(address) ((void)(address))
#endif

#define KIVI_LINE 64u /* bytes of a cache's line */

/* What the caller reads after a call's blocks. A hint: a kernel may ask the memory for it. */
struct kivi_next {
    const void *data; /* NULL: not known */
    size_t bytes;     /* of it: not those of the call, where keys and values have different bits */
    int is_amd;       /* KIVI_CPU_AMD: one stream of requests, not several, and into the nearest cache */
};

struct kivi_kernels {
    const char *name, *description;

    uint32_t required; /* KIVI_CPU_* bits: what the machine must have. Data, because a function in
                          this folder may already use the instructions that it would ask about. */

    /* n elements of f32, f16 or bf16 (indexed by kivi_dtype) to f16, round to nearest even.
     * Returns 1 if every result is finite. dst and src may be equal for f16, else disjoint. */
    int (*to_f16[3])(uint16_t *dst, const void *src, size_t n);

    /* The rule of docs/numerics.md. A minimum of -0 is stored as +0, whatever order it was found in.
     *
     * Quantizes a key block from l->tokens f16 rows, `stride` elements apart. The first `skip`
     * tokens (sinks) get code 0 and stay out of the ranges. Writes the whole block. */
    void (*quantize_k)(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                       uint32_t skip, void *block);

    /* Quantizes `count` f16 rows into tokens first .. first + count - 1 of a value block and leaves
     * its other tokens alone; with first == 0 all other tokens become code, scale and min 0. */
    void (*quantize_v)(const struct kivi_layout *l, const uint16_t *rows, size_t stride,
                       uint32_t first, uint32_t count, void *block);

    /* scores[r * ld + t] = q[r] . key[t] for all tokens of n_blocks consecutive key blocks.
     * q: [n_rows][dim_pad], padding 0. bits 2, 4, 8. With KIVI_STANDARD at 2 bits scores are the more exact
     * where a few tokens may decide a row: of fewer than 256, or if `exact_values`, those beside them, hide
     * nothing of a score's error. */
    void (*k_scores)(const struct kivi_layout *l, const float *q, uint32_t n_rows,
                     const void *blocks, uint32_t n_blocks, struct kivi_next next, float *scores,
                     size_t ld, int exact_values, kivi_precision precision);

    /* out[r][c] += sum over t of p[r * ld + t] * value[t][c], over the first n_tokens of consecutive value
     * blocks; p >= 0, 0 for a token that does not count and for those beyond n_tokens that fill up its
     * block. out: [n_rows][dim_pad], where padding may become anything. The result depends on these tokens
     * alone, and what a call adds is summed up apart. bits: as above. */
    void (*v_accumulate)(const struct kivi_layout *l, const float *p, size_t ld, uint32_t n_rows,
                         const void *blocks, uint32_t n_tokens, struct kivi_next next, float *out,
                         kivi_precision precision);

    /* The same two over f16 rows, `stride` elements apart. q_stride and out_stride are elements
     * from one row to the next. dim is a multiple of 8. */
    void (*f16_scores)(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                       const uint16_t *rows, size_t stride, uint32_t n_tokens,
                       struct kivi_next next, float *scores, size_t ld);
    void (*f16_accumulate)(uint32_t dim, const float *p, size_t ld, uint32_t n_rows,
                           const uint16_t *rows, size_t stride, uint32_t n_tokens,
                           struct kivi_next next, float *out, size_t out_stride);

    /* x = cap * tanh(x / cap). Relative error 1e-6. */
    void (*softcap)(float *x, size_t n, float cap);

    /* The largest of n > 0 numbers (-inf allowed, no NaN). */
    float (*max)(const float *x, size_t n);

    /* x = exp(x - max), 0 for -inf; returns the sum. x <= max. Relative error 1e-6 each. */
    float (*exp_sum)(float *x, size_t n, float max);

    /* x *= factor. */
    void (*scale)(float *x, size_t n, float factor);

    /* kivi_crc32c (../core/crc32c.h). */
    uint32_t (*crc32c)(uint32_t crc, const void *data, size_t bytes);
};

extern const struct kivi_kernels kivi_kernels_scalar;
extern const struct kivi_kernels kivi_kernels_avx2, kivi_kernels_avx2_vnni;
extern const struct kivi_kernels kivi_kernels_avx512, kivi_kernels_avx512_vnni;
extern const struct kivi_kernels kivi_kernels_neon, kivi_kernels_neon_dotprod,
    kivi_kernels_neon_i8mm;

#endif
