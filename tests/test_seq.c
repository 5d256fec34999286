/* Sequences as wholes: fork, reorder, and what they cost. docs/sequences.md makes the promises. */
#include <check.h>
#include <stdio.h>
#include <string.h>

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
    ck_assert_uint_eq(after.code_bytes, before.code_bytes);
    ck_assert_uint_eq(after.scale_bytes, before.scale_bytes);
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
            ck_assert_int_eq(
                kivi_seq_reorder(s.cache, seqs, (const uint32_t[]){0, 0, 2, 2}, 4, NULL), KIVI_OK);
    }
    session_close(&s);
}
END_TEST

/* Codes of n tokens of a layer and kv head, and their scales and minima, as docs/layout.md has them. */
static void add_packed(const kivi_config *c, uint32_t bits, uint32_t dim, uint64_t n,
                       uint64_t groups, kivi_stats *stats)
{
    const uint64_t padded = ((uint64_t)dim + 15) / 16 * 16;

    stats->code_bytes += c->n_kv_heads * (bits == 16 ? n * dim * 2 : n * padded * bits / 8);
    stats->scale_bytes += bits == 16 ? 0 : c->n_kv_heads * groups * 2 * 2;
}

/* Every part of the statistics, from the lengths of the layers; and of sequences that share nothing, those of all are
 * the sums. */
START_TEST(statistics_are_exact)
{
    static const uint64_t lengths[][2] = {{300, 190}, {10, 64}, {0, 129}};
    static const uint8_t bits[][2] = {{2, 4}, {8, 16}};
    struct session s;
    kivi_config config;
    kivi_stats sum = {.size = sizeof sum}, all;
    size_t i;

    session_config(&config);
    config.layer_v_bits = bits[1];
    config.layer_k_bits = bits[0];
    session_open(&s, &config, backend_name(_i));
    for (i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        const kivi_seq seq = session_new(&s);
        kivi_stats expected = {.size = sizeof expected}, got = {.size = sizeof got};
        uint32_t l;

        memset(&got, 0xff, sizeof got); /* what was there does not count */
        got.size = sizeof got;
        for (l = 0; l < 2; l++) {
            const uint64_t n = lengths[i][l], k = n / 64 * 64, v = n > 64 ? n - 64 : 0;

            session_append_layer(&s, seq, l, 1, n);
            add_packed(&config, bits[0][l], config.k_dim, k, k / 32 * 48, &expected);
            add_packed(&config, bits[1][l], config.v_dim, v, v, &expected);
            expected.f16_bytes += n * config.n_kv_heads * 2 * (config.k_dim + config.v_dim);
            expected.tokens = n > expected.tokens ? n : expected.tokens;
        }
        ck_assert_int_eq(kivi_seq_stats(s.cache, seq, &got, NULL), KIVI_OK);
        ck_assert_uint_eq(got.sequences, 1);
        ck_assert_uint_eq(got.tokens, expected.tokens);
        ck_assert_uint_eq(got.code_bytes, expected.code_bytes);
        ck_assert_uint_eq(got.scale_bytes, expected.scale_bytes);
        ck_assert_uint_eq(got.f16_bytes, expected.f16_bytes);
        ck_assert_uint_eq(got.shared_bytes + got.shared_pages, 0);
        ck_assert_uint_gt(got.bookkeeping_bytes, 0);
        ck_assert_uint_eq(got.total_bytes, got.code_bytes + got.scale_bytes + got.window_bytes
                                               + got.unused_bytes + got.bookkeeping_bytes);
        sum.sequences += got.sequences;
        sum.tokens += got.tokens;
        sum.pages += got.pages;
        sum.code_bytes += got.code_bytes;
        sum.scale_bytes += got.scale_bytes;
        sum.window_bytes += got.window_bytes;
        sum.unused_bytes += got.unused_bytes;
        sum.f16_bytes += got.f16_bytes;
        sum.next_append_bytes += got.next_append_bytes;
        sum.bookkeeping_bytes += got.bookkeeping_bytes;
    }
    all = session_stats(&s);
    ck_assert_uint_eq(all.sequences, sum.sequences);
    ck_assert_uint_eq(all.tokens, sum.tokens);
    ck_assert_uint_eq(all.pages, sum.pages);
    ck_assert_uint_eq(all.code_bytes, sum.code_bytes);
    ck_assert_uint_eq(all.scale_bytes, sum.scale_bytes);
    ck_assert_uint_eq(all.window_bytes, sum.window_bytes);
    ck_assert_uint_eq(all.unused_bytes, sum.unused_bytes);
    ck_assert_uint_eq(all.f16_bytes, sum.f16_bytes);
    ck_assert_uint_eq(all.next_append_bytes, sum.next_append_bytes);
    ck_assert_uint_gt(all.bookkeeping_bytes, sum.bookkeeping_bytes); /* and the cache's own */
    session_close(&s);
}
END_TEST

