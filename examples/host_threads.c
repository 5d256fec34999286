/*
 * An engine's own threads and memory: a batch of three sequences of different lengths in one call, its
 * parts run by a small pool, then the same with kivi_run, and the two compared. docs/embedding.md.
 */
#define _POSIX_C_SOURCE 200112L /* barriers, posix_memalign */
#include <kivi/kivi.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 3, PARTS = 4, SEQUENCES = 3, Q_HEADS = 8, KV_HEADS = 2, DIM = 64 };
enum { PROMPT = 700, STEPS = 8, KV_ROW = KV_HEADS * DIM, Q_ROW = Q_HEADS * DIM };

/* Fewer threads than parts: the next free thread takes the next part. */
static struct {
    pthread_barrier_t start, done;
    kivi_work *work; /* NULL: no more work */
    uint32_t phase;
    atomic_uint next_part;
} pool;

static void take_parts(void)
{
    uint32_t part;

    while ((part = atomic_fetch_add(&pool.next_part, 1)) < PARTS)
        kivi_work_part(pool.work, pool.phase, part);
}

static void *helper(void *unused)
{
    (void)unused;
    for (;;) {
        pthread_barrier_wait(&pool.start);
        if (!pool.work)
            return NULL;
        take_parts();
        pthread_barrier_wait(&pool.done);
    }
}

/* kivi_run on the pool. */
static kivi_status run(kivi_cache *cache, const kivi_item *items, size_t n, kivi_error *error)
{
    kivi_work *work;
    uint32_t phase;
    kivi_status status = kivi_work_begin(cache, 0, items, n, NULL, PARTS, &work, error);

    if (status != KIVI_OK)
        return status;
    pool.work = work;
    for (phase = 0; phase < kivi_work_phases(work); phase++) {
        pool.phase = phase;
        atomic_store(&pool.next_part, 0);
        pthread_barrier_wait(&pool.start);
        take_parts();
        pthread_barrier_wait(&pool.done); /* a phase needs all of the one before */
    }
    return kivi_work_end(work, error);
}

static void stop(pthread_t *threads)
{
    pool.work = NULL;
    pthread_barrier_wait(&pool.start);
    for (int i = 0; i < THREADS - 1; i++)
        pthread_join(threads[i], NULL);
}

/* The engine's memory; both functions may be called by several threads at once. */
static atomic_ullong bytes_held;

static void *engine_alloc(void *context, size_t bytes, size_t alignment)
{
    void *memory;

    if (posix_memalign(&memory, alignment, bytes))
        return NULL;
    atomic_fetch_add((atomic_ullong *)context, bytes);
    return memory;
}

static void engine_release(void *context, void *memory, size_t bytes)
{
    atomic_fetch_sub((atomic_ullong *)context, bytes);
    free(memory);
}

/* A batch: sequence s has n[s] new tokens, in arrays that follow each other. */
static float k[SEQUENCES * PROMPT * KV_ROW], v[SEQUENCES * PROMPT * KV_ROW];
static float q[SEQUENCES * PROMPT * Q_ROW], out[2][SEQUENCES * PROMPT * Q_ROW];

static void fill(float *x, size_t n, unsigned *state)
{
    while (n-- > 0) {
        *state = *state * 1664525u + 1013904223u;
        *x++ = (float)(*state >> 8) / 8388608 - 1;
    }
}

static void describe(kivi_item *items, const kivi_seq *seqs, const uint64_t *n, float *o)
{
    uint64_t row = 0;

    for (int s = 0; s < SEQUENCES; row += n[s++])
        items[s] = (kivi_item){
            .seq = seqs[s],
            .n_new = n[s],
            .k = {.data = k + row * KV_ROW},
            .v = {.data = v + row * KV_ROW},
            .n_q = n[s],
            .q = {.data = q + row * Q_ROW},
            .out = {.data = o + row * Q_ROW},
        };
}

/* One step on the pool and one by kivi_run, on sequences that hold the same; the largest difference. */
static kivi_status step(kivi_cache *cache, kivi_seq seqs[2][SEQUENCES], const uint64_t *n,
                        double *worst, kivi_error *error)
{
    kivi_item items[SEQUENCES];
    uint64_t rows = 0;
    kivi_status status;

    for (int s = 0; s < SEQUENCES; s++)
        rows += n[s];
    describe(items, seqs[0], n, out[0]);
    status = run(cache, items, SEQUENCES, error);
    if (status != KIVI_OK)
        return status;
    describe(items, seqs[1], n, out[1]);
    status = kivi_run(cache, 0, items, SEQUENCES, NULL, error);
    for (uint64_t i = 0; i < rows * Q_ROW && status == KIVI_OK; i++) {
        const double difference = fabs((double)out[0][i] - (double)out[1][i]);

        if (!(difference <= *worst)) /* NaN too */
            *worst = difference;
    }
    return status;
}

int main(void)
{
    const uint64_t prompts[SEQUENCES] = {PROMPT, 300, 31}, one[SEQUENCES] = {1, 1, 1};
    unsigned state = 1;
    double worst = 0;
    kivi_config config;
    kivi_cache *cache = NULL;
    kivi_seq seqs[2][SEQUENCES];
    kivi_error error;
    kivi_status status;
    pthread_t threads[THREADS - 1];

    kivi_config_init(&config);
    config.n_layers = 1, config.n_q_heads = Q_HEADS, config.n_kv_heads = KV_HEADS;
    config.k_dim = config.v_dim = DIM;
    config.allocator = (kivi_allocator){engine_alloc, engine_release, &bytes_held};
    pthread_barrier_init(&pool.start, NULL, THREADS);
    pthread_barrier_init(&pool.done, NULL, THREADS);
    for (int i = 0; i < THREADS - 1; i++)
        if (pthread_create(&threads[i], NULL, helper, NULL))
            return fprintf(stderr, "no thread\n"), 1;

    status = kivi_cache_create(&config, &cache, &error);
    for (int i = 0; i < 2 * SEQUENCES && status == KIVI_OK; i++)
        status = kivi_seq_create(cache, &seqs[i / SEQUENCES][i % SEQUENCES], &error);
    for (int i = 0; i <= STEPS && status == KIVI_OK; i++) { /* the prompts, then tokens */
        fill(k, sizeof k / sizeof *k, &state);
        fill(v, sizeof v / sizeof *v, &state);
        fill(q, sizeof q / sizeof *q, &state);
        status = step(cache, seqs, i == 0 ? prompts : one, &worst, &error);
    }
    stop(threads);
    if (status != KIVI_OK)
        fprintf(stderr, "%s\n", error.message);
    else
        printf("%d prompts and %d steps, %d parts on %d threads: %.1e from kivi_run at most, %llu "
               "bytes held\n",
               SEQUENCES, STEPS, PARTS, THREADS, worst, atomic_load(&bytes_held));
    kivi_cache_destroy(cache);
    return status != KIVI_OK || !(worst < 5e-3) || atomic_load(&bytes_held) != 0;
}
