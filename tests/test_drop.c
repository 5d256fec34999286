/* Dropping a range of tokens, with keys as they are and with keys turned back: docs/sequences.md. */
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cache.h"
#include "support/naive.h"
#include "support/numbers.h"
#include "support/random.h"
#include "support/session.h"
#include "support/suite.h"

#define DIM 64

static float frequencies[DIM / 2];
static const kivi_rope rope = {sizeof rope, DIM, 0, frequencies, 0};
static const kivi_rope first_rope = {sizeof rope, DIM, 0, frequencies, 1};

static void set_frequencies(void)
{
    int i;

    for (i = 0; i < DIM / 2; i++)
        frequencies[i] = powf(10000.0f, -(float)(2 * i) / DIM);
}

static void drop_config(kivi_config *config, uint32_t bits)
{
    session_config(config);
    config->layer_k_bits = config->layer_v_bits = NULL;
    config->k_bits = config->v_bits = bits;
    config->n_layers = 1;
    config->k_dim = config->v_dim = DIM;
}

static const kivi_status refused = KIVI_ERROR_ARGUMENT;

/* Token t of `after` is token t, or t + dropped from `begin` on, of `before`. */
static void check_moved(const struct contents *before, const struct contents *after, uint64_t begin,
                        uint64_t dropped)
{
    const uint64_t k = (uint64_t)before->heads * before->k_dim;
    const uint64_t v = (uint64_t)before->heads * before->v_dim;
    uint64_t t;

    ck_assert_uint_eq(after->n, before->n - dropped);
    ck_assert_uint_eq(after->k_packed, before->k_packed - dropped);
    ck_assert_uint_eq(after->v_packed, before->v_packed - dropped);
    for (t = 0; t < after->n; t++) {
        const uint64_t from = t < begin ? t : t + dropped;

        if (contents_k_is_full(after, t))
            ck_assert_mem_eq(after->k_row + t * k, before->k_row + from * k, k * 2);
        else
            ck_assert_mem_eq(after->k_code + t * k, before->k_code + from * k, k);
        if (contents_v_is_full(after, t))
            ck_assert_mem_eq(after->v_row + t * v, before->v_row + from * v, v * 2);
        else
            ck_assert_mem_eq(after->v_code + t * v, before->v_code + from * v, v);
    }
}

START_TEST(codes_move_as_they_are)
{
    const uint64_t ranges[][2] = {{0, 32}, {32, 64}, {96, 288}, {128, 256}, {0, 416}, {64, 64}};
    struct session s;
    kivi_config config;
    size_t i;

    session_config(&config);
    session_open(&s, &config, backend_name(_i));
    for (i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const kivi_seq seq = session_new(&s);
        struct contents before, after;
        uint32_t layer;

        session_append(&s, seq, 1, 500);
        for (layer = 0; layer < config.n_layers; layer++) {
            const kivi_seq copy = session_fork(&s, seq);

            contents_read(&before, &s.config, s.cache, seq, layer);
            ck_assert_int_eq(kivi_seq_drop(s.cache, copy, ranges[i][0], ranges[i][1], NULL, NULL),
                             KIVI_OK);
            contents_read(&after, &s.config, s.cache, copy, layer);
            check_moved(&before, &after, ranges[i][0], ranges[i][1] - ranges[i][0]);
            contents_free(&before);
            contents_free(&after);
            ck_assert_int_eq(kivi_seq_destroy(s.cache, copy, NULL), KIVI_OK);
        }
        ck_assert_int_eq(kivi_seq_destroy(s.cache, seq, NULL), KIVI_OK);
    }
    session_close(&s);
}
END_TEST

/* What comes before the gap has no rows any more, however many the window has room for: cut to there at once, it comes
 * back from codes, as where there is room for few. */
