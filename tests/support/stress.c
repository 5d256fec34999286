#include "stress.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "model.h"
#include "suite.h"
#include "tensor.h"

#define MAX_TOKENS 420
#define MAX_ITEMS 3

/* ---------------------------------------------------------------- set-up */

/* What may differ between two caches that a file fits. */
static void random_room(struct rng *rng, kivi_config *config, int shared)
{
    static const uint32_t rollbacks[] = {0, 0, 3, 40, 150};

    config->backend = backend_name((int)rng_below(rng, (uint64_t)backend_count()));
    config->rollback = RNG_PICK(rng, rollbacks);
    config->page_tokens = 128 * (uint32_t)rng_between(rng, 1, 3);
    config->n_threads = shared ? 1 : (uint32_t)rng_between(rng, 1, 2);
    config->max_sequences = shared ? 32 : STRESS_SEQS + 1;
    if (shared)
        return;
    config->capacity = rng_one_in(rng, 4) ? MAX_TOKENS + rng_below(rng, 3 * MAX_TOKENS) : 0;
    config->memory_budget = rng_one_in(rng, 4) ? rng_between(rng, 100000, 1000000) : 0;
}

static void random_small_config(struct stress_cache *s, struct rng *rng, int shared)
{
    static const uint32_t dims[] = {8, 16, 24, 40, 64}, per_kv[] = {1, 1, 2, 3};
    static const uint32_t sinks[] = {0, 0, 1, 5, 33}, groups[] = {32, 32, 32, 64};
    static const uint8_t bits[] = {2, 2, 4, 8, 16};
    kivi_config *c = &s->config;
    size_t i;

    kivi_config_init(c);
    c->n_layers = (uint32_t)rng_between(rng, 1, STRESS_LAYERS);
    c->n_kv_heads = (uint32_t)rng_between(rng, 1, 2);
    c->n_q_heads = c->n_kv_heads * RNG_PICK(rng, per_kv);
    c->k_dim = RNG_PICK(rng, dims);
    c->v_dim = rng_one_in(rng, 2) ? c->k_dim : RNG_PICK(rng, dims);
    c->group_size = RNG_PICK(rng, groups);
    c->residual_length = c->group_size * (uint32_t)rng_between(rng, 1, 3);
    c->n_sink = RNG_PICK(rng, sinks);
    for (i = 0; i < STRESS_LAYERS; i++) {
        s->bits[0][i] = RNG_PICK(rng, bits);
        s->bits[1][i] = RNG_PICK(rng, bits);
    }
    c->layer_k_bits = s->bits[0];
    c->layer_v_bits = s->bits[1];
    c->allocator = memory_allocator(&s->memory);
    random_room(rng, c, shared);
}

static void init_seq(const struct stress_cache *s, struct stress_seq *seq, kivi_seq id)
{
    uint32_t l;

    seq->id = id;
    for (l = 0; l < s->config.n_layers; l++)
        naive_init(&seq->layers[l], &s->config, l);
}

static void free_seq(const struct stress_cache *s, struct stress_seq *seq)
{
    uint32_t l;

    for (l = 0; seq->id && l < s->config.n_layers; l++)
        naive_free(&seq->layers[l]);
    seq->id = 0;
}

static void copy_seq(const struct stress_cache *s, struct stress_seq *to,
                     const struct stress_seq *from, kivi_seq id)
{
    uint32_t l;

    to->id = id;
    for (l = 0; l < s->config.n_layers; l++)
        naive_copy(&to->layers[l], &from->layers[l]);
}

static uint64_t length_of(const struct stress_seq *seq, uint32_t layer)
{
    return seq->layers[layer].oracle.contents.n;
}

/* ---------------------------------------------------- what may go wrong */

static void name_step(struct stress_actor *a, const char *operation)
{
    snprintf(a->what, sizeof a->what, "KIVI_TEST_SEED=0x%llx, step %llu, %s, %s",
             (unsigned long long)a->seed, (unsigned long long)a->counts.steps, operation,
             a->shared->config.backend);
}

