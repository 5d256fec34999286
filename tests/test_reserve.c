/* What kivi_seq_reserve promises: that tokens have room afterwards, just as much as they need, and that nothing else
 * changes. */
#include <check.h>
#include <kivi/kivi.h>

#include "support/fixture.h"
#include "support/suite.h"

static struct fixture fixture;

#define N_SEQS 4

/* Bytes of pages and windows in use. */
static uint64_t used_bytes(const struct fixture *f)
{
    const kivi_stats stats = fixture_stats(f);

    return stats.total_bytes - stats.bookkeeping_bytes;
}

/* The same with those that are free. */
static uint64_t all_bytes(const struct fixture *f)
{
    return used_bytes(f) + fixture_stats(f).free_bytes;
}

/* Four sequences under a budget, 0: none. Two are forks of the first, one of them cut. */
static void open_forks(struct fixture *f, const char *backend, uint64_t budget,
                       kivi_seq seqs[N_SEQS])
{
    kivi_item item;

    fixture_open_with_budget(f, backend, budget, 200);
    seqs[0] = f->seq;
    item = fixture_item(f, f->seq, 90);
    ck_assert_int_eq(kivi_run(f->cache, 1, &item, 1, NULL, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &seqs[1], NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &seqs[2], NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_truncate(f->cache, seqs[2], 197, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[3], NULL), KIVI_OK);
    kivi_cache_trim(f->cache);
}

static kivi_status append(struct fixture *f, uint32_t layer, const kivi_seq *seqs,
                          const uint64_t *n_new, size_t n)
{
    kivi_item items[N_SEQS];
    size_t i;

    for (i = 0; i < n; i++) {
        items[i] = fixture_item(f, seqs[i], n_new[i]);
        items[i].n_q = 0;
    }
    return kivi_run(f->cache, layer, items, n, NULL, NULL);
}

/* Sizes of steps: decoding, a group's end, a page's end, prompts; not all sequences take part. */
static const uint64_t sizes[][N_SEQS] = {
    {1, 1, 1, 1}, {1, 0, 0, 1}, {0, 1, 1, 0}, {7, 40, 45, 33}, {500, 1, 0, 129}, {0, 0, 0, 0},
};
#define N_SIZES (sizeof sizes / sizeof *sizes)

/* Appending takes no memory of blocks after it, in whichever calls. */
START_TEST(tokens_find_room)
{
    struct fixture *f = &fixture;
    size_t size, i;
    int together;

    for (size = 0; size < N_SIZES; size++)
        for (together = 0; together < 2; together++) {
            struct snapshot before;
            kivi_seq seqs[N_SEQS];
            uint64_t all;
            uint32_t layer;

            open_forks(f, backend_name(_i), 0, seqs);
            before = snapshot_take(f, seqs, N_SEQS);
            ck_assert_int_eq(kivi_seq_reserve(f->cache, seqs, sizes[size], N_SEQS, NULL), KIVI_OK);
            snapshot_check(&before, f, "tokens that were reserved");
            all = all_bytes(f);
            for (layer = 0; layer < 2; layer++)
                if (together)
                    ck_assert_int_eq(append(f, layer, seqs, sizes[size], N_SEQS), KIVI_OK);
                else
                    for (i = N_SEQS; i-- > 0;)
                        ck_assert_int_eq(append(f, layer, &seqs[i], &sizes[size][i], 1), KIVI_OK);
            ck_assert_uint_eq(all_bytes(f), all);
            fixture_close(f);
        }
}
END_TEST

/* Under a budget it is refused and nothing changes, or the tokens have room. What they take is not enough where a slab
 * is used in part, but soon is; a byte less never is. Those before the one that is named have room. */
START_TEST(a_budget_decides)
{
    struct fixture *f = &fixture;
    size_t size;

    for (size = 0; size < N_SIZES - 1; size++) {
        kivi_seq seqs[N_SEQS];
        kivi_status status = KIVI_ERROR_CAPACITY;
        uint64_t needed, budget;

        open_forks(f, backend_name(0), 0, seqs);
        ck_assert_int_eq(append(f, 0, seqs, sizes[size], N_SEQS), KIVI_OK);
        ck_assert_int_eq(append(f, 1, seqs, sizes[size], N_SEQS), KIVI_OK);
        needed = used_bytes(f);
        fixture_close(f);
        for (budget = needed - 1; status != KIVI_OK; budget += budget < needed ? 1 : needed / 20) {
            struct snapshot before;
            kivi_error error;

            ck_assert_uint_lt(budget, needed + needed / 4);
            open_forks(f, backend_name(0), budget, seqs);
            before = snapshot_take(f, seqs, N_SEQS);
            status = kivi_seq_reserve(f->cache, seqs, sizes[size], N_SEQS, &error);
            ck_assert(status == KIVI_ERROR_CAPACITY || (status == KIVI_OK && budget >= needed));
            if (status != KIVI_OK) {
                ck_assert_uint_lt(error.item, N_SEQS);
                ck_assert_int_eq(kivi_seq_reserve(f->cache, seqs, sizes[size], error.item, NULL),
                                 KIVI_OK);
            }
            snapshot_check(&before, f, "tokens under a budget");
            if (status == KIVI_OK) {
                ck_assert_int_eq(append(f, 0, seqs, sizes[size], N_SEQS), KIVI_OK);
                ck_assert_int_eq(append(f, 1, seqs, sizes[size], N_SEQS), KIVI_OK);
            }
            fixture_close(f);
        }
    }
}
END_TEST

/* What one pool has free goes to the other before room is said to be short, and not both ways. */
START_TEST(free_pages_become_windows)
{
    struct fixture *f = &fixture;
    const uint64_t one = 1, many = 700;
    kivi_seq seqs[8];
    kivi_stats stats;
    size_t i, n;

    fixture_open_with_budget(f, backend_name(0), (uint64_t)1 << 18, 2);
    ck_assert_int_eq(kivi_seq_reserve(f->cache, &f->seq, &many, 1, NULL), KIVI_OK);
    stats = fixture_stats(f);
    ck_assert_uint_gt(stats.free_bytes, 0);
    seqs[0] = f->seq;
    for (n = 1; n < 8; n++)
        ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[n], NULL), KIVI_OK);
    for (i = 1; i < 8; i++) /* more windows than the budget has beside the pages */
        ck_assert_int_eq(kivi_seq_reserve(f->cache, &seqs[i], &one, 1, NULL), KIVI_OK);
    for (i = 1; i < 8; i++)
        ck_assert_int_eq(append(f, 0, &seqs[i], &one, 1), KIVI_OK);
    ck_assert_uint_le(all_bytes(f), (uint64_t)1 << 18);
    fixture_close(f);
}
END_TEST