START_TEST(cut_at_once)
{
    static const uint64_t cuts[] = {72, 130, 250};
    struct session s, t;
    kivi_config config;
    size_t i;

    session_config(&config);
    session_open(&t, &config, backend_name(_i));
    config.rollback = 400;
    session_open(&s, &config, backend_name(_i));
    for (i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        const kivi_seq a = session_new(&s), b = session_new(&t);

        session_append(&s, a, 1, 500);
        session_append(&t, b, 1, 500);
        ck_assert_int_eq(kivi_seq_drop(s.cache, a, 256, 384, NULL, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_drop(t.cache, b, 256, 384, NULL, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_truncate(s.cache, a, cuts[i], NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_truncate(t.cache, b, cuts[i], NULL), KIVI_OK);
        session_check_same(&s, a, &t, b, "cut after a drop");
        ck_assert_int_eq(kivi_seq_destroy(s.cache, a, NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_destroy(t.cache, b, NULL), KIVI_OK);
    }
    session_close(&s);
    session_close(&t);
}
END_TEST

/* Whole pages are not copied. */
START_TEST(pages_stay_shared)
{
    struct session s;
    kivi_config config;
    kivi_stats before, after;
    kivi_seq seq, copy;

    drop_config(&config, 2);
    session_open(&s, &config, backend_name(_i));
    seq = session_new(&s);
    session_append(&s, seq, 1, 1100);
    before = session_stats(&s);
    copy = session_fork(&s, seq);
    ck_assert_int_eq(kivi_seq_drop(s.cache, copy, 128, 128 + 3 * 128, NULL, NULL), KIVI_OK);
    after = session_stats(&s);
    ck_assert_uint_eq(after.pages, before.pages);
    ck_assert_int_eq(kivi_seq_drop(s.cache, copy, 128, 160, NULL, NULL), KIVI_OK);
    after = session_stats(&s);
    ck_assert_uint_gt(after.pages, before.pages);
    session_close(&s);
}
END_TEST

START_TEST(what_cannot_be_dropped)
{
    struct session s;
    kivi_config config;
    kivi_rope bad = rope;
    kivi_error error;
    kivi_seq a, b;
    float broken[DIM / 2];

    drop_config(&config, 2);
    config.n_sink = 5;
    session_open(&s, &config, backend_name(_i));
    a = session_new(&s);
    session_append(&s, a, 1, 300); /* keys packed to 256, values to 236 */
    b = session_fork(&s, a);
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 33, 64, NULL, &error), refused);
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, 65, NULL, &error), refused);
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 96, 64, NULL, &error), refused);
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 0, 64, NULL, &error), refused);
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, 256, NULL, &error), refused);
    ck_assert_msg(strstr(error.message, "end is 256, above 236"), "%s", error.message);
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, UINT64_MAX - 31, NULL, &error), refused);
    ck_assert_int_eq(kivi_seq_drop(s.cache, 12345, 32, 64, NULL, &error), KIVI_ERROR_SEQUENCE);
    ck_assert_int_eq(kivi_seq_drop(NULL, a, 32, 64, NULL, &error), refused);
    bad.size = 1;
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, 64, &bad, &error), refused);
    bad = rope;
    bad.n_rot = DIM + 2;
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, 64, &bad, &error), refused);
    bad.n_rot = 3;
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, 64, &bad, &error), refused);
    bad = rope;
    bad.frequencies = NULL;
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, 64, &bad, &error), refused);
    bad = rope;
    bad.turn_first = 2;
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, 64, &bad, &error), refused);
    bad = rope;
    memcpy(broken, frequencies, sizeof broken);
    broken[7] = INFINITY;
    bad.frequencies = broken;
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 32, 64, &bad, &error), refused);
    session_check_same(&s, a, &s, b, "after refusals");
    session_close(&s);
}
END_TEST

/* `end` is at most the length less residual_length, whatever was dropped or cut before. */
START_TEST(the_newest_tokens_stay)
{
    const uint64_t residual = 64;
    struct session s;
    kivi_config config;
    struct rng rng = {11};
    kivi_seq seq;
    int i;

    session_config(&config);
    session_open(&s, &config, backend_name(_i));
    seq = session_new(&s);
    for (i = 0; i < 300; i++) {
        uint64_t n, begin, end;

        session_append(&s, seq, 1, rng_below(&rng, 100));
        if (rng_one_in(&rng, 3))
            ck_assert_int_eq(
                kivi_seq_truncate(s.cache, seq, rng_below(&rng, session_length(&s, seq) + 1), NULL),
                KIVI_OK);
        n = session_length(&s, seq);
        begin = rng_below(&rng, n / 32 + 1) * 32;
        end = begin + 32 * rng_between(&rng, 1, 4);
        ck_assert_int_eq(kivi_seq_drop(s.cache, seq, begin, end, NULL, NULL),
                         end + residual <= n ? KIVI_OK : KIVI_ERROR_ARGUMENT);
    }
    session_close(&s);
}
END_TEST

/* --------------------------------------------------------- other threads */

/* Between the cache and its backend: at every read of a block, what other threads might do then. */
static struct {
    struct session *session;
    const struct kivi_backend *backend;
    kivi_seq busy, other;
    int n, within;
} meanwhile;

