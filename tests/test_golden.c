/*
 * Against arrays that the official KIVI code computed: tests/vectors/README.md. Codes, scales and
 * minima are compared with ==; attention by the bounds of docs/numerics.md.
 */
#include <check.h>
#include <kivi/kivi.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/accuracy.h"
#include "support/npy.h"
#include "support/numbers.h"
#include "support/oracle.h"
#include "support/suite.h"
#include "support/tensor.h"

static const char *const vectors[] = {"vec_T64_D64", "vec_T160_D128"};
static const char *const traces[] = {"trace_h2_2_D128_g32_b2_T160", "trace_h4_2_D128_g32_b2_T40",
                                     "trace_h4_2_D64_g32_b4_T160"};

#define LENGTH(array) (sizeof(array) / sizeof(array)[0])

static kivi_in f16_rows(const uint16_t *rows)
{
    const kivi_in in = {rows, KIVI_F16, 0, 0};

    return in;
}

/* kivi_pack runs on the backend that the environment names. */
static void use_backend(int i)
{
    ck_assert_int_eq(setenv("KIVI_BACKEND", backend_name(i), 1), 0);
}

static void unset_backend(void)
{
    unsetenv("KIVI_BACKEND");
}

/* ------------------------------------------------------------ packing */

/* One head of one array of golden codes. */
struct golden_block {
    const uint16_t *x;     /* [n_tokens][dim] */
    const uint32_t *code;  /* the official arrays */
    const uint16_t *scale, *min;
    const float *rows;     /* dequantized */
};

/* Minima as numbers: the library has no -0. */
static void check_minima(const uint16_t *got, const uint16_t *golden, size_t n, const char *what)
{
    size_t i;

    for (i = 0; i < n; i++)
        if (number_from_f16(got[i]) != number_from_f16(golden[i]))
            ck_abort_msg("%s: minimum %zu differs", what, i);
}

static void check_block(const kivi_packing *p, const struct golden_block *golden, const char *what)
{
    const size_t n = (size_t)p->n_tokens * p->dim, words = n * p->bits / 32;
    const size_t scales = p->axis == KIVI_PER_CHANNEL
                              ? n / p->group_size
                              : (size_t)p->n_tokens * ((p->dim + p->group_size - 1) / p->group_size);
    const size_t bytes = (size_t)kivi_packed_size(p);
    char *packed = malloc(bytes), *again = malloc(bytes);
    uint32_t *code = malloc(words * sizeof *code);
    uint16_t *scale = malloc(scales * sizeof *scale), *min = malloc(scales * sizeof *min);
    float *rows = malloc(n * sizeof *rows);
    size_t i;

    ck_assert(bytes > 0 && packed && again && code && scale && min && rows);
    memset(packed, 0x5a, bytes);
    memset(again, 0xa5, bytes);
    ck_assert_int_eq(kivi_pack(p, f16_rows(golden->x), packed, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_pack_to_official(p, packed, code, scale, min, NULL), KIVI_OK);
    ck_assert_msg(memcmp(code, golden->code, words * sizeof *code) == 0, "%s: codes differ", what);
    ck_assert_msg(memcmp(scale, golden->scale, scales * sizeof *scale) == 0, "%s: scales differ",
                  what);
    check_minima(min, golden->min, scales, what);

    ck_assert_int_eq(kivi_pack_from_official(p, code, scale, min, again, NULL), KIVI_OK);
    ck_assert_msg(memcmp(again, packed, bytes) == 0, "%s: no round trip", what);
    ck_assert_int_eq(kivi_unpack(p, packed, rows, NULL), KIVI_OK);
    for (i = 0; i < n; i++)
        if (rows[i] != golden->rows[i])
            ck_abort_msg("%s: element %zu is %.9g, not %.9g", what, i, (double)rows[i],
                         (double)golden->rows[i]);
    free(packed);
    free(again);
    free(code);
    free(scale);
    free(min);
    free(rows);
}

/* One of k and v, at one group size and number of bits, both heads. */
static void check_vectors(const char *directory, kivi_axis axis, uint32_t group_size, uint32_t bits)
{
    const char *kind = axis == KIVI_PER_CHANNEL ? "k" : "v";
    const char *const suffixes[] = {"code", "scale", "mn", "deq"};
    const char *const types[] = {"i4", "f2", "f2", "f4"};
    struct npy x = npy_load(directory, kind, "f2"), arrays[4];
    kivi_packing p = {sizeof p, axis, bits, group_size, (uint32_t)x.shape[3], x.shape[2]};
    char name[64], what[128];
    size_t head, i;

    if (axis == KIVI_PER_CHANNEL)
        p.n_tokens -= p.n_tokens % group_size;
    for (i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "g%u_b%u_%s_%s", group_size, bits, kind, suffixes[i]);
        arrays[i] = npy_load(directory, name, types[i]);
        ck_assert_uint_eq(arrays[i].shape[1], x.shape[1]);
    }
    for (head = 0; head < x.shape[1]; head++) {
        struct golden_block golden = {
            (const uint16_t *)x.data + head * x.shape[2] * x.shape[3],
            (const uint32_t *)arrays[0].data + head * arrays[0].count / x.shape[1],
            (const uint16_t *)arrays[1].data + head * arrays[1].count / x.shape[1],
            (const uint16_t *)arrays[2].data + head * arrays[2].count / x.shape[1],
            (const float *)arrays[3].data + head * arrays[3].count / x.shape[1],
        };

        snprintf(what, sizeof what, "%s: %s, groups of %u, %u bits, head %zu", directory, kind,
                 group_size, bits, head);
        check_block(&p, &golden, what);
    }
    for (i = 0; i < 4; i++)
        npy_free(&arrays[i]);
    npy_free(&x);
}

