/*
 * One call for many sequences of different lengths and query counts (continuous batching) against one
 * call for each. With one part the bits are the same; with more, tokens are split elsewhere.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/session.h"
#include "support/suite.h"

#define SEQS 7

static const struct request {
    uint64_t length, n_new, n_q;
} requests[SEQS] = {
    {0, 200, 200}, /* a prompt */
    {700, 1, 1},   /* decode */
    {129, 1, 1},   {64, 5, 5}, /* speculation */
    {300, 0, 3},   /* read only */
    {90, 40, 0},   /* append only */
    {1, 1, 2},
};

struct operands {
    float *k, *v, *q, *out, *lse;
    size_t outs, rows;
};

static void prepare(const struct session *s, size_t i, struct operands *o)
{
    const struct request *r = &requests[i];

    o->k = session_rows(s, ROLE_K, 50 + i, r->length, r->n_new);
    o->v = session_rows(s, ROLE_V, 50 + i, r->length, r->n_new);
    o->q = session_rows(s, ROLE_Q, 50 + i, 0, r->n_q);
    o->rows = (size_t)r->n_q * s->config.n_q_heads;
    o->outs = o->rows * s->config.v_dim;
    o->out = calloc(o->outs + 1, sizeof *o->out);
    o->lse = calloc(o->rows + 1, sizeof *o->lse);
    ck_assert(o->out && o->lse);
}

static void release(struct operands *o)
{
    free(o->k);
    free(o->v);
    free(o->q);
    free(o->out);
    free(o->lse);
}

static kivi_item item_of(kivi_seq seq, size_t i, const struct operands *o)
{
    const kivi_item item = {
        .seq = seq,
        .n_new = requests[i].n_new,
        .k = {o->k, KIVI_F32, 0, 0},
        .v = {o->v, KIVI_F32, 0, 0},
        .n_q = requests[i].n_q,
        .q = {o->q, KIVI_F32, 0, 0},
        .out = {o->out, KIVI_F32, 0, 0},
        .lse = o->lse,
    };

    return item;
}

static void run(struct session *s, uint32_t layer, const kivi_item *items, size_t n,
                const kivi_attention *attention, uint32_t n_parts)
{
    kivi_work *work;
    kivi_error error;
    uint32_t phase, part;

    session_ok(kivi_work_begin(s->cache, layer, items, n, attention, n_parts, &work, &error), &error);
    for (phase = 0; phase < kivi_work_phases(work); phase++)
        for (part = 0; part < n_parts; part++)
            kivi_work_part(work, phase, part);
    session_ok(kivi_work_end(work, &error), &error);
}

static double relative_distance(const float *a, const float *b, size_t n)
{
    double error = 0, square = 0;
    size_t i;

    for (i = 0; i < n; i++) {
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        square += (double)a[i] * a[i];
    }
    return square > 0 ? sqrt(error / square) : error;
}

/* The batch in n_parts against single calls in n_parts. Bit-equal if `same_bits`. */
static void compare(struct session *s, uint32_t layer, const kivi_seq *seqs,
                    const kivi_attention *attention, uint32_t n_parts, int same_bits)
{
    struct operands batch[SEQS], alone[SEQS];
    kivi_item items[SEQS];
    kivi_seq forks[2][SEQS];
    size_t i;

    for (i = 0; i < SEQS; i++) {
        prepare(s, i, &batch[i]);
        prepare(s, i, &alone[i]);
        forks[0][i] = session_fork(s, seqs[i]);
        forks[1][i] = session_fork(s, seqs[i]);
        items[i] = item_of(forks[0][i], i, &batch[i]);
    }
    run(s, layer, items, SEQS, attention, n_parts);
    for (i = 0; i < SEQS; i++) {
        const kivi_item item = item_of(forks[1][i], i, &alone[i]);
        const double distance[2] = {
            (run(s, layer, &item, 1, attention, n_parts),
             relative_distance(batch[i].out, alone[i].out, batch[i].outs)),
            relative_distance(batch[i].lse, alone[i].lse, batch[i].rows),
        };
        const double bound = same_bits ? 0 : attention->precision == KIVI_PRECISE ? 1e-5 : 1e-2;

        ck_assert_msg(distance[0] <= bound && distance[1] <= bound,
                      "item %zu, %u parts: outputs are %g apart, log-sum-exps %g", i, n_parts,
                      distance[0], distance[1]);
        session_check_same(s, forks[0][i], s, forks[1][i], "after a batch");
        release(&batch[i]);
        release(&alone[i]);
        ck_assert_int_eq(kivi_seq_destroy(s->cache, forks[0][i], NULL), KIVI_OK);
        ck_assert_int_eq(kivi_seq_destroy(s->cache, forks[1][i], NULL), KIVI_OK);
    }
}

