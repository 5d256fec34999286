/*
 * Attention over f16 rows, for any vector length. Query rows of one kv head share the converted numbers, up
 * to ROWS of them. A dimension is a multiple of 8, so where LANES is 16 the last half vector is padded.
 */
#ifndef KIVI_SIMD_ROWS_H
#define KIVI_SIMD_ROWS_H

#define ROWS 4
#define SHARE_OF_SUMS(n_rows) (FLOAT_SUMS / ((n_rows) == 3 ? 4 : (n_rows)))

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

/*
 * Loads that go from row to row, as those below do, are no pattern that a CPU follows. So every line is asked
 * for some KB before it is read, in the order of memory or, as in ahead.h, of several streams. That comes to a stop
 * at each page whose address is not yet translated, for as long as many lines take: where it helps, pages are touched
 * PAGES_AHEAD bytes before. Some CPUs then no longer see a stream.
 */
#define PAGE 4096u
#define LINES_AHEAD 8192u

/* What is read meanwhile: rows up to `end`, then `next`, if it is known. Asked for in `streams` streams,
 * a constant. */
struct reading {
    const void *end, *next;
    uint32_t streams;
};

KIVI_INLINE struct reading reading_rows(const uint16_t *rows, size_t elements,
                                        struct kivi_next next, uint32_t streams)
{
    return (struct reading){rows + elements, next.data, streams};
}

/* What is read some bytes after `at`. */
KIVI_INLINE const char *after(const void *at, size_t bytes, struct reading r)
{
    const uintptr_t later = (uintptr_t)at + bytes;

    if (later < (uintptr_t)r.end)
        return (const char *)later;
    return r.next ? (const char *)((uintptr_t)r.next + (later - (uintptr_t)r.end)) : at;
}

/* What is asked for while `at` is read. */
KIVI_INLINE const char *lines_after(const void *at, struct reading r)
{
    return after(at, r.streams > 1 ? r.streams * PAGE : LINES_AHEAD, r);
}

/* Whether they are asked for in ROW_STREAMS streams, each a page long: of rows that fill such pages. */
KIVI_INLINE int in_streams(const uint16_t *rows, size_t elements, struct kivi_next next)
{
    const uintptr_t pages = ROW_STREAMS * PAGE;

    return ROW_STREAMS > 1 && next.data && !next.is_amd && (uintptr_t)rows % pages == 0
           && elements * sizeof *rows % pages == 0;
}

/* Asks for a line: that at `at`, or in streams the one whose turn it is then. */
KIVI_INLINE void ask_row(const char *at, uint32_t n_rows, uint32_t streams)
{
    const uintptr_t line = (uintptr_t)at, in_pages = line % (streams * PAGE),
                    turn = in_pages / KIVI_LINE;

    if (streams > 1)
        kivi_prefetch(
            (const void *)(line - in_pages + turn % streams * PAGE + turn / streams * KIVI_LINE));
    else
        ask_line(line, n_rows);
}

/* For the bytes that are at work. */
KIVI_INLINE void touch_page(const void *at, size_t bytes, struct reading r)
{
    if (PAGES_AHEAD > 0 && (uintptr_t)at % PAGE < bytes)
        kivi_prefetch(after(at, PAGES_AHEAD, r));
}

/* ------------------------------------------------------------------ scores */

/* Adds the products of one vector of channels, the last 8 if `half`, to n_rows times n_tokens sums; all three
 * are constants. */
KIVI_INLINE void add_products(const float *q, size_t q_stride, uint32_t n_rows,
                              const uint16_t *rows, size_t stride, uint32_t n_tokens, int half,
                              VF *sum)
{
    VF y[ROWS];
    uint32_t r, t;

    KIVI_UNROLL
    for (r = 0; r < n_rows; r++)
        y[r] = half ? load_float_vector(q + r * q_stride) : vf_load(q + r * q_stride);
    KIVI_UNROLL
    for (t = 0; t < n_tokens; t++) {
        const VF x = half ? load_half_vector(rows + t * stride) : vf_load_half(rows + t * stride);

        KIVI_UNROLL
        for (r = 0; r < n_rows; r++)
            sum[r * n_tokens + t] = vf_fma(x, y[r], sum[r * n_tokens + t]);
    }
}

