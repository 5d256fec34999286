/*
 * Arguments that must be refused: NULL, zero, negative, overflowing and inconsistent ones, for every
 * public function, from tables. Each gives its status and a message, and leaves the cache as it was.
 * test_backends.c has those of backends, test_pack.c the packing API, test_faults.c what goes wrong later.
 */
#include <check.h>
#include <kivi/kivi.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "support/buffer.h"
#include "support/fixture.h"
#include "support/mistake.h"
#include "support/refusal.h"
#include "support/suite.h"

#define LENGTH(array) (sizeof(array) / sizeof(array)[0])

static struct fixture fixture;

static void set_up(void)
{
    fixture_open(&fixture, backend_name(0));
}

static void tear_down(void)
{
    fixture_close(&fixture);
}

/* ----------------------------------------------------- configurations */

#define CONFIG_MISTAKE(field, x) MISTAKE(kivi_config, field, x, ARGUMENT)

static const struct mistake config_mistakes[] = {
    CONFIG_MISTAKE(size, 0),
    CONFIG_MISTAKE(size, sizeof(kivi_config) + 8),
    CONFIG_MISTAKE(n_layers, 0),
    CONFIG_MISTAKE(n_layers, 4097),
    CONFIG_MISTAKE(n_layers, UINT32_MAX),
    CONFIG_MISTAKE(n_q_heads, 0),
    CONFIG_MISTAKE(n_q_heads, 3),
    CONFIG_MISTAKE(n_q_heads, UINT32_MAX - 1),
    CONFIG_MISTAKE(n_kv_heads, 0),
    CONFIG_MISTAKE(n_kv_heads, 3),
    CONFIG_MISTAKE(n_kv_heads, UINT32_MAX),
    CONFIG_MISTAKE(k_dim, 0),
    CONFIG_MISTAKE(k_dim, 4),
    CONFIG_MISTAKE(k_dim, 65),
    CONFIG_MISTAKE(k_dim, 520),
    CONFIG_MISTAKE(k_dim, UINT32_MAX - 7),
    CONFIG_MISTAKE(v_dim, 0),
    CONFIG_MISTAKE(v_dim, 12),
    CONFIG_MISTAKE(v_dim, 1024),
    CONFIG_MISTAKE(k_bits, 0),
    CONFIG_MISTAKE(k_bits, 1),
    CONFIG_MISTAKE(k_bits, 3),
    CONFIG_MISTAKE(k_bits, 32),
    CONFIG_MISTAKE(v_bits, 0),
    CONFIG_MISTAKE(v_bits, 5),
    CONFIG_MISTAKE(v_bits, UINT32_MAX),
    CONFIG_MISTAKE(group_size, 0),
    CONFIG_MISTAKE(group_size, 16),
    CONFIG_MISTAKE(group_size, 96),
    CONFIG_MISTAKE(group_size, 256),
    CONFIG_MISTAKE(residual_length, 0),
    CONFIG_MISTAKE(residual_length, 31),
    CONFIG_MISTAKE(residual_length, 33),
    CONFIG_MISTAKE(residual_length, 4128),
    CONFIG_MISTAKE(residual_length, UINT32_MAX - 31),
    CONFIG_MISTAKE(n_sink, 4097),
    CONFIG_MISTAKE(n_sink, UINT32_MAX),
    CONFIG_MISTAKE(rollback, 4097),
    CONFIG_MISTAKE(rollback, UINT32_MAX),
    CONFIG_MISTAKE(max_sequences, 0),
    CONFIG_MISTAKE(max_sequences, (1u << 20) + 1),
    CONFIG_MISTAKE(page_tokens, 0),
    CONFIG_MISTAKE(page_tokens, 64),
    CONFIG_MISTAKE(page_tokens, 129),
    CONFIG_MISTAKE(page_tokens, 65536 + 128),
    CONFIG_MISTAKE(page_tokens, UINT32_MAX),
    CONFIG_MISTAKE(n_threads, UINT32_MAX),
    CONFIG_MISTAKE(memory, 2),
    CONFIG_MISTAKE(memory, UINT32_MAX),
    CONFIG_MISTAKE(allocator.alloc, 0),
    CONFIG_MISTAKE(allocator.release, 0),
    MISTAKE(kivi_config, memory, KIVI_MEMORY_DEVICE, UNSUPPORTED),
};

START_TEST(configurations)
{
    const size_t alive = atomic_load(&fixture.memory.blocks);
    uint8_t bits[] = {2, 4};
    kivi_config config;
    size_t i;

    for (i = 0; i < LENGTH(config_mistakes); i++) {
        config = fixture.config;
        mistake_make(&config_mistakes[i], &config);
        check_config(&config, config_mistakes[i].name, config_mistakes[i].expected);
    }
    for (bits[1] = 0; bits[1] < 255; bits[1]++) {
        if (bits[1] == 2 || bits[1] == 4 || bits[1] == 8 || bits[1] == 16)
            continue;
        config = fixture.config;
        config.layer_k_bits = bits;
        check_config(&config, "layer_k_bits", KIVI_ERROR_ARGUMENT);
        config.layer_k_bits = NULL;
        config.layer_v_bits = bits;
        check_config(&config, "layer_v_bits", KIVI_ERROR_ARGUMENT);
    }
    check_config(NULL, "config is NULL", KIVI_ERROR_ARGUMENT);
    REFUSED(ARGUMENT, kivi_cache_create(&fixture.config, NULL, error));
    ck_assert_uint_eq(atomic_load(&fixture.memory.blocks), alive);
    kivi_config_init(NULL);
}
END_TEST