START_TEST(capacity_counts_every_layer)
{
    struct fixture *f = &fixture;
    const uint64_t fits[] = {5, 5}, too_many[] = {5, 6};
    kivi_seq seqs[2];
    kivi_error error;

    fixture_init(f, backend_name(0));
    f->config.capacity = 20;
    ck_assert_int_eq(kivi_cache_create(&f->config, &f->cache, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[0], NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[1], NULL), KIVI_OK);
    ck_assert_int_eq(append(f, 1, seqs, (const uint64_t[]){10}, 1), KIVI_OK);
    ck_assert_int_eq(kivi_seq_reserve(f->cache, seqs, fits, 2, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_reserve(f->cache, seqs, too_many, 2, &error), KIVI_ERROR_CAPACITY);
    ck_assert_uint_eq(error.item, 1);
    fixture_close(f);
}
END_TEST

/* Beside a call that appends to the sequence what it will take is not known; beside one that reads it is. */
START_TEST(beside_other_calls)
{
    struct fixture *f = &fixture;
    const uint64_t n_new[] = {1, 1};
    kivi_seq seqs[2];
    kivi_item item;
    kivi_error error;
    kivi_work *work;

    fixture_open(f, backend_name(0));
    seqs[0] = f->seq;
    seqs[1] = f->other;
    item = fixture_item(f, f->other, 3);
    ck_assert_int_eq(kivi_work_begin(f->cache, 1, &item, 1, NULL, 1, &work, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_reserve(f->cache, seqs, n_new, 2, &error), KIVI_ERROR_BUSY);
    ck_assert_uint_eq(error.item, 1);
    ck_assert_int_eq(kivi_seq_reserve(f->cache, seqs, n_new, 1, NULL), KIVI_OK);
    kivi_work_cancel(work);
    item.n_new = 0;
    ck_assert_int_eq(kivi_work_begin(f->cache, 1, &item, 1, NULL, 1, &work, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_reserve(f->cache, seqs, n_new, 2, NULL), KIVI_OK);
    kivi_work_cancel(work);
    fixture_close(f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("reserve");
    TCase *room = tcase_create("room");

    tcase_add_loop_test(room, tokens_find_room, 0, backend_count());
    tcase_add_test(room, a_budget_decides);
    tcase_add_test(room, free_pages_become_windows);
    tcase_add_test(room, capacity_counts_every_layer);
    tcase_add_test(room, beside_other_calls);
    tcase_set_timeout(room, 0);
    suite_add_tcase(suite, room);
    return test_main(suite);
}
