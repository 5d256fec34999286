/*
 * What goes wrong after the arguments were right: no memory at any allocation, no room, numbers that
 * are not finite, a sequence in use, damaged data. Nothing leaks, nothing is lost, and the same call
 * works once the cause is gone.
 */
#include <check.h>
#include <kivi/kivi.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/buffer.h"
#include "support/fixture.h"
#include "support/random.h"
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

static void check_error(const char *what, const kivi_error *error, kivi_status expected)
{
    ck_assert_msg(error->status == expected, "%s: %s (%s)", what, kivi_status_string(error->status),
                  error->message);
    ck_assert_msg(error->message[0] != '\0', "%s: no message", what);
}

/* ------------------------------------------------------------- memory */

/* A life of a cache in steps. Sequences that do not exist yet are 0. */
enum { SEQ_A, SEQ_B, SEQ_C, N_SEQS };

struct life {
    struct fixture *fixture;
    int measures; /* nothing fails: the allocations of each step are counted */
    kivi_seq seqs[N_SEQS];
    char *file; /* what was saved */
    size_t length, at, room;
};

static int write_file(void *context, const void *data, size_t bytes)
{
    struct life *life = context;

    if (life->length + bytes > life->room)
        return 1;
    memcpy(life->file + life->length, data, bytes);
    life->length += bytes;
    return 0;
}

static int read_file(void *context, void *data, size_t bytes)
{
    struct life *life = context;

    if (bytes > life->length - life->at)
        return 1;
    memcpy(data, life->file + life->at, bytes);
    life->at += bytes;
    return 0;
}

static kivi_status append_both(struct life *life, kivi_error *error)
{
    kivi_item items[2] = {fixture_item(life->fixture, life->seqs[SEQ_A], 3),
                          fixture_item(life->fixture, life->seqs[SEQ_B], 20)};

    items[1].out.data = life->fixture->out + 1000;
    items[1].lse = NULL;
    return kivi_run(life->fixture->cache, 1, items, 2, NULL, error);
}

static kivi_status append_one(struct life *life, uint32_t layer, int seq, uint64_t n,
                              kivi_error *error)
{
    const kivi_item item = fixture_item(life->fixture, life->seqs[seq], n);

    return kivi_run(life->fixture->cache, layer, &item, 1, NULL, error);
}

static kivi_status in_parts(struct life *life, kivi_error *error)
{
    const kivi_item item = fixture_item(life->fixture, life->seqs[SEQ_A], 40);
    kivi_work *work;
    uint32_t phase, part;
    const kivi_status status =
        kivi_work_begin(life->fixture->cache, 0, &item, 1, NULL, 3, &work, error);

    if (status != KIVI_OK)
        return status;
    for (phase = 0; phase < kivi_work_phases(work); phase++)
        for (part = 0; part < 3; part++)
            kivi_work_part(work, phase, part);
    return kivi_work_end(work, error);
}

static kivi_status reorder(struct life *life, kivi_error *error)
{
    const kivi_seq seqs[] = {life->seqs[SEQ_A], life->seqs[SEQ_B]};
    const uint32_t parents[] = {1, 1};

    return kivi_seq_reorder(life->fixture->cache, seqs, parents, 2, error);
}

#define N_STEPS 18

