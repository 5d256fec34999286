/* Truncation: what is exact, how far off the rest is, and what it costs. docs/sequences.md makes the
 * promises. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/buffer.h"
#include "support/numbers.h"
#include "support/random.h"
#include "support/session.h"
#include "support/suite.h"

static void open_default(struct session *s, int backend)
{
    kivi_config config;

    session_config(&config);
    session_open(s, &config, backend_name(backend));
}

/* a, cut to n_cut, is what it would be had it never been longer; and stays so. */
static void check_exact(struct session *s, uint64_t n, uint64_t n_cut, const char *what)
{
    const kivi_seq a = session_new(s), b = session_new(s);

    session_append(s, a, 1, n);
    session_append(s, b, 1, n_cut);
    ck_assert_int_eq(kivi_seq_truncate(s->cache, a, n_cut, NULL), KIVI_OK);
    session_check_same(s, a, s, b, what);
    session_append(s, a, 2, 101);
    session_append(s, b, 2, 101);
    session_check_same(s, a, s, b, what);
    ck_assert_int_eq(kivi_seq_destroy(s->cache, a, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_destroy(s->cache, b, NULL), KIVI_OK);
}

START_TEST(truncation_inside_the_residual_is_exact)
{
    struct session s;
    char what[64];
    uint64_t n, cut, residual;

    open_default(&s, _i);
    residual = s.config.residual_length;
    for (n = 0; n < 3 * residual; n += 19) {
        for (cut = n / residual * residual; cut <= n; cut += 11) {
            snprintf(what, sizeof what, "from %llu to %llu tokens", (unsigned long long)n,
                     (unsigned long long)cut);
            check_exact(&s, n, cut, what);
        }
        check_exact(&s, n, 0, "to nothing");
    }
    session_close(&s);
}
END_TEST

START_TEST(rollback_is_exact_at_any_moment)
{
    static const uint32_t rollbacks[] = {1, 7, 32, 100};
    struct session s;
    kivi_config config;
    char what[64];
    uint64_t n;
    size_t i;

    session_config(&config);
    for (i = 0; i < sizeof rollbacks / sizeof *rollbacks; i++) {
        config.rollback = rollbacks[i];
        config.n_sink = i == 2 ? 5 : 0;
        session_open(&s, &config, backend_name(_i));
        for (n = rollbacks[i]; n < 300; n += 23) {
            snprintf(what, sizeof what, "rollback of %u from %llu tokens", rollbacks[i],
                     (unsigned long long)n);
            check_exact(&s, n, n - rollbacks[i], what);
        }
        session_close(&s);
    }
}
END_TEST

/* What was taken back by `rollback` tokens is cut again, where the keys' residual begins. */
START_TEST(rollback_and_then_a_cut_inside_the_residual)
{
    static const uint32_t rollbacks[] = {0, 1, 8, 32, 100};
    struct session s;
    kivi_config config;
    uint64_t n, back, cut, residual;
    size_t i;

    session_config(&config);
    residual = config.residual_length;
    for (i = 0; i < sizeof rollbacks / sizeof *rollbacks; i++) {
        config.rollback = rollbacks[i];
        session_open(&s, &config, backend_name(_i));
        for (n = 2 * residual + rollbacks[i] - 1; n < 5 * residual; n += 3 + n % 8) {
            const kivi_seq a = session_new(&s), b = session_new(&s);

            back = n - rollbacks[i];
            cut = back / residual * residual;
            session_append(&s, a, 1, n);
            ck_assert_int_eq(kivi_seq_truncate(s.cache, a, back, NULL), KIVI_OK);
            ck_assert_int_eq(kivi_seq_truncate(s.cache, a, cut, NULL), KIVI_OK);
            session_append(&s, b, 1, cut);
            session_check_same(&s, a, &s, b, "cut twice");
            ck_assert_int_eq(kivi_seq_destroy(s.cache, a, NULL), KIVI_OK);
            ck_assert_int_eq(kivi_seq_destroy(s.cache, b, NULL), KIVI_OK);
        }
        session_close(&s);
    }
}
END_TEST

/* Speculative decoding: eight tokens are guessed, some are taken back, for ever. */
START_TEST(speculation_never_loses_precision)
{
    struct session s;
    kivi_config config;
    struct rng rng = {5};
    kivi_seq a, b;
    uint64_t n = 0;

    session_config(&config);
    config.rollback = 8;
    session_open(&s, &config, backend_name(_i));
    a = session_new(&s);
    b = session_new(&s);
    while (n < 600) {
        const uint64_t kept = rng_below(&rng, 9);

        session_append(&s, a, 1, 8);
        n += kept;
        ck_assert_int_eq(kivi_seq_truncate(s.cache, a, n, NULL), KIVI_OK);
        session_append(&s, b, 1, kept);
    }
    session_check_same(&s, a, &s, b, "after speculation");
    session_close(&s);
}
END_TEST

/*
 * The promise of kivi.h, at random: a sequence that was cut exactly is, and stays, what it would be
 * without the tokens that went. What is exact is counted from when the sequence was created, cut further
 * back or dropped from; `start` is a fork of that time, which grows by what is left since.
 */
#define MAX_TOKENS 700

struct history {
    kivi_seq seq, start;
    uint64_t first;    /* length then */
    uint64_t greatest; /* length since */
    uint64_t base;     /* the keys' residual begins at this number of tokens, modulo its length */
    uint64_t streams[MAX_TOKENS]; /* of the tokens since */
};

static void count_anew(struct session *s, struct history *h)
{
    if (h->start)
        ck_assert_int_eq(kivi_seq_destroy(s->cache, h->start, NULL), KIVI_OK);
    h->start = session_fork(s, h->seq);
    h->first = h->greatest = session_length(s, h->seq);
}

static void check_history(struct session *s, const struct history *h, const char *what)
{
    const uint64_t n = session_length(s, h->seq);
    kivi_seq expected = session_fork(s, h->start), later = session_fork(s, h->seq);
    uint64_t t, end;

    for (t = h->first; t < n; t = end) {
        for (end = t + 1; end < n && h->streams[end] == h->streams[t]; end++)
            ;
        session_append(s, expected, h->streams[t], end - t);
    }
    session_check_same(s, h->seq, s, expected, what);
    session_append(s, expected, 1, 2 * s->config.residual_length);
    session_append(s, later, 1, 2 * s->config.residual_length);
    session_check_same(s, later, s, expected, what);
    ck_assert_int_eq(kivi_seq_destroy(s->cache, expected, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_destroy(s->cache, later, NULL), KIVI_OK);
}

static void grow_history(struct session *s, struct history *h, uint64_t stream, uint64_t n)
{
    uint64_t t = session_length(s, h->seq);

    n = n < MAX_TOKENS - t ? n : MAX_TOKENS - t;
    session_append(s, h->seq, stream, n);
    for (n += t; t < n; t++)
        h->streams[t] = stream;
    h->greatest = n > h->greatest ? n : h->greatest;
}

/* Where the keys' residual of n tokens begins. */
static uint64_t residual_begin(const struct session *s, const struct history *h, uint64_t n)
{
    const uint64_t residual = s->config.residual_length;

    return n < h->base ? 0 : h->base + (n - h->base) / residual * residual;
}

static void cut_history(struct session *s, struct history *h, uint64_t n)
{
    const uint64_t from = session_length(s, h->seq);
    const int exact =
        n >= h->first && (n + s->config.rollback >= h->greatest || n >= residual_begin(s, h, from));
    uint64_t exact_from;
    char what[96];

    snprintf(what, sizeof what, "rollback %u: %llu tokens, %llu, cut to %llu", s->config.rollback,
             (unsigned long long)h->greatest, (unsigned long long)from, (unsigned long long)n);
    ck_assert_int_eq(kivi_seq_exact_from(s->cache, h->seq, &exact_from, NULL), KIVI_OK);
    ck_assert_msg(!exact || n >= exact_from, "%s: from %llu", what, (unsigned long long)exact_from);
    ck_assert_int_eq(kivi_seq_truncate(s->cache, h->seq, n, NULL), KIVI_OK);
    if (n >= exact_from && n >= h->first) /* which may be further back than is promised */
        check_history(s, h, what);
    if (exact)
        return;
    h->base = h->base > n ? 0 : h->base;
    count_anew(s, h);
}

static void drop_from_history(struct session *s, struct history *h, struct rng *rng)
{
    const uint32_t group = s->config.group_size, residual = s->config.residual_length;
    const uint64_t n = session_length(s, h->seq);
    const uint64_t begin = (s->config.n_sink + group - 1) / group * group;
    uint64_t end = begin + group * rng_between(rng, 1, 3);

    if (end + residual > n)
        return;
    ck_assert_int_eq(kivi_seq_drop(s->cache, h->seq, begin, end, NULL, NULL), KIVI_OK);
    h->base = (residual_begin(s, h, n) - (end - begin)) % residual;
    count_anew(s, h);
}

/* The same sequence by another handle: a fork, or saved and loaded. */
static void move_history(struct session *s, struct history *h, int is_fork)
{
    kivi_seq moved;

    if (is_fork) {
        moved = session_fork(s, h->seq);
    } else {
        struct buffer file;

        buffer_init(&file);
        ck_assert_int_eq(kivi_seq_save(s->cache, h->seq, buffer_write, &file, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_load(s->cache, buffer_read, &file, &moved, NULL), KIVI_OK);
        buffer_free(&file);
    }
    ck_assert_int_eq(kivi_seq_destroy(s->cache, h->seq, NULL), KIVI_OK);
    h->seq = moved;
}

static void live_at_random(struct session *s, struct rng *rng, int steps)
{
    struct history h = {.seq = session_new(s)};

    count_anew(s, &h);
    while (steps-- > 0) {
        const uint64_t n = session_length(s, h.seq), residual = s->config.residual_length;
        const uint64_t begin = residual_begin(s, &h, n), rollback = s->config.rollback;

        switch (rng_below(rng, 10)) {
        case 0:
            grow_history(s, &h, (uint64_t)steps, rng_below(rng, 3 * residual));
            break;
        case 1:
        case 2:
            cut_history(s, &h, rng_between(rng, begin, n));
            break;
        case 3: /* as far as it goes */
            cut_history(s, &h, h.greatest < rollback ? 0 : h.greatest - rollback);
            cut_history(s, &h, residual_begin(s, &h, session_length(s, h.seq)));
            break;
        case 4:
            cut_history(s, &h, n < rollback ? 0 : n - rng_below(rng, rollback + 1));
            break;
        case 5:
            if (rng_one_in(rng, 4))
                cut_history(s, &h, rng_below(rng, n + 1));
            break;
        case 6:
            if (rng_one_in(rng, 4))
                drop_from_history(s, &h, rng);
            break;
        case 7:
            move_history(s, &h, rng_one_in(rng, 2));
            break;
        default:
            grow_history(s, &h, (uint64_t)steps, rng_below(rng, 16));
        }
    }
}

START_TEST(exact_is_as_if_the_tokens_had_never_come)
{
    static const uint32_t rollbacks[] = {0, 1, 8, 64, 100}, sinks[] = {0, 5, 40};
    struct rng rng = {test_seed(0xe8ac7) + (uint64_t)_i};
    int i;

    for (i = test_rounds(8, 100); i > 0; i--) {
        struct session s;
        kivi_config config;

        session_config(&config);
        config.rollback = RNG_PICK(&rng, rollbacks);
        config.n_sink = RNG_PICK(&rng, sinks);
        session_open(&s, &config, backend_name(_i));
        live_at_random(&s, &rng, 100);
        session_close(&s);
    }
}
END_TEST

/* How far the keys and values that a sequence holds are from those appended, in units of the scale
 * that their group had: the largest, and the root of the mean square. */
struct drift {
    double worst, square;
    uint64_t n;
};

static void add_drift(struct drift *d, double error, double scale)
{
    if (scale > 0) {
        d->worst = fmax(d->worst, error / scale);
        d->square += error * error / (scale * scale);
        d->n++;
    }
}

static double key_of(const struct contents *c, uint64_t at, uint64_t group, uint64_t t)
{
    if (contents_k_is_full(c, t))
        return number_from_f16(c->k_row[at]);
    return c->k_code[at] * number_from_f16(c->k_scale[group]) + number_from_f16(c->k_min[group]);
}

/* Compares keys of the first `end` tokens of layer 0 with the stream; `before`, in which they were
 * packed, has the scales. */
static struct drift key_drift(const struct session *s, kivi_seq seq, const struct contents *before,
                              uint64_t end)
{
    struct drift drift = {0, 0, 0};
    struct contents held;
    float *rows;
    uint64_t t;
    uint32_t h, i;

    contents_read(&held, &s->config, s->cache, seq, 0);
    rows = session_rows(s, ROLE_K, 1, 0, held.n);
    for (t = 0; t < end; t++) {
        for (h = 0; h < held.heads; h++) {
            for (i = 0; i < held.k_dim; i++) {
                const uint64_t at = (t * held.heads + h) * held.k_dim + i;
                const uint64_t group = (t / held.group_size * held.heads + h) * held.k_dim + i;

                add_drift(&drift, fabs(key_of(&held, at, group, t) - number_round_f16(rows[at])),
                          number_from_f16(before->k_scale[group]));
            }
        }
    }
    free(rows);
    contents_free(&held);
    return drift;
}

/* Tokens that return to full precision are within half a scale of what was appended. */
START_TEST(truncation_further_back_is_bounded)
{
    struct session s;
    uint64_t cut;

    open_default(&s, _i);
    for (cut = 5; cut < 256; cut += 17) {
        const kivi_seq seq = session_new(&s);
        struct contents before;
        struct drift drift;

        session_append(&s, seq, 1, 300);
        contents_read(&before, &s.config, s.cache, seq, 0);
        ck_assert_int_eq(kivi_seq_truncate(s.cache, seq, cut, NULL), KIVI_OK);
        ck_assert_uint_eq(session_length(&s, seq), cut);
        drift = key_drift(&s, seq, &before, cut);
        ck_assert_msg(drift.worst <= 0.51, "cut at %llu: off by %g scales", (unsigned long long)cut,
                      drift.worst);
        contents_free(&before);
        ck_assert_int_eq(kivi_seq_destroy(s.cache, seq, NULL), KIVI_OK);
    }
    session_close(&s);
}
END_TEST

/* The same cut again and again: grown back with the tokens that were there, or with others. */
static void cut_repeatedly(int with_others, double bound)
{
    struct session s;
    struct contents before;
    struct drift drift;
    kivi_seq seq;
    uint64_t round;

    open_default(&s, 0);
    seq = session_new(&s);
    session_append(&s, seq, 1, 150);
    session_append(&s, seq, 1, 150);
    contents_read(&before, &s.config, s.cache, seq, 0);
    drift = key_drift(&s, seq, &before, 150);
    printf("keys at 2 bits, errors in scales: quantized once, worst %.3f, rms %.3f\n", drift.worst,
           sqrt(drift.square / (double)drift.n));
    for (round = 1; round <= 64; round++) {
        ck_assert_int_eq(kivi_seq_truncate(s.cache, seq, 150, NULL), KIVI_OK);
        session_append(&s, seq, with_others ? 1 + round : 1, 150);
        drift = key_drift(&s, seq, &before, 150);
        if ((round & (round - 1)) == 0)
            printf("  cut to 150 tokens %2d times, grown with %s tokens: worst %.3f, rms %.3f\n",
                   (int)round, with_others ? "other" : "the same", drift.worst,
                   sqrt(drift.square / (double)drift.n));
        ck_assert_msg(drift.worst <= bound, "round %d: off by %g scales", (int)round, drift.worst);
    }
    contents_free(&before);
    session_close(&s);
}

START_TEST(repeated_truncation_is_bounded)
{
    cut_repeatedly(0, 0.51);
    cut_repeatedly(1, 4);
}
END_TEST

/* 16 bits, and sinks, are exact wherever the cut is. */
START_TEST(what_is_not_quantized_stays_exact)
{
    struct session s;
    kivi_config config;
    uint64_t cut;

    session_config(&config);
    config.layer_k_bits = config.layer_v_bits = NULL;
    config.k_bits = config.v_bits = 16;
    session_open(&s, &config, backend_name(_i));
    for (cut = 0; cut < 300; cut += 23)
        check_exact(&s, 300, cut, "16 bits");
    session_close(&s);
    config.k_bits = config.v_bits = 2;
    config.n_sink = 40;
    session_open(&s, &config, backend_name(_i));
    for (cut = 0; cut <= 40; cut += 5)
        check_exact(&s, 300, cut, "sinks");
    session_close(&s);
}
END_TEST

/* kivi_seq_exact_from, where it can be told by hand: at a residual of 64 the keys' ring has 64 rows, or 96 with a
 * rollback of 8, and the values' 128 or 136. */
START_TEST(where_exact_cuts_begin)
{
    static const struct {
        uint32_t bits, rollback, n_sink;
        uint64_t n, from;
    } cases[] = {
        {2, 0, 0, 0, 0},     {2, 0, 0, 63, 0},    {2, 0, 0, 64, 0},    {2, 0, 0, 65, 64},
        {2, 0, 0, 300, 256}, {2, 8, 0, 300, 256}, {2, 8, 0, 260, 192}, {2, 8, 100, 260, 192},
        {2, 8, 200, 260, 0}, {2, 0, 300, 290, 0}, {16, 0, 0, 300, 0},
    };
    kivi_config config;
    size_t i;

    session_config(&config);
    config.layer_k_bits = config.layer_v_bits = NULL;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct session s;
        uint64_t from = UINT64_MAX;
        kivi_seq seq;

        config.k_bits = config.v_bits = cases[i].bits;
        config.rollback = cases[i].rollback;
        config.n_sink = cases[i].n_sink;
        session_open(&s, &config, backend_name(_i));
        seq = session_new(&s);
        session_append_layer(&s, seq, 0, 1,
                             cases[i].n); /* the other layer has none: it stays as it is */
        ck_assert_int_eq(kivi_seq_exact_from(s.cache, seq, &from, NULL), KIVI_OK);
        ck_assert_msg(from == cases[i].from, "case %zu: from %llu", i, (unsigned long long)from);
        session_close(&s);
    }
}
END_TEST

/* The largest numbers of f16 take codes that stand for a little more: as rows again they are the largest, not infinite. */
START_TEST(largest_numbers_come_back)
{
    const uint64_t n = 200;
    struct session s;
    struct contents held;
    uint32_t layer;
    uint64_t i, size;
    float *rows;
    kivi_seq seq;

    open_default(&s, _i);
    seq = session_new(&s);
    size = n * s.config.n_kv_heads * 40;
    rows = malloc(size * sizeof *rows);
    ck_assert_ptr_nonnull(rows);
    for (i = 0; i < size; i++) /* both signs in every group of tokens and of channels */
        rows[i] = (i + i / 40) % 2 ? 65504 : -65504;
    for (layer = 0; layer < s.config.n_layers; layer++)
        ck_assert_int_eq(kivi_append(s.cache, layer, seq, n, (kivi_in){rows, KIVI_F32, 0, 0},
                                     (kivi_in){rows, KIVI_F32, 0, 0}, NULL),
                         KIVI_OK);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, seq, 50, NULL), KIVI_OK);
    for (layer = 0; layer < s.config.n_layers; layer++) {
        contents_read(&held, &s.config, s.cache, seq, layer);
        ck_assert_uint_eq(held.k_packed + held.v_packed, 0);
        for (i = 0; i < 50 * s.config.n_kv_heads * s.config.k_dim; i++)
            ck_assert_double_le(fabs(number_from_f16(held.k_row[i])), 65504);
        for (i = 0; i < 50 * s.config.n_kv_heads * s.config.v_dim; i++)
            ck_assert_double_le(fabs(number_from_f16(held.v_row[i])), 65504);
        contents_free(&held);
    }
    free(rows);
    session_close(&s);
}
END_TEST