/* n_rows times n_tokens scores, at most FLOAT_SUMS; both are constants. `ahead`: what to ask for meanwhile. */
KIVI_INLINE void score_tile(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                            const uint16_t *rows, size_t stride, uint32_t n_tokens,
                            const char *ahead, uint32_t streams, float *scores, size_t ld)
{
    VF sum[FLOAT_SUMS];
    float all[FLOAT_SUMS];
    uint32_t c, r, i;

    KIVI_UNROLL
    for (i = 0; i < FLOAT_SUMS; i++)
        sum[i] = vf_zero();
    for (c = 0; c + LANES <= dim; c += LANES) {
        if (2 * c % KIVI_LINE == 0) {
            KIVI_UNROLL
            for (i = 0; i < n_tokens; i++)
                ask_row(ahead + (size_t)n_tokens * 2 * c + i * KIVI_LINE, n_rows, streams);
        }
        add_products(q + c, q_stride, n_rows, rows + c, stride, n_tokens, 0, sum);
    }
    if (LANES > 8 && c < dim)
        add_products(q + c, q_stride, n_rows, rows + c, stride, n_tokens, 1, sum);
    KIVI_UNROLL
    for (i = 0; i < n_rows * n_tokens; i += LANES)
        vf_store(all + i, vf_sums(sum + i));
    KIVI_UNROLL
    for (r = 0; r < n_rows; r++)
        memcpy(scores + r * ld, all + r * n_tokens, n_tokens * sizeof *scores);
}

/* All tokens; n_rows is a constant. */
KIVI_INLINE void score_rows(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                            const uint16_t *rows, size_t stride, uint32_t n_tokens,
                            struct reading reading, float *scores, size_t ld)
{
    const uint32_t step = SHARE_OF_SUMS(n_rows);
    uint32_t t;

    for (t = 0; t + step <= n_tokens; t += step, rows += step * stride) {
        touch_page(rows, 2 * step * stride, reading);
        score_tile(dim, q, q_stride, n_rows, rows, stride, step, lines_after(rows, reading),
                   reading.streams, scores + t, ld);
    }
    for (; t < n_tokens; t++, rows += stride)
        score_tile(dim, q, q_stride, n_rows, rows, stride, 1, lines_after(rows, reading),
                   reading.streams, scores + t, ld);
}

/* All rows of queries. */
KIVI_INLINE void score_all(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                           const uint16_t *rows, size_t stride, uint32_t n_tokens,
                           struct reading reading, float *scores, size_t ld)
{
    for (; n_rows >= ROWS; n_rows -= ROWS, q += ROWS * q_stride, scores += ROWS * ld)
        score_rows(dim, q, q_stride, ROWS, rows, stride, n_tokens, reading, scores, ld);
    if (n_rows == 3)
        score_rows(dim, q, q_stride, 3, rows, stride, n_tokens, reading, scores, ld);
    else if (n_rows == 2)
        score_rows(dim, q, q_stride, 2, rows, stride, n_tokens, reading, scores, ld);
    else if (n_rows == 1)
        score_rows(dim, q, q_stride, 1, rows, stride, n_tokens, reading, scores, ld);
}

static void f16_scores(uint32_t dim, const float *q, size_t q_stride, uint32_t n_rows,
                       const uint16_t *rows, size_t stride, uint32_t n_tokens,
                       struct kivi_next next, float *scores, size_t ld)
{
    if (in_streams(rows, n_tokens * stride, next))
        score_all(dim, q, q_stride, n_rows, rows, stride, n_tokens,
                  reading_rows(rows, n_tokens * stride, next, ROW_STREAMS), scores, ld);
    else
        score_all(dim, q, q_stride, n_rows, rows, stride, n_tokens,
                  reading_rows(rows, n_tokens * stride, next, 1), scores, ld);
}

/* ----------------------------------------------------------------- weighted sums */

KIVI_INLINE void add_to(float *out, VF sum)
{
    vf_store(out, vf_add(vf_load(out), sum));
}

/* Summed in all columns before the next ones are, so that memory is read nearly in its order. */
#define TOKENS_OF_COLUMNS 16u

/* Adds weighted rows, summed up from nothing, to `width` vectors of channels of n_rows sums; n_rows and width are
 * constants. Asks for as much as it reads, as if it read memory in order, from `*at` on. */
KIVI_INLINE void add_columns(const float *p, size_t ld, uint32_t n_rows, const uint16_t *rows,
                             size_t stride, uint32_t n_tokens, const uint16_t **at,
                             struct reading reading, float *out, size_t out_stride, uint32_t width)
{
    VF sum[FLOAT_SUMS];
    uint32_t r, t, v;

