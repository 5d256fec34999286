/*
 * Before and after the attention: new rows are converted to f16 beside the cache ("staged"); then
 * what leaves the window is quantized into pages, and the new rows enter the window.
 */
#include <string.h>

#include "driver.h"

/* Rows of a head lie apart, a pattern that some CPUs do not follow: lines are asked for so many rows before. */
#define ROWS_AHEAD 8

/* Rows begin .. end - 1 of a head's input to f16. Returns the first that is not finite, or end. */
static uint64_t convert_rows(const struct kivi_plan *plan, const kivi_in *in, uint32_t head,
                             uint64_t begin, uint64_t end, uint16_t *to, uint32_t dim)
{
    const size_t sizes[] = {4, 2, 2}, size = sizes[in->dtype];
    const ptrdiff_t stride = in->token_stride * (ptrdiff_t)size;
    const char *rows = (const char *)in->data + (ptrdiff_t)head * in->head_stride * (ptrdiff_t)size;
    uint64_t t, bad = end;

    for (t = begin; t < end; t++, to += dim) {
        const char *row = rows + (ptrdiff_t)t * stride;
        size_t i;

        for (i = 0; i < dim * size && t + ROWS_AHEAD < end; i += KIVI_LINE)
            kivi_prefetch(row + ROWS_AHEAD * stride + i);
        if (!plan->kernels->to_f16[in->dtype](to, row, dim) && t < bad)
            bad = t;
    }
    return bad;
}

static void stage_rows(const struct kivi_plan *plan, struct kivi_part *part, size_t index,
                       const kivi_in *in, uint32_t head, uint64_t begin, uint64_t end, uint16_t *to,
                       uint32_t dim, const char *name)
{
    const uint64_t bad = convert_rows(plan, in, head, begin, end, to, dim);

    if (bad == end || part->bad_name)
        return;
    part->bad_name = name;
    part->bad_item = index;
    part->bad_token = bad;
    part->bad_head = head;
}

/* `count` rows of keys from `position` on as one array; part->group holds it if they lie apart. */
static const uint16_t *gather_keys(const struct kivi_plan *plan, struct kivi_part *part,
                                   size_t index, uint32_t head, uint64_t position, uint32_t count)
{
    const uint32_t dim = plan->step->geometry->k_dim;
    uint32_t done = 0;

    while (done < count) {
        const struct kivi_run_of_tokens run =
            kivi_find_keys(plan, part, index, head, position + done);
        const uint32_t n = (uint32_t)min_u64(run.n_tokens, count - done);

        if (n == count)
            return run.data;
        memcpy(part->group + (size_t)done * dim, run.data, (size_t)n * dim * 2);
        done += n;
    }
    return part->group;
}

static void quantize_keys(const struct kivi_plan *plan, struct kivi_part *part, size_t index,
                          uint32_t head, uint64_t begin, uint64_t end)
{
    const struct kivi_geometry *g = plan->step->geometry;
    const struct kivi_layer_geometry *l = &g->layers[plan->step->layer];
    const struct kivi_step_item *item = &plan->step->items[index];
    uint64_t t;

    for (t = begin; t < end; t += l->k.tokens) {
        const uint16_t *rows = gather_keys(plan, part, index, head, t, l->k.tokens);
        void *block = kivi_page_keys(l, item->pages[t / l->page_tokens], head, t);

        if (l->k.bits == 16)
            memcpy(block, rows, l->k.block_bytes);
        else
            plan->kernels->quantize_k(
                &l->k, rows, g->k_dim,
                g->n_sink > t ? (uint32_t)min_u64(g->n_sink - t, l->k.tokens) : 0, block);
    }
}

static void quantize_values(const struct kivi_plan *plan, const struct kivi_part *part,
                            size_t index, uint32_t head, uint64_t begin, uint64_t end)
{
    const struct kivi_geometry *g = plan->step->geometry;
    const struct kivi_layer_geometry *l = &g->layers[plan->step->layer];
    const struct kivi_step_item *item = &plan->step->items[index];
    uint64_t t = begin;

    while (t < end) {
        const struct kivi_run_of_tokens run = kivi_find_values(plan, part, index, head, t);
        const uint32_t first = (uint32_t)(t % KIVI_TILE);
        const uint32_t n = (uint32_t)min_u64(min_u64(run.n_tokens, end - t), KIVI_TILE - first);
        char *block = kivi_page_values(l, item->pages[t / l->page_tokens], head, t);

        if (l->v.bits == 16)
            memcpy(block + (size_t)first * g->v_dim * 2, run.data, (size_t)n * g->v_dim * 2);
        else
            plan->kernels->quantize_v(&l->v, run.data, run.stride, first, n, block);
        t += n;
    }
}

/* The part of [from, to) that is in the slab. */
static void clip(uint64_t slab, uint64_t from, uint64_t to, uint64_t *begin, uint64_t *end)
{
    *begin = max_u64(slab, from);
    *end = max_u64(min_u64(slab + KIVI_SLAB, to), *begin);
}

static void quantize_slab(const struct kivi_plan *plan, struct kivi_part *part, size_t index,
                          uint32_t head, uint64_t slab)
{
    const struct kivi_span *before = &plan->step->items[index].before;
    const struct kivi_span *after = &plan->step->items[index].after;
    uint64_t begin, end;

    clip(slab, before->k_packed, after->k_packed, &begin, &end);
    quantize_keys(plan, part, index, head, begin, end);
    clip(slab, before->v_packed, after->v_packed, &begin, &end);
    quantize_values(plan, part, index, head, begin, end);
}

