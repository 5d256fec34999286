#include "naive.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static void set_windows(struct naive *n, const kivi_config *config)
{
    const uint64_t residual = config->residual_length, rollback = config->rollback;
    const uint64_t group = config->group_size;

    n->k_window = (residual + rollback + group - 1) / group * group;
    n->v_window = 2 * residual + rollback;
}

/* Rows older than the windows are gone. */
static void forget(struct naive *n)
{
    const uint64_t length = n->oracle.contents.n;

    n->k_low = max_u64(n->k_low, length > n->k_window ? length - n->k_window : 0);
    n->v_low = max_u64(n->v_low, length > n->v_window ? length - n->v_window : 0);
}

void naive_init(struct naive *n, const kivi_config *config, uint32_t layer)
{
    memset(n, 0, sizeof *n);
    oracle_init(&n->oracle, config, layer);
    set_windows(n, config);
}

void naive_free(struct naive *n)
{
    oracle_free(&n->oracle);
}

static void *duplicate(const void *array, uint64_t n, size_t size)
{
    void *copy;

    if (!array)
        return NULL;
    copy = malloc((size_t)n * size + 1);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, array, (size_t)n * size);
    return copy;
}

void naive_copy(struct naive *to, const struct naive *from)
{
    const struct oracle *o = &from->oracle;
    const struct contents *c = &o->contents;
    const uint64_t k = c->room * c->heads * c->k_dim, v = c->room * c->heads * c->v_dim;
    const uint64_t groups = c->room * c->heads * c->v_groups;

    *to = *from;
    to->oracle.contents.k_code = duplicate(c->k_code, k, 1);
    to->oracle.contents.v_code = duplicate(c->v_code, v, 1);
    to->oracle.contents.k_row = duplicate(c->k_row, k, 2);
    to->oracle.contents.v_row = duplicate(c->v_row, v, 2);
    to->oracle.contents.k_scale = duplicate(c->k_scale, k / c->group_size, 2);
    to->oracle.contents.k_min = duplicate(c->k_min, k / c->group_size, 2);
    to->oracle.contents.v_scale = duplicate(c->v_scale, groups, 2);
    to->oracle.contents.v_min = duplicate(c->v_min, groups, 2);
    to->oracle.k = duplicate(o->k, k, sizeof(double));
    to->oracle.v = duplicate(o->v, v, sizeof(double));
    to->oracle.exact_k = duplicate(o->exact_k, k, sizeof(double));
    to->oracle.exact_v = duplicate(o->exact_v, v, sizeof(double));
}

void naive_flush(struct naive *n)
{
    oracle_flush(&n->oracle);
    forget(n);
}

/* From f32 to f16 within its range. */
static uint16_t to_row(double x)
{
    return number_to_f16(fmax(fmin((float)x, 65504), -65504));
}

/* Tokens [begin, end) come back to the window: from their f16 rows if they are at or above `low`, else
 * dequantized to f32 and rounded to f16. */
static void restore(double *held, uint16_t *row, uint64_t begin, uint64_t end, uint64_t low,
                    uint64_t width)
{
    uint64_t t, i;

    for (t = begin; t < end; t++) {
        for (i = t * width; i < (t + 1) * width; i++) {
            if (t < low)
                row[i] = to_row(held[i]);
            held[i] = number_from_f16(row[i]);
        }
    }
}

void naive_truncate(struct naive *n, uint64_t n_tokens)
{
    struct oracle *o = &n->oracle;
    struct contents *c = &o->contents;
    const uint64_t k_end = min_u64(c->k_packed, n_tokens), v_end = min_u64(c->v_packed, n_tokens);

    if (c->n <= n_tokens)
        return;
    c->n = n_tokens;
    if (o->k_base > n_tokens)
        o->k_base = 0;
    c->k_packed = o->k_base + (n_tokens - o->k_base) / o->residual_length * o->residual_length;
    c->v_packed = n_tokens > o->residual_length ? n_tokens - o->residual_length : 0;
    restore(o->k, c->k_row, c->k_packed, k_end, n->k_low, (uint64_t)c->heads * c->k_dim);
    restore(o->v, c->v_row, c->v_packed, v_end, n->v_low, (uint64_t)c->heads * c->v_dim);
    n->k_low = min_u64(n->k_low, c->k_packed);
    n->v_low = min_u64(n->v_low, c->v_packed);
}

void naive_turn(float *row, const kivi_rope *rope, double distance)
{
    const uint32_t half = rope->n_rot / 2;
    uint32_t i;

    for (i = 0; i < half; i++) {
        const double angle = distance * (double)rope->frequencies[i];
        const float cosine = (float)cos(angle), sine = (float)sin(angle);
        float *a = row + (rope->interleaved ? 2 * i : i);
        float *b = rope->interleaved ? a + 1 : a + half;
        const float x = *a, y = *b;

        *a = x * cosine - y * sine;
        *b = x * sine + y * cosine;
    }
}