START_TEST(defaults)
{
    kivi_attention attention;
    kivi_config config;

    memset(&config, 0xff, sizeof config);
    kivi_config_init(&config);
    ck_assert_uint_eq(config.size, sizeof config);
    ck_assert(config.k_bits == 2 && config.v_bits == 2 && config.group_size == 32
              && config.residual_length == 128);
    ck_assert(config.n_sink == 0 && config.rollback == 0 && config.capacity == 0
              && config.memory_budget == 0 && config.backend == NULL);
    ck_assert(config.max_sequences == 64 && config.page_tokens == 256);
    memset(&attention, 0xff, sizeof attention);
    kivi_attention_init(&attention);
    ck_assert_uint_eq(attention.size, sizeof attention);
    ck_assert(attention.scale == 0 && attention.softcap == 0 && attention.window == 0
              && attention.sink_logits == NULL && attention.precision == KIVI_STANDARD);
    kivi_attention_init(NULL);
}
END_TEST

/* --------------------------------------------------- items and attention */

#define ITEM_MISTAKE(field, x) MISTAKE(kivi_item, field, x, ARGUMENT)

static const struct mistake item_mistakes[] = {
    MISTAKE(kivi_item, seq, 0, SEQUENCE),
    MISTAKE(kivi_item, seq, 1, SEQUENCE),
    MISTAKE(kivi_item, seq, UINT64_MAX, SEQUENCE),
    ITEM_MISTAKE(n_new, UINT64_MAX),
    ITEM_MISTAKE(n_new, (uint64_t)1 << 32),
    ITEM_MISTAKE(n_q, UINT64_MAX),
    ITEM_MISTAKE(n_q, (uint64_t)1 << 32),
    ITEM_MISTAKE(n_q, 94), /* more than there are tokens */
    ITEM_MISTAKE(q_end, 1),
    ITEM_MISTAKE(k.data, 0),
    ITEM_MISTAKE(v.data, 0),
    ITEM_MISTAKE(q.data, 0),
    ITEM_MISTAKE(out.data, 0),
    ITEM_MISTAKE(k.data, 1), /* not aligned */
    ITEM_MISTAKE(out.data, 2),
    ITEM_MISTAKE(k.token_stride, INT64_MAX), /* its bytes overflow */
    ITEM_MISTAKE(q.head_stride, INT64_MIN),
    ITEM_MISTAKE(k.dtype, 3),
    ITEM_MISTAKE(k.dtype, UINT32_MAX),
    ITEM_MISTAKE(v.dtype, 3),
    ITEM_MISTAKE(v.dtype, UINT32_MAX),
    ITEM_MISTAKE(q.dtype, 3),
    ITEM_MISTAKE(q.dtype, UINT32_MAX),
    ITEM_MISTAKE(out.dtype, KIVI_BF16),
    ITEM_MISTAKE(out.dtype, 3),
    ITEM_MISTAKE(out.dtype, UINT32_MAX),
};

#define ATTENTION_MISTAKE(field, x) MISTAKE(kivi_attention, field, x, ARGUMENT)

static const struct mistake attention_mistakes[] = {
    ATTENTION_MISTAKE(size, 0),
    ATTENTION_MISTAKE(size, sizeof(kivi_attention) - 4),
    ATTENTION_MISTAKE(scale, BITS_OF_NAN),
    ATTENTION_MISTAKE(scale, BITS_OF_INFINITY),
    ATTENTION_MISTAKE(softcap, BITS_OF_NAN),
    ATTENTION_MISTAKE(softcap, BITS_OF_INFINITY),
    ATTENTION_MISTAKE(softcap, BITS_OF_MINUS_ONE),
    ATTENTION_MISTAKE(precision, 2),
    ATTENTION_MISTAKE(precision, UINT32_MAX),
};

/* The call is refused by kivi_run and by kivi_work_begin. */
static void check_items(const kivi_item *items, size_t n, const kivi_attention *attention,
                        const char *what, kivi_status expected, size_t at_fault)
{
    kivi_work *work = (kivi_work *)&fixture; /* to be overwritten */
    kivi_error error;

    memset(&error, 'x', sizeof error);
    check_refusal(what, expected, kivi_run(fixture.cache, 0, items, n, attention, &error), &error);
    ck_assert_msg(error.item == at_fault, "%s: item %zu is at fault", what, error.item);
    check_refusal(what, expected, kivi_run(fixture.cache, 0, items, n, attention, NULL), NULL);
    memset(&error, 'x', sizeof error);
    check_refusal(what, expected,
                  kivi_work_begin(fixture.cache, 0, items, n, attention, 2, &work, &error), &error);
    ck_assert_msg(error.item == at_fault, "%s: item %zu is at fault", what, error.item);
    ck_assert_msg(work == NULL, "%s: *work is not NULL", what);
}

