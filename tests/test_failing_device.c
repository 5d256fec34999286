/* A device that fails: between the cache and its backend, one copy, read or write of a block does. The call says so, the
 * cache is as it was, nothing leaks, and the same call works once the device does. */
#include <check.h>
#include <kivi/kivi.h>

#include "core/cache.h"
#include "support/buffer.h"
#include "support/fixture.h"
#include "support/suite.h"

static struct fixture fixture;

static struct {
    const struct kivi_backend *backend; /* the cache's own */
    size_t fail_at; /* the operation on a block that fails, counted down; 0: none */
    int has_failed;
} device;

static kivi_status operate(kivi_status status, kivi_error *error)
{
    if (device.fail_at == 0 || --device.fail_at > 0)
        return status;
    device.has_failed = 1;
    return kivi_fail(error, KIVI_ERROR_DEVICE, "the device was told to fail");
}

static kivi_status copy(void *context, void *to, const void *from, size_t bytes, kivi_error *error)
{
    return operate(device.backend->block_copy(context, to, from, bytes, error), error);
}

static kivi_status read_from(void *context, void *host, const void *block, size_t offset,
                             size_t bytes, kivi_error *error)
{
    return operate(device.backend->block_read(context, host, block, offset, bytes, error), error);
}

static kivi_status write_to(void *context, void *block, size_t offset, const void *host,
                            size_t bytes, kivi_error *error)
{
    return operate(device.backend->block_write(context, block, offset, host, bytes, error), error);
}

enum { APPEND, TRUNCATE, DROP, TURN, SAVE, LOAD, N_CALLS };

static const float frequencies[FIXTURE_K_DIM / 2] = {1, 0.5f, 0.1f};
static const kivi_rope rope = {sizeof rope, FIXTURE_K_DIM, 0, frequencies, 0};

static kivi_status call(int which, struct buffer *file, kivi_error *error)
{
    struct fixture *f = &fixture;
    const kivi_item item = fixture_item(f, f->seq, 40);
    kivi_seq seq;

    switch (which) {
    case APPEND: /* to a fork: what is shared is copied */
        return kivi_run(f->cache, 0, &item, 1, NULL, error);
    case TRUNCATE:
        return kivi_seq_truncate(f->cache, f->seq, 70, error);
    case DROP:
        return kivi_seq_drop(f->cache, f->seq, 32, 64, NULL, error);
    case TURN:
        return kivi_seq_drop(f->cache, f->seq, 32, 64, &rope, error);
    case SAVE:
        file->size = 0;
        return kivi_seq_save(f->cache, f->seq, buffer_write, file, error);
    default:
        file->at = 0;
        return kivi_seq_load(f->cache, buffer_read, file, &seq, error);
    }
}

/* The fixture with more tokens and a fork of its sequence. */
static void open_device(struct kivi_backend *watched, kivi_seq *fork)
{
    struct fixture *f = &fixture;
    uint32_t layer;

    fixture_open(f, backend_name(0));
    for (layer = 0; layer < 2; layer++) {
        const kivi_item item = fixture_item(f, f->seq, 160);

        ck_assert_int_eq(kivi_run(f->cache, layer, &item, 1, NULL, NULL), KIVI_OK);
    }
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, fork, NULL), KIVI_OK);
    device.backend = f->cache->backend;
    *watched = *device.backend;
    watched->block_copy = copy;
    watched->block_read = read_from;
    watched->block_write = write_to;
    f->cache->backend = f->cache->source.backend = watched;
}

START_TEST(failing_device)
{
    struct fixture *f = &fixture;
    struct kivi_backend watched;
    struct buffer file;
    kivi_seq fork;
    size_t fail_at, n_failed = 0;

    open_device(&watched, &fork);
    buffer_init(&file);
    ck_assert_int_eq(kivi_seq_save(f->cache, f->seq, buffer_write, &file, NULL), KIVI_OK);
    for (fail_at = 1;; fail_at += 1 + fail_at / 8) {
        const kivi_seq seqs[] = {f->seq, fork, f->other};
        struct snapshot before = snapshot_take(f, seqs, 3);
        kivi_error error;
        kivi_status status;

        device.has_failed = 0;
        device.fail_at = fail_at;
        status = call(_i, &file, &error);
        device.fail_at = 0;
        if (!device.has_failed) {
            ck_assert_int_eq(status, KIVI_OK);
            snapshot_free(&before);
            break;
        }
        ck_assert_msg(status == KIVI_ERROR_DEVICE && error.status == KIVI_ERROR_DEVICE,
                      "operation %zu: %s", fail_at, kivi_status_string(status));
        snapshot_check(&before, f, "a device that failed");
        n_failed++;
    }
    ck_assert_uint_gt(n_failed, 1);
    buffer_free(&file);
    f->cache->backend = f->cache->source.backend = device.backend;
    fixture_close(f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("failing device");
    TCase *blocks = tcase_create("blocks");

    tcase_add_loop_test(blocks, failing_device, 0, N_CALLS);
    tcase_set_timeout(blocks, 0);
    suite_add_tcase(suite, blocks);
    return test_main(suite);
}