/* Whether the operation was done. It may be refused for want of room, and then nothing has changed. */
static int done(struct stress_actor *a, kivi_status status, const kivi_error *error)
{
    const struct stress_cache *s = a->shared;

    if (status == KIVI_OK)
        return 1;
    a->counts.refused++;
    ck_assert_msg((status == KIVI_ERROR_MEMORY && s->injects)
                      || (status == KIVI_ERROR_CAPACITY
                          && (s->config.capacity || s->config.memory_budget || s->shared)),
                  "%s: %s", a->what, error->message);
    return 0;
}

static void check_seq(struct stress_actor *a, const struct stress_seq *seq)
{
    uint32_t l;

    for (l = 0; l < a->shared->config.n_layers; l++)
        naive_check(&seq->layers[l], &a->shared->config, a->shared->cache, seq->id, l, a->what);
    a->counts.checks++;
}

static struct stress_seq *pick(struct stress_actor *a)
{
    return &a->seqs[rng_below(&a->rng, STRESS_SEQS)];
}

static struct stress_seq *empty_slot(struct stress_actor *a)
{
    size_t i;

    for (i = 0; i < STRESS_SEQS; i++)
        if (!a->seqs[i].id)
            return &a->seqs[i];
    return NULL;
}

/* ------------------------------------------------------- append and attend */

struct item {
    struct stress_seq *seq;
    struct tensor k, v, q, out;
};

static struct tensor random_tensor(struct stress_actor *a, enum role role, uint64_t n)
{
    const kivi_config *c = &a->shared->config;
    const kivi_dtype dtypes[] = {KIVI_F32, KIVI_F32, KIVI_F16, KIVI_BF16};
    const uint32_t heads = role == ROLE_Q ? c->n_q_heads : c->n_kv_heads;
    const uint32_t dim = role == ROLE_V ? c->v_dim : c->k_dim;
    struct tensor t = tensor_strided(&a->rng, RNG_PICK(&a->rng, dtypes), n, heads, dim);
    uint64_t token;
    uint32_t head, channel;

    for (token = 0; token < n; token++)
        for (head = 0; head < heads; head++)
            for (channel = 0; channel < dim; channel++)
                tensor_set(&t, token, head, channel,
                           fill_ordinary.at(&a->rng, role, token, head, channel));
    return t;
}

static uint64_t random_chunk(struct stress_actor *a, uint64_t length)
{
    static const uint64_t sizes[] = {0, 1, 1, 1, 1, 2, 4, 9, 33, 130};
    const uint64_t n = RNG_PICK(&a->rng, sizes);

    return length + n > MAX_TOKENS ? 0 : n;
}

static void draw_item(struct stress_actor *a, struct item *item, kivi_item *call, uint32_t layer)
{
    const uint64_t length = length_of(item->seq, layer);
    const uint64_t n_new = random_chunk(a, length);

    memset(call, 0, sizeof *call);
    call->seq = item->seq->id;
    call->n_new = n_new;
    call->n_q = rng_below(&a->rng, n_new > 1 ? 4 : 2);
    if (call->n_q > length + n_new || rng_one_in(&a->rng, 8))
        call->q_end = call->n_q + rng_below(&a->rng, length + n_new + 3);
    item->k = random_tensor(a, ROLE_K, n_new);
    item->v = random_tensor(a, ROLE_V, n_new);
    item->q = random_tensor(a, ROLE_Q, call->n_q);
    item->out =
        tensor_dense(KIVI_F32, call->n_q, a->shared->config.n_q_heads, a->shared->config.v_dim);
    call->k = tensor_in(&item->k, 0);
    call->v = tensor_in(&item->v, 0);
    call->q = tensor_in(&item->q, 0);
    call->out = tensor_out(&item->out);
}