/* A dropped range has moved the keys' residual: a cut to where it begins is inside it, and takes no memory; one below
 * that makes it begin at 0 again, and the sequence is as good as any. */
START_TEST(where_a_dropped_range_moved_the_residual)
{
    struct session s;
    struct buffer file;
    kivi_error error;
    kivi_seq seq, copy;

    open_default(&s, _i);
    seq = session_new(&s);
    session_append(&s, seq, 1, 200);
    ck_assert_int_eq(kivi_seq_drop(s.cache, seq, 0, 32, NULL, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, seq, 32, NULL), KIVI_OK);
    copy = session_fork(&s, seq);
    session_append(&s, seq, 2, 60); /* keys are packed at 96 */
    memory_fail(&s.memory, 1, 1);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, seq, 32, NULL), KIVI_OK);
    memory_fail(&s.memory, 0, 0);
    session_check_same(&s, seq, &s, copy, "cut to where the residual begins");

    ck_assert_int_eq(kivi_seq_truncate(s.cache, seq, 31, NULL), KIVI_OK);
    buffer_init(&file);
    session_ok(kivi_seq_save(s.cache, seq, buffer_write, &file, &error), &error);
    session_ok(kivi_seq_load(s.cache, buffer_read, &file, &copy, &error), &error);
    buffer_free(&file);
    session_append(&s, seq, 3, 100);
    session_append(&s, copy, 3, 100);
    session_check_same(&s, seq, &s, copy, "cut below it, saved and loaded");
    session_close(&s);
}
END_TEST