/* What is shared counts once, for the sequence that sees the most of it, whichever of them is met first. */
START_TEST(shared_tokens_count_once)
{
    int i;

    for (i = 0; i < 2; i++) {
        struct session s;
        kivi_seq first, second, shorter;
        kivi_stats before, after;

        open_default(&s, 0);
        first = session_new(&s);
        second = session_new(&s);
        session_append(&s, i ? first : second, 1, 250);
        ck_assert_int_eq(kivi_seq_destroy(s.cache, i ? second : first, NULL), KIVI_OK);
        before = session_stats(&s);
        shorter = session_fork(&s, i ? first : second); /* in the place that was left */
        ck_assert_int_eq(kivi_seq_truncate(s.cache, shorter, 230, NULL), KIVI_OK);
        after = session_stats(&s);
        ck_assert_uint_eq(after.code_bytes, before.code_bytes);
        ck_assert_uint_eq(after.scale_bytes, before.scale_bytes);
        ck_assert_uint_eq(after.unused_bytes, before.unused_bytes);
        ck_assert_uint_eq(after.shared_bytes, before.window_bytes + before.code_bytes
                                                  + before.scale_bytes + before.unused_bytes);
        session_close(&s);
    }
}
END_TEST

/* The bookkeeping of a sequence is what it takes of the allocator beside pages and windows. */
START_TEST(bookkeeping_of_a_sequence)
{
    struct session s;
    kivi_stats stats = {.size = sizeof stats};
    kivi_seq fork, seq;
    size_t had;

    open_default(&s, 0);
    seq = session_new(&s);
    session_append(&s, seq, 1, 1500);
    had = atomic_load(&s.memory.bytes);
    fork = session_fork(&s, seq);
    ck_assert_int_eq(kivi_seq_stats(s.cache, fork, &stats, NULL), KIVI_OK);
    ck_assert_uint_eq(atomic_load(&s.memory.bytes) - had, stats.bookkeeping_bytes);
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
    kivi_config config;
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

    /* As many as there can be: it takes no place for one more. */
    session_config(&config);
    config.max_sequences = 2;
    session_open(&s, &config, backend_name(_i));
    seqs[0] = session_new(&s);
    seqs[1] = session_new(&s);
    session_append(&s, seqs[0], 1, 70);
    session_append(&s, seqs[1], 2, 40);
    ck_assert_int_eq(kivi_seq_reorder(s.cache, seqs, (const uint32_t[]){1, 0}, 2, NULL), KIVI_OK);
    ck_assert_uint_eq(session_length(&s, seqs[0]), 40);
    ck_assert_uint_eq(session_length(&s, seqs[1]), 70);
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

int main(void)
{
    Suite *suite = suite_create("seq");
    TCase *forks = tcase_create("fork"), *orders = tcase_create("reorder");

    tcase_add_loop_test(forks, fork_shares_and_parts, 0, backend_count());
    tcase_add_test(forks, next_append_is_exact);
    tcase_add_loop_test(forks, statistics_are_exact, 0, backend_count());
    tcase_add_test(forks, shared_tokens_count_once);
    tcase_add_test(forks, bookkeeping_of_a_sequence);
    tcase_add_test(forks, forks_of_a_long_prompt);
    tcase_add_loop_test(orders, reorder_as_beam_search_does, 0, backend_count());
    tcase_add_test(orders, reorder_refuses);
    tcase_set_timeout(forks, 0);
    tcase_set_timeout(orders, 0);
    suite_add_tcase(suite, forks);
    suite_add_tcase(suite, orders);
    return test_main(suite);
}