/* One row in double, and in f16 again. */
static void turn_row(const struct naive *n, double *row, const kivi_rope *rope, double distance)
{
    const uint32_t dim = n->oracle.contents.k_dim;
    float narrow[512];
    uint32_t i;

    for (i = 0; i < dim; i++)
        narrow[i] = (float)row[i];
    naive_turn(narrow, rope, distance);
    for (i = 0; i < dim; i++)
        row[i] = number_from_f16(to_row(narrow[i]));
}

/* Quantizes the keys of tokens [begin, end) again. */
static void repack(struct oracle *o, uint64_t begin, uint64_t end)
{
    struct contents *c = &o->contents;
    const uint64_t n = c->n, k_packed = c->k_packed, k_base = o->k_base;

    c->n = end;
    c->k_packed = begin;
    o->k_base = end % o->residual_length;
    oracle_flush(o);
    c->n = n;
    c->k_packed = k_packed;
    o->k_base = k_base;
}

/* Tokens [begin, end). Packed keys are dequantized, turned, rounded to f16 and quantized again; f16
 * rows are turned. */
static void turn_all(struct naive *n, uint64_t begin, uint64_t end, const kivi_rope *rope,
                     double distance)
{
    struct oracle *o = &n->oracle;
    struct contents *c = &o->contents;
    uint64_t row;
    uint32_t i;

    for (row = begin * c->heads; row < end * c->heads; row++) {
        double kept[512];

        for (i = 0; i < c->k_dim; i++)
            kept[i] = number_from_f16(c->k_row[row * c->k_dim + i]);
        turn_row(n, kept, rope, distance);
        for (i = 0; i < c->k_dim; i++)
            c->k_row[row * c->k_dim + i] = number_to_f16(kept[i]);
        turn_row(n, o->k + row * c->k_dim, rope, distance);
        turn_row(n, o->exact_k + row * c->k_dim, rope, distance);
    }
    repack(o, begin, min_u64(end, c->k_packed));
}

int naive_may_drop(const struct naive *n, uint64_t begin, uint64_t end)
{
    const struct contents *c = &n->oracle.contents;

    return begin <= end && begin % c->group_size == 0 && end % c->group_size == 0
           && begin >= c->n_sink && (begin == end || (end <= c->k_packed && end <= c->v_packed));
}

/* Rows [begin, end) of n rows leave the array. */
static void cut(void *array, uint64_t begin, uint64_t end, uint64_t n, size_t row_bytes)
{
    char *at = array;

    memmove(at + begin * row_bytes, at + end * row_bytes, (size_t)(n - end) * row_bytes);
}

void naive_drop(struct naive *n, uint64_t begin, uint64_t end, const kivi_rope *rope)
{
    struct oracle *o = &n->oracle;
    struct contents *c = &o->contents;
    const size_t k = (size_t)c->heads * c->k_dim, v = (size_t)c->heads * c->v_dim;
    const size_t groups = (size_t)c->heads * c->v_groups;
    const uint64_t size = c->group_size, packed = c->k_packed / size, dropped = end - begin;

    if (begin == end)
        return;
    cut(c->k_code, begin, end, c->n, k);
    cut(c->v_code, begin, end, c->n, v);
    cut(c->k_row, begin, end, c->n, k * 2);
    cut(c->v_row, begin, end, c->n, v * 2);
    cut(c->k_scale, begin / size, end / size, packed, k * 2);
    cut(c->k_min, begin / size, end / size, packed, k * 2);
    cut(c->v_scale, begin, end, c->n, groups * 2);
    cut(c->v_min, begin, end, c->n, groups * 2);
    cut(o->k, begin, end, c->n, k * sizeof *o->k);
    cut(o->v, begin, end, c->n, v * sizeof *o->v);
    cut(o->exact_k, begin, end, c->n, k * sizeof *o->k);
    cut(o->exact_v, begin, end, c->n, v * sizeof *o->v);
    c->n -= dropped;
    c->k_packed -= dropped;
    c->v_packed -= dropped;
    o->k_base = c->k_packed % o->residual_length;
    n->k_low = max_u64(n->k_low, end) - dropped;
    n->v_low = max_u64(n->v_low, end) - dropped;
    if (rope && rope->turn_first)
        turn_all(n, 0, begin, rope, (double)dropped);
    else if (rope)
        turn_all(n, begin, c->n, rope, -(double)dropped);
}

void naive_move(struct naive *n, const kivi_config *config)
{
    set_windows(n, config);
    forget(n);
}

void naive_check(const struct naive *n, const kivi_config *config, const kivi_cache *cache,
                 kivi_seq seq, uint32_t layer, const char *what)
{
    struct contents held;

    contents_read(&held, config, cache, seq, layer);
    contents_check_equal(&held, &n->oracle.contents, what);
    contents_free(&held);
}
