/*
 * One call of kivi_run, from the items that the caller described to the backend and back: validate,
 * mark the layers, reserve memory, let the backend work, make the result visible.
 */
#include "cache.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#define MAX_PARTS 1024u
#define MAX_QUERY_ROWS ((uint64_t)1 << 30) /* of a kv head: backends count them in 32 bits */
#define FAR_POSITION ((uint64_t)1 << 62)   /* above every length, and no sum of it overflows */

struct kivi_work {
    kivi_cache *cache;
    struct kivi_step step;
    size_t bytes;                /* of this allocation */
    atomic_uint *due;            /* of each part: the phase in which it is to be run next */
    atomic_uint_fast64_t n_done; /* parts, of all phases */
    atomic_int is_misused;       /* a part was run that was not due */
    struct kivi_layer **layers;  /* of each item */
    struct kivi_step_item items[];
};

void kivi_attention_init(kivi_attention *attention)
{
    if (!attention)
        return;
    memset(attention, 0, sizeof *attention);
    attention->size = sizeof *attention;
}

/* A soft cap below this makes many scores alike, at both of its ends, and weights that are rounded alike add up: such
 * calls are precise. Models have 20 and more. */
#define SMALL_CAP 8.0f

static kivi_status resolve_attention(const kivi_cache *cache, const kivi_attention *given,
                                     kivi_attention *attention, kivi_error *error)
{
    const struct kivi_geometry *g = &cache->geometry;
    uint32_t i;

    kivi_attention_init(attention);
    if (given) {
        if (given->size != sizeof *given)
            return kivi_fail(error, KIVI_ERROR_ARGUMENT,
                             "attention.size is %zu, not %zu: kivi_attention_init was not called, "
                             "or is of a later version",
                             given->size, sizeof *given);
        *attention = *given;
    }
    if (attention->precision != KIVI_STANDARD && attention->precision != KIVI_PRECISE)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "precision is %d, not standard or precise",
                         (int)attention->precision);
    if (!isfinite(attention->scale))
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "scale is not finite");
    if (!isfinite(attention->softcap) || attention->softcap < 0)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "softcap is negative or not finite");
    if (attention->sink_logits && cache->memory == KIVI_MEMORY_HOST)
        for (i = 0; i < g->n_q_heads; i++)
            if (isnan(attention->sink_logits[i]) || attention->sink_logits[i] == INFINITY)
                return kivi_fail(error, KIVI_ERROR_ARGUMENT, "sink_logits[%u] is not finite", i);
    if (attention->scale == 0)
        attention->scale = 1.0f / sqrtf((float)g->k_dim);
    if (attention->softcap > 0 && attention->softcap < SMALL_CAP)
        attention->precision = KIVI_PRECISE;
    return KIVI_OK;
}

/* Whether a stride's bytes would overflow. */
static int is_too_far(ptrdiff_t stride)
{
    const ptrdiff_t most = PTRDIFF_MAX / (ptrdiff_t)sizeof(float);

    return stride > most || stride < -most;
}

/* Fills in dense strides. `name` and `index` are for the message. */
static kivi_status resolve_array(const void *data, kivi_dtype dtype, int is_output,
                                 ptrdiff_t *token_stride, ptrdiff_t *head_stride, uint32_t heads,
                                 uint32_t dim, const char *name, size_t index, kivi_error *error)
{
    if (!data)
        return kivi_fail_item(error, KIVI_ERROR_ARGUMENT, index, ".%s.data is NULL", name);
    if (dtype != KIVI_F32 && dtype != KIVI_F16 && (is_output || dtype != KIVI_BF16))
        return kivi_fail_item(error, KIVI_ERROR_ARGUMENT, index, ".%s.dtype is %d", name,
                              (int)dtype);
    if ((uintptr_t)data % (dtype == KIVI_F32 ? sizeof(float) : sizeof(uint16_t)) != 0)
        return kivi_fail_item(error, KIVI_ERROR_ARGUMENT, index, ".%s.data is not aligned", name);
    if (is_too_far(*token_stride) || is_too_far(*head_stride))
        return kivi_fail_item(error, KIVI_ERROR_ARGUMENT, index,
                              ".%s: a stride is beyond what memory there can be", name);
    if (*head_stride == 0)
        *head_stride = (ptrdiff_t)dim;
    if (*token_stride == 0)
        *token_stride = (ptrdiff_t)heads * (ptrdiff_t)dim;
    return KIVI_OK;
}

