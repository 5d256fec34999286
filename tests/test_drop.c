/* Dropping a range of tokens, with keys as they are and with keys turned back: docs/sequences.md. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/naive.h"
#include "support/numbers.h"
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
        ck_assert_int_eq(kivi_seq_drop(s.cache, seq, kept, kept + step,
                                       turn_first ? &first_rope : &rope, NULL),
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

int main(void)
{
    Suite *suite = suite_create("drop");
    TCase *drop = tcase_create("drop");

    set_frequencies();
    tcase_add_loop_test(drop, codes_move_as_they_are, 0, backend_count());
    tcase_add_loop_test(drop, pages_stay_shared, 0, backend_count());
    tcase_add_loop_test(drop, what_cannot_be_dropped, 0, backend_count());
    tcase_add_loop_test(drop, one_rotation, 0, backend_count());
    tcase_add_test(drop, rotation_is_within_its_bound);
    tcase_set_timeout(drop, 0);
    suite_add_tcase(suite, drop);
    return test_main(suite);
}