static kivi_status run(struct stress_actor *a, uint32_t layer, const kivi_item *calls, size_t n,
                       const kivi_attention *attention, kivi_error *error)
{
    kivi_work *work;
    kivi_status status;
    uint32_t n_parts, phase, part;

    if (rng_one_in(&a->rng, 2))
        return kivi_run(a->shared->cache, layer, calls, n, attention, error);
    n_parts = (uint32_t)rng_between(&a->rng, 1, 5);
    status = kivi_work_begin(a->shared->cache, layer, calls, n, attention, n_parts, &work, error);
    if (status != KIVI_OK)
        return status;
    if (rng_one_in(&a->rng, 16)) { /* thought better of it */
        kivi_work_cancel(work);
        return kivi_run(a->shared->cache, layer, calls, n, attention, error);
    }
    for (phase = 0; phase < kivi_work_phases(work); phase++)
        for (part = 0; part < n_parts; part++)
            kivi_work_part(work, phase, n_parts - 1 - part);
    return kivi_work_end(work, error);
}

/* The same call on the model. */
static void follow(struct stress_actor *a, const struct item *item, const kivi_item *call,
                   uint32_t layer, const kivi_attention *attention)
{
    struct naive *naive = &item->seq->layers[layer];
    double *k = tensor_decode(&item->k), *v = tensor_decode(&item->v), *q = tensor_decode(&item->q);
    struct oracle_result expected;
    uint64_t end;

    oracle_append(&naive->oracle, call->n_new, k, v);
    end = call->q_end ? call->q_end : naive->oracle.contents.n;
    expected = oracle_attend(&naive->oracle, call->n_q, q, end - call->n_q, attention);
    accuracy_add_result(&a->out[attention->precision], &item->out, &expected);
    oracle_result_free(&expected);
    naive_flush(naive);
    free(k);
    free(v);
    free(q);
    a->counts.tokens += call->n_new;
    a->counts.queries += call->n_q;
}

/* Whether the tokens of a call have room in every layer, and so in the one that it is of. */
static int reserves(struct stress_actor *a, const kivi_item *calls, size_t n)
{
    kivi_seq seqs[MAX_ITEMS];
    uint64_t n_new[MAX_ITEMS];
    kivi_error error;
    size_t i;

    for (i = 0; i < n; i++) {
        seqs[i] = calls[i].seq;
        n_new[i] = calls[i].n_new;
    }
    return done(a, kivi_seq_reserve(a->shared->cache, seqs, n_new, n, &error), &error);
}

static void step_call(struct stress_actor *a)
{
    const uint32_t layer = (uint32_t)rng_below(&a->rng, a->shared->config.n_layers);
    struct item items[MAX_ITEMS];
    kivi_item calls[MAX_ITEMS];
    kivi_attention attention;
    kivi_error error;
    kivi_status status;
    float sinks[16];
    size_t n = 0, i, poisoned = MAX_ITEMS;
    int reserved;

    name_step(a, "call");
    for (i = 0; i < STRESS_SEQS && n < MAX_ITEMS; i++) {
        if (!a->seqs[i].id || rng_one_in(&a->rng, 3))
            continue;
        items[n].seq = &a->seqs[i];
        draw_item(a, &items[n], &calls[n], layer);
        if (calls[n].n_new && rng_one_in(&a->rng, 40)) {
            tensor_set(&items[n].k, calls[n].n_new - 1, 0, 3, NAN);
            poisoned = n;
        }
        n++;
    }
    random_attention(&a->rng, &a->shared->config, sinks, &attention);
    reserved = rng_one_in(&a->rng, 3) && reserves(a, calls, n);
    status = run(a, layer, calls, n, &attention, &error);
    if (poisoned < MAX_ITEMS && status == KIVI_ERROR_NOT_FINITE)
        a->counts.refused++;
    else if (done(a, status, &error))
        ck_assert_msg(poisoned == MAX_ITEMS, "%s: NaN was taken", a->what);
    ck_assert_msg(!reserved || a->shared->shared || status != KIVI_ERROR_CAPACITY,
                  "%s: no room for what was reserved: %s", a->what, error.message);
    for (i = 0; i < n; i++) {
        if (status == KIVI_OK)
            follow(a, &items[i], &calls[i], layer, &attention);
        if (rng_one_in(&a->rng, status == KIVI_OK ? 12 : 2))
            naive_check(&items[i].seq->layers[layer], &a->shared->config, a->shared->cache,
                        items[i].seq->id, layer, a->what);
        tensor_free(&items[i].k);
        tensor_free(&items[i].v);
        tensor_free(&items[i].q);
        tensor_free(&items[i].out);
    }
    a->counts.calls++;
}

