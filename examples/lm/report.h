/* What eval shows: a bar on a terminal while it runs, then a table or JSON. */
#ifndef LM_REPORT_H
#define LM_REPORT_H

#include "eval.h"

/* Call it often: it draws on standard error, if that is a terminal, at most ten times a second. */
struct lm_progress {
    int on;
    double start, drawn;
};

void lm_progress_begin(struct lm_progress *progress);
void lm_progress_show(struct lm_progress *progress, uint64_t done, uint64_t all);
void lm_progress_end(struct lm_progress *progress);

void lm_print_table(const struct lm_evaluation *evaluation);
void lm_print_json(const struct lm_evaluation *evaluation);

#endif