    KIVI_UNROLL
    for (r = 0; r < n_rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < width; v++)
            sum[r * width + v] = vf_zero();
    }
    for (t = 0; t < n_tokens; t++, rows += stride) {
        const char *ahead = lines_after(*at, reading);

        touch_page(*at, 2 * width * LANES, reading);
        *at += width * LANES;
        KIVI_UNROLL
        for (v = 0; v < width; v++) {
            const VF x = vf_load_half(rows + v * LANES);

            if (2 * v * LANES % KIVI_LINE == 0)
                ask_row(ahead + 2 * v * LANES, n_rows, reading.streams);
            KIVI_UNROLL
            for (r = 0; r < n_rows; r++)
                sum[r * width + v] = vf_fma(vf_set(p[r * ld + t]), x, sum[r * width + v]);
        }
    }
    KIVI_UNROLL
    for (r = 0; r < n_rows; r++) {
        KIVI_UNROLL
        for (v = 0; v < width; v++)
            add_to(out + r * out_stride + v * LANES, sum[r * width + v]);
    }
}

/* The last 8 channels where LANES is 16. */
KIVI_INLINE void add_half_column(const float *p, size_t ld, uint32_t n_rows, const uint16_t *rows,
                                 size_t stride, uint32_t n_tokens, float *out, size_t out_stride)
{
    uint32_t r, t;

    for (r = 0; r < n_rows; r++) {
        VF sum = vf_zero();
        float whole[LANES];

        for (t = 0; t < n_tokens; t++)
            sum = vf_fma(vf_set(p[r * ld + t]), load_half_vector(rows + t * stride), sum);
        vf_store(whole, vf_add(sum, load_float_vector(out + r * out_stride)));
        memcpy(out + r * out_stride, whole, 8 * sizeof *out);
    }
}

KIVI_INLINE void add_rows(uint32_t dim, const float *p, size_t ld, uint32_t n_rows,
                          const uint16_t *rows, size_t stride, uint32_t n_tokens,
                          struct reading reading, float *out, size_t out_stride)
{
    const uint32_t most = SHARE_OF_SUMS(n_rows) < 8 ? SHARE_OF_SUMS(n_rows) : 8;
    const uint32_t at_once = most * LANES >= dim ? n_tokens : TOKENS_OF_COLUMNS;
    const uint16_t *at = rows;
    uint32_t c, n;

    for (; n_tokens > 0; n_tokens -= n, p += n, rows += n * stride) {
        n = n_tokens < at_once ? n_tokens : at_once;
        c = 0;

#define ADD_COLUMNS(width)                                                                         \
    for (; (width) <= most && c + (width)*LANES <= dim; c += (width)*LANES)                        \
    add_columns(p, ld, n_rows, rows + c, stride, n, &at, reading, out + c, out_stride, width)

        ADD_COLUMNS(8);
        ADD_COLUMNS(4);
        ADD_COLUMNS(2);
        ADD_COLUMNS(1);
#undef ADD_COLUMNS
        if (LANES > 8 && c < dim)
            add_half_column(p, ld, n_rows, rows + c, stride, n, out + c, out_stride);
    }
}

/* All rows of weights. */
KIVI_INLINE void add_all(uint32_t dim, const float *p, size_t ld, uint32_t n_rows,
                         const uint16_t *rows, size_t stride, uint32_t n_tokens,
                         struct reading reading, float *out, size_t out_stride)
{
    for (; n_rows >= ROWS; n_rows -= ROWS, p += ROWS * ld, out += ROWS * out_stride)
        add_rows(dim, p, ld, ROWS, rows, stride, n_tokens, reading, out, out_stride);
    if (n_rows == 3)
        add_rows(dim, p, ld, 3, rows, stride, n_tokens, reading, out, out_stride);
    else if (n_rows == 2)
        add_rows(dim, p, ld, 2, rows, stride, n_tokens, reading, out, out_stride);
    else if (n_rows == 1)
        add_rows(dim, p, ld, 1, rows, stride, n_tokens, reading, out, out_stride);
}

static void f16_accumulate(uint32_t dim, const float *p, size_t ld, uint32_t n_rows,
                           const uint16_t *rows, size_t stride, uint32_t n_tokens,
                           struct kivi_next next, float *out, size_t out_stride)
{
    if (in_streams(rows, n_tokens * stride, next))
        add_all(dim, p, ld, n_rows, rows, stride, n_tokens,
                reading_rows(rows, n_tokens * stride, next, ROW_STREAMS), out, out_stride);
    else
        add_all(dim, p, ld, n_rows, rows, stride, n_tokens,
                reading_rows(rows, n_tokens * stride, next, 1), out, out_stride);
}

#endif
