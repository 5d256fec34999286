/*
 * Several threads on one cache: what each gets is what it would get alone, bit for bit. Threads do
 * not assert, they report; under ThreadSanitizer the run itself is the test.
 */
#include <check.h>
#include <kivi/kivi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/fixture.h"
#include "support/random.h"
#include "support/suite.h"

#define N_WORKERS 3
#define N_CHURNERS 2
#define OUT_FLOATS (FIXTURE_Q_HEADS * FIXTURE_V_DIM)

/* The arrays are shared and only read; outputs are each worker's own. */
static struct fixture fixture;

static int n_rounds(void)
{
    return test_rounds(150, 4000);
}

/* -------------------------------------------------------- workers */

/* Appends to its own sequence and attends, round by round; keeps all it saw. */
struct worker {
    kivi_cache *cache;
    kivi_seq seq;
    uint32_t layer, n_layers; /* the layers that it works on */
    uint64_t seed;
    int n_rounds;
    float *out; /* [n_rounds][OUT_FLOATS] */
    kivi_status status;
};

static void *work(void *context)
{
    struct worker *w = context;
    struct rng rng = {w->seed};
    int i;

    for (i = 0; i < w->n_rounds && w->status == KIVI_OK; i++) {
        const uint64_t n = rng_one_in(&rng, 4) ? rng_between(&rng, 2, 50) : 1;
        const uint64_t first = rng_below(&rng, FIXTURE_TOKENS - n);
        kivi_item item = {
            .seq = w->seq,
            .n_new = n,
            .k = {fixture.k + first * FIXTURE_KV_HEADS * FIXTURE_K_DIM, KIVI_F32, 0, 0},
            .v = {fixture.v + first * FIXTURE_KV_HEADS * FIXTURE_V_DIM, KIVI_F32, 0, 0},
            .n_q = 1,
            .q = {fixture.q + first * FIXTURE_Q_HEADS * FIXTURE_K_DIM, KIVI_F32, 0, 0},
            .out = {w->out + (size_t)i * OUT_FLOATS, KIVI_F32, 0, 0},
        };

        w->status = kivi_run(w->cache, w->layer + (uint32_t)i % w->n_layers, &item, 1, NULL, NULL);
    }
    return NULL;
}

static void open_worker(struct worker *w, kivi_cache *cache, kivi_seq seq, uint32_t layer,
                        uint32_t n_layers, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->cache = cache;
    w->seq = seq;
    w->layer = layer;
    w->n_layers = n_layers;
    w->seed = seed;
    w->n_rounds = n_rounds();
    w->out = calloc((size_t)w->n_rounds * OUT_FLOATS, sizeof *w->out);
    ck_assert_ptr_nonnull(w->out);
}

static kivi_seq new_seq(kivi_cache *cache)
{
    kivi_seq seq;

    ck_assert_int_eq(kivi_seq_create(cache, &seq, NULL), KIVI_OK);
    return seq;
}

/* The same work, alone, on a cache of its own, gives the same; frees the worker. */
static void check_alone(struct worker *w)
{
    struct worker alone;
    kivi_cache *cache;

    ck_assert_int_eq(w->status, KIVI_OK);
    ck_assert_int_eq(kivi_cache_create(&fixture.config, &cache, NULL), KIVI_OK);
    open_worker(&alone, cache, new_seq(cache), w->layer, w->n_layers, w->seed);
    work(&alone);
    ck_assert_int_eq(alone.status, KIVI_OK);
    ck_assert_mem_eq(w->out, alone.out, (size_t)w->n_rounds * OUT_FLOATS * sizeof *w->out);
    kivi_cache_destroy(cache);
    free(alone.out);
    free(w->out);
}

/* --------------------------------------------------------- churners */

/* Does everything else that is allowed meanwhile, until told to stop. */
struct churner {
    kivi_cache *cache;
    kivi_seq parent; /* nobody changes it */
    uint64_t seed;
    atomic_int *stop;
    uint64_t n_forks;
    kivi_status status;
};

