/*
 * What attention gives however it is put together: a sequence that came in chunks, a call in parts, long sums, and
 * partial results that are merged. Bit for bit where that is promised.
 */
#include <check.h>
#include <kivi/kivi.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/model.h"
#include "support/suite.h"

/* Arrays for one sequence: n tokens and n_q queries. */
struct arrays {
    struct tensor k, v, q;
};

static struct arrays make_arrays(struct rng *rng, const kivi_config *config, uint64_t n,
                                 uint64_t n_q)
{
    struct arrays a = {
        tensor_dense(KIVI_F16, n, config->n_kv_heads, config->k_dim),
        tensor_dense(KIVI_F16, n, config->n_kv_heads, config->v_dim),
        tensor_dense(KIVI_F16, n_q, config->n_q_heads, config->k_dim),
    };
    struct tensor *const all[] = {&a.k, &a.v, &a.q};
    const enum role roles[] = {ROLE_K, ROLE_V, ROLE_Q};
    uint32_t role, head, channel;
    uint64_t token;

    for (role = 0; role < 3; role++)
        for (token = 0; token < all[role]->tokens; token++)
            for (head = 0; head < all[role]->heads; head++)
                for (channel = 0; channel < all[role]->dim; channel++)
                    tensor_set(all[role], token, head, channel,
                               fill_ordinary.at(rng, roles[role], token, head, channel));
    return a;
}

static void free_arrays(struct arrays *a)
{
    tensor_free(&a->k);
    tensor_free(&a->v);
    tensor_free(&a->q);
}

static kivi_cache *open_cache(const kivi_config *config)
{
    kivi_cache *cache;
    kivi_error error;

    ck_assert_msg(kivi_cache_create(config, &cache, &error) == KIVI_OK, "%s", error.message);
    return cache;
}

static kivi_seq new_seq(kivi_cache *cache)
{
    kivi_seq seq;

    ck_assert_int_eq(kivi_seq_create(cache, &seq, NULL), KIVI_OK);
    return seq;
}

/* Attention of all queries over a sequence, without appending. */
static kivi_item attend_item(kivi_seq seq, const struct arrays *a, float *out, float *lse)
{
    const kivi_item item = {
        .seq = seq,
        .n_q = a->q.tokens,
        .q = tensor_in(&a->q, 0),
        .out = {out, KIVI_F32, 0, 0},
        .lse = lse,
    };

    return item;
}

static float *floats(size_t n)
{
    float *x = calloc(n + 1, sizeof *x);

    ck_assert_ptr_nonnull(x);
    return x;
}

/* What kivi_seq_save writes. */
struct saved {
    char *data;
    size_t n, room;
};

static int write_to_memory(void *context, const void *data, size_t bytes)
{
    struct saved *s = context;

    if (bytes > s->room - s->n)
        return 1;
    memcpy(s->data + s->n, data, bytes);
    s->n += bytes;
    return 0;
}

static struct saved save(const kivi_cache *cache, kivi_seq seq)
{
    struct saved s = {NULL, 0, 0};
    uint64_t bytes;

    ck_assert_int_eq(kivi_seq_save_size(cache, seq, &bytes, NULL), KIVI_OK);
    s.room = (size_t)bytes;
    s.data = malloc(s.room);
    ck_assert_ptr_nonnull(s.data);
    ck_assert_int_eq(kivi_seq_save(cache, seq, write_to_memory, &s, NULL), KIVI_OK);
    ck_assert_uint_eq(s.n, s.room);
    return s;
}

/* Ways to bring n tokens: one by one, in sevens, at once, at random. */
#define N_PLANS 4

static void append_in_chunks(kivi_cache *cache, kivi_seq seq, const struct arrays *a, int plan,
                             struct rng *rng)
{
    const uint64_t n = a->k.tokens;
    uint64_t at = 0;

    while (at < n) {
        const uint64_t sizes[N_PLANS] = {1, 7, n, rng_between(rng, 1, 90)};
        const uint64_t chunk = sizes[plan] < n - at ? sizes[plan] : n - at;

        ck_assert_int_eq(
            kivi_append(cache, 0, seq, chunk, tensor_in(&a->k, at), tensor_in(&a->v, at), NULL),
            KIVI_OK);
        at += chunk;
    }
}

