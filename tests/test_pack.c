/*
 * The stateless packing API on random and awkward data, against the rule of docs/numerics.md as the
 * oracle has it, on every backend's kernels. test_golden.c has the official code's arrays.
 */
#include <check.h>
#include <kivi/kivi.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/mistake.h"
#include "support/model.h"
#include "support/numbers.h"
#include "support/oracle.h"
#include "support/suite.h"
#include "support/tensor.h"

/* The oracle's codes, scales and minima of a block, in the order of the official arrays. */
struct expected {
    uint8_t *code;          /* [n_tokens][dim] */
    uint16_t *scale, *min;
    size_t n_groups;        /* of a channel, or of a token */
    size_t n_scales;
};

static struct expected quantize(const kivi_packing *p, const double *x)
{
    const int keys = p->axis == KIVI_PER_CHANNEL;
    const size_t outer = keys ? p->dim : (size_t)p->n_tokens;
    const size_t length = keys ? (size_t)p->n_tokens : p->dim;
    const size_t stride = keys ? p->dim : 1, outer_stride = keys ? 1 : p->dim;
    const size_t n_groups = (length + p->group_size - 1) / p->group_size;
    struct expected e = {malloc((size_t)p->n_tokens * p->dim), malloc(outer * n_groups * 2),
                         malloc(outer * n_groups * 2), n_groups, outer * n_groups};
    size_t o, g;

    ck_assert(e.code && e.scale && e.min);
    for (o = 0; o < outer; o++) {
        for (g = 0; g < n_groups; g++) {
            const size_t begin = g * p->group_size;
            const size_t n = length - begin < p->group_size ? length - begin : p->group_size;
            const size_t at = o * outer_stride + begin * stride;

            oracle_quantize(x + at, stride, (uint32_t)n, p->bits, e.code + at,
                            e.scale + o * n_groups + g, e.min + o * n_groups + g);
        }
    }
    return e;
}

static void free_expected(struct expected *e)
{
    free(e->code);
    free(e->scale);
    free(e->min);
}

/* Which scale belongs to an element. */
static size_t scale_index(const kivi_packing *p, const struct expected *e, size_t token,
                          size_t channel)
{
    return p->axis == KIVI_PER_CHANNEL ? channel * e->n_groups + token / p->group_size
                                       : token * e->n_groups + channel / p->group_size;
}

static void check_unpacked(const kivi_packing *p, const struct expected *e, const void *packed)
{
    float *rows = malloc((size_t)p->n_tokens * p->dim * sizeof *rows);
    size_t t, c;

    ck_assert_ptr_nonnull(rows);
    ck_assert_int_eq(kivi_unpack(p, packed, rows, NULL), KIVI_OK);
    for (t = 0; t < p->n_tokens; t++) {
        for (c = 0; c < p->dim; c++) {
            const size_t g = scale_index(p, e, t, c), at = t * p->dim + c;
            const float wanted = (float)(e->code[at] * number_from_f16(e->scale[g])
                                         + number_from_f16(e->min[g]));

            if (rows[at] != wanted)
                ck_abort_msg("token %zu, channel %zu: %.9g, not %.9g", t, c, (double)rows[at],
                             (double)wanted);
        }
    }
    free(rows);
}

static void check_official(const kivi_packing *p, const struct expected *e, const void *packed)
{
    const uint32_t n = 32 / p->bits;
    const size_t words = (size_t)p->n_tokens * p->dim / n, bytes = (size_t)kivi_packed_size(p);
    uint32_t *code = malloc((words + 1) * sizeof *code);
    uint16_t *scale = malloc(e->n_scales * 2), *min = malloc(e->n_scales * 2);
    char *again = malloc(bytes);
    kivi_status status;
    size_t t, c;

    ck_assert(code && scale && min && again);
    memset(again, 0x3c, bytes);
    status = kivi_pack_to_official(p, packed, code, scale, min, NULL);
    if (p->axis == KIVI_PER_TOKEN && p->dim % n) {
        ck_assert_int_eq(status, KIVI_ERROR_UNSUPPORTED);
    } else {
        ck_assert_int_eq(status, KIVI_OK);
        for (t = 0; t < p->n_tokens; t++) {
            for (c = 0; c < p->dim; c++) {
                const int keys = p->axis == KIVI_PER_CHANNEL;
                const size_t i = keys ? t : c, row = keys ? c : t;
                const size_t length = keys ? (size_t)p->n_tokens : p->dim;
                const uint32_t got = code[row * (length / n) + i / n] >> p->bits * (i % n)
                                     & ((1u << p->bits) - 1);

                if (got != e->code[t * p->dim + c])
                    ck_abort_msg("token %zu, channel %zu: code %u, not %u", t, c, got,
                                 e->code[t * p->dim + c]);
            }
        }
        ck_assert_mem_eq(scale, e->scale, e->n_scales * 2);
        ck_assert_mem_eq(min, e->min, e->n_scales * 2);
        ck_assert_int_eq(kivi_pack_from_official(p, code, scale, min, again, NULL), KIVI_OK);
        ck_assert_mem_eq(again, packed, bytes);
    }
    free(code);
    free(scale);
    free(min);
    free(again);
}

