/* What can be done with a sequence while another call reads, saves or changes it. test_faults.c has appending calls,
 * test_drop.c those that edit. */
#include <check.h>
#include <kivi/kivi.h>

#include "support/buffer.h"
#include "support/fixture.h"
#include "support/suite.h"

static struct fixture fixture;

static void set_up(void)
{
    fixture_open(&fixture, backend_name(0));
}

static void tear_down(void)
{
    fixture_close(&fixture);
}

/* Calls that read leave each other alone; those that change the sequence are kept out. */
START_TEST(read_meanwhile)
{
    struct fixture *f = &fixture;
    const kivi_seq seqs[] = {f->other, f->seq};
    const kivi_item reading = fixture_item(f, f->seq, 0);
    struct buffer file;
    kivi_work *reader;
    kivi_seq fork;

    ck_assert_int_eq(kivi_work_begin(f->cache, 1, &reading, 1, NULL, 1, &reader, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_drop(f->cache, f->seq, 32, 32, NULL, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_reorder(f->cache, seqs, (const uint32_t[]){1, 0}, 2, NULL),
                     KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &fork, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_destroy(f->cache, fork, NULL), KIVI_OK);
    buffer_init(&file);
    ck_assert_int_eq(kivi_seq_save(f->cache, f->seq, buffer_write, &file, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_cache_save(f->cache, buffer_write, &file, NULL), KIVI_OK);
    buffer_free(&file);
    kivi_work_cancel(reader);
}
END_TEST

static const kivi_seq *saved_seqs; /* two, of which all or the first are being saved */
static int n_saved, n_written;

/* Writes nothing, but looks what else can be done with the sequences meanwhile. */
static int write_and_look(void *context, const void *data, size_t bytes)
{
    struct fixture *f = &fixture;
    const int fails = context != NULL;
    int i;

    (void)data;
    (void)bytes;
    for (i = 0; i < 2; i++) {
        const kivi_status expected = i < n_saved ? KIVI_ERROR_BUSY : KIVI_OK;
        const kivi_item item = fixture_item(f, saved_seqs[i], 1),
                        reading = fixture_item(f, saved_seqs[i], 0);

        ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), expected);
        ck_assert_int_eq(kivi_run(f->cache, 1, &item, 1, NULL, NULL), expected);
        ck_assert_int_eq(kivi_run(f->cache, 0, &reading, 1, NULL, NULL), KIVI_OK);
        if (expected == KIVI_ERROR_BUSY) {
            ck_assert_int_eq(kivi_seq_truncate(f->cache, saved_seqs[i], 5, NULL), expected);
            ck_assert_int_eq(kivi_seq_destroy(f->cache, saved_seqs[i], NULL), expected);
        }
    }
    n_written++;
    return fails;
}

/* What is being saved can be read and not changed; afterwards, whether it was written or not, it can. _i: the
 * callback fails. */
START_TEST(saved_meanwhile)
{
    struct fixture *f = &fixture;
    const kivi_seq seqs[] = {f->seq, f->other};
    const kivi_status expected = _i ? KIVI_ERROR_IO : KIVI_OK;
    void *context = _i ? f : NULL;
    int i;

    saved_seqs = seqs;
    n_written = 0;
    n_saved = 1;
    ck_assert_int_eq(kivi_seq_save(f->cache, f->seq, write_and_look, context, NULL), expected);
    n_saved = 2;
    ck_assert_int_eq(kivi_cache_save(f->cache, write_and_look, context, NULL), expected);
    ck_assert_int_ge(n_written, 2);
    for (i = 0; i < 2; i++) {
        fixture_append(f, 0, seqs[i], 1);
        fixture_append(f, 1, seqs[i], 1);
    }
}
END_TEST

/* What is being changed is not saved, alone or among others, and no sequence is busy because of that. */
START_TEST(changed_meanwhile)
{
    struct fixture *f = &fixture;
    const kivi_seq seqs[] = {f->seq, f->other};
    int i;

    for (i = 0; i < 2; i++) {
        const kivi_item item = fixture_item(f, seqs[i], 1);
        kivi_work *writer;
        struct buffer file;

        buffer_init(&file);
        ck_assert_int_eq(kivi_work_begin(f->cache, 1, &item, 1, NULL, 1, &writer, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_save(f->cache, seqs[i], buffer_write, &file, NULL),
                         KIVI_ERROR_BUSY);
        ck_assert_int_eq(kivi_cache_save(f->cache, buffer_write, &file, NULL), KIVI_ERROR_BUSY);
        ck_assert_uint_eq(file.size, 0);
        fixture_append(f, 0, f->seq, 1);
        fixture_append(f, 1, seqs[1 - i], 1);
        kivi_work_cancel(writer);
        fixture_append(f, 1, seqs[i], 1);
        buffer_free(&file);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("busy");
    TCase *busy = tcase_create("busy");

    tcase_add_checked_fixture(busy, set_up, tear_down);
    tcase_add_test(busy, read_meanwhile);
    tcase_add_loop_test(busy, saved_meanwhile, 0, 2);
    tcase_add_test(busy, changed_meanwhile);
    suite_add_tcase(suite, busy);
    return test_main(suite);
}