static kivi_status take_step(struct life *life, int step, kivi_error *error)
{
    struct fixture *f = life->fixture;
    kivi_seq *seqs = life->seqs, old_seqs[N_SEQS], new_seqs[N_SEQS];
    const uint64_t n_new[N_SEQS] = {900, 300, 1};
    size_t n;

    switch (step) {
    case 0:
        return kivi_cache_create(&f->config, &f->cache, error);
    case 1:
        return kivi_seq_create(f->cache, &seqs[SEQ_A], error);
    case 2:
        return append_one(life, 0, SEQ_A, 40, error);
    case 3:
        return append_one(life, 1, SEQ_A, 2, error);
    case 4: /* more pages than a page table has room for at first */
        return append_one(life, 0, SEQ_A, 700, error);
    case 5:
        return kivi_seq_fork(f->cache, seqs[SEQ_A], &seqs[SEQ_B], error);
    case 6:
        return append_one(life, 0, SEQ_B, 35, error);
    case 7:
        return append_both(life, error);
    case 8:
        return in_parts(life, error);
    case 9:
        return reorder(life, error);
    case 10:
        return append_one(life, 0, SEQ_A, 33, error);
    case 11:
        return kivi_seq_truncate(f->cache, seqs[SEQ_A], 601, error);
    case 12:
        return kivi_seq_truncate(f->cache, seqs[SEQ_B], 300, error);
    case 13:
        life->length = 0;
        return kivi_seq_save(f->cache, seqs[SEQ_A], write_file, life, error);
    case 14:
        life->at = 0;
        return kivi_seq_load(f->cache, read_file, life, &seqs[SEQ_C], error);
    case 15:
        life->length = 0;
        return kivi_cache_save(f->cache, write_file, life, error);
    case 16:
        return kivi_seq_reserve(f->cache, seqs, n_new, N_SEQS, error);
    default:
        life->at = 0;
        return kivi_cache_load(f->cache, read_file, life, old_seqs, new_seqs, N_SEQS, &n, error);
    }
}

/* Allocations of each step, as long as none has failed. */
static size_t costs[N_STEPS];

/* One step under the threat of failure. If it fails, the cache must be as before, and the step work
 * at the second try. `budget`: allocations until the one that fails; 0: none will. */
static void take_step_and_check(struct life *life, int step, size_t *budget, int and_after)
{
    struct memory *memory = &life->fixture->memory;
    struct snapshot before = {.n_seqs = 0};
    const size_t calls = atomic_load(&memory->calls);
    kivi_error error = {.status = KIVI_OK};
    kivi_status status;
    char what[64];

    if (step > 0 && *budget && *budget <= costs[step])
        before = snapshot_take(life->fixture, life->seqs, N_SEQS);
    memory_fail(memory, *budget, and_after);
    status = take_step(life, step, &error);
    snprintf(what, sizeof what, "step %d, allocation %zu", step,
             atomic_load(&memory->calls) - calls);
    if (life->measures)
        costs[step] = atomic_load(&memory->calls) - calls;
    if (memory_has_failed(memory)) {
        *budget = 0;
    } else {
        ck_assert_msg(status == KIVI_OK, "%s: %s", what, error.message);
        *budget -= *budget ? costs[step] : 0;
    }
    memory_fail(memory, 0, 0);
    if (status == KIVI_OK) {
        snapshot_free(&before);
        return;
    }
    check_error(what, &error, KIVI_ERROR_MEMORY);
    if (step > 0)
        snapshot_check(&before, life->fixture, what);
    else
        ck_assert_uint_eq(atomic_load(&memory->blocks), 0);
    ck_assert_msg(take_step(life, step, &error) == KIVI_OK, "%s: second try: %s", what,
                  error.message);
}

/* Lives through all steps while allocation `fail_at` fails. Returns whether there was such a one, and
 * the digest of the end. */
static int live(size_t fail_at, int and_after, char **file, size_t *length)
{
    struct life life = {.fixture = &fixture, .measures = fail_at == 0, .room = 1 << 21};
    size_t budget = fail_at;
    int step;

    fixture_init(&fixture, backend_name(0));
    life.file = malloc(life.room);
    ck_assert_ptr_nonnull(life.file);
    for (step = 0; step < N_STEPS; step++)
        take_step_and_check(&life, step, &budget, and_after);
    life.length = 0;
    ck_assert_int_eq(kivi_cache_save(fixture.cache, write_file, &life, NULL), KIVI_OK);
    *file = life.file;
    *length = life.length;
    fixture_close(&fixture);
    return budget == 0;
}

/* The allocation that fails is each in turn; _i: all after it fail too. */
START_TEST(allocation_failures)
{
    char *expected, *file;
    size_t expected_length, length, fail_at;
    int reached = 1;

    live(0, 0, &expected, &expected_length);
    for (fail_at = 1; reached; fail_at++) {
        reached = live(fail_at, _i, &file, &length);
        ck_assert_uint_eq(length, expected_length);
        ck_assert_mem_eq(file, expected, length);
        free(file);
    }
    free(expected);
    printf("allocation failures: %zu places, %s\n", fail_at - 2, _i ? "and all after" : "one each");
    ck_assert_uint_gt(fail_at, 50);
}
END_TEST

