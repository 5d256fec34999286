#include "accuracy.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A sink logit far above all scores leaves a row of numbers that f32 cannot hold well. */
#define UNDERFLOW 1e-30

void accuracy_init(struct accuracy *a, kivi_precision precision, enum accuracy_rule rule)
{
    memset(a, 0, sizeof *a);
    a->precision = precision;
    a->rule = rule;
    a->share = STANDARD_SHARE;
}

static double distance(uint32_t n, const double *a, const double *b)
{
    double sum = 0;
    uint32_t i;

    for (i = 0; i < n; i++)
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sqrt(sum);
}

static double length(uint32_t n, const double *a)
{
    double sum = 0;
    uint32_t i;

    for (i = 0; i < n; i++)
        sum += a[i] * a[i];
    return sqrt(sum);
}

void accuracy_add(struct accuracy *a, uint32_t n, const double *got, const double *oracle,
                  const double *exact, double floor)
{
    const struct accuracy_row row = {distance(n, got, oracle), distance(n, oracle, exact),
                                     length(n, oracle), floor};

    if (a->n == a->room) {
        a->room = 2 * a->room + 64;
        a->rows = realloc(a->rows, a->room * sizeof *a->rows);
        ck_assert_ptr_nonnull(a->rows);
    }
    a->rows[a->n++] = row;
}

/* Scores are f32: where they are huge, this is how far off weights are, relative. */
static double score_error(const struct oracle_result *oracle, uint64_t row)
{
    return 8 * 0x1p-24 * oracle->score_size[row];
}

/* What f16 can hold of it. */
static void saturate(uint32_t n, const double *from, double *to)
{
    uint32_t i;

    for (i = 0; i < n; i++)
        to[i] = fmax(-65504, fmin(65504, from[i]));
}

void accuracy_add_result(struct accuracy *a, const struct tensor *out,
                         const struct oracle_result *oracle)
{
    double *got = tensor_decode(out), *limited = malloc(oracle->dim * sizeof *limited);
    uint64_t row;

    ck_assert_ptr_nonnull(limited);
    ck_assert_uint_eq(out->tokens * out->heads, oracle->n_rows);
    for (row = 0; row < oracle->n_rows; row++) {
        const double *reference = oracle->out + row * oracle->dim;
        const double norm = length(oracle->dim, reference);
        /* Values may cancel to a short row; what f32 sums of them can hold is relative to the values. Huge
         * ones are multiplied by weights whose scores were huge, too. */
        const double value = oracle->value_size[row];
        const double size = a->rule != RULE_RANDOM ? value : norm;
        double floor = fmax(score_error(oracle, row) * size - PRECISE_RELATIVE * norm, 0) + UNDERFLOW;

        floor += (a->rule != RULE_RANDOM ? 16 : 4) * 0x1p-24 * value;
        if (out->dtype == KIVI_F16) { /* half a last place, or of the smallest subnormal */
            floor += 0x1p-11 * norm + 0x1p-25 * sqrt(oracle->dim);
            saturate(oracle->dim, reference, limited);
            reference = limited;
        }
        accuracy_add(a, oracle->dim, got + row * oracle->dim, reference,
                     oracle->exact_out + row * oracle->dim, floor);
    }
    free(got);
    free(limited);
}

void accuracy_add_lse(struct accuracy *a, const float *lse, const struct oracle_result *oracle)
{
    uint64_t row;

    a->share = 2 * STANDARD_SHARE;
    for (row = 0; lse && row < oracle->n_rows; row++) {
        const double got = lse[row], reference = oracle->lse[row];

        if (!isinf(got) != !isinf(reference))
            ck_abort_msg("lse is %g, the oracle has %g", got, reference);
        if (!isinf(reference)) /* a difference of lse is a relative one of the softmax's sum */
            accuracy_add(a, 1, &got, &reference, &oracle->exact_lse[row],
                         PRECISE_RELATIVE + score_error(oracle, row));
    }
}

static double mean_quantization(const struct accuracy *a)
{
    double sum = 0;
    size_t i;

    for (i = 0; i < a->n; i++)
        sum += a->rows[i].quantization * a->rows[i].quantization;
    return a->n ? sqrt(sum / (double)a->n) : 0;
}

double accuracy_check(struct accuracy *a, const char *what)
{
    const double mean = mean_quantization(a);
    double worst = 0;
    size_t i;

    for (i = 0; i < a->n; i++) {
        const struct accuracy_row *row = &a->rows[i];
        double bound = PRECISE_RELATIVE * row->reference + row->floor;

        if (a->precision == KIVI_STANDARD && a->rule != RULE_RANDOM)
            bound = ADVERSARIAL_RELATIVE * row->reference + row->floor;
        if (a->precision == KIVI_STANDARD && a->rule != RULE_ADVERSARIAL)
            bound = fmax(bound, a->share * fmax(row->quantization, mean));
        if (!(row->error <= bound)) /* also for NaN */
            ck_abort_msg("%s: row %zu of %zu, %s precision: error %.3g is above %.3g "
                         "(quantization error %.3g, mean %.3g; length %.3g)",
                         what, i, a->n, a->precision == KIVI_STANDARD ? "standard" : "precise",
                         row->error, bound, row->quantization, mean, row->reference);
        if (bound > 0)
            worst = fmax(worst, row->error / bound);
    }
    free(a->rows);
    a->rows = NULL;
    a->n = a->room = 0;
    return worst;
}
