/*
 * Room: the capacity of every layer, the budget and what is kept free, counted exactly. test_faults.c has the calls that
 * are refused for want of it.
 */
#include <check.h>
#include <kivi/kivi.h>

#include "support/buffer.h"
#include "support/fixture.h"
#include "support/suite.h"

static struct fixture fixture;

/* ----------------------------------------------------------- capacity */

/* A cache for that many tokens of a layer, and in layers 0 and 1 of `seq` 100 and 300 tokens, of `other` 50 and 200. */
static void open_with_capacity(struct fixture *f, uint64_t n_tokens)
{
    fixture_init(f, backend_name(0));
    f->config.capacity = n_tokens;
    ck_assert_int_eq(kivi_cache_create(&f->config, &f->cache, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->seq, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->other, NULL), KIVI_OK);
    fixture_append(f, 0, f->seq, 100);
    fixture_append(f, 1, f->seq, 300);
    fixture_append(f, 0, f->other, 50);
    fixture_append(f, 1, f->other, 200);
}

/* In every layer there is room for what the sequences, which are all, leave of the capacity, and for no more. */
static void check_room(struct fixture *f, const kivi_seq *seqs, size_t n_seqs, const char *what)
{
    uint32_t layer;
    size_t i;

    for (layer = 0; layer < 2; layer++) {
        uint64_t left = f->config.capacity;
        kivi_item item = fixture_item(f, seqs[0], 0);
        kivi_work *work;

        for (i = 0; i < n_seqs; i++) {
            uint64_t n;

            ck_assert_int_eq(kivi_seq_length(f->cache, seqs[i], layer, &n, NULL), KIVI_OK);
            left -= n;
        }
        item.n_q = 0;
        item.n_new = left;
        ck_assert_msg(kivi_work_begin(f->cache, layer, &item, 1, NULL, 1, &work, NULL) == KIVI_OK,
                      "%s: no room in layer %u for %llu tokens", what, layer,
                      (unsigned long long)left);
        kivi_work_cancel(work);
        item.n_new = left + 1;
        ck_assert_msg(kivi_work_begin(f->cache, layer, &item, 1, NULL, 1, &work, NULL)
                          == KIVI_ERROR_CAPACITY,
                      "%s: room in layer %u for more than %llu tokens", what, layer,
                      (unsigned long long)left);
    }
}

/* Whatever brings tokens takes room, in each layer its own, and whatever removes them gives it back. */
START_TEST(room_is_counted_exactly)
{
    struct fixture *f = &fixture;
    struct buffer file;
    kivi_seq seqs[4];

    open_with_capacity(f, 799);
    seqs[0] = f->seq;
    seqs[1] = f->other;
    check_room(f, seqs, 2, "appended");
    buffer_init(&file);
    ck_assert_int_eq(kivi_seq_save(f->cache, f->other, buffer_write, &file, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_load(f->cache, buffer_read, &file, &seqs[2], NULL), KIVI_OK);
    check_room(f, seqs, 3, "loaded");
    file.at = 0;
    file.limit = file.size - 1;
    ck_assert_int_eq(kivi_seq_load(f->cache, buffer_read, &file, &seqs[3], NULL), KIVI_ERROR_IO);
    check_room(f, seqs, 3, "not loaded");
    ck_assert_int_eq(kivi_seq_drop(f->cache, f->seq, 32, 64, NULL, NULL), KIVI_OK);
    check_room(f, seqs, 3, "dropped");
    ck_assert_int_eq(kivi_seq_truncate(f->cache, f->seq, 60, NULL), KIVI_OK);
    check_room(f, seqs, 3, "truncated");
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &seqs[3], NULL), KIVI_OK);
    check_room(f, seqs, 4, "forked");
    ck_assert_int_eq(kivi_seq_reorder(f->cache, seqs, (const uint32_t[]){1, 0, 0, 3}, 4, NULL),
                     KIVI_OK);
    check_room(f, seqs, 4, "reordered");
    ck_assert_int_eq(kivi_seq_destroy(f->cache, seqs[1], NULL), KIVI_OK);
    seqs[1] = seqs[3];
    check_room(f, seqs, 3, "destroyed");
    buffer_free(&file);
    fixture_close(f);
}
END_TEST

/* A layer that is full is as good as all: what would bring tokens to it changes no other either. And what brings no
 * more than it removes is not held back by what there was. */
