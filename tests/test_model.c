/*
 * A small language model reads a text with an f16 cache. Beside it every backend gets the same queries, keys and
 * values: each row of its output has to be as near to what KIVI_PRECISE gives as docs/numerics.md says.
 */
#include <check.h>
#include <kivi/kivi.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../examples/lm/error.h"
#include "../examples/lm/forward.h"
#include "../examples/lm/model.h"
#include "support/suite.h"

#define MAX_BACKENDS 16
#define MAX_TEXT 2048

struct cache {
    kivi_cache *cache;
    kivi_seq seq;
};

struct reading {
    const struct lm_model *model;
    struct cache f16, precise[MAX_BACKENDS], standard[MAX_BACKENDS];
    double worst[MAX_BACKENDS]; /* row, as a share of the quantization error */
    uint32_t bits, position;
};

static void open_cache(struct cache *c, const struct lm_model *m, uint32_t bits,
                       const char *backend)
{
    kivi_config config;
    kivi_error error;

    kivi_config_init(&config);
    config.n_layers = m->n_layers;
    config.n_q_heads = m->n_heads;
    config.n_kv_heads = m->n_kv_heads;
    config.k_dim = m->k_dim;
    config.v_dim = m->v_dim;
    config.k_bits = config.v_bits = bits;
    config.n_threads = 1;
    config.backend = backend;
    if (kivi_cache_create(&config, &c->cache, &error) || kivi_seq_create(c->cache, &c->seq, &error))
        ck_abort_msg("%s, %u bits: %s", backend ? backend : "best", bits, error.message);
}

static void attend_with(const struct cache *c, const struct lm_model *m, uint32_t layer,
                        const struct lm_heads *heads, kivi_precision precision, float *out)
{
    const ptrdiff_t stride = (ptrdiff_t)heads->stride;
    kivi_item item = {.seq = c->seq, .n_new = 1, .n_q = 1, .q_position = KIVI_NEWEST};
    kivi_attention attention;
    kivi_error error;

    item.q = (kivi_in){heads->q, KIVI_F32, stride, m->k_dim};
    item.k = (kivi_in){heads->k, KIVI_F32, stride, m->k_dim};
    item.v = (kivi_in){heads->v, KIVI_F32, stride, m->v_dim};
    item.out = (kivi_out){out, KIVI_F32, 0, 0};
    kivi_attention_init(&attention);
    attention.precision = precision;
    if (kivi_run(c->cache, layer, &item, 1, &attention, &error))
        ck_abort_msg("layer %u: %s", layer, error.message);
}

static double distance(const float *a, const float *b, uint32_t n)
{
    double sum = 0;
    uint32_t i;

    for (i = 0; i < n; i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum);
}

/* The scalar table takes no notice of the precision, and a device has tests of its own. */
static int is_tested(int i)
{
    return strcmp(backend_name(i), "scalar") != 0 && !backend_is_device(backend_name(i));
}

/* An lm_attend_fn. */
static int attend(void *context, uint32_t layer, const struct lm_heads *heads,
                  struct lm_error *error)
{
    struct reading *r = context;
    const struct lm_model *m = r->model;
    const uint32_t dim = m->v_dim;
    float *precise = malloc(sizeof *precise * m->n_heads * dim);
    float *standard = malloc(sizeof *standard * m->n_heads * dim);
    int i;

    (void)error;
    ck_assert(precise && standard);
    attend_with(&r->f16, m, layer, heads, KIVI_PRECISE, heads->out);
    for (i = 0; i < backend_count(); i++) {
        uint32_t h;

        if (!is_tested(i))
            continue;
        attend_with(&r->precise[i], m, layer, heads, KIVI_PRECISE, precise);
        attend_with(&r->standard[i], m, layer, heads, KIVI_STANDARD, standard);
        for (h = 0; h < m->n_heads; h++) {
            const float *row = precise + (size_t)h * dim;
            const double quantization = distance(row, heads->out + (size_t)h * dim, dim);
            const double by = distance(row, standard + (size_t)h * dim, dim);

            /* what exact arithmetic is only known to, twice */
            if (by <= 2e-5 * distance(row, (const float[512]){0}, dim))
                continue;
            if (by > 0.05 * quantization)
                ck_abort_msg(
                    "%s, %u bits, layer %u, head %u, token %u: %.3g of the quantization error",
                    backend_name(i), r->bits, layer, h, r->position, by / quantization);
            r->worst[i] = fmax(r->worst[i], by / quantization);
        }
    }
    free(precise);
    free(standard);
    return 0;
}

static size_t read_text(uint8_t *text, size_t n)
{
    FILE *f = fopen(KIVI_LM "/sample.txt", "rb");
    size_t got;

    ck_assert_ptr_nonnull(f);
    got = fread(text, 1, n, f);
    fclose(f);
    return got;
}

static void read_with(uint32_t bits)
{
    /* at least so many that codes are behind the window, and 256 tokens go together */
    const int rounds = test_rounds(400, MAX_TEXT);
    const uint32_t n = rounds < 320 ? 320 : (uint32_t)rounds;
    struct reading r = {.bits = bits};
    struct lm_model model;
    struct lm_forward *forward;
    struct lm_error error;
    uint8_t text[MAX_TEXT];
    float logits[LM_VOCABULARY];
    int i;

    ck_assert_uint_eq(read_text(text, n), n);
    if (lm_model_load(&model, KIVI_LM "/mini.gguf", &error)
        || lm_forward_create(&model, 1, n, &forward, &error))
        ck_abort_msg("%s", error.text);
    ck_assert_uint_le(model.v_dim, 512);
    ck_assert_int_le(backend_count(), MAX_BACKENDS);
    r.model = &model;
    open_cache(&r.f16, &model, 16, NULL);
    for (i = 0; i < backend_count(); i++) {
        if (!is_tested(i))
            continue;
        open_cache(&r.precise[i], &model, bits, backend_name(i));
        open_cache(&r.standard[i], &model, bits, backend_name(i));
    }
    for (; r.position < n; r.position++)
        if (lm_forward_run(forward, text + r.position, &r.position, 1, attend, &r, logits, &error))
            ck_abort_msg("%s", error.text);
    for (i = 0; i < backend_count(); i++) {
        if (!is_tested(i))
            continue;
        printf("%u tokens, %s, %u bits: worst row at %.2g of the quantization error\n", n,
               backend_name(i), bits, r.worst[i]);
        kivi_cache_destroy(r.precise[i].cache);
        kivi_cache_destroy(r.standard[i].cache);
    }
    kivi_cache_destroy(r.f16.cache);
    lm_forward_destroy(forward);
    lm_model_free(&model);
}

START_TEST(keeps_to_the_bound)
{
    read_with(2);
    if (test_is_long())
        read_with(4);
}
END_TEST

int main(void)
{
    Suite *suite;
    TCase *rows;
    int i = 0;

    while (i < backend_count() && !is_tested(i))
        i++;
    if (i == backend_count()) {
        puts("not tested: no vector table runs here");
        return 77;
    }
    suite = suite_create("model");
    rows = tcase_create("rows");
    tcase_add_test(rows, keeps_to_the_bound);
    tcase_set_timeout(rows, 0);
    suite_add_tcase(suite, rows);
    return test_main(suite);
}