static int count_bytes(void *context, const void *data, size_t bytes)
{
    (void)data;
    *(size_t *)context += bytes;
    return 0;
}

/* A call that makes copies of what is shared, and gives them up. */
static kivi_status think_better(struct churner *c, const kivi_item *item)
{
    kivi_work *begun;
    uint32_t phase;
    const kivi_status status = kivi_work_begin(c->cache, 0, item, 1, NULL, 1, &begun, NULL);

    if (status != KIVI_OK)
        return status;
    for (phase = 0; phase < kivi_work_phases(begun); phase++)
        kivi_work_part(begun, phase, 0);
    kivi_work_cancel(begun);
    return KIVI_OK;
}

/* A fork that goes its own way, so that shared pages and windows are copied. */
static kivi_status live_and_die(struct churner *c, struct rng *rng)
{
    float out[OUT_FLOATS];
    kivi_item item = {
        .n_new = rng_between(rng, 1, 40),
        .k = {fixture.k, KIVI_F32, 0, 0},
        .v = {fixture.v, KIVI_F32, 0, 0},
        .n_q = 1,
        .q = {fixture.q, KIVI_F32, 0, 0},
        .out = {out, KIVI_F32, 0, 0},
    };
    kivi_status status = kivi_seq_fork(c->cache, c->parent, &item.seq, NULL);

    if (status != KIVI_OK)
        return status;
    c->n_forks++;
    status = think_better(c, &item);
    if (status == KIVI_OK)
        status = kivi_run(c->cache, 0, &item, 1, NULL, NULL);
    if (status == KIVI_OK)
        status = kivi_seq_truncate(c->cache, item.seq, rng_below(rng, 120), NULL);
    if (status == KIVI_OK)
        status = kivi_run(c->cache, 0, &item, 1, NULL, NULL);
    if (status == KIVI_OK)
        status = kivi_seq_destroy(c->cache, item.seq, NULL);
    return status;
}

/* Reads the parent, which others are forking. */
static kivi_status look(struct churner *c)
{
    kivi_stats stats = {.size = sizeof stats};
    char text[256];
    size_t bytes = 0;
    uint64_t n, expected;
    kivi_status status = kivi_cache_stats(c->cache, &stats, NULL);

    kivi_describe(c->cache, text, sizeof text);
    kivi_cache_trim(c->cache);
    if (status == KIVI_OK)
        status = kivi_seq_length(c->cache, c->parent, 0, &n, NULL);
    if (status == KIVI_OK)
        status = kivi_seq_save_size(c->cache, c->parent, &expected, NULL);
    if (status == KIVI_OK)
        status = kivi_seq_save(c->cache, c->parent, count_bytes, &bytes, NULL);
    return status == KIVI_OK && bytes != expected ? KIVI_ERROR_IO : status;
}

static void *churn(void *context)
{
    struct churner *c = context;
    struct rng rng = {c->seed};

    do {
        c->status = live_and_die(c, &rng);
        if (c->status == KIVI_OK)
            c->status = look(c);
    } while (c->status == KIVI_OK && !atomic_load(c->stop));
    return NULL;
}

static void append_plainly(kivi_cache *cache, uint32_t layer, kivi_seq seq, uint64_t n)
{
    const kivi_in k = {fixture.k, KIVI_F32, 0, 0}, v = {fixture.v, KIVI_F32, 0, 0};

    ck_assert_int_eq(kivi_append(cache, layer, seq, n, k, v, NULL), KIVI_OK);
}

static kivi_cache *open_cache(int backend)
{
    kivi_cache *cache;

    fixture_init(&fixture, backend_name(backend));
    ck_assert_int_eq(kivi_cache_create(&fixture.config, &cache, NULL), KIVI_OK);
    return cache;
}

static void close_cache(kivi_cache *cache)
{
    kivi_cache_destroy(cache);
    ck_assert_uint_eq(atomic_load(&fixture.memory.blocks), 0);
}

