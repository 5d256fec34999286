/*
 * A step from the host's side. begin takes memory; end launches everything at once: checks, attention,
 * append. If the caller's arrays are on the device, it returns without waiting. If they are on the
 * host, they go through a staging buffer, nothing is appended unless all is finite, and end waits.
 */
#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#include "context.cuh"

namespace {

constexpr uint32_t MAX_GRID = 65535; /* blocks in y and z */

/* A step between begin and end, in one allocation. */
struct pending {
    kivi_cuda_step args;
    size_t bytes;
    unsigned char *tables; /* items, then pages, as the kernels see them */
    size_t table_bytes;
    unsigned char *staging; /* inputs, then outputs, as they will stand on the device */
    size_t input_bytes, staging_bytes;
    kivi_cuda_work work;
    uint32_t max_new;
};

/* Hands out 16-byte aligned pieces of a buffer; with base NULL it only adds up. */
struct carver {
    unsigned char *base;
    size_t at;

    unsigned char *take(size_t bytes)
    {
        unsigned char *piece = base ? base + at : NULL;

        at += (bytes + 15) / 16 * 16;
        return piece;
    }
};

size_t size_of(kivi_dtype type)
{
    return type == KIVI_F32 ? 4 : 2;
}

size_t bytes_of(uint64_t tokens, uint32_t heads, uint32_t dim, kivi_dtype type)
{
    return (size_t)tokens * heads * dim * size_of(type);
}

/* ------------------------------------------------------------ host's arrays */

/* Copies rows [tokens][heads][dim] between a caller's strides and a dense array. */
void copy_rows(char *dense, char *strided, int64_t token_stride, int64_t head_stride, uint64_t tokens,
               uint32_t heads, size_t row_bytes, size_t size, bool to_dense)
{
    for (uint64_t t = 0; t < tokens; t++)
        for (uint32_t h = 0; h < heads; h++) {
            char *row = strided
                        + ((int64_t)t * token_stride + (int64_t)h * head_stride) * (int64_t)size;

            memcpy(to_dense ? dense : row, to_dense ? row : dense, row_bytes);
            dense += row_bytes;
        }
}

void gather(unsigned char *to, const kivi_in *from, uint64_t tokens, uint32_t heads, uint32_t dim)
{
    const size_t size = size_of(from->dtype);

    copy_rows((char *)to, (char *)const_cast<void *>(from->data), from->token_stride,
              from->head_stride, tokens, heads, dim * size, size, true);
}

void scatter(unsigned char *from, const kivi_out *to, uint64_t tokens, uint32_t heads, uint32_t dim)
{
    const size_t size = size_of(to->dtype);

    copy_rows((char *)from, (char *)to->data, to->token_stride, to->head_stride, tokens, heads,
              dim * size, size, false);
}

/* Where everything of the host's stands in staging. With `host`, the inputs are copied there; with
 * `device`, items and arguments point into that copy; with neither, only the sizes are found. */
void stage(const kivi_step *step, pending *p, unsigned char *host, unsigned char *device)
{
    const kivi_geometry *g = step->geometry;
    kivi_cuda_item *items = (kivi_cuda_item *)p->tables;
    carver c = {host ? host : device, 0};
    const size_t sinks = step->attention.sink_logits ? g->n_q_heads * sizeof(float) : 0;
    unsigned char *at = c.take(sinks);

    if (host && sinks)
        memcpy(at, step->attention.sink_logits, sinks);
    if (device)
        p->args.sink_logits = sinks ? (const float *)at : NULL;
    for (size_t i = 0; i < step->n_items; i++) {
        const kivi_item *io = &step->items[i].io;
        const uint64_t n_q = io->n_q, n_new = io->n_new;
        unsigned char *q = c.take(bytes_of(n_q, g->n_q_heads, g->k_dim, io->q.dtype));
        unsigned char *k = c.take(bytes_of(n_new, g->n_kv_heads, g->k_dim, io->k.dtype));
        unsigned char *v = c.take(bytes_of(n_new, g->n_kv_heads, g->v_dim, io->v.dtype));

        if (host) {
            gather(q, &io->q, n_q, g->n_q_heads, g->k_dim);
            gather(k, &io->k, n_new, g->n_kv_heads, g->k_dim);
            gather(v, &io->v, n_new, g->n_kv_heads, g->v_dim);
        } else if (device) {
            items[i].q = q;
            items[i].k = k;
            items[i].v = v;
            items[i].q_head = items[i].k_head = g->k_dim;
            items[i].v_head = items[i].out_head = g->v_dim;
            items[i].q_token = (int64_t)g->n_q_heads * g->k_dim;
            items[i].k_token = (int64_t)g->n_kv_heads * g->k_dim;
            items[i].v_token = (int64_t)g->n_kv_heads * g->v_dim;
            items[i].out_token = (int64_t)g->n_q_heads * g->v_dim;
        }
    }
    p->input_bytes = c.at;
    for (size_t i = 0; i < step->n_items; i++) {
        const kivi_item *io = &step->items[i].io;
        unsigned char *out = c.take(bytes_of(io->n_q, g->n_q_heads, g->v_dim, io->out.dtype));
        unsigned char *lse = c.take(io->lse ? (size_t)io->n_q * g->n_q_heads * sizeof(float) : 0);

        if (device) {
            items[i].out = out;
            items[i].lse = io->lse ? (float *)lse : NULL;
        }
    }
    p->staging_bytes = c.at;
}

/* Results from staging to the host's arrays. */
void unstage(const kivi_step *step, pending *p)
{
    const kivi_geometry *g = step->geometry;
    carver c = {p->staging, p->input_bytes};

    for (size_t i = 0; i < step->n_items; i++) {
        const kivi_item *io = &step->items[i].io;
        const size_t lse_bytes = io->lse ? (size_t)io->n_q * g->n_q_heads * sizeof(float) : 0;
        unsigned char *out = c.take(bytes_of(io->n_q, g->n_q_heads, g->v_dim, io->out.dtype));
        unsigned char *lse = c.take(lse_bytes);

        scatter(out, &io->out, io->n_q, g->n_q_heads, g->v_dim);
        if (lse_bytes)
            memcpy(io->lse, lse, lse_bytes);
    }
}

/* ------------------------------------------------------------------- tables */

size_t pages_of(const kivi_step *step, const kivi_step_item *item)
{
    const uint32_t page_tokens = step->geometry->layers[step->layer].page_tokens;

    return (size_t)((item->after.k_packed + page_tokens - 1) / page_tokens);
}

void fill_item(const kivi_step_item *from, kivi_cuda_item *item)
{
    const kivi_item *io = &from->io;

    item->q = io->q.data;
    item->k = io->k.data;
    item->v = io->v.data;
    item->out = io->out.data;
    item->lse = io->lse;
    item->q_token = io->q.token_stride;
    item->q_head = io->q.head_stride;
    item->k_token = io->k.token_stride;
    item->k_head = io->k.head_stride;
    item->v_token = io->v.token_stride;
    item->v_head = io->v.head_stride;
    item->out_token = io->out.token_stride;
    item->out_head = io->out.head_stride;
    item->window = (unsigned char *)from->window;
    item->n_old = from->before.n;
    item->n = from->after.n;
    item->k_packed = from->before.k_packed;
    item->v_packed = from->before.v_packed;
    item->k_after = from->after.k_packed;
    item->v_after = from->after.v_packed;
    item->q_position = from->q_position;
    item->n_new = (uint32_t)io->n_new;
    item->n_q = (uint32_t)io->n_q;
    item->q_type = (uint8_t)io->q.dtype;
    item->k_type = (uint8_t)io->k.dtype;
    item->v_type = (uint8_t)io->v.dtype;
    item->out_type = (uint8_t)io->out.dtype;
}

void fill_tables(const kivi_step *step, pending *p)
{
    kivi_cuda_item *items = (kivi_cuda_item *)p->tables;
    void **pages = (void **)(p->tables + p->args.pages_at);
    uint32_t n_pages = 0;

    for (size_t i = 0; i < step->n_items; i++) {
        const kivi_step_item *from = &step->items[i];
        const size_t n = pages_of(step, from);

        fill_item(from, &items[i]);
        items[i].page = n_pages;
        if (n)
            memcpy(pages + n_pages, from->pages, n * sizeof *pages);
        n_pages += (uint32_t)n;
        if (from->io.n_new > p->max_new)
            p->max_new = (uint32_t)from->io.n_new;
    }
}

void fill_args(const kivi_step *step, bool overlap, kivi_cuda_step *s)
{
    const kivi_geometry *g = step->geometry;
    const kivi_layer_geometry *l = &g->layers[step->layer];

    s->k = l->k;
    s->v = l->v;
    s->page_v_offset = l->page_v_offset;
    s->page_head_stride = l->page_head_stride;
    s->page_tokens = l->page_tokens;
    s->window_head_stride = g->window_head_stride;
    s->window_sink_v = g->window_sink_v;
    s->window_k = g->window_k;
    s->window_v = g->window_v;
    s->k_ring = kivi_cuda_make_divisor(g->k_ring);
    s->v_ring = kivi_cuda_make_divisor(g->v_ring);
    s->n_sink = g->n_sink;
    s->n_q_heads = g->n_q_heads;
    s->n_kv_heads = g->n_kv_heads;
    s->heads_per_kv = kivi_cuda_make_divisor(g->heads_per_kv);
    s->units_per_page = kivi_cuda_make_divisor(l->page_tokens / KIVI_CUDA_UNIT);
    s->n_items = (uint32_t)step->n_items;
    s->precise = step->attention.precision == KIVI_PRECISE;
    s->scale = step->attention.scale;
    s->softcap = step->attention.softcap;
    if (s->softcap > 0) /* it has an inverse, and is finite times 1.44 */
        s->softcap = fminf(fmaxf(s->softcap, FLT_MIN), FLT_MAX / 2);
    s->window = step->attention.window;
    s->sink_logits = step->attention.sink_logits;
    s->overlap = overlap;
}

/* The host's memory of a step: sizes first, then the allocation. */
pending *new_pending(const kivi_cuda_context *c, const kivi_step *step)
{
    const size_t item_bytes = (step->n_items * sizeof(kivi_cuda_item) + 15) / 16 * 16;
    const size_t n_starts = (size_t)c->paths[step->layer].small.max_parts + 1; /* large parts are fewer */
    const size_t start_bytes = (n_starts * sizeof(kivi_cuda_start) + 15) / 16 * 16;
    size_t n_pages = 0;
    pending sizes = {}, *p;
    carver carve = {NULL, 0};

    for (size_t i = 0; i < step->n_items; i++)
        n_pages += pages_of(step, &step->items[i]);
    sizes.args.starts_at = (uint32_t)item_bytes;
    sizes.args.pages_at = (uint32_t)(item_bytes + start_bytes);
    sizes.table_bytes = item_bytes + start_bytes + (n_pages * sizeof(void *) + 15) / 16 * 16;
    if (!c->on_device)
        stage(step, &sizes, NULL, NULL);
    if (sizes.table_bytes > UINT32_MAX) /* offsets there have 32 bits */
        return NULL;
    carve.take(sizeof sizes);
    carve.take(sizes.table_bytes);
    carve.take(sizes.staging_bytes);
    sizes.bytes = carve.at;
    carve.base = (unsigned char *)c->allocator.alloc(c->allocator.context, sizes.bytes, 64);
    if (!carve.base)
        return NULL;
    carve.at = 0;
    p = (pending *)carve.take(sizeof sizes);
    *p = sizes;
    p->tables = carve.take(sizes.table_bytes);
    p->staging = carve.take(sizes.staging_bytes);
    memset(p->tables, 0, sizes.table_bytes);
    fill_args(step, c->overlap, &p->args);
    fill_tables(step, p);
    return p;
}

/* ---------------------------------------------------------------- the order */

/* Fills in the parts; false if there is too much for one call. */
bool divide(const kivi_step *step, const kivi_cuda_path *path, pending *p)
{
    kivi_cuda_item *items = (kivi_cuda_item *)p->tables;

    if (!kivi_cuda_find_work(step, items, path->many_blocks, &p->work))
        return false;
    if (p->work.n_tasks) {
        const kivi_cuda_split *split = kivi_cuda_choose_split(path, &p->work);

        p->args.n_warps = split->n_warps;
        p->args.n_parts = kivi_cuda_divide_work(&p->args, items, &p->work, split,
                                                (kivi_cuda_start *)(p->tables + p->args.starts_at));
    }
    return true;
}

kivi_status reserve(kivi_cuda_context *c, const kivi_step *step, pending *p, kivi_error *error)
{
    const size_t partial = KIVI_CUDA_ROWS * (step->geometry->v_dim + 2) * sizeof(float);
    kivi_status status = KIVI_OK;

    if (p->args.n_parts > 1) {
        status = kivi_cuda_reserve(c, &c->partials, 2 * partial * (size_t)p->args.n_parts, false, error);
        if (status == KIVI_OK)
            status = kivi_cuda_reserve(c, &c->arrivals,
                                       (size_t)p->args.n_parts * KIVI_CUDA_ROWS * sizeof(uint32_t), true,
                                       error);
    }
    if (status == KIVI_OK && p->work.many.n_partials)
        status = kivi_cuda_reserve(
            c, &c->many_partials,
            p->work.many.n_partials * kivi_cuda_many_floats(step->geometry->v_dim) * sizeof(float), false, error);
    if (status == KIVI_OK && p->table_bytes > KIVI_CUDA_INLINE)
        status = kivi_cuda_reserve(c, &c->tables, p->table_bytes, false, error);
    if (status == KIVI_OK && !c->on_device)
        status = kivi_cuda_reserve(c, &c->staging, p->staging_bytes, false, error);
    return status;
}

/* What the device reported, and forgets. Items are those of the call that it worked on, this one or an earlier one. */
kivi_status take_bad(kivi_cuda_context *c, bool earlier, kivi_error *error)
{
    static const char *const names[] = {"q", "k", "v", "?"};
    const unsigned long long bad = *c->bad, item = bad >> 34;
    kivi_status status;

    if (bad == KIVI_CUDA_NOT_BAD)
        return KIVI_OK;
    *c->bad = KIVI_CUDA_NOT_BAD;
    status = kivi_fail(error, KIVI_ERROR_NOT_FINITE, "%sitems[%llu].%s: token %llu is not finite%s",
                       earlier ? "in an earlier call, " : "", item, names[bad & 3], bad >> 2 & 0xffffffff,
                       (bad & 3) == 0 ? "" : " in f16");
    return earlier ? status : kivi_blame_item(error, status, (size_t)item);
}

cudaError_t launch(kivi_cuda_context *c, const kivi_step *step, pending *p, const kivi_cuda_target &to)
{
    const cudaStream_t stream = to.stream;
    kivi_cuda_news *last = kivi_cuda_find_last(c, to), now;
    kivi_cuda_step *s = &p->args;
    kivi_cuda_append_plan append;
    cudaError_t code = cudaSuccess;

    s->partials = (float *)c->partials.memory;
    s->arrivals = (uint32_t *)c->arrivals.memory;
    s->bad = c->bad_on_device;
    s->gate = c->on_device ? NULL : c->bad_on_device;
    if (!c->on_device) {
        stage(step, p, p->staging, NULL);
        stage(step, p, NULL, (unsigned char *)c->staging.memory);
        code = cudaMemcpyAsync(c->staging.memory, p->staging, p->input_bytes, cudaMemcpyHostToDevice,
                               stream);
    }
    now = kivi_cuda_settle(*last, step, (kivi_cuda_item *)p->tables);
    *last = {now.k > last->k ? now.k : last->k, now.v > last->v ? now.v : last->v}; /* until all is launched */
    append = kivi_cuda_plan_append(s, (kivi_cuda_item *)p->tables);
    if (p->table_bytes <= KIVI_CUDA_INLINE) {
        memcpy(s->in_place, p->tables, p->table_bytes);
    } else if (code == cudaSuccess) {
        s->tables = c->tables.memory;
        code = kivi_cuda_upload(c->tables.memory, p->tables, p->table_bytes, stream, s->overlap);
    }
    if (code == cudaSuccess && p->max_new && !c->on_device)
        code = kivi_cuda_check(s, p->max_new, stream);
    if (code == cudaSuccess && p->work.many.n_blocks)
        code = c->paths[step->layer].attend_many(s, &p->work.many, (float *)c->many_partials.memory, stream);
    if (code == cudaSuccess && p->work.n_tasks)
        code = c->paths[step->layer].attend(s, stream);
    if (code == cudaSuccess && p->max_new)
        code = kivi_cuda_append(s, &append, p->work.n_tasks > 0, stream);
    if (code == cudaSuccess && !c->on_device && p->staging_bytes > p->input_bytes)
        code = cudaMemcpyAsync(p->staging + p->input_bytes,
                               (char *)c->staging.memory + p->input_bytes,
                               p->staging_bytes - p->input_bytes, cudaMemcpyDeviceToHost, stream);
    if (code == cudaSuccess && (s->tables || p->max_new || p->work.many.n_blocks || p->work.n_tasks))
        *last = now; /* else no kernel of this call is between that one's and the next's */
    return code;
}

kivi_status apply_step(kivi_cuda_context *c, const kivi_step *step, pending *p, kivi_error *error)
{
    const kivi_cuda_target to = kivi_cuda_find_target((cudaStream_t)step->attention.stream);
    kivi_status status;
    cudaError_t code, noted;

    if (to.captured && !c->on_device)
        return kivi_fail(error, KIVI_ERROR_UNSUPPORTED,
                         "a call on arrays in host memory cannot be captured in a graph");
    code = kivi_cuda_wait_for_others(c, to);
    if (code == cudaSuccess)
        code = launch(c, step, p, to);
    if (!c->on_device) {
        const cudaError_t waited = cudaStreamSynchronize(to.stream);

        status = kivi_cuda_status(code != cudaSuccess ? code : waited, "kivi_run on the device",
                                  error);
        if (status == KIVI_OK)
            status = take_bad(c, false, error);
        if (status == KIVI_OK)
            unstage(step, p);
        return status;
    }
    noted = kivi_cuda_note_step(c, to);
    return kivi_cuda_status(code != cudaSuccess ? code : noted, "kivi_run on the device", error);
}

} // namespace