/* All that a sequence shows: saved bytes, statistics, contents, attention. */
struct portrait {
    struct saved saved;
    kivi_stats stats;
    float *out;
};

static struct portrait draw(kivi_cache *cache, kivi_seq seq, const struct arrays *a, size_t n_out)
{
    struct portrait p = {save(cache, seq), {.size = sizeof p.stats}, floats(n_out)};
    const kivi_item item = attend_item(seq, a, p.out, NULL);

    ck_assert_int_eq(kivi_seq_stats(cache, seq, &p.stats, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_run(cache, 0, &item, 1, NULL, NULL), KIVI_OK);
    return p;
}

static void check_chunking(uint64_t seed, const char *backend)
{
    uint8_t bits[2][MODEL_LAYERS];
    struct rng rng = {seed};
    struct portrait portraits[N_PLANS];
    struct arrays arrays;
    kivi_config config;
    uint64_t n;
    size_t n_out;
    int plan;

    random_config(&rng, &config, bits);
    config.n_layers = 1;
    config.backend = backend;
    n = rng_between(&rng, 4, 3 * config.residual_length + 70);
    arrays = make_arrays(&rng, &config, n, 4);
    n_out = (size_t)4 * config.n_q_heads * config.v_dim;
    for (plan = 0; plan < N_PLANS; plan++) {
        const struct portrait *first = &portraits[0], *p = &portraits[plan];
        kivi_cache *cache = open_cache(&config); /* its own: handles are saved too */
        const kivi_seq seq = new_seq(cache);

        append_in_chunks(cache, seq, &arrays, plan, &rng);
        portraits[plan] = draw(cache, seq, &arrays, n_out);
        kivi_cache_destroy(cache);
        ck_assert_uint_eq(p->saved.n, first->saved.n);
        ck_assert_mem_eq(p->saved.data, first->saved.data, first->saved.n);
        ck_assert_mem_eq(&p->stats, &first->stats, sizeof p->stats);
        ck_assert_mem_eq(p->out, first->out, n_out * sizeof *p->out);
    }
    for (plan = 0; plan < N_PLANS; plan++) {
        free(portraits[plan].saved.data);
        free(portraits[plan].out);
    }
    free_arrays(&arrays);
}

START_TEST(chunks_do_not_matter)
{
    const uint64_t first = test_seed(0xc4a9);
    const int n = test_rounds(15, 400);
    int i;

    for (i = 0; i < n; i++)
        check_chunking(first + (uint64_t)i, backend_name(_i));
}
END_TEST

/* Runs an item in n_parts, forwards or backwards. */
static void run_parts(kivi_cache *cache, const kivi_item *item, uint32_t n_parts, int backwards)
{
    kivi_work *work;
    uint32_t phase, i;

    ck_assert_int_eq(kivi_work_begin(cache, 0, item, 1, NULL, n_parts, &work, NULL), KIVI_OK);
    for (phase = 0; phase < kivi_work_phases(work); phase++)
        for (i = 0; i < n_parts; i++)
            kivi_work_part(work, phase, backwards ? n_parts - 1 - i : i);
    ck_assert_int_eq(kivi_work_end(work, NULL), KIVI_OK);
}

#if defined(__GNUC__) && !defined(_WIN32)
extern int omp_get_max_threads(void) __attribute__((weak));
extern void omp_set_num_threads(int n) __attribute__((weak));
#define HAVE_TEAM (omp_get_max_threads != NULL)
#define SET_TEAM(n) omp_set_num_threads(n)
#define TEAM omp_get_max_threads()
#else
#define HAVE_TEAM 0
#define SET_TEAM(n) (void)(n)
#define TEAM 1
#endif

/* kivi_run, and the host's parts in any order, give the same bits for the same number of parts. */
START_TEST(parts_are_reproducible)
{
    struct rng rng = {test_seed(0x9a47)};
    uint32_t n_parts;

    for (n_parts = 1; n_parts <= 7; n_parts++) {
        kivi_config config = model_plain_config(8, 2, 64, n_parts % 2 ? 2 : 4);
        const size_t n_out = (size_t)3 * 8 * 64;
        struct arrays arrays = make_arrays(&rng, &config, 2600, 3);
        float *out[3] = {floats(n_out), floats(n_out), floats(n_out)};
        kivi_cache *cache;
        kivi_item item;
        int i;

        config.backend = backend_name(_i);
        config.n_threads = n_parts;
        cache = open_cache(&config);
        item = attend_item(new_seq(cache), &arrays, out[0], NULL);
        ck_assert_int_eq(kivi_append(cache, 0, item.seq, 2600, tensor_in(&arrays.k, 0),
                                     tensor_in(&arrays.v, 0), NULL),
                         KIVI_OK);
        for (i = 0; i < 2; i++) {
            item.out.data = out[i];
            run_parts(cache, &item, n_parts, i);
        }
        ck_assert_mem_eq(out[0], out[1], n_out * sizeof *out[0]);
        item.out.data = out[2];
        ck_assert_int_eq(kivi_run(cache, 0, &item, 1, NULL, NULL), KIVI_OK);
        if (n_parts == 1 || HAVE_TEAM)
            ck_assert_mem_eq(out[0], out[2], n_out * sizeof *out[0]);
        for (i = 0; i < 3; i++)
            free(out[i]);
        kivi_cache_destroy(cache);
        free_arrays(&arrays);
    }
}
END_TEST

/* A machine, or a user, may have more threads than a call has parts. */
START_TEST(more_threads_than_parts)
{
    kivi_config config = model_plain_config(4, 2, 64, 2);
    const int n_threads = HAVE_TEAM ? TEAM : 1;
    const float row[4 * 64] = {1};
    float out[4 * 64];
    kivi_cache *cache;
    kivi_error error;

    config.n_threads = 0;
    cache = open_cache(&config);
    if (HAVE_TEAM)
        SET_TEAM(2000);
    ck_assert_msg(kivi_forward(cache, 0, new_seq(cache), 1, row, row, row, out, NULL, &error)
                      == KIVI_OK,
                  "%s", error.message);
    if (HAVE_TEAM)
        SET_TEAM(n_threads);
    kivi_cache_destroy(cache);
}
END_TEST

/* Every rounding of a sum of equal numbers goes the same way: the worst that can happen to a long one. A few tokens of a
 * larger score make the weights of the others numbers of all 24 bits, without which nothing would be rounded. */
START_TEST(long_sums)
{
    static const uint32_t bits[] = {16, 2};
    const uint64_t n = 5000, calls = 64;
    const float value = 1 + 0x1p-10f, score = 1.125f;
    const double weights = (double)calls * (1 + (double)(n - 1) * exp(-score));
    uint32_t i;

    for (i = 0; i < 2; i++) {
        kivi_config config = model_plain_config(4, 1, 64, 32);
        struct arrays a = {tensor_dense(KIVI_F16, n, 1, 64), tensor_dense(KIVI_F16, n, 1, 64),
                           tensor_dense(KIVI_F32, 1, 4, 64)};
        float *out = floats((size_t)4 * 64), *lse = floats(4), worst_out = 0, worst_lse = 0;
        kivi_attention attention;
        kivi_cache *cache;
        kivi_item item;
        uint64_t t;
        uint32_t c;

        config.k_bits = config.v_bits = bits[i];
        config.n_threads = 1;
        config.backend = backend_name(_i);
        kivi_attention_init(&attention);
        attention.precision = KIVI_PRECISE;
        attention.scale = 1;
        for (c = 0; c < 64; c++) {
            for (t = 0; t < n; t++) {
                tensor_set(&a.k, t, 0, c, t == 0 && c == 0 ? score : 0);
                tensor_set(&a.v, t, 0, c, value);
            }
            for (t = 0; t < 4; t++)
                tensor_set(&a.q, 0, (uint32_t)t, c, c == 0);
        }
        cache = open_cache(&config);
        item = attend_item(new_seq(cache), &a, out, lse);
        for (t = 0; t < calls; t++)
            ck_assert_int_eq(
                kivi_append(cache, 0, item.seq, n, tensor_in(&a.k, 0), tensor_in(&a.v, 0), NULL),
                KIVI_OK);
        ck_assert_int_eq(kivi_run(cache, 0, &item, 1, &attention, NULL), KIVI_OK);
        for (c = 0; c < 4 * 64; c++)
            worst_out = fmaxf(worst_out, fabsf(out[c] / value - 1));
        for (c = 0; c < 4; c++)
            worst_lse = fmaxf(worst_lse, fabsf(lse[c] - score - (float)log(weights)));
        ck_assert_msg(worst_out <= 1e-5f && worst_lse <= 1e-5f,
                      "%s, %u bits: off by %g, and the log-sum-exp by %g", backend_name(_i),
                      bits[i], (double)worst_out, (double)worst_lse);
        kivi_cache_destroy(cache);
        free_arrays(&a);
        free(out);
        free(lse);
    }
}
END_TEST

/* Rows that go together, of which some see nothing of the tokens that do: those come before the row's window, or after
 * the row. They are nothing to it, however low all of its scores are. */
START_TEST(rows_that_see_nothing)
{
    static const uint64_t windows[] = {8, 0};
    const uint64_t n = 295, n_q = 60; /* the chunk at 256 begins among rows that go together */
    kivi_config config = model_plain_config(4, 2, 40, 2);
    struct arrays a = {tensor_dense(KIVI_F16, n, 2, 40), tensor_dense(KIVI_F16, n, 2, 40),
                       tensor_dense(KIVI_F16, n_q, 4, 40)};
    float *out = floats((size_t)n_q * 4 * 40), *lse = floats((size_t)n_q * 4);
    kivi_attention attention;
    kivi_cache *cache;
    kivi_item item;
    size_t i, w;

    for (i = 0; i < n * 2 * 40; i++) {
        tensor_set(&a.k, i / 80, (uint32_t)(i / 40 % 2), (uint32_t)(i % 40), i % 40 == 0 ? 20 : 0);
        tensor_set(&a.v, i / 80, (uint32_t)(i / 40 % 2), (uint32_t)(i % 40), 1.5);
    }
    for (i = 0; i < n_q * 4 * 40; i++)
        tensor_set(&a.q, i / 160, (uint32_t)(i / 40 % 4), (uint32_t)(i % 40), -20);
    kivi_attention_init(&attention);
    attention.scale = 1;
    config.backend = backend_name(_i);
    cache = open_cache(&config);
    item = attend_item(new_seq(cache), &a, out, lse);
    ck_assert_int_eq(
        kivi_append(cache, 0, item.seq, n, tensor_in(&a.k, 0), tensor_in(&a.v, 0), NULL), KIVI_OK);
    for (w = 0; w < sizeof windows / sizeof *windows; w++) {
        attention.window = windows[w];
        ck_assert_int_eq(kivi_run(cache, 0, &item, 1, &attention, NULL), KIVI_OK);
        for (i = 0; i < n_q * 4 * 40; i++)
            ck_assert_msg(fabsf(out[i] - 1.5f) <= 1e-5f, "query %zu: %g", i / 160, (double)out[i]);
        for (i = 0; i < n_q * 4; i++) {
            const uint64_t seen = windows[w] ? windows[w] : n - n_q + i / 4 + 1;

            ck_assert_msg(fabsf(lse[i] + 400 - logf((float)seen)) <= 1e-3f, "query %zu: %g", i / 4,
                          (double)lse[i]);
        }
    }
    kivi_cache_destroy(cache);
    free_arrays(&a);
    free(out);
    free(lse);
}
END_TEST

/* -------------------------------------------------------------- merge */

/* Tokens in two caches: attention over each, merged, is attention over all. */
START_TEST(merge_of_disjoint_tokens)
{
    struct rng rng = {test_seed(0x3e43e)};
    kivi_config config = model_plain_config(4, 2, 40, 16);
    const uint64_t n = 150, cut = 61, n_q = 5;
    const size_t n_rows = (size_t)n_q * 4, n_out = n_rows * 40;
    struct arrays arrays = make_arrays(&rng, &config, n, n_q);
    double *k = tensor_decode(&arrays.k), *v = tensor_decode(&arrays.v);
    double *q = tensor_decode(&arrays.q);
    float sinks[] = {0.5f, -1, 3, (float)-INFINITY};
    kivi_attention attention;
    struct oracle oracle;
    struct oracle_result expected;
    struct accuracy accuracy, lse_accuracy;
    struct tensor merged = tensor_dense(KIVI_F32, n_q, 4, 40);
    float *lse = floats(n_rows), *other = floats(n_out), *other_lse = floats(n_rows);
    kivi_cache *cache;
    kivi_item items[2];

    config.backend = backend_name(_i);
    kivi_attention_init(&attention);
    attention.precision = KIVI_PRECISE;
    attention.sink_logits = sinks;
    oracle_init(&oracle, &config, 0);
    oracle_append(&oracle, n, k, v);
    expected = oracle_attend(&oracle, n_q, q, n - n_q, &attention);

    cache = open_cache(&config);
    items[0] = attend_item(new_seq(cache), &arrays, merged.memory, lse);
    items[0].q_end = n; /* beyond its own tokens: all are seen */
    items[1] = attend_item(new_seq(cache), &arrays, other, other_lse);
    ck_assert_int_eq(kivi_append(cache, 0, items[0].seq, cut, tensor_in(&arrays.k, 0),
                                 tensor_in(&arrays.v, 0), NULL),
                     KIVI_OK);
    ck_assert_int_eq(kivi_append(cache, 0, items[1].seq, n - cut, tensor_in(&arrays.k, cut),
                                 tensor_in(&arrays.v, cut), NULL),
                     KIVI_OK);
    ck_assert_int_eq(kivi_run(cache, 0, &items[0], 1, &attention, NULL), KIVI_OK);
    attention.sink_logits = NULL; /* the sink counts once */
    ck_assert_int_eq(kivi_run(cache, 0, &items[1], 1, &attention, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_merge(n_rows, 40, merged.memory, lse, other, other_lse, NULL), KIVI_OK);

    accuracy_init(&accuracy, KIVI_PRECISE, 0);
    accuracy_init(&lse_accuracy, KIVI_PRECISE, 0);
    accuracy_add_result(&accuracy, &merged, &expected);
    accuracy_add_lse(&lse_accuracy, lse, &expected);
    accuracy_check(&accuracy, "merge");
    accuracy_check(&lse_accuracy, "merge, log-sum-exp");

    oracle_result_free(&expected);
    oracle_free(&oracle);
    kivi_cache_destroy(cache);
    free_arrays(&arrays);
    tensor_free(&merged);
    free(lse);
    free(other);
    free(other_lse);
    free(k);
    free(v);
    free(q);
}
END_TEST

/* A set of tokens that no query sees leaves the other as it is, from either side. */
START_TEST(merge_with_nothing)
{
    const float nothing = (float)-INFINITY;
    float out[2] = {3, -4}, lse = 1.5f, empty[2] = {0, 0}, empty_lse = nothing;

    ck_assert_int_eq(kivi_merge(1, 2, out, &lse, empty, &empty_lse, NULL), KIVI_OK);
    ck_assert(out[0] == 3 && out[1] == -4 && lse == 1.5f);
    ck_assert_int_eq(kivi_merge(1, 2, empty, &empty_lse, out, &lse, NULL), KIVI_OK);
    ck_assert(empty[0] == 3 && empty[1] == -4 && empty_lse == 1.5f);
    empty[0] = empty[1] = 0;
    out[0] = out[1] = 0;
    empty_lse = lse = nothing;
    ck_assert_int_eq(kivi_merge(1, 2, empty, &empty_lse, out, &lse, NULL), KIVI_OK);
    ck_assert(empty[0] == 0 && empty[1] == 0 && empty_lse == nothing);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("parts");
    TCase *bits = tcase_create("bit for bit"), *sums = tcase_create("sums");
    TCase *merge = tcase_create("merge");

    tcase_add_loop_test(bits, chunks_do_not_matter, 0, backend_count());
    tcase_add_loop_test(bits, parts_are_reproducible, 0, backend_count());
    tcase_add_test(bits, more_threads_than_parts);
    tcase_add_loop_test(sums, long_sums, 0, backend_count());
    tcase_add_loop_test(sums, rows_that_see_nothing, 0, backend_count());
    tcase_add_loop_test(merge, merge_of_disjoint_tokens, 0, backend_count());
    tcase_add_test(merge, merge_with_nothing);
    tcase_set_timeout(bits, 0);
    tcase_set_timeout(sums, 0);
    suite_add_tcase(suite, bits);
    suite_add_tcase(suite, sums);
    suite_add_tcase(suite, merge);
    return test_main(suite);
}