START_TEST(sequences_of_their_own)
{
    kivi_cache *cache = open_cache(_i);
    struct worker workers[N_WORKERS];
    struct churner churners[N_CHURNERS];
    pthread_t threads[N_WORKERS + N_CHURNERS];
    const kivi_seq parent = new_seq(cache);
    atomic_int stop;
    int i;

    atomic_init(&stop, 0);
    append_plainly(cache, 0, parent, 300);
    for (i = 0; i < N_WORKERS; i++) {
        open_worker(&workers[i], cache, new_seq(cache), 0, 2, 100 + (uint64_t)i);
        ck_assert_int_eq(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (i = 0; i < N_CHURNERS; i++) {
        const struct churner churner = {cache, parent, 7 + (uint64_t)i, &stop, 0, KIVI_OK};

        churners[i] = churner;
        ck_assert_int_eq(pthread_create(&threads[N_WORKERS + i], NULL, churn, &churners[i]), 0);
    }
    for (i = 0; i < N_WORKERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&stop, 1);
    for (i = 0; i < N_CHURNERS; i++) {
        pthread_join(threads[N_WORKERS + i], NULL);
        ck_assert_msg(churners[i].status == KIVI_OK, "after %llu forks: %s",
                      (unsigned long long)churners[i].n_forks,
                      kivi_status_string(churners[i].status));
    }
    for (i = 0; i < N_WORKERS; i++)
        check_alone(&workers[i]);
    close_cache(cache);
}
END_TEST

START_TEST(layers_of_one_sequence)
{
    kivi_cache *cache = open_cache(_i);
    const kivi_seq seq = new_seq(cache);
    struct worker workers[2];
    pthread_t threads[2];
    uint32_t i;

    for (i = 0; i < 2; i++) {
        open_worker(&workers[i], cache, seq, i, 1, 5 + i);
        ck_assert_int_eq(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (i = 0; i < 2; i++)
        check_alone(&workers[i]);
    close_cache(cache);
}
END_TEST

/* --------------------------------------------- the host's own threads */

/* A barrier: some systems have pthreads without one. */
struct barrier {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t n, waiting, turn;
};

static void barrier_wait(struct barrier *b)
{
    uint32_t turn;

    pthread_mutex_lock(&b->mutex);
    turn = b->turn;
    if (++b->waiting == b->n) {
        b->waiting = 0;
        b->turn++;
        pthread_cond_broadcast(&b->changed);
    }
    while (b->turn == turn)
        pthread_cond_wait(&b->changed, &b->mutex);
    pthread_mutex_unlock(&b->mutex);
}

struct hand {
    kivi_work *work;
    struct barrier *barrier;
    uint32_t part;
};

static void *lend_a_hand(void *context)
{
    const struct hand *hand = context;
    uint32_t phase;

    for (phase = 0; phase < kivi_work_phases(hand->work); phase++) {
        kivi_work_part(hand->work, phase, hand->part);
        barrier_wait(hand->barrier);
    }
    return NULL;
}

#define N_HANDS 4

/* As many hands as there is work for; returns how many. */
static uint32_t run_on_hands(kivi_cache *cache, const kivi_item *item)
{
    struct barrier barrier = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0};
    struct hand hands[N_HANDS];
    pthread_t threads[N_HANDS];
    kivi_work *work_of_all;
    uint32_t i;

    ck_assert_int_eq(kivi_work_begin(cache, 0, item, 1, NULL, N_HANDS, &work_of_all, NULL), KIVI_OK);
    barrier.n = kivi_work_parts(work_of_all);
    ck_assert(barrier.n >= 1 && barrier.n <= N_HANDS);
    for (i = 0; i < barrier.n; i++) {
        const struct hand hand = {work_of_all, &barrier, i};

        hands[i] = hand;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, lend_a_hand, &hands[i]), 0);
    }
    for (i = 0; i < barrier.n; i++)
        pthread_join(threads[i], NULL);
    ck_assert_int_eq(kivi_work_end(work_of_all, NULL), KIVI_OK);
    pthread_mutex_destroy(&barrier.mutex);
    pthread_cond_destroy(&barrier.changed);
    return barrier.n;
}

/* All parts there could be, one after the other: those beyond do nothing. */
static void run_alone(kivi_cache *cache, const kivi_item *item)
{
    kivi_work *work_of_all;
    uint32_t phase, i;

    ck_assert_int_eq(kivi_work_begin(cache, 0, item, 1, NULL, N_HANDS, &work_of_all, NULL), KIVI_OK);
    for (phase = 0; phase < kivi_work_phases(work_of_all); phase++)
        for (i = 0; i < N_HANDS; i++)
            kivi_work_part(work_of_all, phase, i);
    ck_assert_int_eq(kivi_work_end(work_of_all, NULL), KIVI_OK);
}

START_TEST(parts_on_host_threads)
{
    const uint64_t sizes[] = {FIXTURE_TOKENS, 1, 500, 3, FIXTURE_TOKENS, 0};
    kivi_cache *cache = open_cache(_i);
    kivi_item item = fixture_item(&fixture, new_seq(cache), 0);
    const kivi_seq twin = new_seq(cache);
    float *out = malloc(sizeof fixture.out);
    uint32_t n_hands, least = N_HANDS, most = 0;
    size_t i;

    ck_assert_ptr_nonnull(out);
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        kivi_item alone = item;

        item.n_new = alone.n_new = sizes[i];
        item.n_q = alone.n_q = sizes[i] > 20 ? 20 : i == 0 ? 0 : 1;
        alone.seq = twin;
        alone.out.data = out;
        alone.lse = NULL;
        n_hands = run_on_hands(cache, &item);
        least = n_hands < least ? n_hands : least;
        most = n_hands > most ? n_hands : most;
        run_alone(cache, &alone);
        ck_assert_mem_eq(fixture.out, out, (size_t)item.n_q * OUT_FLOATS * sizeof *out);
    }
    ck_assert_uint_lt(least, N_HANDS);
    ck_assert_uint_eq(most, backend_is_device(fixture.config.backend) ? 1 : N_HANDS);
    free(out);
    close_cache(cache);
}
END_TEST

