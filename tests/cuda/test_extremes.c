/*
 * Numbers and sizes at the ends of what a call may have, against the scalar backend or by what they must be.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "support/numbers.h"
#include "support/session.h"
#include "support/suite.h"
#include "twins.h"

/* With tensor cores and without; one new token, for which a block has few rows, and many. */
static const struct {
    uint32_t dim, bits;
} shapes[] = {{64, 2}, {128, 4}, {128, 8}, {128, 16}, {80, 2}, {256, 2}, {256, 16}, {264, 2}};

static void check_call(struct twins *t, uint64_t n, const kivi_attention *attention,
                       const char *what)
{
    struct call c = call_begin_as(t, 0, SEQS, n, attention);

    call_end(&c, what);
}

/* Steps and chunks behind a prompt, with each of n extremes. */
static void check_extremes(int shape, const kivi_attention *extremes, size_t n, const char *what)
{
    kivi_attention ordinary;
    struct twins t;
    size_t i;

    twins_open(&t, 2, shapes[shape].dim, shapes[shape].bits);
    kivi_attention_init(&ordinary);
    check_call(&t, 300, &ordinary, "prompt");
    for (i = 0; i < n; i++) {
        check_call(&t, 1, &extremes[i], what);
        check_call(&t, 64, &extremes[i], what);
    }
    twins_close(&t);
}

/* A cap is relative: far above all scores it leaves them as they are, as exactly as without it. */
START_TEST(caps_far_above_scores)
{
    static const float caps[] = {30, 1e3f, 1e5f, 1e9f, FLT_MAX, 1e-39f};
    kivi_attention attention[6];
    size_t i;

    for (i = 0; i < 6; i++) {
        kivi_attention_init(&attention[i]);
        attention[i].softcap = caps[i];
    }
    check_extremes(_i, attention, 6, "a soft cap");
}
END_TEST

static void cut_all(struct twins *t)
{
    kivi_error error;
    uint32_t i;

    cuda_ok(cudaStreamSynchronize(t->stream));
    for (i = 0; i < SEQS; i++) {
        session_ok(kivi_seq_truncate(t->device, t->on_device[i], 0, &error), &error);
        session_ok(kivi_seq_truncate(t->host, t->on_host[i], 0, &error), &error);
    }
}

/* A page is as its memory was: a layer of other bits may have had codes where scales will be, of which some would be
 * infinite or NaN. Attention reads all of a unit of 32, so what begins one writes it whole. */
START_TEST(pages_of_other_layers)
{
    static const uint64_t lengths[] = {127, 1, 1, 1, 40, 1}; /* steps begin a unit of 32 */
    const uint8_t bits = (uint8_t)shapes[_i / 2].bits, other = bits == 8 ? 4 : 8, layers[] = {bits, other};
    kivi_attention attention;
    struct twins t;
    int i, j;

    twins_configure(&t, 2, shapes[_i / 2].dim, bits);
    t.config.layer_k_bits = t.config.layer_v_bits = layers;
    t.config.n_sink = _i % 2 ? 5 : 0;
    t.config.residual_length = 32;
    twins_create(&t);
    kivi_attention_init(&attention);
    for (i = 0; i < 2; i++) {
        struct call c = call_begin_as(&t, 1, SEQS, 230, &attention);

        call_end(&c, "a layer of other bits");
        cut_all(&t);
        for (j = 0; j < 6; j++)
            check_call(&t, lengths[j], &attention, "pages that another layer has used");
        twins_check_contents(&t, "pages that another layer has used");
        cut_all(&t);
    }
    twins_close(&t);
}
END_TEST

/* A window that reaches further back than any token, up to the largest number there is. */
START_TEST(windows_without_end)
{
    static const uint64_t windows[] = {UINT64_MAX, UINT64_MAX - 150, (uint64_t)1 << 63};
    kivi_attention attention[3];
    size_t i;

    for (i = 0; i < 3; i++) {
        kivi_attention_init(&attention[i]);
        attention[i].window = windows[i];
    }
    check_extremes(_i, attention, 3, "an endless window");
}
END_TEST