/* --------------------------------------------------------------- room */

START_TEST(capacity)
{
    struct fixture *f = &fixture;
    struct snapshot before;
    kivi_item items[2];
    kivi_error error;
    kivi_seq seqs[2], fork;
    kivi_work *work, *second;

    fixture_init(f, backend_name(0));
    f->config.capacity = 100; /* tokens of a layer, over all sequences */
    ck_assert_int_eq(kivi_cache_create(&f->config, &f->cache, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->seq, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->other, NULL), KIVI_OK);
    items[0] = fixture_item(f, f->seq, 60);
    items[1] = fixture_item(f, f->other, 41);
    seqs[0] = f->seq;
    seqs[1] = f->other;
    before = snapshot_take(f, seqs, 2);
    ck_assert_int_eq(kivi_run(f->cache, 0, items, 2, NULL, &error), KIVI_ERROR_CAPACITY);
    check_error("capacity", &error, KIVI_ERROR_CAPACITY);
    ck_assert_uint_eq(error.item, 1);
    snapshot_check(&before, f, "beyond capacity");

    /* Two calls at the same time cannot exceed it together. */
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &items[0], 1, NULL, 1, &work, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &items[1], 1, NULL, 1, &second, NULL),
                     KIVI_ERROR_CAPACITY);
    kivi_work_cancel(work);
    ck_assert_int_eq(kivi_run(f->cache, 0, &items[1], 1, NULL, NULL), KIVI_OK);
    items[0].n_new = 59;
    ck_assert_int_eq(kivi_run(f->cache, 0, items, 1, NULL, NULL), KIVI_OK);
    items[0].n_new = 1;
    ck_assert_int_eq(kivi_run(f->cache, 0, items, 1, NULL, NULL), KIVI_ERROR_CAPACITY);
    ck_assert_int_eq(kivi_run(f->cache, 1, items, 1, NULL, NULL),
                     KIVI_ERROR_ARGUMENT); /* 2 queries */
    items[0].n_q = 1;
    ck_assert_int_eq(kivi_run(f->cache, 1, items, 1, NULL, NULL), KIVI_OK); /* another layer */
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &fork, NULL), KIVI_ERROR_CAPACITY);

    /* What is given up makes room. */
    ck_assert_int_eq(kivi_seq_destroy(f->cache, f->other, NULL), KIVI_OK);
    items[0].n_new = 41;
    ck_assert_int_eq(kivi_run(f->cache, 0, items, 1, NULL, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_truncate(f->cache, f->seq, 50, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &fork, NULL), KIVI_OK);
    fixture_close(f);
}
END_TEST

/* n more tokens do not fit, and change nothing; without the sequence, as many as it had do. */
static void check_full(struct fixture *f, uint64_t n, uint64_t had)
{
    struct snapshot before = snapshot_take(f, &f->seq, 1);
    kivi_item item = fixture_item(f, f->seq, n);
    kivi_error error;

    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, &error), KIVI_ERROR_CAPACITY);
    check_error("memory_budget", &error, KIVI_ERROR_CAPACITY);
    snapshot_check(&before, f, "beyond the budget");
    ck_assert_int_eq(kivi_seq_destroy(f->cache, f->seq, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->seq, NULL), KIVI_OK);
    item = fixture_item(f, f->seq, had);
    ck_assert_int_eq(kivi_run(f->cache, 1, &item, 1, NULL, NULL), KIVI_OK);
}

START_TEST(memory_budget)
{
    struct fixture *f = &fixture;
    kivi_stats stats = {.size = sizeof stats};
    uint64_t used;
    kivi_item item;

    /* What 600 tokens take, without limit. */
    fixture_open_with_budget(f, backend_name(0), 0, 600);
    ck_assert_int_eq(kivi_cache_stats(f->cache, &stats, NULL), KIVI_OK);
    used = stats.code_bytes + stats.scale_bytes + stats.window_bytes + stats.unused_bytes;
    fixture_close(f);

    /* Just that is enough, in one call or in two; a byte less is not. */
    fixture_open_with_budget(f, backend_name(0), used, 600);
    check_full(f, 128, 600);
    fixture_close(f);
    fixture_open_with_budget(f, backend_name(0), used, 200);
    item = fixture_item(f, f->seq, 400);
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    fixture_close(f);
    fixture_open_with_budget(f, backend_name(0), used - 1, 200);
    check_full(f, 400, 200);
    fixture_close(f);
}
END_TEST

