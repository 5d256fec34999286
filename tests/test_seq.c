/* Sequences as wholes: fork, truncate, reorder, and what they cost. docs/sequences.md makes the
 * promises. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/numbers.h"
#include "support/session.h"
#include "support/suite.h"

static void open_default(struct session *s, int backend)
{
    kivi_config config;

    session_config(&config);
    session_open(s, &config, backend_name(backend));
}

/* ------------------------------------------------------------------- fork */

START_TEST(fork_shares_and_parts)
{
    struct session s, t;
    kivi_seq a, b, alone;
    kivi_stats before, after;

    open_default(&s, _i);
    open_default(&t, _i);
    a = session_new(&s);
    alone = session_new(&t);
    session_append(&s, a, 1, 300);
    before = session_stats(&s);
    b = session_fork(&s, a);
    after = session_stats(&s);
    session_check_same(&s, a, &s, b, "fresh fork");
    ck_assert_uint_eq(after.pages, before.pages);
    ck_assert_uint_eq(after.window_bytes, before.window_bytes);
    ck_assert_uint_eq(after.shared_pages, before.pages);
    ck_assert_uint_eq(after.total_bytes - before.total_bytes,
                      after.bookkeeping_bytes - before.bookkeeping_bytes);

    session_append(&s, b, 2, 150);
    session_append(&s, a, 3, 70);
    session_append(&t, alone, 1, 300);
    session_append(&t, alone, 3, 70);
    session_check_same(&s, a, &t, alone, "source after the fork was written");
    ck_assert_int_eq(kivi_seq_destroy(t.cache, alone, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_destroy(s.cache, a, NULL), KIVI_OK);
    alone = session_new(&t);
    session_append(&t, alone, 1, 300);
    session_append(&t, alone, 2, 150);
    session_check_same(&s, b, &t, alone, "fork after its source was destroyed");
    session_close(&s);
    session_close(&t);
}
END_TEST

/* kivi_stats.next_append_bytes is what one more token of every sequence takes, sharing included. */
START_TEST(next_append_is_exact)
{
    struct session s;
    kivi_seq seqs[4];
    size_t i;
    int round;

    open_default(&s, 0);
    seqs[0] = session_new(&s);
    session_append(&s, seqs[0], 1, 191);
    for (i = 1; i < 4; i++)
        seqs[i] = session_fork(&s, seqs[0]);
    ck_assert_int_eq(kivi_seq_truncate(s.cache, seqs[3], 100, NULL), KIVI_OK);
    for (round = 0; round < 200; round++) {
        const kivi_stats before = session_stats(&s);
        kivi_stats after, own = {.size = sizeof own};
        uint64_t sum = 0;

        for (i = 0; i < 4; i++) {
            ck_assert_int_eq(kivi_seq_stats(s.cache, seqs[i], &own, NULL), KIVI_OK);
            session_append(&s, seqs[i], i, 1);
            sum += own.next_append_bytes;
        }
        after = session_stats(&s);
        ck_assert_uint_eq(after.total_bytes - after.bookkeeping_bytes
                              - (before.total_bytes - before.bookkeeping_bytes),
                          before.next_append_bytes);
        ck_assert_uint_eq(sum, before.next_append_bytes);
        if (round == 100)
            ck_assert_int_eq(kivi_seq_reorder(s.cache, seqs, (const uint32_t[]){0, 0, 2, 2}, 4, NULL),
                             KIVI_OK);
    }
    session_close(&s);
}
END_TEST

static void print_memory(const struct session *s, const char *what, const kivi_stats *prompt)
{
    const kivi_stats stats = session_stats(s);

    printf("  %-28s %9.2f MB in use, %9.2f MB shared, %7.2f MB bookkeeping, %6.2f x the prompt\n",
           what, (double)stats.total_bytes * 1e-6, (double)stats.shared_bytes * 1e-6,
           (double)stats.bookkeeping_bytes * 1e-6,
           (double)stats.total_bytes / (double)prompt->total_bytes);
}

/* 64 forks of a long prompt cost the prompt once. */
START_TEST(forks_of_a_long_prompt)
{
    const uint64_t n = test_is_long() ? 32768 : 8192;
    struct session s;
    kivi_config config;
    kivi_seq prompt, forks[64];
    kivi_stats before, after;
    size_t i;

    kivi_config_init(&config);
    config.n_layers = 1;
    config.n_q_heads = config.n_kv_heads = 1;
    config.k_dim = config.v_dim = 128;
    config.max_sequences = 65;
    session_open(&s, &config, backend_name(backend_count() - 1));
    prompt = session_new(&s);
    session_append(&s, prompt, 1, n);
    before = session_stats(&s);
    printf("64 forks of %llu tokens, 1 layer, 1 kv head, dimension 128, 2 bits (f16: %.2f MB):\n",
           (unsigned long long)n, (double)before.f16_bytes * 1e-6);
    print_memory(&s, "prompt alone", &before);
    for (i = 0; i < 64; i++)
        forks[i] = session_fork(&s, prompt);
    after = session_stats(&s);
    print_memory(&s, "with 64 forks", &before);
    ck_assert_uint_eq(after.pages, before.pages);
    ck_assert_uint_eq(after.window_bytes, before.window_bytes);
    ck_assert_uint_le(after.total_bytes - before.total_bytes, before.total_bytes / 8);
    for (i = 0; i < 64; i++)
        session_append(&s, forks[i], 2 + i, 1);
    print_memory(&s, "each with 1 token more", &before);
    after = session_stats(&s);
    ck_assert_uint_eq(after.window_bytes, 65 * before.window_bytes);
    for (i = 0; i < 64; i++)
        session_append(&s, forks[i], 2 + i, 127);
    after = session_stats(&s);
    print_memory(&s, "each with 128 tokens more", &before);
    /* A fork has its own window and pages for what is new; the prompt's are still there once. */
    ck_assert_uint_le(after.pages, before.pages + 64 * 2);
    session_close(&s);
}
END_TEST

/* ---------------------------------------------------------------- reorder */

START_TEST(reorder_as_beam_search_does)
{
    struct session s;
    const uint32_t parents[] = {2, 2, 0, 3, 2};
    kivi_seq seqs[5], copies[5];
    size_t i;

    open_default(&s, _i);
    for (i = 0; i < 5; i++) {
        seqs[i] = session_new(&s);
        session_append(&s, seqs[i], i, 60 + 50 * i);
        copies[i] = session_fork(&s, seqs[i]);
    }
    ck_assert_int_eq(kivi_seq_reorder(s.cache, seqs, parents, 5, NULL), KIVI_OK);
    for (i = 0; i < 5; i++)
        session_check_same(&s, seqs[i], &s, copies[parents[i]], "reordered");
    for (i = 0; i < 5; i++) {
        session_append(&s, seqs[i], 7, 40);
        session_append(&s, copies[parents[i]], 7, i < 1 ? 40 : 0);
    }
    session_check_same(&s, seqs[0], &s, copies[2], "reordered, then written");
    session_close(&s);
}
END_TEST

START_TEST(reorder_refuses)
{
    struct session s;
    kivi_config config;
    kivi_seq seqs[3], twice[2];
    const uint32_t all_of_the_longest[] = {2, 2, 2}, beyond[] = {0, 3, 1};
    kivi_error error;
    size_t i;

    session_config(&config);
    config.capacity = 200;
    session_open(&s, &config, backend_name(0));
    for (i = 0; i < 3; i++) {
        seqs[i] = session_new(&s);
        session_append(&s, seqs[i], i, 10 + 50 * i);
    }
    twice[0] = twice[1] = seqs[0];
    ck_assert_int_eq(kivi_seq_reorder(s.cache, seqs, beyond, 3, &error), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_seq_reorder(s.cache, twice, beyond, 1, &error), KIVI_OK);
    ck_assert_int_eq(kivi_seq_reorder(s.cache, twice, all_of_the_longest, 2, &error),
                     KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_seq_reorder(s.cache, twice, (const uint32_t[]){0, 0}, 2, &error),
                     KIVI_ERROR_ARGUMENT);
    /* 3 x 110 tokens are more than the capacity, and would let later appends pass it. */
    ck_assert_int_eq(kivi_seq_reorder(s.cache, seqs, all_of_the_longest, 3, &error),
                     KIVI_ERROR_CAPACITY);
    for (i = 0; i < 3; i++)
        ck_assert_uint_eq(session_length(&s, seqs[i]), 10 + 50 * i);
    ck_assert_int_eq(kivi_seq_fork(s.cache, seqs[2], &twice[0], &error), KIVI_ERROR_CAPACITY);
    session_append(&s, seqs[0], 1, 20);
    {
        const float row[80] = {0};
        const kivi_in in = {row, KIVI_F32, 0, 0};

        ck_assert_int_eq(kivi_append(s.cache, 0, seqs[0], 1, in, in, &error), KIVI_ERROR_CAPACITY);
    }
    session_close(&s);
}
END_TEST

/* --------------------------------------------------------------- truncate */

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
    for (n = 0; n < 3 * residual; n += 13) {
        for (cut = n / residual * residual; cut <= n; cut += 9) {
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
        for (n = rollbacks[i]; n < 300; n += 11) {
            snprintf(what, sizeof what, "rollback of %u from %llu tokens", rollbacks[i],
                     (unsigned long long)n);
            check_exact(&s, n, n - rollbacks[i], what);
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

/* Layers of different lengths: each is cut where it is longer. */
START_TEST(layers_of_different_lengths)
{
    struct session s;
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
    session_close(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("seq");
    TCase *forks = tcase_create("fork"), *orders = tcase_create("reorder");
    TCase *cuts = tcase_create("truncate");

    tcase_add_loop_test(forks, fork_shares_and_parts, 0, backend_count());
    tcase_add_test(forks, next_append_is_exact);
    tcase_add_test(forks, forks_of_a_long_prompt);
    tcase_add_loop_test(orders, reorder_as_beam_search_does, 0, backend_count());
    tcase_add_test(orders, reorder_refuses);
    tcase_add_loop_test(cuts, truncation_inside_the_residual_is_exact, 0, backend_count());
    tcase_add_loop_test(cuts, rollback_is_exact_at_any_moment, 0, backend_count());
    tcase_add_loop_test(cuts, speculation_never_loses_precision, 0, backend_count());
    tcase_add_loop_test(cuts, truncation_further_back_is_bounded, 0, backend_count());
    tcase_add_test(cuts, repeated_truncation_is_bounded);
    tcase_add_loop_test(cuts, what_is_not_quantized_stays_exact, 0, backend_count());
    tcase_add_loop_test(cuts, layers_of_different_lengths, 0, backend_count());
    tcase_set_timeout(forks, 0);
    tcase_set_timeout(orders, 0);
    tcase_set_timeout(cuts, 0);
    suite_add_tcase(suite, forks);
    suite_add_tcase(suite, orders);
    suite_add_tcase(suite, cuts);
    return test_main(suite);
}
