#include "data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OUTLIERS 32u /* one channel of so many is one */

/* splitmix64 */
static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Box and Muller's two at a time. */
static void normal_pair(uint64_t *state, float pair[2])
{
    const uint64_t bits = next(state);
    const float u = ((float)(bits >> 40) + 1.0f) * 0x1p-24f;
    const float angle = 6.2831853f * (float)(bits & 0xffffffu) * 0x1p-24f;
    const float radius = sqrtf(-2.0f * logf(u));

    pair[0] = radius * cosf(angle);
    pair[1] = radius * sinf(angle);
}

void gaussian(float *x, size_t n, uint64_t seed)
{
    float pair[2];
    size_t i;

    for (i = 0; i < n; i++) {
        if (i % 2 == 0)
            normal_pair(&seed, pair);
        x[i] = pair[i % 2];
    }
}

/* For the numbers of this file: finite, and at most rounded to 0 below the normal range. */
static uint16_t to_f16(float x)
{
    uint32_t u;
    const float scaled = x * 0x1p-112f; /* the exponent's bias: 127 to 15 */

    memcpy(&u, &scaled, sizeof u);
    return (uint16_t)((u >> 16 & 0x8000u) | ((u & 0x7fffffffu) + 0x1000u) >> 13);
}

/* Rows [tokens][width], channel c with its own offset and magnitude. */
static void fill_rows(uint16_t *rows, uint32_t tokens, size_t width, const float *offset,
                      const float *magnitude, uint64_t seed)
{
    float pair[2];
    size_t t, c;

    for (t = 0; t < tokens; t++) {
        for (c = 0; c < width; c++) {
            if (c % 2 == 0)
                normal_pair(&seed, pair);
            rows[t * width + c] = to_f16(offset[c] + magnitude[c] * pair[c % 2]);
        }
    }
}

int chunk_make(struct chunk *chunk, uint32_t tokens, uint32_t heads, uint32_t k_dim, uint32_t v_dim,
               int gauss)
{
    const size_t k_width = (size_t)heads * k_dim, v_width = (size_t)heads * v_dim;
    const size_t width = k_width > v_width ? k_width : v_width;
    float *offset = malloc(width * sizeof *offset), *magnitude = malloc(width * sizeof *magnitude);
    uint64_t state = 1;
    size_t c;

    *chunk = (struct chunk){tokens, heads, k_dim, v_dim, NULL, NULL};
    chunk->k = malloc(tokens * k_width * sizeof *chunk->k);
    chunk->v = malloc(tokens * v_width * sizeof *chunk->v);
    if (offset && magnitude && chunk->k && chunk->v) {
        for (c = 0; c < width; c++) {
            offset[c] = 0;
            magnitude[c] = 1;
        }
        fill_rows(chunk->v, tokens, v_width, offset, magnitude, 2);
        for (c = 0; !gauss && c < k_width; c++) {
            const uint64_t bits = next(&state);

            if (bits % OUTLIERS == 0) {
                offset[c] = bits >> 63 ? 10.0f : -10.0f;
                magnitude[c] = 10;
            }
        }
        fill_rows(chunk->k, tokens, k_width, offset, magnitude, 3);
    }
    if (!offset || !magnitude || !chunk->k || !chunk->v) {
        chunk_free(chunk);
        chunk->k = NULL;
    }
    free(offset);
    free(magnitude);
    return chunk->k != NULL;
}

void chunk_free(struct chunk *chunk)
{
    free(chunk->k);
    free(chunk->v);
    chunk->k = chunk->v = NULL;
}
