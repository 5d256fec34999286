#include "model.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suite.h"
#include "tensor.h"

/* One item with its arrays. */
struct operands {
    const struct model_item *item;
    struct oracle *oracle;
    struct tensor k, v, q;
    int wants_lse;
    struct oracle_result expected;
};

/* What one backend makes of it. */
struct result {
    struct tensor out;
    float *lse; /* may be NULL */
};

static void open_subject(struct model *m, struct subject *s, const char *name, const char *backend)
{
    kivi_config config = m->config;
    kivi_error error;
    size_t i;

    snprintf(s->name, sizeof s->name, "%s, %s", name, backend);
    s->rng.state = ~m->rng.state;
    config.backend = backend;
    ck_assert_msg(kivi_cache_create(&config, &s->cache, &error) == KIVI_OK, "%s: %s", s->name,
                  error.message);
    for (i = 0; i < m->n_seqs; i++)
        ck_assert_int_eq(kivi_seq_create(s->cache, &s->seqs[i], NULL), KIVI_OK);
    for (i = 0; i < 2; i++) {
        accuracy_init(&s->out[i], (kivi_precision)i, m->fill->rule);
        accuracy_init(&s->lse[i], (kivi_precision)i, m->fill->rule);
    }
}

kivi_config model_plain_config(uint32_t n_q_heads, uint32_t n_kv_heads, uint32_t dim, uint32_t bits)
{
    kivi_config config;

    kivi_config_init(&config);
    config.n_layers = 1;
    config.n_q_heads = n_q_heads;
    config.n_kv_heads = n_kv_heads;
    config.k_dim = config.v_dim = dim;
    config.k_bits = config.v_bits = bits;
    config.residual_length = config.group_size;
    config.n_threads = 1;
    return config;
}

void model_open(struct model *m, const char *name, const kivi_config *config, size_t n_seqs,
                const struct fill *fill, uint64_t seed)
{
    uint32_t layer;
    size_t i;

    ck_assert(config->n_layers <= MODEL_LAYERS && n_seqs <= MODEL_SEQS);
    memset(m, 0, sizeof *m);
    m->rng.state = seed;
    m->fill = fill;
    m->config = *config;
    m->n_seqs = n_seqs;
    for (layer = 0; layer < config->n_layers; layer++) {
        m->layer_k_bits[layer] = (uint8_t)config->k_bits;
        m->layer_v_bits[layer] = (uint8_t)config->v_bits;
        if (config->layer_k_bits)
            m->layer_k_bits[layer] = config->layer_k_bits[layer];
        if (config->layer_v_bits)
            m->layer_v_bits[layer] = config->layer_v_bits[layer];
    }
    m->config.layer_k_bits = m->layer_k_bits;
    m->config.layer_v_bits = m->layer_v_bits;
    for (i = 0; i < n_seqs; i++)
        for (layer = 0; layer < config->n_layers; layer++)
            oracle_init(&m->oracles[i][layer], &m->config, layer);
    m->n_subjects = (size_t)backend_count();
    ck_assert_uint_le(m->n_subjects, MODEL_BACKENDS);
    for (i = 0; i < m->n_subjects; i++)
        open_subject(m, &m->subjects[i], name, backend_name((int)i));
}

void model_close(struct model *m)
{
    uint32_t layer;
    size_t i, j;

    for (i = 0; i < m->n_seqs; i++)
        for (layer = 0; layer < m->config.n_layers; layer++)
            oracle_free(&m->oracles[i][layer]);
    for (i = 0; i < m->n_subjects; i++) {
        struct subject *s = &m->subjects[i];

        for (j = 0; j < m->n_seqs; j++)
            ck_assert_int_eq(kivi_seq_destroy(s->cache, s->seqs[j], NULL), KIVI_OK);
        kivi_cache_destroy(s->cache);
    }
}

/* --------------------------------------------------------------- one call */

static struct tensor random_tensor(struct model *m, enum role role, uint64_t first, uint64_t n)
{
    const kivi_dtype dtypes[] = {KIVI_F32, KIVI_F16, KIVI_BF16};
    const uint32_t heads = role == ROLE_Q ? m->config.n_q_heads : m->config.n_kv_heads;
    const uint32_t dim = role == ROLE_V ? m->config.v_dim : m->config.k_dim;
    struct tensor t = tensor_strided(&m->rng, RNG_PICK(&m->rng, dtypes), n, heads, dim);
    uint64_t token;
    uint32_t head, channel;

    for (token = 0; token < n; token++)
        for (head = 0; head < heads; head++)
            for (channel = 0; channel < dim; channel++)
                tensor_set(&t, token, head, channel,
                           m->fill->at(&m->rng, role, first + token, head, channel));
    return t;
}

static void prepare(struct model *m, uint32_t layer, const struct model_item *item,
                    struct operands *o)
{
    const uint64_t n = m->oracles[item->seq][layer].contents.n;

    memset(o, 0, sizeof *o);
    o->item = item;
    o->oracle = &m->oracles[item->seq][layer];
    o->k = random_tensor(m, ROLE_K, n, item->n_new);
    o->v = random_tensor(m, ROLE_V, n, item->n_new);
    o->q = random_tensor(m, ROLE_Q, n + item->n_new - item->n_q, item->n_q);
    o->wants_lse = rng_one_in(&m->rng, 2);
}

static void release(struct operands *o)
{
    tensor_free(&o->k);
    tensor_free(&o->v);
    tensor_free(&o->q);
    oracle_result_free(&o->expected);
}