/* The first slab of which the step quantizes anything. */
static uint64_t first_slab(const struct kivi_step_item *item)
{
    return min_u64(item->before.k_packed, item->before.v_packed) / KIVI_SLAB * KIVI_SLAB;
}

/* What only appends is quantized as well, as soon as its rows are known to be finite: that is not visible yet. */
static void stage_slab(struct kivi_plan *plan, struct kivi_part *part, size_t index, uint32_t head,
                       uint64_t slab)
{
    const struct kivi_geometry *g = plan->step->geometry;
    const struct kivi_step_item *item = &plan->step->items[index];
    const uint64_t old = item->before.n;
    struct kivi_staged rows;
    uint64_t begin, end;

    clip(slab, old, item->after.n, &begin, &end);
    part->slab.begin = begin;
    part->slab.end = end;
    rows = kivi_staged_rows(plan, part, index, head);
    stage_rows(plan, part, index, &item->io.k, head, begin - old, end - old,
               rows.k + (size_t)(begin - rows.begin) * g->k_dim, g->k_dim, "k");
    stage_rows(plan, part, index, &item->io.v, head, begin - old, end - old,
               rows.v + (size_t)(begin - rows.begin) * g->v_dim, g->v_dim, "v");
    if (kivi_only_appends(item) && !part->bad_name)
        quantize_slab(plan, part, index, head, slab);
}

void kivi_stage_part(struct kivi_plan *plan, uint32_t part)
{
    const struct kivi_step *step = plan->step;
    uint64_t turn = 0, slab;
    uint32_t head;
    size_t i;

    for (i = 0; i < step->n_items; i++) {
        const struct kivi_step_item *item = &step->items[i];

        if (item->io.n_new == 0)
            continue;
        for (slab = kivi_only_appends(item) ? first_slab(item)
                                            : item->before.n / KIVI_SLAB * KIVI_SLAB;
             slab < item->after.n; slab += KIVI_SLAB) {
            for (head = 0; head < step->geometry->n_kv_heads; head++) {
                if (turn++ % step->n_parts == part)
                    stage_slab(plan, &plan->parts[part], i, head, slab);
            }
        }
    }
}

void kivi_quantize_part(struct kivi_plan *plan, uint32_t part)
{
    const struct kivi_step *step = plan->step;
    uint64_t turn = 0, slab;
    uint32_t head;
    size_t i;

    for (i = 0; i < step->n_items; i++) {
        const struct kivi_step_item *item = &step->items[i];
        const uint64_t last = max_u64(item->after.k_packed, item->after.v_packed);

        if (kivi_only_appends(item))
            continue;
        for (slab = first_slab(item); slab < last; slab += KIVI_SLAB) {
            for (head = 0; head < step->geometry->n_kv_heads; head++) {
                if (turn++ % step->n_parts == part)
                    quantize_slab(plan, &plan->parts[part], i, head, slab);
            }
        }
    }
}

/* New tokens [begin, end) to rows that lie one after the other: from the input again if the item only appends, since its
 * staged rows were not kept. */
static void store_rows(const struct kivi_plan *plan, const struct kivi_step_item *item,
                       const kivi_in *in, uint32_t head, const uint16_t *staged, uint64_t begin,
                       uint64_t end, uint16_t *to, uint32_t dim)
{
    const uint64_t old = item->before.n;

    if (kivi_only_appends(item))
        convert_rows(plan, in, head, begin - old, end - old, to, dim);
    else
        memcpy(to, staged + (size_t)(begin - old) * dim, (size_t)(end - begin) * dim * 2);
}

/* The new keys or values of a head to its sinks and its ring, `length` rows long. */
static void store_side(const struct kivi_plan *plan, const struct kivi_step_item *item,
                       const kivi_in *in, uint32_t head, const uint16_t *staged, uint16_t *sinks,
                       uint16_t *ring, uint32_t length, uint32_t dim)
{
    const uint64_t old = item->before.n, n = item->after.n, n_sink = plan->step->geometry->n_sink;
    uint64_t t, end;

    if (old < n_sink)
        store_rows(plan, item, in, head, staged, old, min_u64(n, n_sink), sinks + old * dim, dim);
    for (t = max_u64(old, n > length ? n - length : 0); t < n; t = end) {
        end = min_u64(n, (t / length + 1) * length);
        store_rows(plan, item, in, head, staged, t, end, ring + t % length * dim, dim);
    }
}

static void store_head(const struct kivi_plan *plan, size_t index, uint32_t head)
{
    const struct kivi_geometry *g = plan->step->geometry;
    const struct kivi_step_item *item = &plan->step->items[index];
    const struct kivi_staged rows = kivi_staged_rows(plan, plan->parts, index, head);

    store_side(plan, item, &item->io.k, head, rows.k, kivi_sink_key(g, item->window, head, 0),
               kivi_window_key(g, item->window, head, 0), g->k_ring, g->k_dim);
    store_side(plan, item, &item->io.v, head, rows.v, kivi_sink_value(g, item->window, head, 0),
               kivi_window_value(g, item->window, head, 0), g->v_ring, g->v_dim);
}

void kivi_store(struct kivi_plan *plan)
{
    const struct kivi_step *step = plan->step;
    uint32_t head;
    size_t i;

    for (i = 0; i < step->n_items; i++)
        for (head = 0; step->items[i].io.n_new && head < step->geometry->n_kv_heads; head++)
            store_head(plan, i, head);
}