kivi_status kivi_cuda_begin(void *context, struct kivi_step *step, kivi_error *error)
{
    kivi_cuda_context *c = (kivi_cuda_context *)context;
    const kivi_cuda_path *path = &c->paths[step->layer];
    const kivi_cuda_guard guard(c);
    kivi_status status = kivi_cuda_check_stream(c, (cudaStream_t)step->attention.stream, error);
    pending *p;

    if (status != KIVI_OK)
        return status;
    step->scratch = NULL;
    step->n_parts = 1;
    step->n_phases = 1;
    if (step->n_items > MAX_GRID || 2 * (uint64_t)step->geometry->n_kv_heads > MAX_GRID)
        return kivi_fail(error, KIVI_ERROR_UNSUPPORTED,
                         "the CUDA backend takes at most %u items and %u kv heads in a call", MAX_GRID,
                         MAX_GRID / 2);
    p = new_pending(c, step);
    if (!p)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no scratch memory for this call");
    kivi_lock_take(&c->lock);
    status = c->on_device ? take_bad(c, true, error) : KIVI_OK;
    if (status == KIVI_OK && !divide(step, path, p))
        status = kivi_fail(error, KIVI_ERROR_UNSUPPORTED, "too many queries for one call");
    if (status == KIVI_OK)
        status = reserve(c, step, p, error);
    kivi_lock_release(&c->lock);
    if (status != KIVI_OK) {
        c->allocator.release(c->allocator.context, p, p->bytes);
        return status;
    }
    step->scratch = p;
    return KIVI_OK;
}

/* The device has its own parts; the one of the host has nothing to do. */
void kivi_cuda_part(void *, struct kivi_step *, uint32_t, uint32_t) {}

kivi_status kivi_cuda_end(void *context, struct kivi_step *step, int apply, kivi_error *error)
{
    kivi_cuda_context *c = (kivi_cuda_context *)context;
    pending *p = (pending *)step->scratch;
    kivi_status status = KIVI_OK;

    if (apply && step->n_items) {
        const kivi_cuda_guard guard(c);

        kivi_lock_take(&c->lock);
        status = apply_step(c, step, p, error);
        kivi_lock_release(&c->lock);
    }
    c->allocator.release(c->allocator.context, p, p->bytes);
    step->scratch = NULL;
    return status;
}
