#include "tables.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "accuracy.h"
#include "core/registry.h"
#include "guard.h"

const struct kivi_kernels *tables[MAX_TABLES];
int n_tables;

static int runs_here(const struct kivi_kernels *table)
{
    return (kivi_cpu_features() & table->required) == table->required;
}

static void find_tables(void)
{
    size_t i;

    printf("tables that run here:");
    for (i = 0; i < kivi_n_cpu_backends && n_tables < MAX_TABLES; i++) {
        if (runs_here(kivi_cpu_backends[i]->kernels)) {
            tables[n_tables++] = kivi_cpu_backends[i]->kernels;
            printf(" %s", tables[n_tables - 1]->name);
        }
    }
    printf("\n");
    for (i = 0; i < kivi_n_cpu_backends; i++)
        if (!runs_here(kivi_cpu_backends[i]->kernels))
            printf("skipped: %s: this machine lacks it\n", kivi_cpu_backends[i]->kernels->name);
    fflush(stdout);
}

TCase *tables_case(void)
{
    TCase *tcase = tcase_create("tables");

    find_tables();
    tcase_set_timeout(tcase, 0);
    tcase_add_checked_fixture(tcase, guard_release, guard_release); /* also after a failure */
    return tcase;
}

/* Absolute errors below this are invisible: scores are exponents, weights are at most 1. */
#define INVISIBLE 1e-20

/* What f32 arithmetic is granted: roundings of the sum of magnitudes. */
#define F32_ROUNDINGS (8 * 0x1p-24)

static double *new_doubles(size_t n)
{
    double *x = calloc(n, sizeof *x);

    ck_assert_ptr_nonnull(x);
    return x;
}

struct expected *expected_new(uint32_t n_rows, size_t n)
{
    struct expected *rows = malloc(n_rows * sizeof *rows);
    uint32_t r;

    ck_assert_ptr_nonnull(rows);
    for (r = 0; r < n_rows; r++) {
        rows[r].value = new_doubles(n);
        rows[r].original = new_doubles(n);
        rows[r].floor = INVISIBLE;
    }
    return rows;
}

void expected_free(struct expected *rows, uint32_t n_rows)
{
    uint32_t r;

    for (r = 0; r < n_rows; r++) {
        free(rows[r].value);
        free(rows[r].original);
    }
    free(rows);
}

void expected_add_rounding(struct expected *row, const double *magnitude, size_t n)
{
    double sum = 0;
    size_t i;

    for (i = 0; i < n; i++)
        sum += magnitude[i] * magnitude[i];
    row->floor += F32_ROUNDINGS * sqrt(sum);
}

void expected_scores(struct expected *row, const struct unpacked *keys, const float *q,
                     size_t tokens, uint32_t dim)
{
    double *magnitude = new_doubles(tokens);
    size_t t;
    uint32_t c;

    for (t = 0; t < tokens; t++) {
        for (c = 0; c < dim; c++) {
            row->value[t] += q[c] * keys->value[t * dim + c];
            row->original[t] += q[c] * keys->original[t * dim + c];
            magnitude[t] += fabs(q[c]) * keys->magnitude[t * dim + c];
        }
    }
    expected_add_rounding(row, magnitude, tokens);
    free(magnitude);
}

void expected_sums(struct expected *row, const struct unpacked *values, const float *weights,
                   size_t tokens, uint32_t dim)
{
    double *magnitude = new_doubles(dim);
    size_t t;
    uint32_t c;

    for (t = 0; t < tokens; t++) {
        if (weights[t] == 0) /* whatever the token is */
            continue;
        for (c = 0; c < dim; c++) {
            row->value[c] += weights[t] * values->value[t * dim + c];
            row->original[c] += weights[t] * values->original[t * dim + c];
            magnitude[c] += weights[t] * values->magnitude[t * dim + c];
        }
    }
    expected_add_rounding(row, magnitude, dim);
    free(magnitude);
}

void check_rows(const struct expected *rows, uint32_t n_rows, size_t n, const float *got,
                const float *before, size_t stride, int table, kivi_precision precision,
                enum accuracy_rule rule, struct margin *margins, const char *what)
{
    struct accuracy accuracy;
    double *row = new_doubles(n), share;
    char title[200];
    uint32_t r;
    size_t i;

    accuracy_init(&accuracy, precision, rule);
    for (r = 0; r < n_rows; r++) {
        for (i = 0; i < n; i++)
            row[i] = (double)got[r * stride + i] - (before ? before[r * stride + i] : 0);
        accuracy_add(&accuracy, (uint32_t)n, row, rows[r].value, rows[r].original, rows[r].floor);
    }
    snprintf(title, sizeof title, "%s: %s", tables[table]->name, what);
    share = accuracy_check(&accuracy, title);
    if (precision == KIVI_STANDARD)
        margins[table].standard = fmax(margins[table].standard, share);
    else
        margins[table].precise = fmax(margins[table].precise, share);
    free(row);
}