START_TEST(one_layer_is_full)
{
    struct fixture *f = &fixture;
    struct buffer file;
    struct snapshot before;
    kivi_seq seqs[3], loaded = 1, olds[2], news[2];
    size_t n;

    open_with_capacity(f, 650);
    seqs[0] = f->seq;
    seqs[1] = f->other;
    buffer_init(&file);
    ck_assert_int_eq(kivi_cache_save(f->cache, buffer_write, &file, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_reorder(f->cache, seqs, (const uint32_t[]){0, 0}, 2, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[2], NULL), KIVI_OK);
    before = snapshot_take(f, seqs, 3);
    ck_assert_int_eq(kivi_seq_fork(f->cache, seqs[0], &loaded, NULL), KIVI_ERROR_CAPACITY);
    ck_assert_int_eq(kivi_seq_reorder(f->cache, seqs, (const uint32_t[]){0, 1, 0}, 3, NULL),
                     KIVI_ERROR_CAPACITY);
    ck_assert_int_eq(kivi_cache_load(f->cache, buffer_read, &file, olds, news, 2, &n, NULL),
                     KIVI_ERROR_CAPACITY);
    snapshot_check(&before, f, "beyond the capacity of layer 1");
    check_room(f, seqs, 3, "beyond the capacity of layer 1");
    /* 300 tokens have room now, and 200, but not both. */
    ck_assert_int_eq(kivi_seq_destroy(f->cache, seqs[1], NULL), KIVI_OK);
    seqs[1] = seqs[2];
    file.at = 0;
    ck_assert_int_eq(kivi_cache_load(f->cache, buffer_read, &file, olds, news, 2, &n, NULL),
                     KIVI_ERROR_CAPACITY);
    check_room(f, seqs, 2, "not loaded");
    ck_assert_int_eq(kivi_seq_destroy(f->cache, seqs[0], NULL), KIVI_OK);
    file.at = 0;
    ck_assert_int_eq(kivi_cache_load(f->cache, buffer_read, &file, olds, news, 2, &n, NULL),
                     KIVI_OK);
    check_room(f, news, 2, "loaded");
    buffer_free(&file);
    fixture_close(f);
}
END_TEST

/* Reads from a buffer; meanwhile the last place for a sequence, or the last token of the capacity, is taken. */
static int read_and_take(void *context, void *data, size_t bytes)
{
    struct fixture *f = &fixture;
    struct buffer *file = context;

    if (file->at + bytes == file->size) {
        kivi_seq seq;

        if (f->config.capacity)
            fixture_append(f, 1, f->other, 1);
        else
            ck_assert_int_eq(kivi_seq_create(f->cache, &seq, NULL), KIVI_OK);
    }
    return buffer_read(context, data, bytes);
}

/* Room that was there when a load began may be gone when it ends. */
START_TEST(room_that_goes_meanwhile)
{
    struct fixture *f = &fixture;
    struct buffer file;
    kivi_seq seqs[8];
    size_t i;

    buffer_init(&file);
    open_with_capacity(f, _i ? 700 : 0);
    ck_assert_int_eq(kivi_seq_save(f->cache, f->other, buffer_write, &file, NULL), KIVI_OK);
    for (i = 0; _i == 0 && i < 5; i++)
        ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[i], NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_load(f->cache, read_and_take, &file, &seqs[7], NULL),
                     KIVI_ERROR_CAPACITY);
    ck_assert_uint_eq(seqs[7], 0);
    ck_assert_uint_eq(fixture_stats(f).sequences, _i ? 2 : 8);
    buffer_free(&file);
    fixture_close(f);
}
END_TEST

/* --------------------------------------------------- pages and windows */

/* The item for which there is no room is named: those before it have it. */
START_TEST(budget_names_the_item)
{
    struct fixture *f = &fixture;
    kivi_item items[2];
    kivi_stats stats;
    kivi_error error;
    int i;

    fixture_open_with_budget(f, backend_name(0), 0, 10);
    stats = fixture_stats(f);
    fixture_close(f);
    for (i = 0; i < 2; i++) { /* one window, or two: the first sequence has one */
        fixture_open_with_budget(f, backend_name(0), ((uint64_t)i + 1) * stats.window_bytes, 10);
        ck_assert_int_eq(kivi_seq_create(f->cache, &f->other, NULL), KIVI_OK);
        items[0] = fixture_item(f, f->seq, 1);
        items[1] = fixture_item(f, f->other, 2);
        items[1].out.data = f->out + 1000;
        ck_assert_int_eq(kivi_run(f->cache, 0, items, 2, NULL, &error),
                         i ? KIVI_OK : KIVI_ERROR_CAPACITY);
        if (i == 0)
            ck_assert_uint_eq(error.item, 1);
        fixture_close(f);
    }
}
END_TEST