/* The oracle's part of an item, before anything is quantized. */
static void expect(struct operands *o, const kivi_attention *attention)
{
    double *k = tensor_decode(&o->k), *v = tensor_decode(&o->v), *q = tensor_decode(&o->q);
    const uint64_t end = o->item->q_end;

    oracle_append(o->oracle, o->item->n_new, k, v);
    o->expected = oracle_attend(o->oracle, o->item->n_q, q,
                                (end ? end : o->oracle->contents.n) - o->item->n_q, attention);
    free(k);
    free(v);
    free(q);
}

/* Runs all parts of all phases, each phase in an order of its own. */
static kivi_status run_in_parts(struct rng *rng, kivi_cache *cache, uint32_t layer,
                                const kivi_item *items, size_t n_items,
                                const kivi_attention *attention, uint32_t n_parts,
                                kivi_error *error)
{
    kivi_work *work;
    uint32_t phase, i, order[16];
    const kivi_status status =
        kivi_work_begin(cache, layer, items, n_items, attention, n_parts, &work, error);

    if (status != KIVI_OK)
        return status;
    ck_assert_uint_le(n_parts, 16);
    for (phase = 0; phase < kivi_work_phases(work); phase++) {
        for (i = 0; i < n_parts; i++) {
            const uint32_t j = (uint32_t)rng_below(rng, i + 1);

            order[i] = order[j];
            order[j] = i;
        }
        for (i = 0; i < n_parts; i++)
            kivi_work_part(work, phase, order[i]);
    }
    return kivi_work_end(work, error);
}

/* The call on one backend, held against what the oracle expects. */
static void call_subject(struct model *m, struct subject *s, uint32_t layer,
                         const struct operands *operands, size_t n_items,
                         const kivi_attention *attention, uint32_t n_parts)
{
    const kivi_precision precision = attention->precision;
    struct result results[MODEL_ITEMS];
    kivi_item calls[MODEL_ITEMS];
    kivi_error error;
    kivi_status status;
    size_t i;

    memset(calls, 0, sizeof calls);
    for (i = 0; i < n_items; i++) {
        const struct operands *o = &operands[i];
        const size_t rows = (size_t)o->item->n_q * m->config.n_q_heads;

        results[i].out = tensor_strided(&s->rng, rng_one_in(&s->rng, 4) ? KIVI_F16 : KIVI_F32,
                                        o->item->n_q, m->config.n_q_heads, m->config.v_dim);
        results[i].lse = o->wants_lse ? malloc(rows * sizeof(float) + 1) : NULL;
        calls[i].seq = s->seqs[o->item->seq];
        calls[i].n_new = o->item->n_new;
        calls[i].k = tensor_in(&o->k, 0);
        calls[i].v = tensor_in(&o->v, 0);
        calls[i].n_q = o->item->n_q;
        calls[i].q = tensor_in(&o->q, 0);
        calls[i].out = tensor_out(&results[i].out);
        calls[i].lse = results[i].lse;
        calls[i].q_end = o->item->q_end;
    }
    status =
        n_parts ? run_in_parts(&s->rng, s->cache, layer, calls, n_items, attention, n_parts, &error)
                : kivi_run(s->cache, layer, calls, n_items, attention, &error);
    ck_assert_msg(status == KIVI_OK, "%s: %s", s->name, error.message);
    for (i = 0; i < n_items; i++) {
        tensor_check_gaps(&results[i].out);
        accuracy_add_result(&s->out[precision], &results[i].out, &operands[i].expected);
        accuracy_add_lse(&s->lse[precision], results[i].lse, &operands[i].expected);
        tensor_free(&results[i].out);
        free(results[i].lse);
    }
}

void model_call(struct model *m, uint32_t layer, const struct model_item *items, size_t n_items,
                const kivi_attention *attention, uint32_t n_parts)
{
    struct operands operands[MODEL_ITEMS];
    size_t i;

    ck_assert_uint_le(n_items, MODEL_ITEMS);
    for (i = 0; i < n_items; i++)
        prepare(m, layer, &items[i], &operands[i]);
    for (i = 0; i < n_items; i++)
        expect(&operands[i], attention);
    for (i = 0; i < m->n_subjects; i++)
        call_subject(m, &m->subjects[i], layer, operands, n_items, attention, n_parts);
    for (i = 0; i < n_items; i++) {
        oracle_flush(operands[i].oracle);
        release(&operands[i]);
    }
}

static void check_contents(const struct model *m, const struct subject *s, size_t seq,
                           uint32_t layer)
{
    const struct contents *expected = &m->oracles[seq][layer].contents;
    struct contents held;
    uint64_t n;

    ck_assert_int_eq(kivi_seq_length(s->cache, s->seqs[seq], layer, &n, NULL), KIVI_OK);
    ck_assert_uint_eq(n, expected->n);
    contents_read(&held, &m->config, s->cache, s->seqs[seq], layer);
    contents_check_equal(&held, expected, s->name);
    contents_free(&held);
}

void model_check(struct model *m, double worst[MODEL_BACKENDS][2])
{
    uint32_t layer;
    size_t i, j;

    for (i = 0; i < m->n_subjects; i++) {
        struct subject *s = &m->subjects[i];

        for (j = 0; j < m->n_seqs; j++)
            for (layer = 0; layer < m->config.n_layers; layer++)
                check_contents(m, s, j, layer);
        for (j = 0; j < 2; j++) {
            char what[160];

            worst[i][j] = fmax(worst[i][j], accuracy_check(&s->out[j], s->name));
            snprintf(what, sizeof what, "%s: log-sum-exp", s->name);
            worst[i][j] = fmax(worst[i][j], accuracy_check(&s->lse[j], what));
        }
    }
}