START_TEST(items)
{
    const kivi_seq seqs[] = {fixture.seq, fixture.other};
    struct snapshot before = snapshot_take(&fixture, seqs, 2);
    kivi_item pair[2];
    size_t i;

    for (i = 0; i < LENGTH(item_mistakes); i++) {
        pair[0] = fixture_item(&fixture, fixture.other, 5);
        pair[1] = fixture_item(&fixture, fixture.seq, 3);
        mistake_make(&item_mistakes[i], &pair[1]);
        check_items(&pair[1], 1, NULL, item_mistakes[i].name, item_mistakes[i].expected, 0);
        /* All items succeed or none is applied. */
        check_items(pair, 2, NULL, item_mistakes[i].name, item_mistakes[i].expected, 1);
    }
    pair[1] = fixture_item(&fixture, fixture.stale, 3);
    check_items(pair, 2, NULL, "a destroyed sequence", KIVI_ERROR_SEQUENCE, 1);
    pair[1] = pair[0];
    check_items(pair, 2, NULL, "two items append to one sequence", KIVI_ERROR_ARGUMENT, 1);
    pair[1].n_new = 0;
    check_items(pair, 2, NULL, "one item reads what another appends to", KIVI_ERROR_ARGUMENT, 1);
    pair[1].n_new = 5;
    pair[0].n_new = 0;
    check_items(pair, 2, NULL, "one item appends to what another reads", KIVI_ERROR_ARGUMENT, 1);
    pair[1].n_new = 0; /* two that read are no mistake */
    ck_assert_int_eq(kivi_run(fixture.cache, 0, pair, 2, NULL, NULL), KIVI_OK);
    check_items(NULL, 1, NULL, "items is NULL", KIVI_ERROR_ARGUMENT, SIZE_MAX);
    check_items(pair, SIZE_MAX, NULL, "n_items = SIZE_MAX", KIVI_ERROR_MEMORY, SIZE_MAX);
    snapshot_check(&before, &fixture, "mistaken items");
}
END_TEST