/* Pages that are free make room for a window, together with what was never used. */
START_TEST(free_pages_make_room_for_a_window)
{
    struct fixture *f = &fixture;
    kivi_stats stats;
    uint64_t page, window;

    fixture_open_with_budget(f, backend_name(0), 0, 100);
    stats = fixture_stats(f);
    window = stats.window_bytes;
    page = stats.code_bytes + stats.scale_bytes + stats.unused_bytes;
    ck_assert_uint_eq(stats.pages, 1);
    ck_assert_uint_lt(page, window);
    fixture_close(f);

    fixture_open_with_budget(f, backend_name(0), 2 * window, 100);
    ck_assert_int_eq(kivi_seq_truncate(f->cache, f->seq, 0, NULL), KIVI_OK);
    fixture_append(f, 0, f->seq, 10);
    ck_assert_uint_eq(fixture_stats(f).free_bytes, page);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->other, NULL), KIVI_OK);
    fixture_append(f, 0, f->other, 10);
    ck_assert_uint_eq(fixture_stats(f).free_bytes, 0);
    fixture_close(f);
}
END_TEST

/* Where there is no memory for many blocks at a time, there may be for the one that is needed. */
START_TEST(one_block_instead_of_many)
{
    struct fixture *f = &fixture;
    size_t fail_at, n_survived = 0;

    for (fail_at = 1; fail_at < 16; fail_at++) {
        kivi_status status;
        kivi_item item;

        fixture_open_with_budget(f, backend_name(0), 0, 500); /* four pages, all in use */
        item = fixture_item(f, f->seq, 60);
        memory_fail(&f->memory, fail_at, 0);
        status = kivi_run(f->cache, 0, &item, 1, NULL, NULL);
        n_survived += memory_has_failed(&f->memory) && status == KIVI_OK;
        memory_fail(&f->memory, 0, 0);
        fixture_close(f);
    }
    ck_assert_uint_gt(n_survived, 0);
}
END_TEST

/* Slabs double: what a small cache keeps free is no more than it uses, at first nothing, and so again after it was
 * large. */
START_TEST(slabs_begin_small)
{
    struct fixture *f = &fixture;
    int i;

    fixture_open_with_budget(f, backend_name(0), 0, 100);
    for (i = 0; i < 2; i++) {
        const kivi_stats stats = fixture_stats(f);

        ck_assert_uint_eq(stats.pages, 1);
        ck_assert_uint_eq(stats.free_bytes, 0);
        fixture_append(f, 0, f->seq, 700);
        fixture_append(f, 0, f->seq, 700);
        ck_assert_uint_gt(fixture_stats(f).free_bytes, 0);
        ck_assert_int_eq(kivi_seq_truncate(f->cache, f->seq, 0, NULL), KIVI_OK);
        kivi_cache_trim(f->cache);
        fixture_append(f, 0, f->seq, 100);
    }
    fixture_close(f);
}
END_TEST

/* kivi_cache_trim returns what the allocator got back, of pages and windows. */
START_TEST(trim_counts_what_it_gives_back)
{
    struct fixture *f = &fixture;
    kivi_seq seqs[6];
    uint64_t unused, trimmed;
    size_t i, had;

    fixture_open(f, backend_name(0));
    for (i = 0; i < 6; i++) { /* several slabs of either */
        ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[i], NULL), KIVI_OK);
        fixture_append(f, 0, seqs[i], 500);
    }
    for (i = 0; i < 6; i++)
        ck_assert_int_eq(kivi_seq_destroy(f->cache, seqs[i], NULL), KIVI_OK);
    unused = fixture_stats(f).free_bytes;
    had = atomic_load(&f->memory.bytes);
    trimmed = kivi_cache_trim(f->cache);
    ck_assert_uint_gt(trimmed, 0);
    ck_assert_uint_eq(unused - fixture_stats(f).free_bytes, trimmed);
    /* Slabs have descriptors, which are no blocks, and a device's blocks are elsewhere. */
    if (!backend_is_device(f->config.backend))
        ck_assert_uint_ge(had - atomic_load(&f->memory.bytes), trimmed);
    ck_assert_uint_eq(kivi_cache_trim(f->cache), 0);
    fixture_close(f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("room");
    TCase *room = tcase_create("room");

    tcase_add_test(room, room_is_counted_exactly);
    tcase_add_test(room, one_layer_is_full);
    tcase_add_loop_test(room, room_that_goes_meanwhile, 0, 2);
    tcase_add_test(room, budget_names_the_item);
    tcase_add_test(room, free_pages_make_room_for_a_window);
    tcase_add_test(room, one_block_instead_of_many);
    tcase_add_test(room, slabs_begin_small);
    tcase_add_test(room, trim_counts_what_it_gives_back);
    tcase_set_timeout(room, 0);
    suite_add_tcase(suite, room);
    return test_main(suite);
}