static kivi_status read_and_look(void *context, void *host, const void *block, size_t offset,
                                 size_t bytes, kivi_error *error)
{
    if (!meanwhile.within) {
        struct session *s = meanwhile.session;

        meanwhile.within = 1;
        ck_assert_msg(pthread_mutex_trylock(&s->cache->lock) == 0, "the cache is locked");
        pthread_mutex_unlock(&s->cache->lock);
        if (meanwhile.n++ % 16 == 0) {
            static const float row[2 * DIM];
            const kivi_in in = {row, KIVI_F32, 0, 0};
            kivi_seq fork;
            uint64_t n;
            uint32_t layer;

            for (layer = 0; layer < s->config.n_layers; layer++)
                ck_assert_int_eq(kivi_append(s->cache, layer, meanwhile.busy, 1, in, in, NULL),
                                 KIVI_ERROR_BUSY);

            session_append(s, meanwhile.other, 2, 1);
            ck_assert_int_eq(kivi_seq_truncate(s->cache, meanwhile.busy, 9, NULL), KIVI_ERROR_BUSY);
            ck_assert_int_eq(kivi_seq_fork(s->cache, meanwhile.busy, &fork, NULL), KIVI_ERROR_BUSY);
            ck_assert_int_eq(kivi_seq_destroy(s->cache, meanwhile.busy, NULL), KIVI_ERROR_BUSY);
            ck_assert_int_eq(kivi_seq_length(s->cache, meanwhile.busy, 0, &n, NULL), KIVI_OK);
            ck_assert_uint_eq(n, 400);
            session_stats(s);
        }
        meanwhile.within = 0;
    }
    return meanwhile.backend->block_read(context, host, block, offset, bytes, error);
}

/* Other sequences are free while one is being dropped from or truncated; that one is busy. */
START_TEST(others_work_meanwhile)
{
    struct session s, t;
    struct kivi_backend watched;
    kivi_config config;
    kivi_seq a, b, alone;
    int n;

    drop_config(&config, 2);
    config.n_layers = 2;
    session_open(&s, &config, backend_name(_i));
    session_open(&t, &config, backend_name(_i));
    watched = *s.cache->backend;
    watched.block_read = read_and_look;
    meanwhile.session = &s;
    meanwhile.backend = s.cache->backend;
    meanwhile.n = 0;
    meanwhile.other = session_new(&s);
    a = session_new(&s);
    b = session_new(&s);
    alone = session_new(&t);
    session_append(&s, a, 1, 400);
    session_append(&s, b, 1, 400);
    session_append(&t, alone, 1, 400);
    s.cache->backend = &watched;
    meanwhile.busy = a;
    ck_assert_int_eq(kivi_seq_drop(s.cache, a, 64, 128, &rope, NULL), KIVI_OK);
    n = meanwhile.n;
    meanwhile.busy = b;
    ck_assert_int_eq(kivi_seq_truncate(s.cache, b, 130, NULL), KIVI_OK);
    s.cache->backend = meanwhile.backend;
    ck_assert_int_gt(n, 0);
    ck_assert_int_gt(meanwhile.n, n);
    session_append(&s, a, 2, 1); /* no longer busy */
    session_append(&s, b, 2, 1);

    ck_assert_int_eq(kivi_seq_truncate(t.cache, alone, 130, NULL), KIVI_OK);
    session_append(&t, alone, 2, 1);
    session_check_same(&s, b, &t, alone, "truncated while others were at work");
    ck_assert_int_eq(kivi_seq_truncate(t.cache, alone, 0, NULL), KIVI_OK);
    session_append(&t, alone, 1, 400);
    ck_assert_int_eq(kivi_seq_drop(t.cache, alone, 64, 128, &rope, NULL), KIVI_OK);
    session_append(&t, alone, 2, 1);
    session_check_same(&s, a, &t, alone, "dropped from while others were at work");
    ck_assert_int_eq(kivi_seq_truncate(t.cache, alone, 0, NULL), KIVI_OK);
    session_append(&t, alone, 2, session_length(&s, meanwhile.other));
    session_check_same(&s, meanwhile.other, &t, alone, "written meanwhile");
    session_close(&s);
    session_close(&t);
}
END_TEST

/* ------------------------------------------------------------- rotation */

/* The stream's keys, turned to their positions: what an engine with rotary positions appends. */
static float *rotary_keys(const struct session *s, uint64_t stream, uint64_t first, uint64_t n,
                          uint64_t position)
{
    float *k = session_rows(s, ROLE_K, stream, first, n);
    uint64_t t;
    uint32_t h;

    for (t = 0; t < n; t++)
        for (h = 0; h < s->config.n_kv_heads; h++)
            naive_turn(k + (t * s->config.n_kv_heads + h) * DIM, &rope, (double)(position + t));
    return k;
}