#define RESOLVE(view, output, heads, dim)                                                          \
    resolve_array(io->view.data, io->view.dtype, output, &io->view.token_stride,                   \
                  &io->view.head_stride, heads, dim, #view, index, error)

static kivi_status resolve_item(const kivi_cache *cache, kivi_item *io, size_t index,
                                kivi_error *error)
{
    const struct kivi_geometry *g = &cache->geometry;
    kivi_status status = KIVI_OK;

    if (io->n_new > UINT32_MAX || io->n_q > UINT32_MAX)
        return kivi_fail_item(error, KIVI_ERROR_ARGUMENT, index, ".%s is more than 2^32 - 1",
                              io->n_new > UINT32_MAX ? "n_new" : "n_q");
    if (io->n_q * g->heads_per_kv > MAX_QUERY_ROWS)
        return kivi_fail_item(error, KIVI_ERROR_ARGUMENT, index,
                              ".n_q is %llu: with %u query heads to a kv head, more than 2^30 rows",
                              (unsigned long long)io->n_q, g->heads_per_kv);
    if (io->n_new && (status = RESOLVE(k, 0, g->n_kv_heads, g->k_dim)) == KIVI_OK)
        status = RESOLVE(v, 0, g->n_kv_heads, g->v_dim);
    if (status == KIVI_OK && io->n_q && (status = RESOLVE(q, 0, g->n_q_heads, g->k_dim)) == KIVI_OK)
        status = RESOLVE(out, 1, g->n_q_heads, g->v_dim);
    return status;
}

/* One more call is at work on the item's layer, or one less. */
static void count_call(const struct kivi_work *work, size_t i, int change)
{
    struct kivi_layer *layer = work->layers[i];

    *(work->items[i].io.n_new ? &layer->writers : &layer->readers) += (uint32_t)change;
}

/* The item's layer cannot be worked on now: because of another call, which ends some time, or of the caller's
 * mistake. */
static kivi_status refuse(const struct kivi_work *work, uint32_t layer, size_t index,
                          kivi_error *error)
{
    const unsigned long long seq = work->items[index].io.seq;
    size_t i;

    for (i = 0; i < index; i++)
        if (work->layers[i] == work->layers[index])
            return kivi_fail_item(
                error, KIVI_ERROR_ARGUMENT, index,
                " is sequence %llu, as items[%zu] is, and items[%zu] appends to it", seq, i,
                work->items[i].io.n_new ? i : index);
    return kivi_fail_item(error, KIVI_ERROR_BUSY, index,
                          ": another call is working on layer %u of sequence %llu", layer, seq);
}

/* Finds the item's layer and marks it as at work; `more` tokens are to come, with the item's. */
static kivi_status mark_item(kivi_cache *cache, struct kivi_work *work, uint32_t layer, size_t i,
                             uint64_t more, kivi_error *error)
{
    const kivi_item *io = &work->items[i].io;
    struct kivi_sequence *sequence = kivi_sequence_find(cache, io->seq, error);
    kivi_status status;

    if (!sequence)
        return kivi_blame_item(error, error->status, i);
    work->layers[i] = &sequence->layers[layer];
    status = kivi_token_room(cache, layer, more, error);
    if (status != KIVI_OK)
        return kivi_blame_item(error, status, i);
    if (work->layers[i]->writers || (io->n_new && work->layers[i]->readers))
        return refuse(work, layer, i, error);
    count_call(work, i, 1);
    return KIVI_OK;
}

/* Finds the layers and marks them as at work, and counts the tokens that are to come, so that calls at
 * the same time do not exceed the capacity together; on failure does neither. */
static kivi_status mark(kivi_cache *cache, struct kivi_work *work, uint32_t layer,
                        kivi_error *error)
{
    uint64_t more = 0;
    kivi_status status = KIVI_OK;
    size_t n = 0;

    for (; n < work->step.n_items && status == KIVI_OK; n++) {
        more += work->items[n].io.n_new;
        status = mark_item(cache, work, layer, n, more, error);
    }
    if (status == KIVI_OK)
        cache->layer_tokens[layer] += more;
    else
        while (--n > 0)
            count_call(work, n - 1, -1);
    return status;
}

/* Ends the marking: the tokens have come, or the layers are as they were. */
static void unmark(kivi_cache *cache, struct kivi_work *work, int apply)
{
    const uint32_t layer = work->step.layer;
    size_t i;

    for (i = 0; i < work->step.n_items; i++) {
        if (!apply)
            cache->layer_tokens[layer] -= work->items[i].io.n_new;
        if (work->items[i].io.n_new)
            kivi_layer_settle(cache, layer, work->layers[i], &work->items[i].after, apply);
        count_call(work, i, -1);
    }
}

/* Memory for every item; spans and pages as the backend will see them. */
static kivi_status reserve(kivi_cache *cache, struct kivi_work *work, uint32_t layer,
                           kivi_error *error)
{
    size_t i;

    cache->epoch++;
    for (i = 0; i < work->step.n_items; i++) {
        struct kivi_step_item *item = &work->items[i];

        item->before = work->layers[i]->span;
        item->after = kivi_layer_after(cache, work->layers[i], item->io.n_new);
        if (item->io.n_new)
            kivi_layer_claim(cache, layer, work->layers[i], &item->after);
    }
    for (i = 0; i < work->step.n_items; i++) {
        struct kivi_step_item *item = &work->items[i];
        struct kivi_layer *l = work->layers[i];
        uint64_t end;

        if (item->io.n_new) {
            const kivi_status status = kivi_layer_reserve(cache, layer, l, &item->after, error);

            if (status != KIVI_OK)
                return kivi_blame_item(error, status, i);
        }
        end = item->io.q_end ? item->io.q_end : item->after.n;
        if (end < item->io.n_q)
            return kivi_fail_item(error, KIVI_ERROR_ARGUMENT, i,
                                  ".n_q is %llu, but there are %llu tokens up to the last query",
                                  (unsigned long long)item->io.n_q, (unsigned long long)end);
        item->q_position = end - item->io.n_q;
        if (item->q_position > FAR_POSITION)
            item->q_position = FAR_POSITION;
        item->pages = l->pages;
        item->window = l->window ? l->window->memory : NULL;
    }
    return KIVI_OK;
}

static struct kivi_work *new_work(kivi_cache *cache, size_t n_items, uint32_t n_parts)
{
    const size_t per_item = sizeof(struct kivi_step_item) + sizeof(struct kivi_layer *);
    struct kivi_work *work;
    size_t bytes = sizeof *work + n_parts * sizeof *work->due;

    if (n_items > (SIZE_MAX - bytes) / per_item)
        return NULL;
    bytes += n_items * per_item;
    work = kivi_heap_alloc(&cache->heap, bytes, 1);
    if (!work)
        return NULL;
    work->cache = cache;
    work->bytes = bytes;
    work->layers = (struct kivi_layer **)(void *)(work->items + n_items);
    work->due = (atomic_uint *)(void *)(work->layers + n_items);
    work->step.geometry = &cache->geometry;
    work->step.items = work->items;
    work->step.n_items = n_items;
    work->step.n_parts = n_parts;
    return work;
}

static kivi_status fill(kivi_cache *cache, struct kivi_work *work, uint32_t layer,
                        const kivi_item *items, const kivi_attention *attention, kivi_error *error)
{
    kivi_status status = resolve_attention(cache, attention, &work->step.attention, error);
    size_t i;

    work->step.layer = layer;
    for (i = 0; i < work->step.n_items && status == KIVI_OK; i++) {
        work->items[i].io = items[i];
        status = resolve_item(cache, &work->items[i].io, i, error);
    }
    return status;
}

kivi_status kivi_work_begin(kivi_cache *cache, uint32_t layer, const kivi_item *items,
                            size_t n_items, const kivi_attention *attention, uint32_t n_parts,
                            kivi_work **work, kivi_error *error)
{
    struct kivi_work *w;
    kivi_status status;
    KIVI_DETAIL(error);

    if (work)
        *work = NULL;
    if (!cache || !work || (n_items && !items))
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL",
                         !cache  ? "cache"
                         : !work ? "work"
                                 : "items");
    if (layer >= cache->geometry.n_layers)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "layer is %u of %u", layer,
                         cache->geometry.n_layers);
    if (n_parts < 1 || n_parts > MAX_PARTS)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "n_parts is %u, not 1 to %u", n_parts,
                         MAX_PARTS);
    w = new_work(cache, n_items, n_parts);
    if (!w)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a call of %zu items", n_items);
    status = fill(cache, w, layer, items, attention, error);
    if (status == KIVI_OK) {
        kivi_lock_take(&cache->lock);
        status = mark(cache, w, layer, error);
        if (status == KIVI_OK) {
            status = reserve(cache, w, layer, error);
            if (status != KIVI_OK)
                unmark(cache, w, 0);
        }
        kivi_lock_release(&cache->lock);
    }
    if (status == KIVI_OK) {
        status = cache->backend->begin(cache->context, &w->step, error);
        if (status != KIVI_OK) {
            kivi_lock_take(&cache->lock);
            unmark(cache, w, 0);
            kivi_lock_release(&cache->lock);
        }
    }
    if (status != KIVI_OK) {
        kivi_heap_free(&cache->heap, w, w->bytes);
        return status;
    }
    *work = w;
    return kivi_succeed(error);
}