/* ------------------------------------------------------- whole sequences */

static void step_create(struct stress_actor *a)
{
    struct stress_seq *seq = empty_slot(a);
    kivi_error error;
    kivi_seq id;

    name_step(a, "create");
    if (seq && done(a, kivi_seq_create(a->shared->cache, &id, &error), &error))
        init_seq(a->shared, seq, id);
}

static void step_destroy(struct stress_actor *a)
{
    struct stress_seq *seq = pick(a);
    const kivi_seq id = seq->id;

    name_step(a, "destroy");
    if (!id)
        return;
    ck_assert_int_eq(kivi_seq_destroy(a->shared->cache, id, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_destroy(a->shared->cache, id, NULL), KIVI_ERROR_SEQUENCE);
    free_seq(a->shared, seq);
}

static void step_fork(struct stress_actor *a)
{
    const struct stress_seq *from = pick(a);
    struct stress_seq *to = empty_slot(a);
    kivi_error error;
    kivi_seq id;

    name_step(a, "fork");
    if (a->shared->shared && rng_one_in(&a->rng, 2))
        from = &a->shared->prompt;
    if (!to || !from->id
        || !done(a, kivi_seq_fork(a->shared->cache, from->id, &id, &error), &error))
        return;
    copy_seq(a->shared, to, from, id);
    check_seq(a, to);
    a->counts.forks++;
}

static void step_truncate(struct stress_actor *a)
{
    struct stress_seq *seq = pick(a);
    kivi_error error;
    uint64_t n;
    uint32_t l;

    name_step(a, "truncate");
    if (!seq->id)
        return;
    n = length_of(seq, 0);
    n = rng_one_in(&a->rng, 3) ? rng_below(&a->rng, n + 10)
                               : n - rng_below(&a->rng, n < 12 ? n + 1 : 12);
    if (done(a, kivi_seq_truncate(a->shared->cache, seq->id, n, &error), &error)) {
        for (l = 0; l < a->shared->config.n_layers; l++)
            naive_truncate(&seq->layers[l], n);
        a->counts.truncations++;
    }
    if (rng_one_in(&a->rng, 2))
        check_seq(a, seq);
}

static void random_rope(struct stress_actor *a, kivi_rope *rope, float frequencies[32])
{
    uint32_t i;

    rope->size = sizeof *rope;
    rope->n_rot = 2 * (uint32_t)rng_between(&a->rng, 1, a->shared->config.k_dim / 2);
    rope->interleaved = (uint32_t)rng_below(&a->rng, 2);
    rope->frequencies = frequencies;
    rope->turn_first = (uint32_t)rng_below(&a->rng, 2);
    for (i = 0; i < rope->n_rot / 2; i++)
        frequencies[i] = powf(10000.0f, -(float)(2 * i) / (float)rope->n_rot);
}

static void step_drop(struct stress_actor *a)
{
    const uint32_t group = a->shared->config.group_size;
    struct stress_seq *seq = pick(a);
    kivi_error error;
    kivi_status status;
    kivi_rope rope;
    float frequencies[32];
    const int turns = rng_one_in(&a->rng, 2);
    static const uint32_t groups[] = {0, 1, 1, 2, 3, 4, 8};
    uint64_t begin = rng_below(&a->rng, 5) * group, end = begin + RNG_PICK(&a->rng, groups) * group;
    int may = 1;
    uint32_t l;

    name_step(a, "drop");
    if (!seq->id)
        return;
    if (rng_one_in(&a->rng, 16))
        end += 5;
    random_rope(a, &rope, frequencies);
    status = kivi_seq_drop(a->shared->cache, seq->id, begin, end, turns ? &rope : NULL, &error);
    for (l = 0; l < a->shared->config.n_layers; l++)
        may = may && naive_may_drop(&seq->layers[l], begin, end);
    if (!may && status == KIVI_ERROR_ARGUMENT) {
        a->counts.refused++;
    } else if (done(a, status, &error)) {
        ck_assert_msg(may, "%s: dropped [%llu, %llu)", a->what, (unsigned long long)begin,
                      (unsigned long long)end);
        for (l = 0; l < a->shared->config.n_layers; l++)
            naive_drop(&seq->layers[l], begin, end, turns ? &rope : NULL);
        a->counts.drops++;
    }
    check_seq(a, seq);
}

static void step_reorder(struct stress_actor *a)
{
    struct stress_seq *seqs[STRESS_SEQS], copies[STRESS_SEQS];
    kivi_seq ids[STRESS_SEQS];
    uint32_t parents[STRESS_SEQS];
    kivi_error error;
    size_t n = 0, i;

    name_step(a, "reorder");
    for (i = 0; i < STRESS_SEQS; i++) {
        if (a->seqs[i].id) {
            ids[n] = a->seqs[i].id;
            seqs[n++] = &a->seqs[i];
        }
    }
    for (i = 0; i < n; i++)
        parents[i] = (uint32_t)rng_below(&a->rng, n);
    if (!done(a, kivi_seq_reorder(a->shared->cache, ids, parents, n, &error), &error))
        return;
    for (i = 0; i < n; i++)
        copy_seq(a->shared, &copies[i], seqs[parents[i]], ids[i]);
    for (i = 0; i < n; i++) {
        free_seq(a->shared, seqs[i]);
        *seqs[i] = copies[i];
        check_seq(a, seqs[i]);
    }
    a->counts.reorders++;
}

/* --------------------------------------------------------- save and load */

static int save_seq(struct stress_actor *a, const struct stress_seq *seq, struct buffer *buffer)
{
    kivi_error error;
    uint64_t bytes;

    buffer_init(buffer);
    if (!done(a, kivi_seq_save(a->shared->cache, seq->id, buffer_write, buffer, &error), &error))
        return 0;
    ck_assert_int_eq(kivi_seq_save_size(a->shared->cache, seq->id, &bytes, NULL), KIVI_OK);
    ck_assert_uint_eq(bytes, buffer->size);
    a->counts.saves++;
    return 1;
}

static void step_save(struct stress_actor *a)
{
    const struct stress_seq *from = pick(a);
    struct stress_seq *to = empty_slot(a);
    struct buffer buffer;
    kivi_error error;
    kivi_status status;
    kivi_seq id = 1;

    name_step(a, "save and load");
    if (!to || !from->id || !save_seq(a, from, &buffer))
        return;
    if (rng_one_in(&a->rng, 2)) {
        const size_t at = rng_below(&a->rng, buffer.size);
        const unsigned char bit = (unsigned char)(1u << rng_below(&a->rng, 8));

        buffer.data[at] ^= bit;
        status = kivi_seq_load(a->shared->cache, buffer_read, &buffer, &id, &error);
        ck_assert_msg(status != KIVI_OK && id == 0, "%s: damage at byte %zu was taken", a->what,
                      at);
        if (status != KIVI_ERROR_FORMAT && status != KIVI_ERROR_IO)
            done(a, status, &error);
        buffer.data[at] ^= bit;
        buffer.at = 0;
        a->counts.damaged++;
    }
    if (done(a, kivi_seq_load(a->shared->cache, buffer_read, &buffer, &id, &error), &error)) {
        copy_seq(a->shared, to, from, id);
        check_seq(a, to);
        a->counts.loads++;
    }
    buffer_free(&buffer);
}

/* The whole cache moves to another one: other pages, other windows, another backend. */
static void step_move(struct stress_actor *a)
{
    struct stress_cache *s = a->shared;
    kivi_config config = s->config;
    kivi_cache *cache = NULL;
    kivi_seq old[STRESS_SEQS], new[STRESS_SEQS];
    struct buffer buffer;
    kivi_error error;
    size_t n = 0, i, j;
    uint32_t l;

    name_step(a, "move");
    buffer_init(&buffer);
    random_room(&a->rng, &config, 0);
    if (!done(a, kivi_cache_save(s->cache, buffer_write, &buffer, &error), &error)
        || !done(a, kivi_cache_create(&config, &cache, &error), &error)) {
        buffer_free(&buffer);
        return;
    }
    if (kivi_cache_load(cache, buffer_read, &buffer, old, new, STRESS_SEQS, &n, &error)
        != KIVI_OK) {
        const kivi_config own = s->config;

        s->config = config; /* whose limits may be in the way */
        done(a, error.status, &error);
        s->config = own;
        kivi_cache_destroy(cache);
        buffer_free(&buffer);
        return;
    }
    kivi_cache_destroy(s->cache);
    s->cache = cache;
    s->config = config;
    for (i = 0; i < n; i++) {
        for (j = 0; j < STRESS_SEQS && a->seqs[j].id != old[i]; j++)
            continue;
        ck_assert_msg(j < STRESS_SEQS, "%s: a sequence that was not there", a->what);
        a->seqs[j].id = new[i];
        for (l = 0; l < config.n_layers; l++)
            naive_move(&a->seqs[j].layers[l], &config);
    }
    for (j = 0; j < STRESS_SEQS; j++)
        if (a->seqs[j].id)
            check_seq(a, &a->seqs[j]);
    a->counts.moves++;
    buffer_free(&buffer);
}

/* ------------------------------------------------------------ the books */

static void step_stats(struct stress_actor *a)
{
    struct stress_cache *s = a->shared;
    kivi_stats stats = {.size = sizeof stats};
    uint64_t sequences = 0, f16 = 0;
    uint32_t l;
    size_t i;

    name_step(a, "stats");
    if (rng_one_in(&a->rng, 2))
        kivi_cache_trim(s->cache);
    ck_assert_int_eq(kivi_cache_stats(s->cache, &stats, NULL), KIVI_OK);
    if (s->shared)
        return;
    for (i = 0; i < STRESS_SEQS; i++) {
        sequences += a->seqs[i].id != 0;
        for (l = 0; a->seqs[i].id && l < s->config.n_layers; l++)
            f16 += length_of(&a->seqs[i], l) * s->config.n_kv_heads * 2
                   * (s->config.k_dim + s->config.v_dim);
    }
    ck_assert_uint_eq(stats.sequences, sequences);
    ck_assert_uint_eq(stats.f16_bytes, f16);
    if (backend_is_device(s->config.backend)) /* blocks are elsewhere */
        return;
    ck_assert_msg(stats.total_bytes + stats.free_bytes == atomic_load(&s->memory.bytes),
                  "%s: %llu bytes in use and %llu free, %zu were allocated", a->what,
                  (unsigned long long)stats.total_bytes, (unsigned long long)stats.free_bytes,
                  atomic_load(&s->memory.bytes));
}

/* -------------------------------------------------------------- all of it */

static void step(struct stress_actor *a)
{
    static void (*const rare[])(struct stress_actor *) = {
        step_create, step_destroy, step_destroy,  step_destroy,  step_fork,
        step_fork,   step_fork,    step_truncate, step_drop,     step_drop,
        step_save,   step_save,    step_save,     step_truncate, step_truncate,
        step_stats,  step_stats,   step_reorder,  step_truncate, step_move,
    };
    const size_t n = sizeof rare / sizeof rare[0] - (a->shared->shared ? 1 : 0);
    const int injects = a->shared->injects && rng_one_in(&a->rng, 4);

    a->counts.steps++;
    if (injects)
        memory_fail(&a->shared->memory, rng_between(&a->rng, 1, 6), rng_one_in(&a->rng, 4));
    if (rng_one_in(&a->rng, 2))
        step_call(a);
    else
        rare[rng_below(&a->rng, n)](a);
    if (injects) {
        a->counts.injected += (uint64_t)memory_has_failed(&a->shared->memory);
        memory_fail(&a->shared->memory, 0, 0);
    }
}

void stress_run(struct stress_actor *a, uint64_t steps)
{
    size_t i;

    while (steps-- > 0)
        step(a);
    name_step(a, "end");
    for (i = 0; i < STRESS_SEQS; i++)
        if (a->seqs[i].id)
            check_seq(a, &a->seqs[i]);
    for (i = 0; i < 2; i++)
        accuracy_check(&a->out[i], a->what);
}

void stress_actor_open(struct stress_actor *a, struct stress_cache *s, uint64_t seed)
{
    size_t i;

    memset(a, 0, sizeof *a);
    a->shared = s;
    a->seed = seed;
    a->rng.state = seed;
    for (i = 0; i < 2; i++)
        accuracy_init(&a->out[i], (kivi_precision)i, 0);
}

void stress_actor_close(struct stress_actor *a, struct stress_counts *total)
{
    uint64_t *to = (uint64_t *)total;
    const uint64_t *from = (const uint64_t *)&a->counts;
    size_t i;

    for (i = 0; i < STRESS_SEQS; i++) {
        if (a->seqs[i].id)
            ck_assert_int_eq(kivi_seq_destroy(a->shared->cache, a->seqs[i].id, NULL), KIVI_OK);
        free_seq(a->shared, &a->seqs[i]);
    }
    for (i = 0; i < sizeof *total / sizeof *to; i++)
        to[i] += from[i];
}

void stress_open(struct stress_cache *s, uint64_t seed, int injects, int shared)
{
    struct stress_actor author;
    struct rng rng = {seed ^ 0x5eed};
    struct stress_counts ignored = {0};

    memset(s, 0, sizeof *s);
    memory_init(&s->memory);
    random_small_config(s, &rng, shared);
    s->shared = shared;
    ck_assert_int_eq(kivi_cache_create(&s->config, &s->cache, NULL), KIVI_OK);
    if (shared) {
        stress_actor_open(&author, s, seed);
        step_create(&author);
        while (length_of(&author.seqs[0], 0) < 150)
            step_call(&author);
        s->prompt = author.seqs[0];
        author.seqs[0].id = 0;
        accuracy_check(&author.out[0], author.what);
        accuracy_check(&author.out[1], author.what);
        stress_actor_close(&author, &ignored);
    }
    s->injects = injects;
}

void stress_close(struct stress_cache *s)
{
    free_seq(s, &s->prompt);
    kivi_cache_destroy(s->cache);
    ck_assert_uint_eq(atomic_load(&s->memory.blocks), 0);
    ck_assert_uint_eq(atomic_load(&s->memory.bytes), 0);
}

void stress_print(const char *what, const struct stress_counts *c)
{
    printf("%s: %llu steps: %llu calls, %llu tokens, %llu queries, %llu forks, %llu truncations, "
           "%llu drops, %llu reorders, %llu saves, %llu loads, %llu damaged, %llu moves; "
           "%llu refused, %llu with a failed allocation; %llu sequences compared\n",
           what, (unsigned long long)c->steps, (unsigned long long)c->calls,
           (unsigned long long)c->tokens, (unsigned long long)c->queries,
           (unsigned long long)c->forks, (unsigned long long)c->truncations,
           (unsigned long long)c->drops, (unsigned long long)c->reorders,
           (unsigned long long)c->saves, (unsigned long long)c->loads,
           (unsigned long long)c->damaged, (unsigned long long)c->moves,
           (unsigned long long)c->refused, (unsigned long long)c->injected,
           (unsigned long long)c->checks);
}