/* Scaled queries may be up to 1e30, and scores far beyond: also those of a row that has no others. */
START_TEST(scores_far_below)
{
    kivi_attention attention;
    struct twins t;

    twins_open(&t, 2, shapes[_i].dim, shapes[_i].bits);
    kivi_attention_init(&attention);
    attention.scale = 2e29f;
    check_call(&t, 1, &attention, "a single token");
    twins_close(&t);
    twins_open(&t, 2, shapes[_i].dim, shapes[_i].bits);
    check_call(&t, 40, &attention, "a prompt whose first row sees a single token");
    twins_close(&t);
}
END_TEST

/* All scores next to 0: equal weights, and none of what is hidden. */
START_TEST(scales_next_to_nothing)
{
    kivi_attention attention;
    struct twins t;

    twins_open(&t, 2, shapes[_i].dim, shapes[_i].bits);
    kivi_attention_init(&attention);
    attention.scale = 1e-44f;
    check_call(&t, 300, &attention, "a prompt of equal weights");
    check_call(&t, 1, &attention, "a step of equal weights");
    check_call(&t, 64, &attention, "a chunk of equal weights");
    twins_close(&t);
}
END_TEST

/* The sums of test_oracle's long_sums where parts have whole tasks, since there are so many: a part adds up all tokens
 * of a long sequence. Without tensor cores. */
START_TEST(long_sums_of_one_part)
{
    const uint64_t chunk = 20000, calls = 5, n_q = 2000;
    const float value = 1 + 0x1p-10f;
    const size_t n_out = (size_t)n_q * Q_HEADS * 80, n_lse = (size_t)n_q * Q_HEADS;
    uint16_t *v = malloc(chunk * 80 * sizeof *v), *k = calloc(chunk * 80, sizeof *k);
    float *q = calloc(n_out, sizeof *q), *out = malloc(n_out * sizeof *out),
          *lse = malloc(n_lse * sizeof *lse);
    float worst_out = 0, worst_lse = 0;
    kivi_attention attention;
    kivi_config config;
    kivi_cache *cache;
    kivi_error error;
    kivi_item item = {
        .n_q = n_q,
        .q = {q, KIVI_F32, 0, 0},
        .out = {out, KIVI_F32, 0, 0},
        .lse = lse,
        .q_end = (uint64_t)1 << 40,
    };
    size_t i;

    ck_assert(k && v && q && out && lse);
    for (i = 0; i < chunk * 80; i++)
        v[i] = number_to_f16(value);
    kivi_config_init(&config);
    config.n_layers = config.n_kv_heads = 1;
    config.n_q_heads = Q_HEADS;
    config.k_dim = config.v_dim = 80;
    config.k_bits = 16;
    config.backend = "cuda";
    session_ok(kivi_cache_create(&config, &cache, &error), &error);
    session_ok(kivi_seq_create(cache, &item.seq, &error), &error);
    for (i = 0; i < calls; i++)
        session_ok(kivi_append(cache, 0, item.seq, chunk, (kivi_in){k, KIVI_F16, 0, 0},
                               (kivi_in){v, KIVI_F16, 0, 0}, &error),
                   &error);
    kivi_attention_init(&attention);
    attention.precision = KIVI_PRECISE;
    session_ok(kivi_run(cache, 0, &item, 1, &attention, &error), &error);
    for (i = 0; i < n_out; i++)
        worst_out = fmaxf(worst_out, fabsf(out[i] / value - 1));
    for (i = 0; i < n_lse; i++)
        worst_lse = fmaxf(worst_lse, fabsf(lse[i] - logf((float)(chunk * calls))));
    ck_assert_msg(worst_out <= 1e-5f && worst_lse <= 1e-5f, "off by %g, and the log-sum-exp by %g",
                  (double)worst_out, (double)worst_lse);
    kivi_cache_destroy(cache);
    free(k);
    free(v);
    free(q);
    free(out);
    free(lse);
}
END_TEST