/* More rows of queries than are counted: refused, and not cut down to what 32 bits hold of them. */
START_TEST(too_many_queries)
{
    static float numbers[65536 * 8];
    static const struct {
        uint32_t heads;
        uint64_t n_q;
    } cases[] = {{65536, 65536},           {65536, 65535},      {65536, (1u << 14) + 1},
                 {4, ((uint64_t)1 << 30)}, {1, (1u << 30) + 1}, {1, UINT32_MAX},
                 {4, ((uint64_t)1 << 62)}};
    kivi_error error;
    size_t i;

    for (i = 0; i < LENGTH(cases); i++) {
        kivi_config config = fixture.config;
        kivi_item item = {.n_q = cases[i].n_q,
                          .q = {numbers, KIVI_F32, 0, 8}, /* every token has the same queries */
                          .out = {numbers, KIVI_F32, 0, 8},
                          .q_end = UINT64_MAX}; /* so that nothing else is wrong */
        kivi_cache *cache;

        config.n_q_heads = cases[i].heads;
        config.n_kv_heads = 1;
        config.k_dim = config.v_dim = 8;
        ck_assert_int_eq(kivi_cache_create(&config, &cache, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_create(cache, &item.seq, NULL), KIVI_OK);
        memset(&error, 'x', sizeof error);
        check_refusal("n_q", KIVI_ERROR_ARGUMENT, kivi_run(cache, 0, &item, 1, NULL, &error),
                      &error);
        ck_assert_msg(strstr(error.message, "items[0].n_q") != NULL, "%s", error.message);
        kivi_cache_destroy(cache);
    }
}
END_TEST

START_TEST(attention_parameters)
{
    const kivi_item item = fixture_item(&fixture, fixture.seq, 3);
    struct snapshot before = snapshot_take(&fixture, &fixture.seq, 1);
    float sinks[FIXTURE_Q_HEADS] = {0, 0, 0, NAN};
    kivi_attention attention;
    size_t i;

    for (i = 0; i < LENGTH(attention_mistakes); i++) {
        kivi_attention_init(&attention);
        mistake_make(&attention_mistakes[i], &attention);
        check_items(&item, 1, &attention, attention_mistakes[i].name,
                    attention_mistakes[i].expected, SIZE_MAX);
    }
    kivi_attention_init(&attention);
    attention.sink_logits = sinks;
    check_items(&item, 1, &attention, "a sink logit is NaN", KIVI_ERROR_ARGUMENT, SIZE_MAX);
    sinks[3] = INFINITY;
    check_items(&item, 1, &attention, "a sink logit is infinite", KIVI_ERROR_ARGUMENT, SIZE_MAX);
    snapshot_check(&before, &fixture, "mistaken attention parameters");
}
END_TEST

START_TEST(calls)
{
    struct fixture *f = &fixture;
    const kivi_item item = fixture_item(f, f->seq, 2);
    struct snapshot before = snapshot_take(f, &f->seq, 1);
    kivi_work *work;

    REFUSED(ARGUMENT, kivi_run(NULL, 0, &item, 1, NULL, error));
    REFUSED(ARGUMENT, kivi_run(f->cache, 2, &item, 1, NULL, error));
    REFUSED(ARGUMENT, kivi_run(f->cache, UINT32_MAX, &item, 1, NULL, error));
    REFUSED(ARGUMENT, kivi_forward(NULL, 0, f->seq, 1, f->k, f->v, f->q, f->out, NULL, error));
    REFUSED(ARGUMENT, kivi_forward(f->cache, 2, f->seq, 1, f->k, f->v, f->q, f->out, NULL, error));
    REFUSED(ARGUMENT, kivi_forward(f->cache, 0, f->seq, 1, NULL, f->v, f->q, f->out, NULL, error));
    REFUSED(ARGUMENT, kivi_forward(f->cache, 0, f->seq, 1, f->k, NULL, f->q, f->out, NULL, error));
    REFUSED(ARGUMENT, kivi_forward(f->cache, 0, f->seq, 1, f->k, f->v, NULL, f->out, NULL, error));
    REFUSED(ARGUMENT, kivi_forward(f->cache, 0, f->seq, 1, f->k, f->v, f->q, NULL, NULL, error));
    REFUSED(SEQUENCE, kivi_forward(f->cache, 0, 0, 1, f->k, f->v, f->q, f->out, NULL, error));
    REFUSED(SEQUENCE,
            kivi_forward(f->cache, 0, f->stale, 1, f->k, f->v, f->q, f->out, NULL, error));
    REFUSED(ARGUMENT, kivi_append(NULL, 0, f->seq, 1, item.k, item.v, error));
    REFUSED(ARGUMENT, kivi_append(f->cache, 9, f->seq, 1, item.k, item.v, error));
    REFUSED(SEQUENCE, kivi_append(f->cache, 0, f->stale, 1, item.k, item.v, error));
    REFUSED(ARGUMENT, kivi_attend(NULL, 0, f->seq, 1, item.q, item.out, NULL, error));
    REFUSED(ARGUMENT, kivi_attend(f->cache, 9, f->seq, 1, item.q, item.out, NULL, error));
    REFUSED(ARGUMENT, kivi_attend(f->cache, 0, f->seq, 91, item.q, item.out, NULL, error));
    REFUSED(SEQUENCE, kivi_attend(f->cache, 0, f->stale, 1, item.q, item.out, NULL, error));
    REFUSED(ARGUMENT, kivi_work_begin(NULL, 0, &item, 1, NULL, 1, &work, error));
    REFUSED(ARGUMENT, kivi_work_begin(f->cache, 2, &item, 1, NULL, 1, &work, error));
    REFUSED(ARGUMENT, kivi_work_begin(f->cache, 0, &item, 1, NULL, 0, &work, error));
    REFUSED(ARGUMENT, kivi_work_begin(f->cache, 0, &item, 1, NULL, 1025, &work, error));
    REFUSED(ARGUMENT, kivi_work_begin(f->cache, 0, &item, 1, NULL, UINT32_MAX, &work, error));
    REFUSED(ARGUMENT, kivi_work_begin(f->cache, 0, &item, 1, NULL, 1, NULL, error));
    REFUSED(ARGUMENT, kivi_work_end(NULL, error));
    ck_assert_uint_eq(kivi_work_phases(NULL), 0);
    ck_assert_uint_eq(kivi_work_parts(NULL), 0);
    kivi_work_part(NULL, 0, 0);
    kivi_work_cancel(NULL);

    /* As many parts as there may be are none, nor is nothing to do. */
    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &item, 1, NULL, 1024, &work, NULL), KIVI_OK);
    kivi_work_cancel(work);
    ck_assert_int_eq(kivi_run(f->cache, 0, NULL, 0, NULL, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_append(f->cache, 0, f->seq, 0, item.k, item.v, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_forward(f->cache, 0, f->seq, 0, NULL, NULL, NULL, NULL, NULL, NULL),
                     KIVI_OK);
    snapshot_check(&before, f, "mistaken calls");
}
END_TEST

/* A call that succeeds says so in *error, whatever was there. */
START_TEST(success_is_told)
{
    struct fixture *f = &fixture;
    const kivi_item item = fixture_item(f, f->seq, 2);
    const uint32_t parents[] = {1, 0};
    kivi_seq seqs[2] = {f->seq, f->other}, olds[2], news[2], seq;
    kivi_stats stats = {.size = sizeof stats};
    kivi_backend_info info;
    struct buffer file;
    kivi_cache *cache;
    kivi_work *work;
    uint32_t phase;
    uint64_t n;
    size_t n_seqs;

    ACCEPTED(kivi_cache_create(&f->config, &cache, error));
    kivi_cache_destroy(cache);
    ACCEPTED(kivi_run(f->cache, 0, &item, 1, NULL, error));
    ACCEPTED(kivi_forward(f->cache, 0, f->seq, 1, f->k, f->v, f->q, f->out, NULL, error));
    ACCEPTED(kivi_append(f->cache, 0, f->seq, 1, item.k, item.v, error));
    ACCEPTED(kivi_attend(f->cache, 0, f->seq, 1, item.q, item.out, NULL, error));
    ACCEPTED(kivi_work_begin(f->cache, 0, &item, 1, NULL, 1, &work, error));
    for (phase = 0; phase < kivi_work_phases(work); phase++)
        kivi_work_part(work, phase, 0);
    ACCEPTED(kivi_work_end(work, error));
    ACCEPTED(kivi_cache_stats(f->cache, &stats, error));
    ACCEPTED(kivi_seq_stats(f->cache, f->seq, &stats, error));
    ACCEPTED(kivi_seq_length(f->cache, f->seq, 0, &n, error));
    ACCEPTED(kivi_seq_create(f->cache, &seq, error));
    ACCEPTED(kivi_seq_destroy(f->cache, seq, error));
    ACCEPTED(kivi_seq_fork(f->cache, f->seq, &seq, error));
    ACCEPTED(kivi_seq_truncate(f->cache, seq, 80, error));
    ACCEPTED(kivi_seq_drop(f->cache, seq, 32, 32, NULL, error));
    ACCEPTED(kivi_seq_destroy(f->cache, seq, error));
    ACCEPTED(kivi_seq_reorder(f->cache, seqs, parents, 2, error));
    ACCEPTED(kivi_seq_reorder(f->cache, NULL, NULL, 0, error));
    buffer_init(&file);
    ACCEPTED(kivi_seq_save_size(f->cache, f->seq, &n, error));
    ACCEPTED(kivi_seq_save(f->cache, f->seq, buffer_write, &file, error));
    ACCEPTED(kivi_seq_load(f->cache, buffer_read, &file, &seq, error));
    ACCEPTED(kivi_seq_destroy(f->cache, seq, error));
    file.at = file.size = 0;
    ACCEPTED(kivi_cache_save(f->cache, buffer_write, &file, error));
    ACCEPTED(kivi_cache_load(f->cache, buffer_read, &file, olds, news, 2, &n_seqs, error));
    buffer_free(&file);
    ACCEPTED(kivi_merge(1, 8, f->out, f->lse, f->out + 8, f->lse + 1, error));
    ACCEPTED(kivi_backend_get(0, &info, error));
    ACCEPTED(kivi_backend_find("scalar", &info, error));
}
END_TEST

/* Parts and phases that do not exist are ignored. */
START_TEST(parts_out_of_range)
{
    struct fixture *f = &fixture;
    const kivi_item item = fixture_item(f, f->seq, 2);
    struct snapshot before = snapshot_take(f, &f->seq, 1);
    kivi_work *work;

    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &item, 1, NULL, 3, &work, NULL), KIVI_OK);
    kivi_work_part(work, kivi_work_phases(work), 0);
    kivi_work_part(work, UINT32_MAX, 0);
    kivi_work_part(work, 0, 3);
    kivi_work_part(work, 0, UINT32_MAX);
    kivi_work_cancel(work);
    snapshot_check(&before, f, "parts out of range");
}
END_TEST