uint32_t kivi_work_phases(const kivi_work *work)
{
    return work ? work->step.n_phases : 0;
}

uint32_t kivi_work_parts(const kivi_work *work)
{
    return work ? work->step.n_parts : 0;
}

/* Whether the part is to be run now: all of the phase before have returned, and it has not been run. It then counts as
 * run. */
static int is_due(kivi_work *work, uint32_t phase, uint32_t part)
{
    unsigned due = phase;

    return atomic_load(&work->n_done) >= (uint64_t)phase * work->step.n_parts
           && atomic_compare_exchange_strong(&work->due[part], &due, phase + 1);
}

void kivi_work_part(kivi_work *work, uint32_t phase, uint32_t part)
{
    if (!work || phase >= work->step.n_phases || part >= work->step.n_parts)
        return;
    if (!is_due(work, phase, part)) {
        atomic_store(&work->is_misused, 1);
        return;
    }
    work->cache->backend->part(work->cache->context, &work->step, phase, part);
    atomic_fetch_add(&work->n_done, 1);
}

static kivi_status finish(kivi_work *work, int apply, kivi_error *error)
{
    kivi_cache *cache = work->cache;
    const kivi_status status = cache->backend->end(cache->context, &work->step, apply, error);

    kivi_lock_take(&cache->lock);
    unmark(cache, work, apply && status == KIVI_OK);
    kivi_lock_release(&cache->lock);
    kivi_heap_free(&cache->heap, work, work->bytes);
    return status;
}

