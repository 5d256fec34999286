/* All kernel tables of this machine on the same bytes: packed blocks equal the scalar table's, and attention over
 * them is near it. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/backend.h"
#include "core/half.h"
#include "core/registry.h"
#include "cpu/features.h"
#include "cpu/kernels.h"

#define MAX_DIM 512u
#define MAX_ROWS 9u

static const struct kivi_next no_next = {.data = NULL};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);

    if (!p)
        abort();
    return p;
}

struct input {
    const uint8_t *data;
    size_t size, at;
};

static uint8_t next(struct input *in)
{
    if (in->size == 0)
        return 0;
    in->at = (in->at + 1) % in->size;
    return in->data[in->at];
}

static uint16_t next_half(struct input *in)
{
    const uint16_t h = (uint16_t)(next(in) | next(in) << 8);

    return kivi_f16_is_finite(h) ? h : (uint16_t)(h & 0x83ff);
}

/* The difference against the sum of the sizes of what is added up. */
static void check_near(const float *got, const float *expected, const double *sizes, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++)
        if (!(fabs((double)got[i] - expected[i]) <= 1e-2 * sizes[i] + 1e-28))
            abort();
}

static void compare(struct input *in, const struct kivi_kernels *table, uint32_t bits, uint32_t dim,
                    uint32_t group, uint32_t n_rows, kivi_precision precision)
{
    const struct kivi_kernels *scalar = &kivi_kernels_scalar;
    const struct kivi_layout k = kivi_layout_keys(bits, dim, group);
    const struct kivi_layout v = kivi_layout_values(bits, dim, group);
    uint16_t *rows = room((size_t)group * dim * 2);
    void *a = room(k.block_bytes), *b = room(k.block_bytes);
    void *c = room(v.block_bytes), *d = room(v.block_bytes);
    float *q = room((size_t)MAX_ROWS * MAX_DIM * 4), *x = room((size_t)MAX_ROWS * MAX_DIM * 4);
    float *y = room((size_t)MAX_ROWS * MAX_DIM * 4);
    double *sizes = room((size_t)MAX_ROWS * MAX_DIM * 8);
    const uint32_t first = next(in) % KIVI_TILE, count = 1 + next(in) % (KIVI_TILE - first);
    uint32_t r, t, i;

    for (i = 0; i < group * dim; i++)
        rows[i] = next_half(in);
    scalar->quantize_k(&k, rows, dim, first, a);
    table->quantize_k(&k, rows, dim, first, b);
    memset(c, 0, v.block_bytes);
    memset(d, 0, v.block_bytes);
    scalar->quantize_v(&v, rows, dim, first, count, c);
    table->quantize_v(&v, rows, dim, first, count, d);
    if (memcmp(a, b, k.block_bytes) != 0 || memcmp(c, d, v.block_bytes) != 0)
        abort();

    memset(q, 0, (size_t)MAX_ROWS * MAX_DIM * 4);
    for (r = 0; r < n_rows; r++)
        for (i = 0; i < dim; i++)
            q[r * k.dim_pad + i] = (float)next(in) / 64 - 2;
    scalar->k_scores(&k, q, n_rows, a, 1, no_next, x, k.tokens, 0, precision);
    table->k_scores(&k, q, n_rows, a, 1, no_next, y, k.tokens, 0, precision);
    for (r = 0; r < n_rows; r++) {
        double size = 0;

        for (i = 0; i < dim; i++)
            size += fabs((double)q[r * k.dim_pad + i])
                    * (fabs((double)kivi_f32_from_f16(kivi_minima(&k, a)[i]))
                       + 255 * (double)kivi_f32_from_f16(kivi_scales(&k, a)[i]));
        for (t = 0; t < k.tokens; t++)
            sizes[r * k.tokens + t] = size;
    }
    check_near(y, x, sizes, (size_t)n_rows * k.tokens);

    for (r = 0; r < n_rows; r++)
        for (t = 0; t < KIVI_TILE; t++)
            q[r * KIVI_TILE + t] = t >= first && t < first + count ? (float)next(in) / 255 : 0;
    memset(x, 0, (size_t)MAX_ROWS * MAX_DIM * 4);
    memset(y, 0, (size_t)MAX_ROWS * MAX_DIM * 4);
    scalar->v_accumulate(&v, q, KIVI_TILE, n_rows, c, first + count, no_next, x, precision);
    table->v_accumulate(&v, q, KIVI_TILE, n_rows, c, first + count, no_next, y, precision);
    for (r = 0; r < n_rows; r++) {
        double size = 0;

        for (i = 0; i < v.n_groups * KIVI_TILE; i++)
            size += (double)q[r * KIVI_TILE + i % KIVI_TILE]
                    * (fabs((double)kivi_f32_from_f16(kivi_minima(&v, c)[i]))
                       + 255 * (double)kivi_f32_from_f16(kivi_scales(&v, c)[i]));
        for (i = 0; i < v.dim_pad; i++)
            sizes[r * v.dim_pad + i] = size;
    }
    for (r = 0; r < n_rows; r++) /* padding is nobody's */
        check_near(y + r * v.dim_pad, x + r * v.dim_pad, sizes + r * v.dim_pad, dim);
    free(rows);
    free(a);
    free(b);
    free(c);
    free(d);
    free(q);
    free(x);
    free(y);
    free(sizes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t all_bits[] = {2, 4, 8}, groups[] = {32, 64, 128};
    struct input in = {data, size, 0};
    const uint32_t bits = all_bits[next(&in) % 3], group = groups[next(&in) % 3];
    const uint32_t dim = 8 * (1 + next(&in) % 64), n_rows = 1 + next(&in) % (MAX_ROWS - 1);
    const kivi_precision precision = next(&in) % 2 ? KIVI_PRECISE : KIVI_STANDARD;
    size_t i;

    for (i = 0; i < kivi_n_cpu_backends; i++) {
        const struct kivi_kernels *table = kivi_cpu_backends[i]->kernels;
        struct input again = in;

        if ((table->required & ~kivi_cpu_features()) == 0)
            compare(&again, table, bits, dim, group, n_rows, precision);
    }
    return 0;
}