/* A host that forgets a part, of whatever phase, has not done the call, nor has one that runs another in its place,
 * again or before its phase. */
START_TEST(parts_not_run)
{
    struct fixture *f = &fixture;
    const kivi_item item = fixture_item(f, f->seq, 700);
    struct snapshot before = snapshot_take(f, &f->seq, 1);
    uint32_t n_phases, n_parts, n = 1, forgotten, i;

    for (forgotten = 0; forgotten < n; forgotten++) {
        kivi_error error;
        kivi_work *work;

        ck_assert_int_eq(kivi_work_begin(f->cache, 0, &item, 1, NULL, 3, &work, NULL), KIVI_OK);
        n_phases = kivi_work_phases(work);
        n_parts = kivi_work_parts(work);
        n = n_phases * n_parts;
        ck_assert_uint_gt(n, 1);
        for (i = 0; i < n; i++) {
            const uint32_t run = i == forgotten ? (i + 1) % n : i;

            if (i != forgotten || _i > 0)
                kivi_work_part(work, run / n_parts, run % n_parts);
        }
        ck_assert_int_eq(kivi_work_end(work, &error), KIVI_ERROR_ARGUMENT);
        ck_assert_msg(strstr(error.message, "parts"), "%s", error.message);
    }
    snapshot_check(&before, f, "parts that were not run");
}
END_TEST

/* Each part of each phase is run, but one before its phase (0), or all in order, but one again (1): it does nothing, and
 * the call is refused. */