/* What is refused for want of pages leaves no table for them behind. */
START_TEST(refused_pages)
{
    struct fixture *f = &fixture;
    kivi_stats before, after;
    kivi_item item;

    fixture_open_with_budget(f, backend_name(0), (uint64_t)1 << 20, 2);
    item = fixture_item(f, f->seq, 1);
    item.n_new = UINT32_MAX; /* of which none is read */
    item.n_q = 0;
    before = fixture_stats(f);
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_ERROR_CAPACITY);
    kivi_cache_trim(f->cache);
    after = fixture_stats(f);
    ck_assert_uint_eq(after.bookkeeping_bytes, before.bookkeeping_bytes);
    fixture_close(f);
}
END_TEST

/* Bytes of pages and windows, in use or not. */
static uint64_t all_blocks(const struct fixture *f)
{
    const kivi_stats stats = fixture_stats(f);

    return stats.total_bytes - stats.bookkeeping_bytes + stats.free_bytes;
}

static uint64_t most_blocks;

/* Reads from a buffer, and counts meanwhile. */
static int read_and_count(void *context, void *data, size_t bytes)
{
    const uint64_t blocks = all_blocks(&fixture);

    most_blocks = blocks > most_blocks ? blocks : most_blocks;
    return buffer_read(context, data, bytes);
}

/* What is on its way into the cache is in use. */
START_TEST(statistics_meanwhile)
{
    struct fixture *f = &fixture;
    struct buffer file;
    kivi_seq seq;

    fixture_open(f, backend_name(0));
    buffer_init(&file);
    ck_assert_int_eq(kivi_seq_save(f->cache, f->seq, buffer_write, &file, NULL), KIVI_OK);
    most_blocks = 0;
    ck_assert_int_eq(kivi_seq_load(f->cache, read_and_count, &file, &seq, NULL), KIVI_OK);
    ck_assert_uint_eq(most_blocks, all_blocks(f));
    buffer_free(&file);
    fixture_close(f);
}
END_TEST

#define MANY 400

/* One token for each of as many sequences as the budget has windows for. Returns how many. */
static size_t fill_with_windows(struct fixture *f, kivi_seq seqs[MANY])
{
    kivi_status status = KIVI_OK;
    size_t n = 0;

    while (status == KIVI_OK) {
        kivi_item item;

        ck_assert_uint_lt(n, MANY);
        ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[n], NULL), KIVI_OK);
        item = fixture_item(f, seqs[n++], 1);
        item.n_q = 0;
        status = kivi_run(f->cache, 0, &item, 1, NULL, NULL);
    }
    ck_assert_int_eq(status, KIVI_ERROR_CAPACITY);
    ck_assert_int_eq(kivi_seq_destroy(f->cache, seqs[--n], NULL), KIVI_OK);
    return n;
}

/* A few windows that stay, one here and one there, do not keep the budget from pages; and the refusal
 * in the end tells what is in use from what is free without being of use. */
