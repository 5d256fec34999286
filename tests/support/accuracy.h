/* Errors of attention against the oracle, and their bounds (docs/numerics.md). */
#ifndef KIVI_TESTS_ACCURACY_H
#define KIVI_TESTS_ACCURACY_H

#include <kivi/kivi.h>

#include "oracle.h"
#include "tensor.h"

/* The error of "standard" may be this share of the quantization error. */
#define STANDARD_SHARE 0.05
/* On adversarial data it may instead be this, relative to the output row. */
#define ADVERSARIAL_RELATIVE 1e-2

/* Which of the two bounds holds for "standard". */
enum accuracy_rule {
    RULE_RANDOM,      /* the first: random data, and that of models */
    RULE_ADVERSARIAL, /* the second: a huge channel, a token with all the weight, huge scores */
    RULE_EITHER       /* the larger: data outside both, such as ranges beyond f16 */
};

/* "precise" is within this, relative; "standard" need not be better. */
#define PRECISE_RELATIVE 1e-5

/* Rows of a case. Lengths are L2 norms. */
struct accuracy_row {
    double error;        /* against the oracle */
    double quantization; /* of the oracle against attention over unquantized tokens */
    double reference;    /* of the oracle's row */
    double floor;        /* allowed whatever the precision */
};

struct accuracy {
    kivi_precision precision;
    enum accuracy_rule rule;
    double share; /* STANDARD_SHARE */
    size_t n, room;
    struct accuracy_row *rows;
};

void accuracy_init(struct accuracy *a, kivi_precision precision, enum accuracy_rule rule);

/* Adds a row of n numbers, allowed to be off by `floor` besides what the precision allows. */
void accuracy_add(struct accuracy *a, uint32_t n, const double *got, const double *oracle,
                  const double *exact, double floor);

/* Adds the rows that the library wrote to `out`. */
void accuracy_add_result(struct accuracy *a, const struct tensor *out,
                         const struct oracle_result *oracle);

/* Adds the library's log-sum-exps; NULL is ignored. Rows of one number: where the length of many is near
 * its expectation, one of them may be at thrice that, so their share is twice as large. */
void accuracy_add_lse(struct accuracy *a, const float *lse, const struct oracle_result *oracle);

/*
 * Fails the test unless every row is within its bound, and frees the rows. A row whose own
 * quantization error happens to be small is granted the root mean square over all rows. Returns
 * the largest share of its bound that a row took.
 */
double accuracy_check(struct accuracy *a, const char *what);

#endif