static void check_packing(struct rng *rng, const kivi_packing *p, const struct fill *fill,
                          enum role role)
{
    const kivi_dtype dtypes[] = {KIVI_F32, KIVI_F16, KIVI_BF16};
    struct tensor rows = tensor_strided(rng, RNG_PICK(rng, dtypes), p->n_tokens, 1, p->dim);
    const size_t bytes = (size_t)kivi_packed_size(p), n = (size_t)p->n_tokens * p->dim;
    char *packed = malloc(bytes), *other = malloc(bytes);
    struct expected e;
    double *x;
    size_t i;

    ck_assert(bytes > 0 && packed && other);
    for (i = 0; i < n; i++)
        tensor_set(&rows, i / p->dim, 0, (uint32_t)(i % p->dim),
                   fill->at(rng, role, i / p->dim, 0, (uint32_t)(i % p->dim)));
    x = tensor_decode(&rows);
    for (i = 0; i < n; i++)
        x[i] = number_round_f16(x[i]);
    e = quantize(p, x);
    memset(packed, 0xff, bytes);
    memset(other, 0, bytes);
    ck_assert_int_eq(kivi_pack(p, tensor_in(&rows, 0), packed, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_pack(p, tensor_in(&rows, 0), other, NULL), KIVI_OK);
    ck_assert_msg(memcmp(packed, other, bytes) == 0, "packing leaves bytes as they were");
    check_unpacked(p, &e, packed);
    check_official(p, &e, packed);
    free_expected(&e);
    free(x);
    free(packed);
    free(other);
    tensor_free(&rows);
}

static kivi_packing random_packing(struct rng *rng)
{
    const uint32_t bits[] = {2, 4, 8}, groups[] = {32, 64, 128};
    const uint32_t dims[] = {8, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256, 512};
    kivi_packing p = {.size = sizeof p};

    p.axis = rng_one_in(rng, 2) ? KIVI_PER_CHANNEL : KIVI_PER_TOKEN;
    p.bits = RNG_PICK(rng, bits);
    p.group_size = RNG_PICK(rng, groups);
    p.dim = RNG_PICK(rng, dims);
    p.n_tokens = p.axis == KIVI_PER_CHANNEL ? p.group_size * rng_between(rng, 1, 3)
                                            : rng_between(rng, 1, 70);
    return p;
}

START_TEST(any_packing)
{
    const int n = test_rounds(300, 20000);
    struct rng rng = {test_seed(0x9ac4)};
    int i;

    ck_assert_int_eq(setenv("KIVI_BACKEND", backend_name(_i), 1), 0);
    for (i = 0; i < n; i++) {
        const kivi_packing p = random_packing(&rng);
        const uint64_t which = rng_below(&rng, n_fill_adversarial + 2);

        check_packing(&rng, &p,
                      which < n_fill_adversarial ? &fill_adversarial[which] : &fill_ordinary,
                      rng_one_in(&rng, 2) ? ROLE_K : ROLE_V);
    }
    unsetenv("KIVI_BACKEND");
}
END_TEST

/* All f16 numbers there are, in groups of neighbours and in groups from far apart. */
START_TEST(every_number)
{
    const kivi_packing p = {sizeof p, KIVI_PER_TOKEN, 2u << _i % 3, 32, 512, 124};
    const uint32_t n_finite = 0x7c00;
    const size_t bytes = (size_t)kivi_packed_size(&p);
    struct tensor rows = tensor_dense(KIVI_F16, p.n_tokens, 1, p.dim);
    uint16_t *to = rows.memory;
    char *packed = malloc(bytes);
    uint32_t pass, i;

    ck_assert_ptr_nonnull(packed);
    ck_assert_uint_eq(p.n_tokens * p.dim, 2 * n_finite);
    ck_assert_int_eq(setenv("KIVI_BACKEND", backend_name(_i / 3), 1), 0);
    for (pass = 0; pass < 2; pass++) {
        struct expected e;
        double *x;

        for (i = 0; i < 2 * n_finite; i++) {
            const uint32_t j = pass ? i * 7919u % (2 * n_finite) : i;

            to[i] = (uint16_t)(j < n_finite ? j : (j - n_finite) | 0x8000);
        }
        x = tensor_decode(&rows);
        e = quantize(&p, x);
        ck_assert_int_eq(kivi_pack(&p, tensor_in(&rows, 0), packed, NULL), KIVI_OK);
        check_unpacked(&p, &e, packed);
        check_official(&p, &e, packed);
        free_expected(&e);
        free(x);
    }
    unsetenv("KIVI_BACKEND");
    free(packed);
    tensor_free(&rows);
}
END_TEST

/* An infinity, a NaN, or what overflows f16, anywhere: an error, and nothing is written. */
START_TEST(not_finite)
{
    const double bad[] = {INFINITY, -INFINITY, NAN};
    struct rng rng = {test_seed(0xbad1)};
    int i;

    ck_assert_int_eq(setenv("KIVI_BACKEND", backend_name(_i), 1), 0);
    for (i = 0; i < 100; i++) {
        const kivi_dtype dtypes[] = {KIVI_F32, KIVI_F16, KIVI_BF16};
        const kivi_packing p = random_packing(&rng);
        struct tensor rows = tensor_strided(&rng, dtypes[i % 3], p.n_tokens, 1, p.dim);
        const size_t bytes = (size_t)kivi_packed_size(&p), n = (size_t)p.n_tokens * p.dim;
        const size_t at = (size_t)rng_below(&rng, n);
        char *packed = calloc(bytes, 1);
        kivi_error error;
        size_t j;

        ck_assert_ptr_nonnull(packed);
        for (j = 0; j < n; j++)
            tensor_set(&rows, j / p.dim, 0, (uint32_t)(j % p.dim),
                       j != at ? rng_normal(&rng)
                               : dtypes[i % 3] != KIVI_F16 && rng_one_in(&rng, 3) ? 65536
                                                                                 : RNG_PICK(&rng, bad));
        ck_assert_int_eq(kivi_pack(&p, tensor_in(&rows, 0), packed, &error),
                         KIVI_ERROR_NOT_FINITE);
        ck_assert_int_eq(error.status, KIVI_ERROR_NOT_FINITE);
        ck_assert_str_ne(error.message, "");
        for (j = 0; j < bytes; j++)
            ck_assert_msg(packed[j] == 0, "byte %zu was written", j);
        free(packed);
        tensor_free(&rows);
    }
    unsetenv("KIVI_BACKEND");
}
END_TEST

/* ------------------------------------------------- what is refused */

#define PACKING_MISTAKE(field, x) MISTAKE(kivi_packing, field, x, ARGUMENT)

static const struct mistake mistakes[] = {
    PACKING_MISTAKE(size, 0),
    PACKING_MISTAKE(size, sizeof(kivi_packing) - 1),
    PACKING_MISTAKE(axis, 2),
    PACKING_MISTAKE(axis, UINT32_MAX),
    PACKING_MISTAKE(bits, 0),
    PACKING_MISTAKE(bits, 1),
    PACKING_MISTAKE(bits, 3),
    PACKING_MISTAKE(bits, 16),
    PACKING_MISTAKE(bits, UINT32_MAX),
    PACKING_MISTAKE(group_size, 0),
    PACKING_MISTAKE(group_size, 31),
    PACKING_MISTAKE(group_size, 48),
    PACKING_MISTAKE(group_size, 256),
    PACKING_MISTAKE(dim, 0),
    PACKING_MISTAKE(dim, 4),
    PACKING_MISTAKE(dim, 65),
    PACKING_MISTAKE(dim, 520),
    PACKING_MISTAKE(dim, UINT32_MAX - 7),
    PACKING_MISTAKE(n_tokens, 0),
    PACKING_MISTAKE(n_tokens, 33),
    PACKING_MISTAKE(n_tokens, UINT64_MAX),
    PACKING_MISTAKE(n_tokens, UINT64_MAX / 32 * 32),
};

/* Calls all four functions and expects the same of each. */
static void expect_all(const kivi_packing *p, const char *what, kivi_status expected)
{
    static float rows[64 * 64];
    static char packed[16384];
    static uint32_t code[4096];
    static uint16_t scale[4096], min[4096];
    const kivi_in in = {rows, KIVI_F32, 0, 0};
    kivi_error errors[4] = {{.status = KIVI_OK}};
    const kivi_status got[4] = {
        kivi_pack(p, in, packed, &errors[0]),
        kivi_unpack(p, packed, rows, &errors[1]),
        kivi_pack_to_official(p, packed, code, scale, min, &errors[2]),
        kivi_pack_from_official(p, code, scale, min, packed, &errors[3]),
    };
    size_t i;

    for (i = 0; i < 4; i++) {
        ck_assert_msg(got[i] == expected && errors[i].status == expected, "%s: function %zu: %s",
                      what, i, kivi_status_string(got[i]));
        ck_assert((errors[i].message[0] != '\0') == (expected != KIVI_OK));
    }
}

START_TEST(mistakes_are_refused)
{
    const kivi_packing good = {sizeof good, KIVI_PER_CHANNEL, 2, 32, 64, 64};
    size_t i;

    expect_all(&good, "good", KIVI_OK);
    ck_assert_uint_gt(kivi_packed_size(&good), 0);
    for (i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        kivi_packing p = good;

        mistake_make(&mistakes[i], &p);
        ck_assert_msg(kivi_packed_size(&p) == 0, "%s", mistakes[i].name);
        expect_all(&p, mistakes[i].name, KIVI_ERROR_ARGUMENT);
    }
    ck_assert_uint_eq(kivi_packed_size(NULL), 0);
    expect_all(NULL, "no packing", KIVI_ERROR_ARGUMENT);
}
END_TEST

START_TEST(null_is_refused)
{
    const kivi_packing p = {sizeof p, KIVI_PER_TOKEN, 4, 64, 64, 1};
    float rows[64] = {0};
    char packed[4096];
    uint32_t code[8];
    uint16_t scale[1], min[1];
    const kivi_in in = {rows, KIVI_F32, 0, 0}, nothing = {NULL, KIVI_F32, 0, 0};
    const kivi_in strange = {rows, (kivi_dtype)3, 0, 0}, negative = {rows, (kivi_dtype)-1, 0, 0};

    ck_assert_uint_le(kivi_packed_size(&p), sizeof packed);
    ck_assert_int_eq(kivi_pack(&p, nothing, packed, NULL), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack(&p, strange, packed, NULL), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack(&p, negative, packed, NULL), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack(&p, in, NULL, NULL), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_unpack(&p, NULL, rows, NULL), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_unpack(&p, packed, NULL, NULL), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack_to_official(&p, NULL, code, scale, min, NULL), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack_to_official(&p, packed, NULL, scale, min, NULL),
                     KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack_to_official(&p, packed, code, NULL, min, NULL), KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack_to_official(&p, packed, code, scale, NULL, NULL),
                     KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack_from_official(&p, NULL, scale, min, packed, NULL),
                     KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack_from_official(&p, code, NULL, min, packed, NULL),
                     KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack_from_official(&p, code, scale, NULL, packed, NULL),
                     KIVI_ERROR_ARGUMENT);
    ck_assert_int_eq(kivi_pack_from_official(&p, code, scale, min, NULL, NULL),
                     KIVI_ERROR_ARGUMENT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pack");
    TCase *rule = tcase_create("rule"), *mistake = tcase_create("mistakes");

    tcase_add_loop_test(rule, any_packing, 0, backend_count());
    tcase_add_loop_test(rule, every_number, 0, 3 * backend_count());
    tcase_add_loop_test(rule, not_finite, 0, backend_count());
    tcase_add_test(mistake, mistakes_are_refused);
    tcase_add_test(mistake, null_is_refused);
    tcase_set_timeout(rule, 0);
    suite_add_tcase(suite, rule);
    suite_add_tcase(suite, mistake);
    return test_main(suite);
}