START_TEST(budget_in_pieces)
{
    struct fixture *f = &fixture;
    const uint64_t budget = (uint64_t)4 << 20;
    kivi_stats stats = {.size = sizeof stats};
    kivi_seq seqs[MANY];
    kivi_status status = KIVI_OK;
    kivi_error error;
    unsigned long long of, in_use, unused;
    size_t n, i;

    fixture_init(f, backend_name(0));
    f->config.memory_budget = budget;
    f->config.max_sequences = MANY;
    ck_assert_int_eq(kivi_cache_create(&f->config, &f->cache, NULL), KIVI_OK);
    n = fill_with_windows(f, seqs);
    ck_assert_uint_gt(n, 200);
    for (i = 0; i < n; i++)
        if (i % 35)
            ck_assert_int_eq(kivi_seq_destroy(f->cache, seqs[i], NULL), KIVI_OK);
    kivi_cache_trim(f->cache);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->seq, NULL), KIVI_OK);
    while (status == KIVI_OK) {
        kivi_item item = fixture_item(f, f->seq, FIXTURE_TOKENS);

        item.n_q = 0;
        status = kivi_run(f->cache, 0, &item, 1, NULL, &error);
    }
    ck_assert_int_eq(status, KIVI_ERROR_CAPACITY);
    ck_assert_int_eq(kivi_seq_stats(f->cache, f->seq, &stats, NULL), KIVI_OK);
    ck_assert_msg(stats.code_bytes + stats.scale_bytes + stats.unused_bytes > budget / 3,
                  "only %llu pages: %s", (unsigned long long)stats.pages, error.message);
    ck_assert_msg(sscanf(error.message,
                         "memory_budget: of %llu bytes, %llu are in use and %llu are free", &of,
                         &in_use, &unused)
                      == 3,
                  "%s", error.message);
    ck_assert_uint_eq(of, budget);
    ck_assert_uint_gt(in_use, budget / 3);
    ck_assert_uint_gt(in_use + unused, budget - budget / 100);
    ck_assert_uint_le(in_use + unused, budget);
    fixture_close(f);
}
END_TEST