/* Device memory that calls of so many queries on the host's arrays leave a cache with. */
static size_t memory_of_calls(const uint64_t *n_q, size_t n)
{
    float *rows = calloc((size_t)n_q[n - 1] * Q_HEADS * 128, sizeof *rows);
    float *out = malloc((size_t)n_q[n - 1] * Q_HEADS * 128 * sizeof *out);
    size_t before, after, total, i;
    kivi_config config;
    kivi_cache *cache;
    kivi_error error;
    kivi_seq seq;

    ck_assert(rows && out);
    kivi_config_init(&config);
    config.n_layers = config.n_kv_heads = 1;
    config.n_q_heads = Q_HEADS;
    config.k_dim = config.v_dim = 128;
    config.backend = "cuda";
    cuda_ok(cudaMemGetInfo(&before, &total));
    session_ok(kivi_cache_create(&config, &cache, &error), &error);
    session_ok(kivi_seq_create(cache, &seq, &error), &error);
    session_ok(kivi_append(cache, 0, seq, 64, (kivi_in){rows, KIVI_F32, 0, 0},
                           (kivi_in){rows, KIVI_F32, 0, 0}, &error),
               &error);
    for (i = 0; i < n; i++) {
        const kivi_item item = {
            .seq = seq,
            .n_q = n_q[i],
            .q = {rows, KIVI_F32, 0, 0},
            .out = {out, KIVI_F32, 0, 0},
            .q_end = (uint64_t)1 << 40,
        };

        session_ok(kivi_run(cache, 0, &item, 1, NULL, &error), &error);
    }
    cuda_ok(cudaMemGetInfo(&after, &total));
    kivi_cache_destroy(cache);
    free(rows);
    free(out);
    return before - after;
}

/* Room for the host's arrays is that of the largest call, however many smaller ones came before. */
START_TEST(room_for_calls_that_grow)
{
    static const uint64_t n_q[] = {1000, 1700, 2900, 5000, 8500, 14500};
    const size_t n = sizeof n_q / sizeof *n_q;
    size_t largest, all;

    memory_of_calls(n_q, n); /* kernels are loaded */
    largest = memory_of_calls(&n_q[n - 1], 1);
    all = memory_of_calls(n_q, n);
    ck_assert_msg(all <= largest + ((size_t)16 << 20),
                  "%zu bytes, %zu after the largest call alone", all, largest);
}
END_TEST

static void attend_to_zeros(kivi_cache *cache, kivi_seq seq, uint64_t n_q)
{
    float *rows = calloc((size_t)n_q * Q_HEADS * 128, sizeof *rows);
    float *out = malloc((size_t)n_q * Q_HEADS * 128 * sizeof *out);
    kivi_error error;
    const kivi_item item = {
        .seq = seq,
        .n_q = n_q,
        .q = {rows, KIVI_F32, 0, 0},
        .out = {out, KIVI_F32, 0, 0},
        .q_end = (uint64_t)1 << 40,
    };

    ck_assert(rows && out);
    session_ok(kivi_run(cache, 0, &item, 1, NULL, &error), &error);
    free(rows);
    free(out);
}

/* Room for a call grows by more than it needs, but not where the device has no more. */
START_TEST(room_that_is_just_there)
{
    const size_t small = 8000, large = 9000,
                 row = 2 * Q_HEADS * 128 * sizeof(float); /* of a query and its output */
    void *hogs[4096], *left;
    size_t n_hogs = 0, bytes = (size_t)1 << 34;
    float zeros[64 * 128] = {0};
    kivi_config config;
    kivi_cache *cache;
    kivi_error error;
    kivi_seq seq;

    kivi_config_init(&config);
    config.n_layers = config.n_kv_heads = 1;
    config.n_q_heads = Q_HEADS;
    config.k_dim = config.v_dim = 128;
    config.backend = "cuda";
    session_ok(kivi_cache_create(&config, &cache, &error), &error);
    session_ok(kivi_seq_create(cache, &seq, &error), &error);
    session_ok(kivi_append(cache, 0, seq, 64, (kivi_in){zeros, KIVI_F32, 0, 0},
                           (kivi_in){zeros, KIVI_F32, 0, 0}, &error),
               &error);
    attend_to_zeros(cache, seq, small);
    cuda_ok(cudaMalloc(&left, large * row + ((size_t)8 << 20)));
    while (bytes >= (size_t)1 << 20 && n_hogs < sizeof hogs / sizeof *hogs) {
        if (cudaMalloc(&hogs[n_hogs], bytes) == cudaSuccess) {
            n_hogs++;
        } else {
            cudaGetLastError();
            bytes /= 2;
        }
    }
    cuda_ok(cudaFree(left));
    attend_to_zeros(cache, seq, large);
    while (n_hogs > 0)
        cuda_ok(cudaFree(hogs[--n_hogs]));
    kivi_cache_destroy(cache);
}
END_TEST

