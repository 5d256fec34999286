#include "fixture.h"

#include <check.h>
#include <string.h>

#include "random.h"

static void fill_normal(struct rng *rng, float *to, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++)
        to[i] = (float)rng_normal(rng);
}

#define FILL(rng, array) fill_normal(rng, array, sizeof(array) / sizeof(array)[0])

void fixture_init(struct fixture *f, const char *backend)
{
    struct rng rng = {42};

    memset(f, 0, sizeof *f);
    memory_init(&f->memory);
    kivi_config_init(&f->config);
    f->config.n_layers = 2;
    f->config.n_q_heads = FIXTURE_Q_HEADS;
    f->config.n_kv_heads = FIXTURE_KV_HEADS;
    f->config.k_dim = FIXTURE_K_DIM;
    f->config.v_dim = FIXTURE_V_DIM;
    f->config.residual_length = 32;
    f->config.n_sink = 2;
    f->config.page_tokens = 128;
    f->config.max_sequences = 8;
    f->config.n_threads = 1;
    f->config.allocator = memory_allocator(&f->memory);
    f->config.backend = backend;
    FILL(&rng, f->k);
    FILL(&rng, f->v);
    FILL(&rng, f->q);
}

kivi_item fixture_item(struct fixture *f, kivi_seq seq, uint64_t n)
{
    const kivi_item item = {
        .seq = seq,
        .n_new = n,
        .k = {f->k, KIVI_F32, 0, 0},
        .v = {f->v, KIVI_F32, 0, 0},
        .n_q = 2,
        .q = {f->q, KIVI_F32, 0, 0},
        .out = {f->out, KIVI_F32, 0, 0},
        .lse = f->lse,
    };

    return item;
}

void fixture_append(struct fixture *f, uint32_t layer, kivi_seq seq, uint64_t n)
{
    kivi_item item = fixture_item(f, seq, n);

    item.n_q = 0;
    ck_assert_int_eq(kivi_run(f->cache, layer, &item, 1, NULL, NULL), KIVI_OK);
}

void fixture_open(struct fixture *f, const char *backend)
{
    kivi_error error;

    fixture_init(f, backend);
    ck_assert_msg(kivi_cache_create(&f->config, &f->cache, &error) == KIVI_OK, "%s", error.message);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->stale, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_destroy(f->cache, f->stale, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->seq, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->other, NULL), KIVI_OK);
    fixture_append(f, 0, f->seq, 90);
    fixture_append(f, 1, f->seq, 70);
    fixture_append(f, 0, f->other, 33);
    fixture_append(f, 1, f->other, 40);
}

void fixture_open_with_budget(struct fixture *f, const char *backend, uint64_t budget, uint64_t n)
{
    fixture_init(f, backend);
    f->config.memory_budget = budget;
    ck_assert_int_eq(kivi_cache_create(&f->config, &f->cache, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(f->cache, &f->seq, NULL), KIVI_OK);
    fixture_append(f, 0, f->seq, n);
}

void fixture_close(struct fixture *f)
{
    kivi_cache_destroy(f->cache);
    f->cache = NULL;
    ck_assert_uint_eq(atomic_load(&f->memory.blocks), 0);
    ck_assert_uint_eq(atomic_load(&f->memory.bytes), 0);
}

kivi_stats fixture_stats(const struct fixture *f)
{
    kivi_stats stats = {.size = sizeof stats};

    ck_assert_int_eq(kivi_cache_stats(f->cache, &stats, NULL), KIVI_OK);
    return stats;
}

static void read_contents(const struct fixture *f, struct snapshot *s)
{
    size_t i;
    uint32_t layer;

    for (i = 0; i < s->n_seqs; i++)
        for (layer = 0; layer < 2; layer++)
            contents_read(&s->contents[i][layer], &f->config, f->cache, s->seqs[i], layer);
}

struct snapshot snapshot_take(struct fixture *f, const kivi_seq *seqs, size_t n)
{
    struct snapshot s = {.stats = fixture_stats(f)};
    size_t i;

    ck_assert_uint_le(n, 4);
    for (i = 0; i < n; i++)
        if (seqs[i])
            s.seqs[s.n_seqs++] = seqs[i];
    read_contents(f, &s);
    return s;
}

/* Of the statistics, what does not depend on blocks kept for reuse. */
static kivi_stats visible(kivi_stats stats)
{
    stats.bookkeeping_bytes = stats.free_bytes = stats.total_bytes = 0;
    return stats;
}

void snapshot_check(struct snapshot *s, struct fixture *f, const char *what)
{
    const kivi_stats before = visible(s->stats), after = visible(fixture_stats(f));
    struct snapshot now = *s;
    size_t i, layer;

    ck_assert_msg(memcmp(&before, &after, sizeof before) == 0, "%s: statistics have changed", what);
    read_contents(f, &now);
    for (i = 0; i < s->n_seqs; i++)
        for (layer = 0; layer < 2; layer++)
            contents_check_equal(&s->contents[i][layer], &now.contents[i][layer], what);
    snapshot_free(&now);
    snapshot_free(s);
}

void snapshot_free(struct snapshot *s)
{
    size_t i, layer;

    for (i = 0; i < s->n_seqs; i++)
        for (layer = 0; layer < 2; layer++)
            contents_free(&s->contents[i][layer]);
    s->n_seqs = 0;
}
