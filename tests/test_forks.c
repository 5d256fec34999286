/*
 * Calls on forks that come to nothing: what was shared is shared as before, and the room that private copies took is
 * there again. And what such copies take is what the statistics say.
 */
#include <check.h>
#include <kivi/kivi.h>
#include <math.h>
#include <string.h>

#include "support/fixture.h"
#include "support/suite.h"

static struct fixture fixture;

/* Bytes of pages and windows in use. */
static uint64_t block_bytes(const kivi_stats *stats)
{
    return stats->code_bytes + stats->scale_bytes + stats->window_bytes + stats->unused_bytes;
}

/* The item's call comes to nothing in one of the ways there are. */
static void come_to_nothing(struct fixture *f, const kivi_item *items, size_t n, int way)
{
    const float good = f->v[3];
    kivi_work *work;
    uint32_t phase, part;

    if (way == 0) {
        f->v[3] = (float)NAN;
        ck_assert_int_eq(kivi_run(f->cache, 0, items, n, NULL, NULL), KIVI_ERROR_NOT_FINITE);
        f->v[3] = good;
        return;
    }
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, items, n, NULL, 3, &work, NULL), KIVI_OK);
    for (phase = 0; way == 2 && phase < kivi_work_phases(work); phase++)
        for (part = 0; part < 3; part++)
            kivi_work_part(work, phase, part);
    kivi_work_cancel(work);
}

/* What forks share they still share after a call that did not come to pass. */
START_TEST(forks_stay_shared)
{
    struct fixture *f = &fixture;
    const uint64_t sizes[] = {1, 7, 40, 45, 199, 200};
    kivi_seq seqs[4];
    size_t i, j;

    fixture_open(f, backend_name(_i));
    seqs[0] = f->seq;
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &seqs[1], NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &seqs[2], NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_truncate(f->cache, seqs[2], 87, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &seqs[3], NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_truncate(f->cache, seqs[3], 40, NULL),
                     KIVI_OK); /* has other tokens next */
    ck_assert_uint_gt(fixture_stats(f).shared_pages, 0);
    for (i = 0; i < 6 * 4 * 3; i++) {
        struct snapshot before = snapshot_take(f, seqs, 4);
        kivi_item items[4];
        kivi_stats first, second;

        for (j = 0; j < 4; j++) {
            items[j] = fixture_item(f, seqs[j < 2 ? 1 - j : j], sizes[i % 6]);
            items[j].n_q =
                i % 2 ? 0 : 2; /* what only appends is quantized before it is sure to come */
        }
        come_to_nothing(f, items, 1 + i / 6 % 4, (int)(i / 24));
        first = fixture_stats(f);
        snapshot_check(&before, f, "a call on forks that failed");
        /* The second time there is nothing to allocate: not a byte is different. */
        come_to_nothing(f, items, 1 + i / 6 % 4, (int)(i / 24));
        second = fixture_stats(f);
        ck_assert_mem_eq(&first, &second, sizeof first);
    }
    fixture_close(f);
}
END_TEST

/* While a call is under way, what it may go back to counts as in use. */
START_TEST(forks_under_way)
{
    struct fixture *f = &fixture;
    kivi_item item;
    kivi_stats before, during;
    kivi_seq fork;
    kivi_work *work;

    fixture_open(f, backend_name(0));
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &fork, NULL), KIVI_OK);
    item = fixture_item(f, fork, 40);
    come_to_nothing(f, &item, 1, 1);
    before = fixture_stats(f);
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &item, 1, NULL, 1, &work, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_destroy(f->cache, f->seq, NULL), KIVI_OK);
    during = fixture_stats(f);
    if (!backend_is_device(f->config.backend)) /* whose blocks are elsewhere */
        ck_assert_uint_eq(during.total_bytes + during.free_bytes, atomic_load(&f->memory.bytes));
    /* A window and a page more than before: the call's copies. */
    ck_assert_uint_eq(during.window_bytes, before.window_bytes / 4 * 5);
    ck_assert_uint_eq(during.pages, before.pages + 1);
    kivi_work_cancel(work);
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    during = fixture_stats(f);
    if (!backend_is_device(f->config.backend))
        ck_assert_uint_eq(during.total_bytes + during.free_bytes, atomic_load(&f->memory.bytes));
    ck_assert_uint_eq(during.shared_bytes, 0);
    ck_assert_uint_lt(during.pages, before.pages + 2);
    fixture_close(f);
}
END_TEST