void kivi_work_cancel(kivi_work *work)
{
    kivi_error error;

    if (work)
        finish(work, 0, &error);
}

kivi_status kivi_work_end(kivi_work *work, kivi_error *error)
{
    kivi_status status;
    uint64_t n, n_done;
    int is_misused;
    KIVI_DETAIL(error);

    if (!work)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "work is NULL");
    n = (uint64_t)work->step.n_phases * work->step.n_parts;
    n_done = atomic_load(&work->n_done);
    is_misused = atomic_load(&work->is_misused);
    if (n_done != n || is_misused) {
        kivi_work_cancel(work);
        return kivi_fail(
            error, KIVI_ERROR_ARGUMENT, "%llu parts of %llu in all phases were run%s",
            (unsigned long long)n_done, (unsigned long long)n,
            is_misused ? ", some more than once, or before the phase before theirs was over" : "");
    }
    status = finish(work, 1, error);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

static uint32_t team_size(const kivi_cache *cache)
{
#if defined(_OPENMP)
    int n = cache->n_threads ? (int)cache->n_threads : omp_get_max_threads();

    if (omp_in_parallel()) /* the caller has a team already: do not start one within it */
        n = 1;
    return n < 1 ? 1 : n > (int)MAX_PARTS ? MAX_PARTS : (uint32_t)n;
#else
    (void)cache;
    return 1;
#endif
}

kivi_status kivi_run(kivi_cache *cache, uint32_t layer, const kivi_item *items, size_t n_items,
                     const kivi_attention *attention, kivi_error *error)
{
    kivi_work *work;
    kivi_status status;
    uint32_t phase, n_phases, n_parts;
    KIVI_DETAIL(error);

    if (!cache)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "cache is NULL");
    n_parts = team_size(cache);
    status = kivi_work_begin(cache, layer, items, n_items, attention, n_parts, &work, error);
    if (status != KIVI_OK)
        return status;
    n_phases = kivi_work_phases(work);
    n_parts = kivi_work_parts(work);
    for (phase = 0; phase < n_phases; phase++) {
        int part;

#if defined(_OPENMP)
#pragma omp parallel for num_threads((int)n_parts) schedule(static, 1) if (n_parts > 1)
#endif
        for (part = 0; part < (int)n_parts; part++)
            kivi_work_part(work, phase, (uint32_t)part);
    }
    return kivi_work_end(work, error);
}

kivi_status kivi_forward(kivi_cache *cache, uint32_t layer, kivi_seq seq, uint64_t n,
                         const float *k, const float *v, const float *q, float *out,
                         const kivi_attention *attention, kivi_error *error)
{
    const kivi_item item = {
        .seq = seq,
        .n_new = n,
        .k = {k, KIVI_F32, 0, 0},
        .v = {v, KIVI_F32, 0, 0},
        .n_q = n,
        .q = {q, KIVI_F32, 0, 0},
        .out = {out, KIVI_F32, 0, 0},
    };

    return kivi_run(cache, layer, &item, 1, attention, error);
}

kivi_status kivi_append(kivi_cache *cache, uint32_t layer, kivi_seq seq, uint64_t n, kivi_in k,
                        kivi_in v, kivi_error *error)
{
    const kivi_item item = {.seq = seq, .n_new = n, .k = k, .v = v};

    return kivi_run(cache, layer, &item, 1, NULL, error);
}

kivi_status kivi_attend(kivi_cache *cache, uint32_t layer, kivi_seq seq, uint64_t n, kivi_in q,
                        kivi_out out, const kivi_attention *attention, kivi_error *error)
{
    const kivi_item item = {.seq = seq, .n_q = n, .q = q, .out = out};

    return kivi_run(cache, layer, &item, 1, attention, error);
}