/* Layers of different lengths: each is cut where it is longer. */
START_TEST(layers_of_different_lengths)
{
    struct session s;
    kivi_stats before;
    kivi_seq a, b;

    open_default(&s, _i);
    a = session_new(&s);
    b = session_new(&s);
    session_append_layer(&s, a, 0, 1, 200);
    session_append_layer(&s, a, 1, 1, 100);
    session_append_layer(&s, b, 0, 1, 195);
    session_append_layer(&s, b, 1, 1, 100);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, a, 195, NULL), KIVI_OK);
    session_check_same(&s, a, &s, b, "layers of 195 and 100 tokens");
    ck_assert_int_eq(kivi_seq_truncate(s.cache, a, UINT64_MAX, NULL), KIVI_OK);
    session_check_same(&s, a, &s, b, "truncated to more than there is");
    /* Nothing comes back in the layer that is not cut: its window stays shared. */
    ck_assert_int_eq(kivi_seq_destroy(s.cache, b, NULL), KIVI_OK);
    b = session_fork(&s, a);
    before = session_stats(&s);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, b, 100, NULL), KIVI_OK);
    ck_assert_uint_eq(session_stats(&s).window_bytes, before.window_bytes / 2 * 3);
    session_close(&s);
}
END_TEST

/* Exact truncations take no memory at all, and work where there is none. */
START_TEST(exact_truncation_needs_no_memory)
{
    const uint64_t cuts[] = {UINT64_MAX, 323, 320,
                             0}; /* nothing, the rollback, the residual, all */
    struct session s;
    kivi_config config;
    size_t i, calls;

    session_config(&config);
    config.rollback = 8;
    session_open(&s, &config, backend_name(_i));
    for (i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        const kivi_seq a = session_new(&s), b = session_new(&s);

        session_append(&s, a, 1, 331);
        session_append(&s, b, 1, cuts[i] < 331 ? cuts[i] : 331);
        calls = atomic_load(&s.memory.calls);
        memory_fail(&s.memory, 1, 1);
        ck_assert_int_eq(kivi_seq_truncate(s.cache, a, cuts[i], NULL), KIVI_OK);
        memory_fail(&s.memory, 0, 0);
        ck_assert_uint_eq(atomic_load(&s.memory.calls), calls);
        session_check_same(&s, a, &s, b, "without memory");
        ck_assert_int_eq(kivi_seq_destroy(s.cache, a, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_destroy(s.cache, b, NULL), KIVI_OK);
    }
    session_close(&s);
}
END_TEST

/* A budget that is used up lets a sequence shrink, but not restore rows; that changes nothing. */
START_TEST(truncation_under_a_full_budget)
{
    struct session s;
    kivi_config config;
    kivi_stats stats;
    kivi_error error;
    kivi_seq a, copy;

    session_config(&config);
    session_open(&s, &config, backend_name(_i));
    session_append(&s, session_new(&s), 1, 300);
    stats = session_stats(&s);
    config.memory_budget =
        stats.code_bytes + stats.scale_bytes + stats.window_bytes + stats.unused_bytes;
    session_close(&s);

    session_open(&s, &config, backend_name(_i));
    a = session_new(&s);
    session_append(&s, a, 1, 300);
    copy = session_fork(&s, a);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, a, 200, &error), KIVI_ERROR_CAPACITY);
    session_check_same(&s, a, &s, copy, "not truncated");
    ck_assert_int_eq(kivi_seq_truncate(s.cache, a, 300, &error), KIVI_OK);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, a, 260, &error), KIVI_OK);
    stats = session_stats(&s);
    ck_assert_uint_eq(stats.shared_bytes, config.memory_budget); /* still all with the fork */
    ck_assert_int_eq(kivi_seq_truncate(s.cache, a, 0, &error), KIVI_OK);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, copy, 0, &error), KIVI_OK);
    session_append(&s, a, 1, 300);
    session_close(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("truncate");
    TCase *cuts = tcase_create("truncate");

    tcase_add_loop_test(cuts, truncation_inside_the_residual_is_exact, 0, backend_count());
    tcase_add_loop_test(cuts, rollback_is_exact_at_any_moment, 0, backend_count());
    tcase_add_loop_test(cuts, rollback_and_then_a_cut_inside_the_residual, 0, backend_count());
    tcase_add_loop_test(cuts, exact_is_as_if_the_tokens_had_never_come, 0, backend_count());
    tcase_add_loop_test(cuts, speculation_never_loses_precision, 0, backend_count());
    tcase_add_loop_test(cuts, truncation_further_back_is_bounded, 0, backend_count());
    tcase_add_test(cuts, repeated_truncation_is_bounded);
    tcase_add_loop_test(cuts, what_is_not_quantized_stays_exact, 0, backend_count());
    tcase_add_loop_test(cuts, where_exact_cuts_begin, 0, backend_count());
    tcase_add_loop_test(cuts, largest_numbers_come_back, 0, backend_count());
    tcase_add_loop_test(cuts, where_a_dropped_range_moved_the_residual, 0, backend_count());
    tcase_add_loop_test(cuts, layers_of_different_lengths, 0, backend_count());
    tcase_add_loop_test(cuts, exact_truncation_needs_no_memory, 0, backend_count());
    tcase_add_loop_test(cuts, truncation_under_a_full_budget, 0, backend_count());
    tcase_set_timeout(cuts, 0);
    suite_add_tcase(suite, cuts);
    return test_main(suite);
}