/* Tables of pages of 4 GB and more, whose offsets have 32 bits: refused, with the cache as it was. */
START_TEST(too_many_pages_in_a_call)
{
    const uint64_t n = 1060000; /* 8280 pages, for each of so many items */
    const size_t n_items = 65535;
    struct array q, out;
    kivi_item *items = calloc(n_items, sizeof *items);
    kivi_attention attention;
    kivi_config config;
    kivi_cache *cache;
    kivi_error error;
    kivi_seq seq;
    void *zeros;
    size_t i;

    ck_assert_ptr_nonnull(items);
    kivi_config_init(&config);
    config.n_layers = config.n_q_heads = config.n_kv_heads = 1;
    config.k_dim = config.v_dim = 8;
    config.page_tokens = 128;
    config.backend = "cuda";
    config.memory = KIVI_MEMORY_DEVICE;
    session_ok(kivi_cache_create(&config, &cache, &error), &error);
    session_ok(kivi_seq_create(cache, &seq, &error), &error);
    cuda_ok(cudaMalloc(&zeros, n * 8 * sizeof(uint16_t)));
    cuda_ok(cudaMemset(zeros, 0, n * 8 * sizeof(uint16_t)));
    q = array_new(NULL, 8);
    cuda_ok(cudaMemset(q.device, 0, q.bytes));
    out = array_new(NULL, n_items * 8);
    cuda_ok(cudaDeviceSynchronize());
    session_ok(kivi_append(cache, 0, seq, n, (kivi_in){zeros, KIVI_F16, 0, 0},
                           (kivi_in){zeros, KIVI_F16, 0, 0}, &error),
               &error);
    for (i = 0; i < n_items; i++)
        items[i] = (kivi_item){
            .seq = seq,
            .n_q = 1,
            .q = {q.device, KIVI_F32, 0, 0},
            .out = {out.device + i * 8, KIVI_F32, 0, 0},
        };
    kivi_attention_init(&attention);
    ck_assert_int_eq(kivi_run(cache, 0, items, n_items, &attention, &error), KIVI_ERROR_MEMORY);
    session_ok(kivi_run(cache, 0, items, 4, &attention, &error), &error);
    cuda_ok(cudaDeviceSynchronize());
    cuda_ok(cudaFree(zeros));
    kivi_cache_destroy(cache);
    array_free(&q);
    array_free(&out);
    free(items);
}
END_TEST

int main(void)
{
    const int n_shapes = (int)(sizeof shapes / sizeof *shapes);
    Suite *suite = suite_create("extremes");
    TCase *numbers = tcase_create("numbers"), *pages = tcase_create("pages"), *sizes = tcase_create("sizes");

    tcase_set_timeout(numbers, 600);
    tcase_set_timeout(pages, 600);
    tcase_set_timeout(sizes, 600);
    tcase_add_loop_test(numbers, caps_far_above_scores, 0, n_shapes);
    tcase_add_loop_test(numbers, windows_without_end, 0, n_shapes);
    tcase_add_loop_test(numbers, scores_far_below, 0, n_shapes);
    tcase_add_loop_test(numbers, scales_next_to_nothing, 0, n_shapes);
    tcase_add_test(numbers, long_sums_of_one_part);
    tcase_add_loop_test(pages, pages_of_other_layers, 0, 2 * n_shapes);
    tcase_add_test(sizes, room_for_calls_that_grow);
    tcase_add_test(sizes, room_that_is_just_there);
    tcase_add_test(sizes, too_many_pages_in_a_call);
    suite_add_tcase(suite, numbers);
    suite_add_tcase(suite, pages);
    suite_add_tcase(suite, sizes);
    return test_main(suite);
}
