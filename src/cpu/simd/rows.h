/*
 * Attention over f16 rows, for any vector length. Rows of one kv head share the converted numbers: up to
 * ROWS of them and TOKENS tokens go together. A dimension is a multiple of 8, so where LANES is 16 the
 * last half vector is padded.
 */
#ifndef KIVI_SIMD_ROWS_H
#define KIVI_SIMD_ROWS_H

#define ROWS 4
#define TOKENS 2
#define COLUMNS (16 / ROWS) /* vectors of channels that are summed together */

/* The last 8 channels where LANES is 16. */
KIVI_INLINE VF load_half_vector(const uint16_t *x)
{
    uint16_t whole[LANES > 8 ? LANES : 8] = {0};

    memcpy(whole, x, 8 * sizeof *x);
    return vf_load_half(whole);
}

KIVI_INLINE VF load_float_vector(const float *x)
{
    float whole[LANES > 8 ? LANES : 8] = {0};

    memcpy(whole, x, 8 * sizeof *x);
    return vf_load(whole);
}

/* ------------------------------------------------------------------ scores */

/* Scores of n_rows queries, at most ROWS, for n_tokens rows, at most TOKENS; both are constants. */
KIVI_INLINE void score_rows(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                            const uint16_t *rows, size_t stride, uint32_t n_tokens, float *scores,
                            size_t ld)
{
    VF sum[ROWS][TOKENS];
    uint32_t c, r, t;

    KIVI_UNROLL
    for (r = 0; r < n_rows * n_tokens; r++)
        sum[r / n_tokens][r % n_tokens] = vf_zero();
    for (c = 0; c < dim; c += LANES) {
        const int whole = LANES <= 8 || c + LANES <= dim;
        VF x[TOKENS];

        KIVI_UNROLL
        for (t = 0; t < n_tokens; t++)
            x[t] = whole ? vf_load_half(rows + t * stride + c)
                         : load_half_vector(rows + t * stride + c);
        KIVI_UNROLL
        for (r = 0; r < n_rows; r++) {
            const VF y =
                whole ? vf_load(q + r * q_stride + c) : load_float_vector(q + r * q_stride + c);

            KIVI_UNROLL
            for (t = 0; t < n_tokens; t++)
                sum[r][t] = vf_fma(x[t], y, sum[r][t]);
        }
    }
    KIVI_UNROLL
    for (r = 0; r < n_rows * n_tokens; r++)
        scores[r / n_tokens * ld + r % n_tokens] = vf_sum(sum[r / n_tokens][r % n_tokens]);
}

KIVI_INLINE void score_all_rows(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                                const uint16_t *rows, size_t stride, uint32_t n_tokens,
                                float *scores, size_t ld)
{
    uint32_t t;

    for (t = 0; t + TOKENS <= n_tokens; t += TOKENS)
        score_rows(dim, q, q_stride, n_rows, rows + t * stride, stride, TOKENS, scores + t, ld);
    for (; t < n_tokens; t++)
        score_rows(dim, q, q_stride, n_rows, rows + t * stride, stride, 1, scores + t, ld);
}

static void f16_scores(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                       const uint16_t *rows, size_t stride, uint32_t n_tokens, float *scores,
                       size_t ld)
{
    for (; n_rows >= ROWS; n_rows -= ROWS, q += ROWS * q_stride, scores += ROWS * ld)
        score_all_rows(dim, q, q_stride, ROWS, rows, stride, n_tokens, scores, ld);
    if (n_rows == 3)
        score_all_rows(dim, q, q_stride, 3, rows, stride, n_tokens, scores, ld);
    else if (n_rows == 2)
        score_all_rows(dim, q, q_stride, 2, rows, stride, n_tokens, scores, ld);
    else if (n_rows == 1)
        score_all_rows(dim, q, q_stride, 1, rows, stride, n_tokens, scores, ld);
}

/* ----------------------------------------------------------------- weighted sums */

/* Adds weighted rows to `width` vectors of channels of n_rows sums; n_rows and width are constants. */
KIVI_INLINE void add_columns(const float *p, size_t ld, uint32_t n_rows, const uint16_t *rows,
                             size_t stride, uint32_t n_tokens, float *out, size_t out_stride,
                             uint32_t width)
{
    VF sum[ROWS][4 * COLUMNS];
    uint32_t r, t, v;

    KIVI_UNROLL
    for (r = 0; r < n_rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < width; v++)
            sum[r][v] = vf_load(out + r * out_stride + v * LANES);
    }
    for (t = 0; t < n_tokens; t++, rows += stride) {
        KIVI_UNROLL
        for (v = 0; v < width; v++) {
            const VF x = vf_load_half(rows + v * LANES);

            KIVI_UNROLL
            for (r = 0; r < n_rows; r++)
                sum[r][v] = vf_fma(vf_set(p[r * ld + t]), x, sum[r][v]);
        }
    }
    KIVI_UNROLL
    for (r = 0; r < n_rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < width; v++)
            vf_store(out + r * out_stride + v * LANES, sum[r][v]);
    }
}

/* The last 8 channels where LANES is 16. */
KIVI_INLINE void add_half_column(const float *p, size_t ld, uint32_t n_rows, const uint16_t *rows,
                                 size_t stride, uint32_t n_tokens, float *out, size_t out_stride)
{
    uint32_t r, t;

    for (r = 0; r < n_rows; r++) {
        VF sum = load_float_vector(out + r * out_stride);
        float whole[LANES];

        for (t = 0; t < n_tokens; t++)
            sum = vf_fma(vf_set(p[r * ld + t]), load_half_vector(rows + t * stride), sum);
        vf_store(whole, sum);
        memcpy(out + r * out_stride, whole, 8 * sizeof *out);
    }
}

KIVI_INLINE void add_rows(uint32_t dim, const float *p, size_t ld, uint32_t n_rows,
                          const uint16_t *rows, size_t stride, uint32_t n_tokens, float *out,
                          size_t out_stride)
{
    const uint32_t wide = n_rows == 1 ? 2 * COLUMNS : COLUMNS;
    uint32_t c = 0;

    for (; c + wide * LANES <= dim; c += wide * LANES)
        add_columns(p, ld, n_rows, rows + c, stride, n_tokens, out + c, out_stride, wide);
    for (; c + LANES <= dim; c += LANES)
        add_columns(p, ld, n_rows, rows + c, stride, n_tokens, out + c, out_stride, 1);
    if (LANES > 8 && c < dim)
        add_half_column(p, ld, n_rows, rows + c, stride, n_tokens, out + c, out_stride);
}

static void f16_accumulate(uint32_t dim, const float *p, size_t ld, uint32_t n_rows,
                           const uint16_t *rows, size_t stride, uint32_t n_tokens, float *out,
                           size_t out_stride)
{
    for (; n_rows >= ROWS; n_rows -= ROWS, p += ROWS * ld, out += ROWS * out_stride)
        add_rows(dim, p, ld, ROWS, rows, stride, n_tokens, out, out_stride);
    if (n_rows == 3)
        add_rows(dim, p, ld, 3, rows, stride, n_tokens, out, out_stride);
    else if (n_rows == 2)
        add_rows(dim, p, ld, 2, rows, stride, n_tokens, out, out_stride);
    else if (n_rows == 1)
        add_rows(dim, p, ld, 1, rows, stride, n_tokens, out, out_stride);
}

#endif