START_TEST(parts_not_due)
{
    struct fixture *f = &fixture;
    const kivi_item item = fixture_item(f, f->seq, 700);
    struct snapshot before = snapshot_take(f, &f->seq, 1);
    kivi_error error;
    kivi_work *work;
    uint32_t n_phases, n_parts, phase, part;

    ck_assert_int_eq(kivi_work_begin(f->cache, 0, &item, 1, NULL, 3, &work, NULL), KIVI_OK);
    n_phases = kivi_work_phases(work);
    n_parts = kivi_work_parts(work);
    ck_assert(n_phases > 1 && n_parts > 1);
    kivi_work_part(work, 0, 0);
    if (_i == 0)
        kivi_work_part(work, 1, 0);
    for (phase = 0; phase < n_phases; phase++)
        for (part = phase == 0; part < n_parts; part++)
            if (_i == 1 || phase != 1 || part != 0)
                kivi_work_part(work, phase, part);
    if (_i == 1)
        kivi_work_part(work, n_phases - 1, n_parts - 1);
    ck_assert_int_eq(kivi_work_end(work, &error), KIVI_ERROR_ARGUMENT);
    ck_assert_msg(strstr(error.message, "more than once"), "%s", error.message);
    snapshot_check(&before, f, "parts that were not due");
}
END_TEST

/* Queries end with the sequence unless told otherwise. Any position at or above the length sees every
 * token, up to the last number there is. */
START_TEST(where_queries_end)
{
    struct fixture *f = &fixture;
    const uint64_t ends[] = {93, 1000, (uint64_t)1 << 32, UINT64_MAX - 1, UINT64_MAX};
    const size_t n = (size_t)2 * FIXTURE_Q_HEADS * FIXTURE_V_DIM;
    float expected[2 * FIXTURE_Q_HEADS * FIXTURE_V_DIM];
    kivi_attention attention;
    kivi_item item = fixture_item(f, f->seq, 0);
    size_t i;

    for (i = 0; i < 2; i++) {
        item.q_end = i ? 90 : 0; /* the length */
        ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
        if (i == 0)
            memcpy(expected, f->out, sizeof expected);
        ck_assert(memcmp(f->out, expected, n * sizeof *expected) == 0);
    }
    item.q_end = 92;
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    ck_assert(memcmp(f->out, expected, n * sizeof *expected) != 0);
    memcpy(expected, f->out, sizeof expected);
    for (i = 0; i < LENGTH(ends); i++) {
        memset(f->out, 0, sizeof expected);
        item.q_end = ends[i];
        ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, NULL, NULL), KIVI_OK);
        ck_assert_msg(memcmp(f->out, expected, n * sizeof *expected) == 0, "q_end %llu",
                      (unsigned long long)ends[i]);
    }
    /* Above 2^62 it counts as 2^62, also to a window. */
    kivi_attention_init(&attention);
    attention.window = ((uint64_t)1 << 62) + 2;
    ck_assert_int_eq(kivi_run(f->cache, 0, &item, 1, &attention, NULL), KIVI_OK);
    ck_assert(memcmp(f->out, expected, n * sizeof *expected) == 0);
}
END_TEST

/* ------------------------------------------------ sequences, save, load */

static int write_nothing(void *context, const void *data, size_t bytes)
{
    (void)context;
    (void)data;
    (void)bytes;
    return 1;
}

static int read_nothing(void *context, void *data, size_t bytes)
{
    (void)context;
    (void)data;
    (void)bytes;
    return 1;
}

static int read_zeros(void *context, void *data, size_t bytes)
{
    (void)context;
    memset(data, 0, bytes);
    return 0;
}