START_TEST(a_batch_is_its_items)
{
    static const uint32_t parts[] = {1, 2, 3, 5, 16};
    struct session s;
    kivi_config config;
    kivi_attention attention;
    kivi_seq seqs[SEQS];
    uint32_t layer;
    size_t i;
    int precision;

    session_config(&config);
    session_open(&s, &config, backend_name(_i));
    for (i = 0; i < SEQS; i++) {
        seqs[i] = session_new(&s);
        session_append(&s, seqs[i], i, requests[i].length);
    }
    kivi_attention_init(&attention);
    for (precision = 0; precision < 2; precision++) {
        attention.precision = (kivi_precision)precision;
        for (i = 0; i < sizeof parts / sizeof *parts; i++)
            for (layer = 0; layer < config.n_layers; layer++)
                compare(&s, layer, seqs, &attention, parts[i],
                        parts[i] == 1 && !backend_is_device(s.config.backend));
    }
    session_close(&s);
}
END_TEST

/* If one item cannot be done, none is. */
START_TEST(all_items_or_none)
{
    struct session s;
    kivi_config config;
    struct operands operands[SEQS];
    kivi_item items[SEQS];
    kivi_seq seqs[SEQS], before[SEQS];
    kivi_error error;
    size_t i;

    session_config(&config);
    session_open(&s, &config, backend_name(_i));
    for (i = 0; i < SEQS; i++) {
        seqs[i] = session_new(&s);
        session_append(&s, seqs[i], i, requests[i].length);
        before[i] = session_fork(&s, seqs[i]);
        prepare(&s, i, &operands[i]);
        items[i] = item_of(seqs[i], i, &operands[i]);
    }
    operands[3].v[7] = INFINITY;
    ck_assert_int_eq(kivi_run(s.cache, 0, items, SEQS, NULL, &error), KIVI_ERROR_NOT_FINITE);
    ck_assert_ptr_nonnull(strstr(error.message, "items[3].v"));
    ck_assert_uint_eq(error.item, 3);
    operands[3].v[7] = 0;
    operands[2].q[5] = NAN;
    ck_assert_int_eq(kivi_run(s.cache, 0, items, SEQS, NULL, &error), KIVI_ERROR_NOT_FINITE);
    ck_assert_ptr_nonnull(strstr(error.message, "items[2].q"));
    ck_assert_uint_eq(error.item, 2);
    operands[2].q[5] = 0;
    items[6].seq = 999999;
    ck_assert_int_eq(kivi_run(s.cache, 0, items, SEQS, NULL, &error), KIVI_ERROR_SEQUENCE);
    ck_assert_uint_eq(error.item, 6);
    items[6].seq = seqs[1]; /* which another item appends to */
    ck_assert_int_eq(kivi_run(s.cache, 0, items, SEQS, NULL, &error), KIVI_ERROR_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(error.message, "items[6] is sequence"));
    ck_assert_ptr_nonnull(strstr(error.message, "as items[1] is, and items[1] appends"));
    ck_assert_uint_eq(error.item, 6);
    items[6].seq = seqs[6];
    items[6].n_q = 77; /* more than it has tokens */
    ck_assert_int_eq(kivi_run(s.cache, 0, items, SEQS, NULL, &error), KIVI_ERROR_ARGUMENT);
    ck_assert_uint_eq(error.item, 6);
    for (i = 0; i < SEQS; i++)
        session_check_same(&s, seqs[i], &s, before[i], "after a batch that failed");
    items[6].n_q = 2;
    session_ok(kivi_run(s.cache, 0, items, SEQS, NULL, &error), &error);
    for (i = 0; i < SEQS; i++)
        release(&operands[i]);
    session_close(&s);
}
END_TEST

/* The same call gives the same bits every time. */
START_TEST(runs_repeat)
{
    struct session s;
    kivi_config config;
    kivi_attention attention;
    struct operands first, again;
    kivi_seq seq;
    uint32_t parts;
    int i;

    session_config(&config);
    session_open(&s, &config, backend_name(_i));
    seq = session_new(&s);
    session_append(&s, seq, 4, requests[4].length);
    kivi_attention_init(&attention);
    for (parts = 1; parts < 9; parts++) {
        for (i = 0; i < 3; i++) {
            const size_t bytes = (size_t)requests[4].n_q * config.n_q_heads * config.v_dim * 4;
            kivi_item item;

            prepare(&s, 4, i ? &again : &first);
            item = item_of(seq, 4, i ? &again : &first);
            run(&s, 0, &item, 1, &attention, parts);
            if (i) {
                ck_assert_mem_eq(again.out, first.out, bytes);
                release(&again);
            }
        }
        release(&first);
    }
    session_close(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("batch");
    TCase *batch = tcase_create("batch");

    tcase_add_loop_test(batch, a_batch_is_its_items, 0, backend_count());
    tcase_add_loop_test(batch, all_items_or_none, 0, backend_count());
    tcase_add_loop_test(batch, runs_repeat, 0, backend_count());
    tcase_set_timeout(batch, 0);
    suite_add_tcase(suite, batch);
    return test_main(suite);
}