/* ------------------------------------------------------ one sequence */

/* Appends to what all append to: each call takes place whole or is refused as busy. */
struct rival {
    kivi_cache *cache;
    kivi_seq seq;
    uint64_t appended;
    kivi_status status;
};

static void *compete(void *context)
{
    struct rival *r = context;
    const kivi_in k = {fixture.k, KIVI_F32, 0, 0}, v = {fixture.v, KIVI_F32, 0, 0};
    int i;

    for (i = 0; i < 5 * n_rounds(); i++) {
        const kivi_status status = kivi_append(r->cache, 0, r->seq, 3, k, v, NULL);

        if (status == KIVI_OK)
            r->appended += 3;
        else if (status != KIVI_ERROR_BUSY)
            r->status = status;
    }
    return NULL;
}

START_TEST(one_sequence_for_all)
{
    kivi_cache *cache = open_cache(_i);
    const kivi_seq seq = new_seq(cache);
    struct rival rivals[3];
    pthread_t threads[3];
    uint64_t total = 0, n;
    int i;

    for (i = 0; i < 3; i++) {
        const struct rival rival = {cache, seq, 0, KIVI_OK};

        rivals[i] = rival;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, compete, &rivals[i]), 0);
    }
    for (i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_int_eq(rivals[i].status, KIVI_OK);
        total += rivals[i].appended;
    }
    ck_assert_int_eq(kivi_seq_length(cache, seq, 0, &n, NULL), KIVI_OK);
    ck_assert_uint_eq(n, total);
    ck_assert_uint_gt(n, 0);
    close_cache(cache);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("threads");
    TCase *threads = tcase_create("threads");

    tcase_add_loop_test(threads, sequences_of_their_own, 0, backend_count());
    tcase_add_loop_test(threads, layers_of_one_sequence, 0, backend_count());
    tcase_add_loop_test(threads, parts_on_host_threads, 0, backend_count());
    tcase_add_loop_test(threads, one_sequence_for_all, 0, backend_count());
    tcase_set_timeout(threads, 0);
    suite_add_tcase(suite, threads);
    return test_main(suite);
}