START_TEST(sequences)
{
    struct fixture *f = &fixture;
    const kivi_seq seqs[] = {f->seq, f->other}, twice[] = {f->seq, f->seq};
    const kivi_seq gone[] = {f->seq, f->stale};
    const uint32_t parents[] = {1, 0}, beyond[] = {0, 2};
    const uint64_t n_new[] = {1, 1}, too_many[] = {1, (uint64_t)1 << 32};
    struct snapshot before = snapshot_take(f, seqs, 2);
    kivi_stats stats = {.size = sizeof stats}, wrong = {.size = 8};
    kivi_seq seq = 77;
    uint64_t n;

    REFUSED(ARGUMENT, kivi_seq_create(NULL, &seq, error));
    REFUSED(ARGUMENT, kivi_seq_create(f->cache, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_destroy(NULL, f->seq, error));
    REFUSED(SEQUENCE, kivi_seq_destroy(f->cache, 0, error));
    REFUSED(SEQUENCE, kivi_seq_destroy(f->cache, f->stale, error));
    REFUSED(SEQUENCE, kivi_seq_destroy(f->cache, UINT64_MAX, error));
    REFUSED(ARGUMENT, kivi_seq_length(NULL, f->seq, 0, &n, error));
    REFUSED(ARGUMENT, kivi_seq_length(f->cache, f->seq, 2, &n, error));
    REFUSED(ARGUMENT, kivi_seq_length(f->cache, f->seq, 0, NULL, error));
    REFUSED(SEQUENCE, kivi_seq_length(f->cache, f->stale, 0, &n, error));
    REFUSED(ARGUMENT, kivi_cache_stats(NULL, &stats, error));
    REFUSED(ARGUMENT, kivi_cache_stats(f->cache, NULL, error));
    REFUSED(ARGUMENT, kivi_cache_stats(f->cache, &wrong, error));
    REFUSED(ARGUMENT, kivi_seq_stats(NULL, f->seq, &stats, error));
    REFUSED(ARGUMENT, kivi_seq_stats(f->cache, f->seq, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_stats(f->cache, f->seq, &wrong, error));
    REFUSED(SEQUENCE, kivi_seq_stats(f->cache, f->stale, &stats, error));
    seq = 77;
    REFUSED(ARGUMENT, kivi_seq_fork(NULL, f->seq, &seq, error));
    ck_assert_uint_eq(seq, 0);
    seq = 77;
    REFUSED(ARGUMENT, kivi_seq_fork(f->cache, f->seq, NULL, error));
    REFUSED(SEQUENCE, kivi_seq_fork(f->cache, f->stale, &seq, error));
    ck_assert_uint_eq(seq, 0);
    REFUSED(ARGUMENT, kivi_seq_reorder(NULL, seqs, parents, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reorder(f->cache, NULL, parents, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reorder(f->cache, seqs, NULL, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reorder(f->cache, twice, parents, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reorder(f->cache, seqs, beyond, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reorder(f->cache, seqs, parents, SIZE_MAX, error));
    REFUSED(SEQUENCE, kivi_seq_reorder(f->cache, gone, parents, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reserve(NULL, seqs, n_new, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reserve(f->cache, NULL, n_new, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reserve(f->cache, seqs, NULL, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reserve(f->cache, twice, n_new, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reserve(f->cache, seqs, too_many, 2, error));
    REFUSED(ARGUMENT, kivi_seq_reserve(f->cache, seqs, n_new, SIZE_MAX, error));
    REFUSED(SEQUENCE, kivi_seq_reserve(f->cache, gone, n_new, 2, error));
    ck_assert_int_eq(kivi_seq_reserve(f->cache, NULL, NULL, 0, NULL), KIVI_OK);
    REFUSED(ARGUMENT, kivi_seq_exact_from(NULL, f->seq, &n, error));
    REFUSED(ARGUMENT, kivi_seq_exact_from(f->cache, f->seq, NULL, error));
    REFUSED(SEQUENCE, kivi_seq_exact_from(f->cache, f->stale, &n, error));
    REFUSED(ARGUMENT, kivi_seq_truncate(NULL, f->seq, 1, error));
    REFUSED(SEQUENCE, kivi_seq_truncate(f->cache, f->stale, 1, error));
    REFUSED(ARGUMENT, kivi_seq_drop(NULL, f->seq, 32, 64, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_drop(f->cache, f->seq, 1, 32, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_drop(f->cache, f->seq, 32, 63, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_drop(f->cache, f->seq, 64, 32, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_drop(f->cache, f->seq, 0, 32, NULL, error)); /* the sinks */
    REFUSED(ARGUMENT, kivi_seq_drop(f->cache, f->seq, 32, 96, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_drop(f->cache, f->seq, 32, UINT64_MAX - 31, NULL, error));
    REFUSED(SEQUENCE, kivi_seq_drop(f->cache, f->stale, 32, 64, NULL, error));
    ck_assert_uint_eq(kivi_cache_trim(NULL), 0);
    kivi_cache_destroy(NULL);
    snapshot_check(&before, f, "mistaken calls on sequences");
}
END_TEST

#define ROPE_MISTAKE(field, x) MISTAKE(kivi_rope, field, x, ARGUMENT)

static const struct mistake rope_mistakes[] = {
    ROPE_MISTAKE(size, 0),           ROPE_MISTAKE(n_rot, 0),
    ROPE_MISTAKE(n_rot, 7),          ROPE_MISTAKE(n_rot, FIXTURE_K_DIM + 2),
    ROPE_MISTAKE(n_rot, UINT32_MAX), ROPE_MISTAKE(frequencies, 0),
};

START_TEST(rotary_embedding)
{
    float frequencies[4] = {1, 0.1f, 0.01f, NAN};
    const kivi_rope good = {.size = sizeof good, .n_rot = 6, .frequencies = frequencies};
    struct snapshot before = snapshot_take(&fixture, &fixture.seq, 1);
    kivi_rope rope;
    size_t i;

    for (i = 0; i < LENGTH(rope_mistakes); i++) {
        rope = good;
        mistake_make(&rope_mistakes[i], &rope);
        check_refusal(rope_mistakes[i].name, rope_mistakes[i].expected,
                      kivi_seq_drop(fixture.cache, fixture.seq, 32, 32, &rope, NULL), NULL);
    }
    rope = good;
    rope.n_rot = 8;
    REFUSED(ARGUMENT, kivi_seq_drop(fixture.cache, fixture.seq, 32, 32, &rope, error));
    snapshot_check(&before, &fixture, "mistaken rotary embedding");
}
END_TEST

START_TEST(save_and_load)
{
    struct fixture *f = &fixture;
    const kivi_seq seqs[] = {f->seq, f->other};
    struct snapshot before = snapshot_take(f, seqs, 2);
    kivi_seq seq = 77, old_seqs[4], new_seqs[4];
    uint64_t bytes;
    size_t n;

    REFUSED(ARGUMENT, kivi_seq_save(NULL, f->seq, write_nothing, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_save(f->cache, f->seq, NULL, NULL, error));
    REFUSED(SEQUENCE, kivi_seq_save(f->cache, f->stale, write_nothing, NULL, error));
    REFUSED(IO, kivi_seq_save(f->cache, f->seq, write_nothing, NULL, error));
    REFUSED(ARGUMENT, kivi_seq_save_size(NULL, f->seq, &bytes, error));
    REFUSED(ARGUMENT, kivi_seq_save_size(f->cache, f->seq, NULL, error));
    REFUSED(SEQUENCE, kivi_seq_save_size(f->cache, f->stale, &bytes, error));
    REFUSED(ARGUMENT, kivi_seq_load(NULL, read_zeros, NULL, &seq, error));
    REFUSED(ARGUMENT, kivi_seq_load(f->cache, NULL, NULL, &seq, error));
    REFUSED(ARGUMENT, kivi_seq_load(f->cache, read_zeros, NULL, NULL, error));
    REFUSED(FORMAT, kivi_seq_load(f->cache, read_zeros, NULL, &seq, error));
    REFUSED(IO, kivi_seq_load(f->cache, read_nothing, NULL, &seq, error));
    ck_assert_uint_eq(seq, 0);
    REFUSED(ARGUMENT, kivi_cache_save(NULL, write_nothing, NULL, error));
    REFUSED(ARGUMENT, kivi_cache_save(f->cache, NULL, NULL, error));
    REFUSED(IO, kivi_cache_save(f->cache, write_nothing, NULL, error));
    REFUSED(ARGUMENT, kivi_cache_load(NULL, read_zeros, NULL, old_seqs, new_seqs, 4, &n, error));
    REFUSED(ARGUMENT, kivi_cache_load(f->cache, NULL, NULL, old_seqs, new_seqs, 4, &n, error));
    REFUSED(ARGUMENT, kivi_cache_load(f->cache, read_zeros, NULL, NULL, new_seqs, 4, &n, error));
    REFUSED(ARGUMENT, kivi_cache_load(f->cache, read_zeros, NULL, old_seqs, NULL, 4, &n, error));
    REFUSED(ARGUMENT,
            kivi_cache_load(f->cache, read_zeros, NULL, old_seqs, new_seqs, 4, NULL, error));
    REFUSED(FORMAT, kivi_cache_load(f->cache, read_zeros, NULL, old_seqs, new_seqs, 4, &n, error));
    REFUSED(IO, kivi_cache_load(f->cache, read_nothing, NULL, old_seqs, new_seqs, 4, &n, error));
    snapshot_check(&before, f, "mistaken saving and loading");
}
END_TEST

START_TEST(merging)
{
    float a[8] = {0}, b[8] = {0}, lse_a = 0, lse_b = 0;

    REFUSED(ARGUMENT, kivi_merge(1, 8, NULL, &lse_a, b, &lse_b, error));
    REFUSED(ARGUMENT, kivi_merge(1, 8, a, NULL, b, &lse_b, error));
    REFUSED(ARGUMENT, kivi_merge(1, 8, a, &lse_a, NULL, &lse_b, error));
    REFUSED(ARGUMENT, kivi_merge(1, 8, a, &lse_a, b, NULL, error));
    REFUSED(ARGUMENT, kivi_merge(1, 0, a, &lse_a, b, &lse_b, error));
    ck_assert_int_eq(kivi_merge(0, 8, NULL, NULL, NULL, NULL, NULL), KIVI_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("api");
    TCase *arguments = tcase_create("arguments");

    tcase_add_checked_fixture(arguments, set_up, tear_down);
    tcase_add_test(arguments, configurations);
    tcase_add_test(arguments, defaults);
    tcase_add_test(arguments, items);
    tcase_add_test(arguments, too_many_queries);
    tcase_add_test(arguments, attention_parameters);
    tcase_add_test(arguments, calls);
    tcase_add_test(arguments, success_is_told);
    tcase_add_test(arguments, parts_out_of_range);
    tcase_add_loop_test(arguments, parts_not_run, 0, 2);
    tcase_add_loop_test(arguments, parts_not_due, 0, 2);
    tcase_add_test(arguments, where_queries_end);
    tcase_add_test(arguments, sequences);
    tcase_add_test(arguments, rotary_embedding);
    tcase_add_test(arguments, save_and_load);
    tcase_add_test(arguments, merging);
    suite_add_tcase(suite, arguments);
    return test_main(suite);
}