START_TEST(max_sequences)
{
    struct fixture *f = &fixture;
    kivi_seq seqs[8], extra = 5, reused;
    kivi_error error;
    size_t i, j;

    fixture_init(f, backend_name(0));
    ck_assert_int_eq(kivi_cache_create(&f->config, &f->cache, NULL), KIVI_OK);
    for (i = 0; i < 8; i++) {
        ck_assert_int_eq(kivi_seq_create(f->cache, &seqs[i], NULL), KIVI_OK);
        ck_assert(seqs[i] != 0);
        for (j = 0; j < i; j++)
            ck_assert(seqs[i] != seqs[j]);
    }
    ck_assert_int_eq(kivi_seq_create(f->cache, &extra, &error), KIVI_ERROR_CAPACITY);
    check_error("max_sequences", &error, KIVI_ERROR_CAPACITY);
    ck_assert_uint_eq(extra, 0);
    ck_assert_int_eq(kivi_seq_fork(f->cache, seqs[0], &extra, NULL), KIVI_ERROR_CAPACITY);
    /* A number is never used again. */
    for (i = 0; i < 1000; i++) {
        ck_assert_int_eq(kivi_seq_destroy(f->cache, seqs[3], NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_create(f->cache, &reused, NULL), KIVI_OK);
        ck_assert_uint_gt(reused, seqs[3]);
        ck_assert_int_eq(kivi_seq_destroy(f->cache, seqs[3], NULL), KIVI_ERROR_SEQUENCE);
        seqs[3] = reused;
    }
    fixture_close(f);
}
END_TEST

/* ------------------------------------------------------- not finite */

enum operand { OPERAND_K, OPERAND_V, OPERAND_Q };

/* Puts something that is not finite in a random place of one array. Returns how to undo it. */
static float *spoil(struct rng *rng, struct fixture *f, enum operand operand, uint64_t tokens,
                    float *good)
{
    const float bad[] = {(float)INFINITY, (float)-INFINITY, (float)NAN, 65520, -1e30f};
    const size_t rows = operand == OPERAND_Q ? 2 : (size_t)tokens;
    const size_t width = operand == OPERAND_K   ? FIXTURE_KV_HEADS * FIXTURE_K_DIM
                         : operand == OPERAND_V ? FIXTURE_KV_HEADS * FIXTURE_V_DIM
                                                : FIXTURE_Q_HEADS * FIXTURE_K_DIM;
    float *array = operand == OPERAND_K ? f->k : operand == OPERAND_V ? f->v : f->q;
    float *place = array + rng_below(rng, rows * width);

    *good = *place;
    /* Queries are not rounded to f16: only what f32 cannot hold is refused. */
    *place = bad[rng_below(rng, operand == OPERAND_Q ? 3 : 5)];
    return place;
}

/* The message names the token and, but for a device's, the head of the place; keys and values have to be finite in
 * f16. */
static void check_place(const struct fixture *f, enum operand operand, const float *place,
                        const char *message)
{
    const float *array = operand == OPERAND_K ? f->k : operand == OPERAND_V ? f->v : f->q;
    const uint32_t heads = operand == OPERAND_Q ? FIXTURE_Q_HEADS : FIXTURE_KV_HEADS;
    const uint32_t dim = operand == OPERAND_V ? FIXTURE_V_DIM : FIXTURE_K_DIM;
    const unsigned head = (unsigned)((place - array) / dim), token = head / heads;
    char expected[64];

    ck_assert_ptr_nonnull(strchr(message, ':'));
    if (backend_is_device(f->config.backend)) {
        const size_t n = (size_t)snprintf(expected, sizeof expected, ": token %u ", token);

        ck_assert_int_eq(strncmp(strchr(message, ':'), expected, n), 0);
        return;
    }
    snprintf(expected, sizeof expected, ": token %u, head %u is not finite%s", token, head % heads,
             operand == OPERAND_Q ? "" : " in f16");
    ck_assert_str_eq(strchr(message, ':'), expected);
}

START_TEST(not_finite)
{
    struct fixture *f = &fixture;
    const char *const names[] = {"].k", "].v", "].q"};
    struct rng rng = {test_seed(0xf17e)};
    int i;

    fixture_open(f, backend_name(_i));
    for (i = 0; i < 60; i++) {
        const kivi_seq seqs[] = {f->seq, f->other};
        const uint64_t sizes[] = {1, 2, 33, 200};
        const uint64_t n = RNG_PICK(&rng, sizes);
        kivi_item items[2] = {fixture_item(f, f->seq, n), fixture_item(f, f->other, n)};
        struct snapshot before = snapshot_take(f, seqs, 2);
        float good, *place = spoil(&rng, f, (enum operand)(i % 3), n, &good);
        kivi_error error;

        ck_assert_int_eq(kivi_run(f->cache, 0, items, 1 + i % 2, NULL, &error),
                         KIVI_ERROR_NOT_FINITE);
        check_error("not finite", &error, KIVI_ERROR_NOT_FINITE);
        ck_assert_msg(strstr(error.message, names[i % 3]) != NULL, "%s", error.message);
        check_place(f, (enum operand)(i % 3), place, error.message);
        snapshot_check(&before, f, "not finite");
        *place = good;
        if (i % 6 == 0)
            ck_assert_int_eq(kivi_run(f->cache, 0, items, 2, NULL, &error), KIVI_OK);
    }
    fixture_close(f);
}
END_TEST

/* What rounds to the largest number of f16 is taken. */
START_TEST(largest_number)
{
    struct fixture *f = &fixture;
    kivi_item item;
    size_t i;

    fixture_open(f, backend_name(_i));
    f->k[3] = f->v[3] = 65519.99f;
    f->k[5] = f->v[5] = -65504;
    item = fixture_item(f, f->seq, 64);
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    item.n_new = 0;
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    for (i = 0; i < (size_t)2 * FIXTURE_Q_HEADS * FIXTURE_V_DIM; i++)
        ck_assert(isfinite(f->out[i]));
    fixture_close(f);
}
END_TEST

/* A scaled query may be 1e30, of either sign, and no more. */
START_TEST(largest_query)
{
    struct fixture *f = &fixture;
    kivi_attention attention;
    kivi_item item;
    int i;

    fixture_open(f, backend_name(_i));
    kivi_attention_init(&attention);
    attention.scale = 0.5f;
    item = fixture_item(f, f->seq, 0);
    for (i = 0; i < 2; i++) {
        f->q[30] = i ? -1.99e30f : 1.99e30f;
        ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, &attention, NULL), KIVI_OK);
        f->q[30] = i ? -2.01e30f : 2.01e30f;
        ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, &attention, NULL), KIVI_ERROR_NOT_FINITE);
    }
    fixture_close(f);
}
END_TEST

/* --------------------------------------------------------------- busy */

