#include "matmul.h"

#include "team.h"

#define LANES 8u /* rows of the batch that share a read of the weights */
#define TILE 4u  /* rows of weights that share a read of the activations */

size_t lm_matmul_scratch(size_t rows, size_t n_in)
{
    return (rows + LANES - 1) / LANES * LANES * n_in;
}

/* panels[panel][i][lane]: the batch, eight rows side by side, the last panel filled up with 0. */
static void pack(const float *x, size_t rows, size_t n_in, float *panels)
{
    for (size_t first = 0; first < rows; first += LANES) {
        float *panel = panels + first * n_in;

        for (size_t i = 0; i < n_in; i++) {
            for (size_t lane = 0; lane < LANES; lane++)
                panel[i * LANES + lane] = first + lane < rows ? x[(first + lane) * n_in + i] : 0;
        }
    }
}

/* sums[n][lane] of n <= TILE rows of weights; n is a constant where this is inlined. */
static inline void multiply_tile(const float *weights, size_t n_in, const float *restrict panel,
                                 size_t n, float sums[TILE][LANES])
{
    float s[TILE][LANES] = {{0}};

    for (size_t i = 0; i < n_in; i++) {
        for (size_t t = 0; t < n; t++) {
            const float w = weights[t * n_in + i];
#pragma omp simd
            for (size_t lane = 0; lane < LANES; lane++)
                s[t][lane] += w * panel[i * LANES + lane];
        }
    }
    for (size_t t = 0; t < n; t++) {
        for (size_t lane = 0; lane < LANES; lane++)
            sums[t][lane] = s[t][lane];
    }
}

/* Outputs o .. o + n - 1 of all rows. */
static void multiply(const struct lm_matrix *m, size_t o, size_t n, const float *panels,
                     size_t rows, float *y)
{
    const float *weights = m->data + o * m->n_in;
    float sums[TILE][LANES];

    for (size_t first = 0; first < rows; first += LANES) {
        const float *panel = panels + first * m->n_in;
        const size_t lanes = rows - first < LANES ? rows - first : LANES;

        if (n == TILE)
            multiply_tile(weights, m->n_in, panel, TILE, sums);
        else
            multiply_tile(weights, m->n_in, panel, n, sums);
        for (size_t lane = 0; lane < lanes; lane++) {
            for (size_t t = 0; t < n; t++)
                y[(first + lane) * m->n_out + o + t] = sums[t][lane];
        }
    }
}

/* A batch of one: nothing to share, so the lanes go along the row. */
static float dot(const float *a, const float *b, size_t n)
{
    float sum = 0;

#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

void lm_matmul(const struct lm_matrix *matrix, const float *x, size_t rows, float *y,
               float *scratch)
{
    const size_t n_tiles = (matrix->n_out + TILE - 1) / TILE;

    if (rows > 1)
        pack(x, rows, matrix->n_in, scratch);
#pragma omp parallel for schedule(static) num_threads(lm_team(rows * matrix->n_out * matrix->n_in))
    for (size_t tile = 0; tile < n_tiles; tile++) {
        const size_t o = tile * TILE;
        const size_t n = matrix->n_out - o < TILE ? matrix->n_out - o : TILE;

        if (rows > 1) {
            multiply(matrix, o, n, scratch, rows, y);
            continue;
        }
        for (size_t t = o; t < o + n; t++)
            y[t] = dot(matrix->data + t * matrix->n_in, x, matrix->n_in);
    }
}