START_TEST(packs_as_the_official_code)
{
    size_t i;

    use_backend(_i);
    for (i = 0; i < 4 * LENGTH(vectors); i++) {
        const uint32_t group_size = i & 1 ? 64 : 32, bits = i & 2 ? 4 : 2;

        check_vectors(vectors[i / 4], KIVI_PER_CHANNEL, group_size, bits);
        check_vectors(vectors[i / 4], KIVI_PER_TOKEN, group_size, bits);
    }
    unset_backend();
}
END_TEST

/* What a row of the edge cases is. */
enum edge { EDGE_ORDINARY, EDGE_WIDE, EDGE_NOT_FINITE };

static enum edge kind_of_edge(const uint16_t *row, const uint16_t *scale)
{
    size_t i;

    for (i = 0; i < 64; i++)
        if (!isfinite(number_from_f16(row[i])))
            return EDGE_NOT_FINITE;
    return isinf(number_from_f16(scale[0])) || isinf(number_from_f16(scale[1])) ? EDGE_WIDE
                                                                                : EDGE_ORDINARY;
}

/* The range overflows f16: the result is finite, and no element is off by more than half a step. */
static void check_wide(const kivi_packing *p, const uint16_t *row)
{
    char packed[4096];
    float rows[64];
    uint32_t code[16];
    uint16_t scale[2], min[2];
    size_t i;

    ck_assert_uint_le(kivi_packed_size(p), sizeof packed);
    ck_assert_int_eq(kivi_pack(p, f16_rows(row), packed, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_unpack(p, packed, rows, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_pack_to_official(p, packed, code, scale, min, NULL), KIVI_OK);
    for (i = 0; i < 64; i++) {
        const double step = number_from_f16(scale[i / 32]);

        ck_assert(isfinite(step) && isfinite(rows[i]));
        ck_assert_double_le(fabs((double)rows[i] - number_from_f16(row[i])), 0.501 * step);
    }
}

static void check_edge(uint32_t bits)
{
    const kivi_packing p = {sizeof p, KIVI_PER_TOKEN, bits, 32, 64, 1};
    const size_t words = 64 * bits / 32;
    struct npy x = npy_load("edge", "x", "f2");
    struct npy code = npy_load("edge", bits == 2 ? "g32_b2_code" : "g32_b4_code", "i4");
    struct npy scale = npy_load("edge", bits == 2 ? "g32_b2_scale" : "g32_b4_scale", "f2");
    struct npy min = npy_load("edge", bits == 2 ? "g32_b2_mn" : "g32_b4_mn", "f2");
    struct npy rows = npy_load("edge", bits == 2 ? "g32_b2_deq" : "g32_b4_deq", "f4");
    size_t row, seen[3] = {0, 0, 0};
    char what[64], packed[4096];

    for (row = 0; row < x.shape[2]; row++) {
        const struct golden_block golden = {
            (const uint16_t *)x.data + row * 64,   (const uint32_t *)code.data + row * words,
            (const uint16_t *)scale.data + row * 2, (const uint16_t *)min.data + row * 2,
            (const float *)rows.data + row * 64,
        };
        const enum edge kind = kind_of_edge(golden.x, golden.scale);

        snprintf(what, sizeof what, "edge: row %zu, %u bits", row, bits);
        seen[kind]++;
        if (kind == EDGE_ORDINARY) {
            check_block(&p, &golden, what);
        } else if (kind == EDGE_WIDE) {
            check_wide(&p, golden.x);
        } else {
            kivi_error error;

            ck_assert_int_eq(kivi_pack(&p, f16_rows(golden.x), packed, &error),
                             KIVI_ERROR_NOT_FINITE);
            ck_assert_str_ne(error.message, "");
        }
    }
    ck_assert(seen[EDGE_ORDINARY] > 0 && seen[EDGE_WIDE] > 0 && seen[EDGE_NOT_FINITE] > 0);
    npy_free(&x);
    npy_free(&code);
    npy_free(&scale);
    npy_free(&min);
    npy_free(&rows);
}

START_TEST(packs_edge_cases)
{
    use_backend(_i);
    check_edge(2);
    check_edge(4);
    unset_backend();
}
END_TEST

/* ------------------------------------------------------------- traces */

enum { N_Q_HEADS, N_KV_HEADS, DIM, GROUP_SIZE, BITS, RESIDUAL, PROMPT, STEPS };

struct trace {
    const char *directory;
    int64_t cfg[9];
    kivi_config config;
    kivi_cache *cache;
    kivi_seq seq;
    struct npy k0, v0, q, k, v;
};

static void trace_open(struct trace *t, const char *directory, const char *backend)
{
    struct npy cfg = npy_load(directory, "cfg", "i8");

    memset(t, 0, sizeof *t);
    t->directory = directory;
    ck_assert_uint_eq(cfg.count, LENGTH(t->cfg));
    memcpy(t->cfg, cfg.data, sizeof t->cfg);
    npy_free(&cfg);
    t->k0 = npy_load(directory, "k0", "f2");
    t->v0 = npy_load(directory, "v0", "f2");
    t->q = npy_load(directory, "q", "f2");
    t->k = npy_load(directory, "k", "f2");
    t->v = npy_load(directory, "v", "f2");
    kivi_config_init(&t->config);
    t->config.n_layers = 1;
    t->config.n_q_heads = (uint32_t)t->cfg[N_Q_HEADS];
    t->config.n_kv_heads = (uint32_t)t->cfg[N_KV_HEADS];
    t->config.k_dim = t->config.v_dim = (uint32_t)t->cfg[DIM];
    t->config.k_bits = t->config.v_bits = (uint32_t)t->cfg[BITS];
    t->config.group_size = (uint32_t)t->cfg[GROUP_SIZE];
    t->config.residual_length = (uint32_t)t->cfg[RESIDUAL];
    t->config.backend = backend;
    ck_assert_int_eq(kivi_cache_create(&t->config, &t->cache, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(t->cache, &t->seq, NULL), KIVI_OK);
}

static void trace_close(struct trace *t)
{
    kivi_cache_destroy(t->cache);
    npy_free(&t->k0);
    npy_free(&t->v0);
    npy_free(&t->q);
    npy_free(&t->k);
    npy_free(&t->v);
}

/* The f16 rows of the prompt, [head][token][dim] in the file, as dense doubles [token][head][dim]. */
static double *prompt_rows(const struct trace *t, const struct npy *array)
{
    const struct tensor rows = {KIVI_F16, array->shape[1], (uint32_t)array->shape[0],
                                (uint32_t)array->shape[2], (ptrdiff_t)array->shape[2],
                                (ptrdiff_t)(array->shape[1] * array->shape[2]), array->count, 0,
                                array->data};

    ck_assert_int_eq((int64_t)rows.tokens, t->cfg[PROMPT]);
    return tensor_decode(&rows);
}

/* The prompt, with attention of its newest tokens in full precision, as the paper has it. The traces
 * have no queries for it: those of the first steps serve. */
static void run_prompt(struct trace *t, const kivi_attention *attention)
{
    const int64_t *cfg = t->cfg;
    const ptrdiff_t dim = (ptrdiff_t)cfg[DIM], head_stride = (ptrdiff_t)cfg[PROMPT] * dim;
    const uint64_t n_q = cfg[PROMPT] < cfg[STEPS] ? (uint64_t)cfg[PROMPT] : (uint64_t)cfg[STEPS];
    struct tensor out = tensor_dense(KIVI_F32, n_q, (uint32_t)cfg[N_Q_HEADS], (uint32_t)dim);
    struct tensor q = out;
    const kivi_item item = {
        .seq = t->seq,
        .n_new = (uint64_t)cfg[PROMPT],
        .k = {t->k0.data, KIVI_F16, dim, head_stride},
        .v = {t->v0.data, KIVI_F16, dim, head_stride},
        .n_q = n_q,
        .q = f16_rows(t->q.data),
        .out = tensor_out(&out),
    };
    double *k = prompt_rows(t, &t->k0), *v = prompt_rows(t, &t->v0), *queries;
    struct accuracy accuracy;
    struct oracle_result expected;
    struct oracle oracle;

    q.dtype = KIVI_F16;
    q.memory = t->q.data;
    queries = tensor_decode(&q);
    oracle_init(&oracle, &t->config, 0);
    oracle_append(&oracle, item.n_new, k, v);
    expected = oracle_attend(&oracle, n_q, queries, item.n_new - n_q, attention);

    ck_assert_int_eq(kivi_run(t->cache, 0, &item, 1, attention, NULL), KIVI_OK);
    accuracy_init(&accuracy, attention->precision, 0);
    accuracy_add_result(&accuracy, &out, &expected);
    accuracy_check(&accuracy, "prompt");
    oracle_result_free(&expected);
    oracle_free(&oracle);
    tensor_free(&out);
    free(k);
    free(v);
    free(queries);
}

static void check_lengths(const struct trace *t, const int32_t *lengths)
{
    struct contents c;

    contents_read(&c, &t->config, t->cache, t->seq, 0);
    ck_assert_int_eq((int64_t)c.k_packed, lengths[0]);
    ck_assert_int_eq((int64_t)(c.n - c.k_packed), lengths[1]);
    ck_assert_int_eq((int64_t)c.v_packed, lengths[2]);
    ck_assert_int_eq((int64_t)(c.n - c.v_packed), lengths[3]);
    contents_free(&c);
}

/* The codes of one row of the official array: element i at bit bits * (i % n) of word i / n. */
static uint32_t official_code(const uint32_t *row, uint32_t bits, uint64_t i)
{
    const uint32_t n = 32 / bits;

    return row[i / n] >> bits * (i % n) & ((1u << bits) - 1);
}

static void check_end_keys(const struct trace *t, const struct contents *c)
{
    struct npy code = npy_load(t->directory, "end_k_code", "i4");
    struct npy full = npy_load(t->directory, "end_k_full", "f2");
    struct npy scale = npy_load(t->directory, "end_k_scale", "f2");
    struct npy min = npy_load(t->directory, "end_k_mn", "f2");
    const uint16_t *scales = scale.data, *minima = min.data, *rows = full.data;
    const uint64_t groups = c->k_packed / c->group_size, in_full = c->n - c->k_packed;
    uint64_t token, head, i;

    ck_assert_uint_eq(full.shape[1], in_full);
    ck_assert_uint_eq(scale.shape[2], groups);
    for (token = 0; token < c->n; token++) {
        for (head = 0; head < c->heads; head++) {
            const uint64_t at = (token * c->heads + head) * c->k_dim;
            const uint64_t group = token / c->group_size;

            if (token >= c->k_packed) {
                ck_assert_mem_eq(c->k_row + at,
                                 rows + (head * in_full + token - c->k_packed) * c->k_dim,
                                 c->k_dim * 2);
                continue;
            }
            for (i = 0; i < c->k_dim; i++) {
                const uint64_t ours = (group * c->heads + head) * c->k_dim + i;
                const uint64_t row = head * c->k_dim + i, theirs = row * groups + group;
                const uint32_t *words = (const uint32_t *)code.data + row * code.shape[2];

                if (c->k_code[at + i] != official_code(words, c->k_bits, token)
                    || c->k_scale[ours] != scales[theirs])
                    ck_abort_msg("key of token %d, channel %d", (int)token, (int)i);
                check_minima(&c->k_min[ours], &minima[theirs], 1, "end_k_mn");
            }
        }
    }
    npy_free(&code);
    npy_free(&full);
    npy_free(&scale);
    npy_free(&min);
}

static void check_end_values(const struct trace *t, const struct contents *c)
{
    struct npy code = npy_load(t->directory, "end_v_code", "i4");
    struct npy full = npy_load(t->directory, "end_v_full", "f2");
    struct npy scale = npy_load(t->directory, "end_v_scale", "f2");
    struct npy min = npy_load(t->directory, "end_v_mn", "f2");
    const uint16_t *scales = scale.data, *minima = min.data, *rows = full.data;
    const uint64_t groups = c->v_groups, in_full = c->n - c->v_packed;
    uint64_t token, head, i;

    ck_assert_uint_eq(full.shape[1], in_full);
    ck_assert_uint_eq(code.shape[1], c->v_packed);
    for (token = 0; token < c->n; token++) {
        for (head = 0; head < c->heads; head++) {
            const uint64_t at = token * c->heads + head;
            const uint64_t row = head * c->v_packed + token;
            const uint32_t *words = (const uint32_t *)code.data + row * code.shape[2];

            if (token >= c->v_packed) {
                ck_assert_mem_eq(c->v_row + at * c->v_dim,
                                 rows + (head * in_full + token - c->v_packed) * c->v_dim,
                                 c->v_dim * 2);
                continue;
            }
            for (i = 0; i < c->v_dim; i++)
                if (c->v_code[at * c->v_dim + i] != official_code(words, c->v_bits, i))
                    ck_abort_msg("value of token %d, channel %d", (int)token, (int)i);
            ck_assert_mem_eq(c->v_scale + at * groups, scales + row * groups, groups * 2);
            check_minima(c->v_min + at * groups, minima + row * groups, groups, "end_v_mn");
        }
    }
    npy_free(&code);
    npy_free(&full);
    npy_free(&scale);
    npy_free(&min);
}

static void add_step(struct accuracy *a, const float *out, const float *reference,
                     const float *exact, uint32_t dim)
{
    double got[512], expected[512], unquantized[512];
    uint32_t i;

    for (i = 0; i < dim; i++) {
        got[i] = out[i];
        expected[i] = reference[i];
        unquantized[i] = exact[i];
    }
    accuracy_add(a, dim, got, expected, unquantized, 0);
}

/* Decodes all steps; returns the largest share of the error bound that a row took. */
static double run_steps(struct trace *t, const kivi_attention *attention)
{
    const size_t q_row = (size_t)(t->cfg[N_Q_HEADS] * t->cfg[DIM]);
    const size_t kv_row = (size_t)(t->cfg[N_KV_HEADS] * t->cfg[DIM]);
    struct npy reference = npy_load(t->directory, "out_ref", "f4");
    struct npy exact = npy_load(t->directory, "out_exact", "f4");
    struct npy lengths = npy_load(t->directory, "lens", "i4");
    float *out = malloc(q_row * sizeof *out);
    struct accuracy accuracy;
    size_t step, row;

    ck_assert_ptr_nonnull(out);
    accuracy_init(&accuracy, attention->precision, 0);
    for (step = 0; step < (size_t)t->cfg[STEPS]; step++) {
        const kivi_item item = {
            .seq = t->seq,
            .n_new = 1,
            .k = f16_rows((uint16_t *)t->k.data + step * kv_row),
            .v = f16_rows((uint16_t *)t->v.data + step * kv_row),
            .n_q = 1,
            .q = f16_rows((uint16_t *)t->q.data + step * q_row),
            .out = {out, KIVI_F32, 0, 0},
        };

        ck_assert_int_eq(kivi_run(t->cache, 0, &item, 1, attention, NULL), KIVI_OK);
        for (row = 0; row < q_row; row += (size_t)t->cfg[DIM])
            add_step(&accuracy, out + row, (float *)reference.data + step * q_row + row,
                     (float *)exact.data + step * q_row + row, (uint32_t)t->cfg[DIM]);
        check_lengths(t, (int32_t *)lengths.data + step * 4);
    }
    npy_free(&reference);
    npy_free(&exact);
    npy_free(&lengths);
    free(out);
    return accuracy_check(&accuracy, t->directory);
}

static void run_trace(const char *directory, const char *backend, kivi_precision precision)
{
    struct npy lengths = npy_load(directory, "lens0", "i4");
    kivi_attention attention;
    struct trace trace;
    struct contents end;
    double worst;

    kivi_attention_init(&attention);
    attention.precision = precision;
    trace_open(&trace, directory, backend);
    run_prompt(&trace, &attention);
    check_lengths(&trace, lengths.data);
    worst = run_steps(&trace, &attention);
    contents_read(&end, &trace.config, trace.cache, trace.seq, 0);
    check_end_keys(&trace, &end);
    check_end_values(&trace, &end);
    printf("%s, %s, %s: worst row at %.2g of its bound\n", directory, backend,
           precision == KIVI_PRECISE ? "precise" : "standard", worst);
    contents_free(&end);
    trace_close(&trace);
    npy_free(&lengths);
}

START_TEST(decodes_as_the_official_code)
{
    size_t i;

    for (i = 0; i < LENGTH(traces); i++) {
        run_trace(traces[i], backend_name(_i), KIVI_PRECISE);
        run_trace(traces[i], backend_name(_i), KIVI_STANDARD);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("golden");
    TCase *packing = tcase_create("packing"), *attention = tcase_create("attention");

    tcase_add_loop_test(packing, packs_as_the_official_code, 0, backend_count());
    tcase_add_loop_test(packing, packs_edge_cases, 0, backend_count());
    tcase_add_loop_test(attention, decodes_as_the_official_code, 0, backend_count());
    tcase_set_timeout(packing, 0);
    tcase_set_timeout(attention, 0);
    suite_add_tcase(suite, packing);
    suite_add_tcase(suite, attention);
    return test_main(suite);
}
