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
#include "../examples/lm/store.h"
#include "support/suite.h"

#define MAX_BACKENDS 16
#define MAX_TEXT 2048

struct reading {
    const struct lm_model *model;
    struct lm_store *f16, *precise[MAX_BACKENDS], *standard[MAX_BACKENDS];
    double worst[MAX_BACKENDS]; /* row, as a share of the quantization error */
    uint32_t bits, position;
};

static void open_store(struct lm_store **store, const struct lm_model *model, uint32_t bits,
                       const char *backend, kivi_precision precision)
{
    const struct lm_cache_options options = {.group_size = 32,
                                             .residual_length = 128,
                                             .n_threads = 1,
                                             .precision = precision,
                                             .backend = backend};
    const struct lm_cache_type type = {.name = "cache", .k_bits = bits, .v_bits = bits};
    struct lm_error error;

    if (lm_store_create(model, &type, &options, 1, MAX_TEXT, store, &error))
        ck_abort_msg("%s, %u bits: %s", backend ? backend : "best", bits, error.text);
}

static void attend_with(struct lm_store *store, uint32_t layer, struct lm_heads heads, float *out)
{
    struct lm_error error;

    heads.out = out;
    if (lm_store_attend(store, layer, &heads, 1, &error))
        ck_abort_msg("%s", error.text);
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
    attend_with(r->f16, layer, *heads, heads->out);
    for (i = 0; i < backend_count(); i++) {
        uint32_t h;

        if (!is_tested(i))
            continue;
        attend_with(r->precise[i], layer, *heads, precise);
        attend_with(r->standard[i], layer, *heads, standard);
        for (h = 0; h < m->n_heads; h++) {
            const float *row = precise + (size_t)h * dim;
            const double quantization = distance(row, heads->out + (size_t)h * dim, dim);
            const double by = distance(row, standard + (size_t)h * dim, dim);

            /* both are off by as much as KIVI_PRECISE may be */
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
    open_store(&r.f16, &model, 16, NULL, KIVI_PRECISE);
    for (i = 0; i < backend_count(); i++) {
        if (!is_tested(i))
            continue;
        open_store(&r.precise[i], &model, bits, backend_name(i), KIVI_PRECISE);
        open_store(&r.standard[i], &model, bits, backend_name(i), KIVI_STANDARD);
    }
    for (; r.position < n; r.position++)
        if (lm_forward_run(forward, text + r.position, &r.position, 1, attend, &r, logits, &error))
            ck_abort_msg("%s", error.text);
    for (i = 0; i < backend_count(); i++) {
        if (!is_tested(i))
            continue;
        printf("%u tokens, %s, %u bits: worst row at %.2g of the quantization error\n", n,
               backend_name(i), bits, r.worst[i]);
        lm_store_destroy(r.precise[i]);
        lm_store_destroy(r.standard[i]);
    }
    lm_store_destroy(r.f16);
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