/* Appends tokens [first, first + n) of the stream as tokens of positions `position` on. */
static void append_rotary(struct session *s, kivi_seq seq, uint64_t first, uint64_t n,
                          uint64_t position)
{
    float *k = rotary_keys(s, 1, first, n, position);
    float *v = session_rows(s, ROLE_V, 1, first, n);
    kivi_error error;

    session_ok(kivi_append(s->cache, 0, seq, n, (kivi_in){k, KIVI_F32, 0, 0},
                           (kivi_in){v, KIVI_F32, 0, 0}, &error),
               &error);
    free(k);
    free(v);
}

/* Relative error, L2, of the keys of tokens [begin, end) of the sequence, which were tokens
 * first + begin .. of the stream and should have positions position + begin .. . */
static double key_error(const struct session *s, kivi_seq seq, uint64_t begin, uint64_t end,
                        uint64_t first, uint64_t position)
{
    struct contents held;
    float *exact = rotary_keys(s, 1, first + begin, end - begin, position + begin);
    double error = 0, square = 0;
    uint64_t t;
    uint32_t h, i;

    contents_read(&held, &s->config, s->cache, seq, 0);
    for (t = begin; t < end; t++) {
        for (h = 0; h < held.heads; h++) {
            for (i = 0; i < DIM; i++) {
                const uint64_t at = (t * held.heads + h) * DIM + i;
                const uint64_t group = (t / held.group_size * held.heads + h) * DIM + i;
                const double x = exact[((t - begin) * held.heads + h) * DIM + i];
                const double y = contents_k_is_full(&held, t)
                                     ? number_from_f16(held.k_row[at])
                                     : held.k_code[at] * number_from_f16(held.k_scale[group])
                                           + number_from_f16(held.k_min[group]);

                error += (x - y) * (x - y);
                square += x * x;
            }
        }
    }
    free(exact);
    contents_free(&held);
    return sqrt(error / square);
}

/*
 * StreamingLLM: the first 32 tokens stay and so does a window of 2048; 64 tokens at a time go. Either
 * the window turns back, every token of it with every drop, or the first tokens turn forward. Prints
 * the error of what turned, and returns what it is after `rounds` drops.
 */
static double stream_on(uint32_t bits, uint32_t n_sink, int turn_first, uint64_t rounds)
{
    const uint64_t kept = 32, window = 2048, step = 64;
    struct session s;
    kivi_config config;
    kivi_seq seq;
    double error = 0;
    uint64_t dropped = 0;

    drop_config(&config, bits);
    config.n_sink = n_sink;
    session_open(&s, &config, backend_name(0));
    seq = session_new(&s);
    append_rotary(&s, seq, 0, kept + window, 0);
    printf("%2u-bit keys, %2u sinks, %s turned: quantized once %.4f; turned so many times:", bits,
           n_sink, turn_first ? "first tokens" : "window",
           key_error(&s, seq, kept, kept + window - 64, 0, 0));
    while (dropped < rounds * step) {
        ck_assert_int_eq(
            kivi_seq_drop(s.cache, seq, kept, kept + step, turn_first ? &first_rope : &rope, NULL),
            KIVI_OK);
        dropped += step;
        append_rotary(&s, seq, kept + window + dropped - step, step,
                      kept + window - step + (turn_first ? dropped : 0));
        /* Keys that were packed before the first drop have been turned every time. */
        error = turn_first ? key_error(&s, seq, 0, kept, 0, dropped)
                           : key_error(&s, seq, kept, kept + window - step - dropped, dropped, 0);
        if ((dropped / step & (dropped / step - 1)) == 0)
            printf(" %d: %.4f", (int)(dropped / step), error);
        if (turn_first && dropped == step) /* the others stay as they are */
            ck_assert_double_lt(key_error(&s, seq, kept, window, dropped, dropped), 0.3);
    }
    printf("\n");
    session_close(&s);
    return error;
}

/* docs/sequences.md has these numbers. */
START_TEST(rotation_is_within_its_bound)
{
    ck_assert_double_lt(stream_on(16, 0, 0, 16), 0.002);
    ck_assert_double_lt(stream_on(8, 0, 0, 16), 0.03);
    ck_assert_double_lt(stream_on(4, 0, 0, 16), 0.4);
    ck_assert_double_lt(stream_on(2, 0, 0, 1), 0.36);
    ck_assert_double_lt(stream_on(2, 0, 0, 16), 2.5);
    ck_assert_double_lt(stream_on(2, 0, 1, 16), 2.5);
    ck_assert_double_lt(stream_on(2, 4, 1, 16), 2.5); /* sinks that begin is not at the end of */
    ck_assert_double_lt(stream_on(2, 32, 1, 16), 0.002);
}
END_TEST