START_TEST(busy)
{
    struct fixture *f = &fixture;
    const kivi_seq seqs[] = {f->seq, f->other};
    const uint32_t parents[] = {1, 0};
    struct snapshot before = snapshot_take(f, seqs, 2);
    const kivi_item item = fixture_item(f, f->seq, 3);
    kivi_item reading = fixture_item(f, f->seq, 0);
    kivi_work *writer, *reader, *second;
    kivi_error error;
    kivi_seq fork;
    uint64_t n;

    /* While a call appends to a layer, nobody else works on it. */
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &item, 1, NULL, 1, &writer, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, &error), KIVI_ERROR_BUSY);
    check_error("busy", &error, KIVI_ERROR_BUSY);
    ck_assert_ptr_nonnull(strstr(error.message, "another call"));
    ck_assert_int_eq(kivi_run(f->cache, 0, &reading, 1, NULL, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_destroy(f->cache, f->seq, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_truncate(f->cache, f->seq, 5, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_drop(f->cache, f->seq, 32, 32, NULL, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_fork(f->cache, f->seq, &fork, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_reorder(f->cache, seqs, parents, 2, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_length(f->cache, f->seq, 0, &n, NULL), KIVI_OK);
    ck_assert_uint_eq(n, 90);
    kivi_work_cancel(writer);

    /* Readers do not disturb each other, but keep a writer out. */
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &reading, 1, NULL, 1, &reader, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &reading, 1, NULL, 1, &second, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_destroy(f->cache, f->seq, NULL), KIVI_ERROR_BUSY);
    ck_assert_int_eq(kivi_seq_truncate(f->cache, f->seq, 5, NULL), KIVI_ERROR_BUSY);
    kivi_work_cancel(second);
    kivi_work_cancel(reader);
    snapshot_check(&before, f, "calls that were busy or cancelled");

    /* Other layers and other sequences are free all the while. */
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &item, 1, NULL, 1, &writer, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_run(f->cache, 1, &item, 1, NULL, NULL), KIVI_OK);
    reading.seq = f->other;
    ck_assert_int_eq(kivi_run(f->cache, 0, &reading, 1, NULL, NULL), KIVI_OK);
    kivi_work_cancel(writer);
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_length(f->cache, f->seq, 0, &n, NULL), KIVI_OK);
    ck_assert_uint_eq(n, 93);
}
END_TEST

/* Cancelling at any moment leaves the cache as it was. */
START_TEST(cancelled)
{
    struct fixture *f = &fixture;
    struct snapshot before;
    kivi_item item;
    uint32_t stop, phase, n_phases = 1;

    fixture_open(f, backend_name(_i));
    item = fixture_item(f, f->seq, 700);
    before = snapshot_take(f, &f->seq, 1);
    for (stop = 0; stop <= n_phases * 3; stop++) {
        kivi_work *work;

        ck_assert_int_eq(kivi_work_begin(f->cache, 0, &item, 1, NULL, 3, &work, NULL), KIVI_OK);
        n_phases = kivi_work_phases(work);
        for (phase = 0; phase < n_phases * 3 && phase < stop; phase++)
            kivi_work_part(work, phase / 3, phase % 3);
        kivi_work_cancel(work);
    }
    ck_assert_uint_gt(n_phases, 0);
    snapshot_check(&before, f, "cancelled");
    fixture_close(f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("faults");
    TCase *memory = tcase_create("memory and room"), *numbers = tcase_create("numbers");
    TCase *use = tcase_create("in use");

    tcase_add_loop_test(memory, allocation_failures, 0, 2);
    tcase_add_test(memory, capacity);
    tcase_add_test(memory, memory_budget);
    tcase_add_test(memory, refused_pages);
    tcase_add_test(memory, statistics_meanwhile);
    tcase_add_test(memory, budget_in_pieces);
    tcase_add_test(memory, max_sequences);
    tcase_add_loop_test(numbers, not_finite, 0, backend_count());
    tcase_add_loop_test(numbers, largest_number, 0, backend_count());
    tcase_add_loop_test(numbers, largest_query, 0, backend_count());
    tcase_add_loop_test(numbers, cancelled, 0, backend_count());
    tcase_add_checked_fixture(use, set_up, tear_down);
    tcase_add_test(use, busy);
    tcase_set_timeout(memory, 0);
    suite_add_tcase(suite, memory);
    suite_add_tcase(suite, numbers);
    suite_add_tcase(suite, use);
    return test_main(suite);
}
