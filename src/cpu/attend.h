/* Attention of one task, some tokens at a time: what parts (parts.c) are made of. */
#ifndef KIVI_ATTEND_H
#define KIVI_ATTEND_H

#include "driver.h"

/* A task in the hands of a part. */
struct kivi_cpu_work {
    const struct kivi_plan *plan;
    const struct kivi_task *task;
    struct kivi_part *part;
    const struct kivi_layer_geometry *layer;
    float *q;                        /* of the task's rows, among the part's, */
    struct kivi_sums stretch, total; /* like these */
    const struct kivi_cpu_work *after; /* whose tokens are read next; the first again after the last */
};

/* Loads the queries. Returns 0 if one is not finite, which the part then tells. */
int kivi_load_queries(struct kivi_cpu_work *w);

/* Adds tokens [begin, end), at most KIVI_CHUNK from a multiple of KIVI_UNIT on, to the stretch. */
void kivi_attend_chunk(struct kivi_cpu_work *w, uint64_t begin, uint64_t end);

/* Normalizes row r of a task and writes it where the caller wants it. */
void kivi_write_row(const struct kivi_plan *plan, const struct kivi_task *task, uint32_t r,
                    const float *row, float max, float sum);

#endif