/* One drop against the model, number by number. */
static void check_rotation(int backend, const kivi_rope *turn, uint32_t n_sink)
{
    struct session s;
    kivi_config config;
    struct naive naive;
    float *k, *v;
    double *wide;
    kivi_seq seq;
    size_t i, n;

    drop_config(&config, 2);
    config.n_sink = n_sink;
    session_open(&s, &config, backend_name(backend));
    seq = session_new(&s);
    append_rotary(&s, seq, 0, 400, 0);
    naive_init(&naive, &s.config, 0);
    k = rotary_keys(&s, 1, 0, 400, 0);
    v = session_rows(&s, ROLE_V, 1, 0, 400);
    n = (size_t)400 * config.n_kv_heads * DIM;
    wide = malloc(2 * n * sizeof *wide);
    ck_assert_ptr_nonnull(wide);
    for (i = 0; i < n; i++) {
        wide[i] = k[i];
        wide[n + i] = v[i];
    }
    oracle_append(&naive.oracle, 400, wide, wide + n);
    naive_flush(&naive);
    ck_assert_int_eq(kivi_seq_drop(s.cache, seq, 64, 160, turn, NULL), KIVI_OK);
    naive_drop(&naive, 64, 160, turn);
    naive_check(&naive, &s.config, s.cache, seq, 0, "turned keys");
    naive_free(&naive);
    free(k);
    free(v);
    free(wide);
    session_close(&s);
}

START_TEST(one_rotation)
{
    check_rotation(_i, &rope, 0);
    check_rotation(_i, &first_rope, 0);
    check_rotation(_i, &rope, 7);
    check_rotation(_i, &first_rope, 7);
    check_rotation(_i, &first_rope, 64);
}
END_TEST

/* Turned, the largest numbers of f16 are beyond it by up to sqrt(2): they stay the largest, in either direction. */
START_TEST(largest_keys_turn)
{
    struct session s;
    kivi_config config;
    struct contents held;
    kivi_seq seq;
    float *rows;
    uint64_t i, n_largest[2] = {0, 0};
    const uint64_t n = 200, size = n * 2 * DIM;

    drop_config(&config, 2);
    config.n_sink = 32;
    session_open(&s, &config, backend_name(_i));
    rows = malloc(size * sizeof *rows);
    ck_assert_ptr_nonnull(rows);
    for (i = 0; i < size; i++)
        rows[i] = i / DIM % 4 < 2 ? 65504 : -65504;
    seq = session_new(&s);
    ck_assert_int_eq(kivi_append(s.cache, 0, seq, n, (kivi_in){rows, KIVI_F32, 0, 0},
                                 (kivi_in){rows, KIVI_F32, 0, 0}, NULL),
                     KIVI_OK);
    ck_assert_int_eq(kivi_seq_drop(s.cache, seq, 32, 64, &rope, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_drop(s.cache, seq, 32, 64, &first_rope, NULL), KIVI_OK);
    contents_read(&held, &s.config, s.cache, seq, 0);
    for (i = 0; i < held.n * 2 * DIM; i++) {
        const double x = number_from_f16(held.k_row[i]);

        if (!contents_k_is_full(&held, i / (2 * DIM)))
            continue;
        ck_assert_double_le(fabs(x), 65504);
        n_largest[x < 0] += fabs(x) >= 65504;
    }
    ck_assert(n_largest[0] > 0 && n_largest[1] > 0);
    contents_free(&held);
    free(rows);
    session_close(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("drop");
    TCase *drop = tcase_create("drop");

    set_frequencies();
    tcase_add_loop_test(drop, codes_move_as_they_are, 0, backend_count());
    tcase_add_loop_test(drop, cut_at_once, 0, backend_count());
    tcase_add_loop_test(drop, pages_stay_shared, 0, backend_count());
    tcase_add_loop_test(drop, what_cannot_be_dropped, 0, backend_count());
    tcase_add_loop_test(drop, the_newest_tokens_stay, 0, backend_count());
    tcase_add_loop_test(drop, others_work_meanwhile, 0, backend_count());
    tcase_add_loop_test(drop, one_rotation, 0, backend_count());
    tcase_add_loop_test(drop, largest_keys_turn, 0, backend_count());
    tcase_add_test(drop, rotation_is_within_its_bound);
    tcase_set_timeout(drop, 0);
    suite_add_tcase(suite, drop);
    return test_main(suite);
}
