/* The kernel tables that this machine can run, and what their attention must give. */
#ifndef KIVI_TESTS_TABLES_H
#define KIVI_TESTS_TABLES_H

#include <check.h>

#include "accuracy.h"
#include "blocks.h"
#include "cpu/kernels.h"

#define MAX_TABLES 16
#define MAX_DIM 512u

/* As ck_assert_msg, which is a system call where it holds: for inner loops. */
#define CHECK(holds, ...)                                                                          \
    do {                                                                                           \
        if (!(holds))                                                                              \
            ck_abort_msg(__VA_ARGS__);                                                             \
    } while (0)

extern const struct kivi_kernels *tables[MAX_TABLES];
extern int n_tables;

/* Finds and prints the tables that can run, and those of this build that cannot. Returns a case for tests
 * of them, which frees guarded memory between tests. */
TCase *tables_case(void);

/* The largest share of its bound that an operation took. */
struct margin {
    double standard, precise;
};

/* A row of results: exact over what the blocks stand for, and over what was quantized to them. */
struct expected {
    double *value, *original;
    double floor; /* what it may be off by at any precision: the roundings of f32 */
};

/* n_rows rows of n zeros. */
struct expected *expected_new(uint32_t n_rows, size_t n);
void expected_free(struct expected *rows, uint32_t n_rows);

/* Allows for the rounding of n numbers to f32. */
void expected_add_rounding(struct expected *row, const double *magnitude, size_t n);

/* The scores of one query over tokens [tokens][dim]. */
void expected_scores(struct expected *row, const struct unpacked *keys, const float *q,
                     size_t tokens, uint32_t dim);

/* The sums of one row of weights over tokens [tokens][dim]. */
void expected_sums(struct expected *row, const struct unpacked *values, const float *weights,
                   size_t tokens, uint32_t dim);

/* Checks got [n_rows][stride], of which n are results of tables[table], by the bounds of the precision.
 * They were added to numbers `before`, unless that is NULL. Margins of the table grow to the share. */
void check_rows(const struct expected *rows, uint32_t n_rows, size_t n, const float *got,
                const float *before, size_t stride, int table, kivi_precision precision,
                enum accuracy_rule rule, struct margin *margins, const char *what);

#endif
