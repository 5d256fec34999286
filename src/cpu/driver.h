/*
 * The CPU attention driver: splits a step into parts, and runs kernels over tokens wherever they
 * lie: packed in pages, in f16 in the window, or new in this step ("staged").
 *
 * A task is one block of query rows of one kv head of one item; its tokens are cut in units of
 * KIVI_UNIT. All units of all tasks stand in one line, of which every part takes an equal share by
 * cost. A task that several parts share leaves a partial result in each, and these
 * are merged in the order of parts: the result depends on the number of parts and not on timing.
 */
#ifndef KIVI_DRIVER_H
#define KIVI_DRIVER_H

#include "../core/backend.h"
#include "kernels.h"

#define KIVI_UNIT 128u     /* tokens; a multiple of every group size */
#define KIVI_CHUNK 256u    /* tokens that are scored, weighed and summed before the next ones */
#define KIVI_STRETCH 4096u /* tokens added up from nothing: f32 loses of a longer sum what may show */
#define KIVI_ROW_BLOCK 32u /* query rows of a task, and those that a part has in hand at a time */
#define KIVI_SLAB 128u     /* tokens of a head that a part stages or quantizes at a time; as KIVI_UNIT */

struct kivi_task {
    uint32_t item, kv_head;
    uint32_t first_row, n_rows; /* row r: query r / heads_per_kv, head r % heads_per_kv of a group */
    uint64_t begin, end;        /* tokens that any of the rows sees; begin is a multiple of KIVI_UNIT */
    uint64_t n_units, unit_cost;
    uint64_t cost_before; /* of all tasks before this one */
};

/* New rows of one kv head in f16: tokens [begin, end), one after the other. */
struct kivi_staged {
    uint16_t *k, *v;
    uint64_t begin, end;
};

/* Attention of rows to some tokens: unnormalized outputs, and of each row its largest score and the sum of its weights,
 * which are relative to that. */
struct kivi_sums {
    float *out, *max, *sum; /* [rows][v_dim_pad], [rows], [rows] */
};

/* What one part of a step has to itself. */
struct kivi_part {
    float *q;        /* [part_rows][k_dim_pad] */
    float *scores;   /* [task_rows][KIVI_CHUNK] */
    struct kivi_sums stretch, total; /* of part_rows: of a stretch of tokens, and of those before it */
    struct kivi_sums partial[2]; /* of task_rows: a task that a later part ends, one begun by an earlier part */
    uint16_t *group; /* [group_size][k_dim], a key group put together from two places */
    struct kivi_staged slab; /* of an item that only appends, at most KIVI_SLAB tokens */
    /* The first input found not finite: bad_name == NULL if none. */
    const char *bad_name;
    uint64_t bad_item, bad_token;
    uint32_t bad_head;
};

/* Scratch of one step. */
struct kivi_plan {
    const struct kivi_kernels *kernels;
    int is_amd; /* kivi_next */
    struct kivi_step *step;
    size_t bytes; /* of this allocation */
    uint32_t stage_phase, attend_phase, finish_phase; /* UINT32_MAX: not a phase */
    struct kivi_task *tasks;
    size_t n_tasks;
    uint64_t total_cost;
    struct kivi_part *parts;
    uint32_t task_rows;  /* of the largest task */
    uint32_t part_rows;  /* of the tasks that a part has in hand at a time, at most */
    uint16_t **staged_k; /* of each item that attends: [n_kv_heads][n_new][k_dim] */
    uint16_t **staged_v; /* [n_kv_heads][n_new][v_dim] */
};

/* Nobody reads the new rows of an item that does not attend but the part that quantizes them, while they are in a
 * near cache. One that attends keeps them all until the end: every part reads them. */
static inline int kivi_only_appends(const struct kivi_step_item *item)
{
    return item->io.n_q == 0;
}

/* A run of f16 rows, or of packed blocks, at one token of one kv head. */
struct kivi_run_of_tokens {
    const void *data;  /* rows if stride, else blocks */
    size_t stride;     /* elements from row to row; 0: packed */
    uint64_t n_tokens; /* to the end of the run */
};

/* The new rows of a head that the part can read: all, or of an item that only appends the part's slab. */
struct kivi_staged kivi_staged_rows(const struct kivi_plan *plan, const struct kivi_part *part,
                                    size_t item, uint32_t head);

/* Where tokens from `position` on lie, as the step's queries see them. */
struct kivi_run_of_tokens kivi_find_keys(const struct kivi_plan *plan, const struct kivi_part *part,
                                         size_t item, uint32_t head, uint64_t position);
struct kivi_run_of_tokens kivi_find_values(const struct kivi_plan *plan,
                                           const struct kivi_part *part, size_t item, uint32_t head,
                                           uint64_t position);

/* Plan of a step on a machine of these features, with all its memory from `allocator`; NULL if there is none. */
struct kivi_plan *kivi_plan_make(const struct kivi_kernels *kernels, uint32_t features,
                                 struct kivi_step *step, const kivi_allocator *allocator);

/* The work of one part: new rows to f16 (and what only appends is quantized at once), attention, merging
 * and quantizing. In this order, each after all parts of the one before. Nothing that is visible changes. */
void kivi_stage_part(struct kivi_plan *plan, uint32_t part);
void kivi_attend_part(struct kivi_plan *plan, uint32_t part);
void kivi_finish_part(struct kivi_plan *plan, uint32_t part);

/* The steps of kivi_finish_part. */
void kivi_merge_part(struct kivi_plan *plan, uint32_t part);
void kivi_quantize_part(struct kivi_plan *plan, uint32_t part);

/* The new rows enter the windows, over rows that are still visible: the last act of a step. */
void kivi_store(struct kivi_plan *plan);

#endif