/* The room that a failed call on a fork wanted is there for others. */
START_TEST(forks_within_a_budget)
{
    struct fixture *f = &fixture;
    kivi_stats stats;
    kivi_item item;
    kivi_seq fork;
    uint64_t used;

    fixture_open_with_budget(f, backend_name(0), 0, 200);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &fork, NULL), KIVI_OK);
    item = fixture_item(f, fork, 1);
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    stats = fixture_stats(f);
    used = block_bytes(&stats);
    fixture_close(f);

    fixture_open_with_budget(f, backend_name(0), used, 200);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &fork, NULL), KIVI_OK);
    item = fixture_item(f, fork, 1);
    come_to_nothing(f, &item, 1, _i);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->other, NULL), KIVI_OK);
    item = fixture_item(f, f->other, 1);
    item.n_q = 1;
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    fixture_close(f);
}
END_TEST

/* A sequence of 200 tokens and two shorter forks: next_append_bytes is what one more token for each takes, also
 * under a budget that has just that, in one call and in any order. */
START_TEST(one_token_for_every_fork)
{
    static const size_t orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                        {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    struct fixture *f = &fixture;
    uint64_t budget = 0;
    int round;

    for (round = 0; round < 2; round++) {
        kivi_stats before, after;
        kivi_item items[3];
        kivi_seq seqs[3];
        size_t i;

        fixture_open_with_budget(f, backend_name(0), budget, 200);
        seqs[0] = f->seq;
        for (i = 1; i < 3; i++) {
            ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &seqs[i], NULL), KIVI_OK);
            ck_assert_int_eq(kivi_seq_truncate(f->cache, seqs[i], 200 - i, NULL), KIVI_OK);
        }
        for (i = 0; i < 3; i++) {
            items[i] = fixture_item(f, seqs[orders[_i][i]], 1);
            items[i].n_q = 0;
        }
        before = fixture_stats(f);
        /* Less the windows that another layer would take: all of this one share a window. */
        budget = block_bytes(&before) + before.next_append_bytes - 3 * before.window_bytes;
        if (round == 1) {
            struct snapshot snapshot = snapshot_take(f, seqs, 3);

            come_to_nothing(f, items, 3, 2);
            snapshot_check(&snapshot, f, "a batch of forks that was cancelled");
        }
        ck_assert_int_eq(kivi_run(f->cache, 0, items, 3, NULL, NULL), KIVI_OK);
        after = fixture_stats(f);
        if (round == 1)
            ck_assert_uint_eq(block_bytes(&after), budget);
        fixture_close(f);
    }
}
END_TEST

/* The same where the sequence was longer in a call before, and was cut: that call's lengths count no more. */
START_TEST(one_token_after_a_cut)
{
    struct fixture *f = &fixture;
    uint64_t budget = 0;
    int round;

    for (round = 0; round < 2; round++) {
        kivi_item items[2];

        fixture_open_with_budget(f, backend_name(0), budget, 200);
        items[0] = fixture_item(f, f->seq, 1);
        ck_assert_int_eq(kivi_run(f->cache, 0, items, 1, NULL, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_truncate(f->cache, f->seq, 195, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &f->other, NULL), KIVI_OK);
        if (round == 0) { /* only then: statistics begin to count anew, too */
            const kivi_stats before = fixture_stats(f);

            budget = block_bytes(&before) + before.next_append_bytes - 2 * before.window_bytes;
        }
        items[1] = fixture_item(f, f->other, 1);
        items[0].n_q = items[1].n_q = 0;
        ck_assert_int_eq(kivi_run(f->cache, 0, items, 2, NULL, NULL), KIVI_OK);
        fixture_close(f);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("forks");
    TCase *forks = tcase_create("forks");

    tcase_add_loop_test(forks, forks_stay_shared, 0, backend_count());
    tcase_add_test(forks, forks_under_way);
    tcase_add_loop_test(forks, forks_within_a_budget, 0, 3);
    tcase_add_loop_test(forks, one_token_for_every_fork, 0, 6);
    tcase_add_test(forks, one_token_after_a_cut);
    tcase_set_timeout(forks, 0);
    suite_add_tcase(suite, forks);
    return test_main(suite);
}
