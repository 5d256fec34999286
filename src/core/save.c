/* Writing sequences in the format of docs/format.md. */
#include <string.h>

#include "../cpu/kernels.h"
#include "crc32c.h"
#include "format.h"
#include "registry.h"

#define BUFFER_BYTES ((size_t)1 << 18)

/* The callback behind a buffer, with the checksum of the section at hand. */
struct writer {
    struct kivi_cache *cache;
    kivi_write_fn write;
    void *context;
    unsigned char *buffer; /* BUFFER_BYTES */
    size_t used;
    const struct kivi_kernels *kernels;
    uint32_t crc;
    size_t
        unsummed; /* bytes at the buffer's start that are in the checksum already, or not to be */
};

static kivi_status flush(struct writer *w, kivi_error *error)
{
    w->crc = w->kernels->crc32c(w->crc, w->buffer + w->unsummed, w->used - w->unsummed);
    w->unsummed = 0;
    if (w->used && w->write(w->context, w->buffer, w->used) != 0)
        return kivi_fail(error, KIVI_ERROR_IO, "the write callback failed");
    w->used = 0;
    return KIVI_OK;
}

/* Room for `bytes` more in the buffer; bytes is at most BUFFER_BYTES. */
static kivi_status need(struct writer *w, size_t bytes, kivi_error *error)
{
    return w->used + bytes > BUFFER_BYTES ? flush(w, error) : KIVI_OK;
}

static kivi_status put(struct writer *w, const void *data, size_t bytes, kivi_error *error)
{
    const kivi_status status = need(w, bytes, error);

    if (status == KIVI_OK) {
        memcpy(w->buffer + w->used, data, bytes);
        w->used += bytes;
    }
    return status;
}

static void begin_section(struct writer *w)
{
    w->crc = 0;
    w->unsummed = w->used;
}

static kivi_status end_section(struct writer *w, kivi_error *error)
{
    unsigned char crc[4];
    kivi_status status;

    w->crc = w->kernels->crc32c(w->crc, w->buffer + w->unsummed, w->used - w->unsummed);
    kivi_put32(crc, w->crc);
    w->unsummed = w->used;
    status = put(w, crc, sizeof crc, error);
    w->unsummed = w->used;
    return status;
}

/* Clears tokens count .. 31 of a value block, which may be left from tokens that were truncated. */
static void clear_rest(const struct kivi_layout *l, void *block, uint32_t count)
{
    const uint32_t n = 32 / l->bits;
    uint32_t t, c, g, shift;

    for (t = count; t < l->tokens; t++) {
        if (l->bits == 16) {
            memset((char *)block + (size_t)t * l->dim * 2, 0, (size_t)l->dim * 2);
            continue;
        }
        shift = kivi_code_shift(l->bits, t % n);
        for (c = 0; c < l->dim_pad; c++)
            ((uint32_t *)block)[(size_t)(t / n) * l->dim_pad + c] &=
                ~(((1u << l->bits) - 1u) << shift);
        for (g = 0; g < l->n_groups; g++) {
            kivi_scales(l, block)[g * KIVI_TILE + t] = 0;
            kivi_minima(l, block)[g * KIVI_TILE + t] = 0;
        }
    }
}

/* kivi_format_visit */
static kivi_status put_block(void *writer, const struct kivi_layout *l, void *block,
                             uint32_t tokens, kivi_error *error)
{
    struct writer *w = writer;
    const struct kivi_backend *backend = w->cache->backend;
    unsigned char *to;
    kivi_status status = need(w, l->block_bytes, error);

    if (status != KIVI_OK)
        return status;
    to = w->buffer + w->used;
    /* The buffer is aligned and every piece of a section a multiple of 4 bytes. */
    status = backend->block_read(w->cache->context, to, block, 0, l->block_bytes, error);
    if (status != KIVI_OK)
        return status;
    if (tokens < l->tokens)
        clear_rest(l, to, tokens);
    kivi_format_swap(to, l->bits == 16 ? 0 : l->code_bytes,
                     l->bits == 16 ? l->block_bytes : 2 * (size_t)l->scale_bytes);
    w->used += l->block_bytes;
    return KIVI_OK;
}

static kivi_status put_row(struct writer *w, const uint16_t *row, uint32_t dim, kivi_error *error)
{
    kivi_status status = need(w, (size_t)dim * 2, error);

    if (status == KIVI_OK)
        status = w->cache->backend->block_read(w->cache->context, w->buffer + w->used, row, 0,
                                               (size_t)dim * 2, error);
    if (status == KIVI_OK) {
        kivi_format_swap(w->buffer + w->used, 0, (size_t)dim * 2);
        w->used += (size_t)dim * 2;
    }
    return status;
}

static kivi_status put_rows(struct writer *w, const struct kivi_layer *layer, uint32_t head,
                            kivi_error *error)
{
    const struct kivi_geometry *g = &w->cache->geometry;
    void *window = layer->window->memory;
    const uint64_t n = layer->span.n, sinks = n < g->n_sink ? n : g->n_sink;
    uint64_t t;
    kivi_status status = KIVI_OK;

    for (t = 0; t < sinks && status == KIVI_OK; t++)
        status = put_row(w, kivi_sink_key(g, window, head, t), g->k_dim, error);
    for (t = 0; t < sinks && status == KIVI_OK; t++)
        status = put_row(w, kivi_sink_value(g, window, head, t), g->v_dim, error);
    for (t = layer->k_low; t < n && status == KIVI_OK; t++)
        status = put_row(w, kivi_window_key(g, window, head, t), g->k_dim, error);
    for (t = layer->v_low; t < n && status == KIVI_OK; t++)
        status = put_row(w, kivi_window_value(g, window, head, t), g->v_dim, error);
    return status;
}

static kivi_status put_layer(struct writer *w, uint32_t index, const struct kivi_layer *layer,
                             kivi_error *error)
{
    const struct kivi_saved_layer saved = kivi_saved_layer_of(w->cache, index, layer);
    unsigned char record[KIVI_LAYER_BYTES];
    uint64_t slab;
    uint32_t head;
    kivi_status status;

    kivi_format_layer(&saved, record);
    status = put(w, record, sizeof record, error);
    begin_section(w);
    for (slab = 0; slab < layer->span.k_packed && status == KIVI_OK; slab += KIVI_FORMAT_SLAB)
        status = kivi_format_slab(&w->cache->geometry, index, layer, slab, put_block, w, error);
    for (head = 0; layer->window && head < w->cache->geometry.n_kv_heads && status == KIVI_OK;
         head++)
        status = put_rows(w, layer, head, error);
    return status == KIVI_OK ? end_section(w, error) : status;
}

static kivi_status put_sequence(struct writer *w, const struct kivi_sequence *sequence,
                                kivi_error *error)
{
    unsigned char record[KIVI_SEQUENCE_BYTES];
    uint32_t i;
    kivi_status status;

    kivi_put64(record, sequence->id);
    kivi_put32(record + 8, kivi_crc32c(0, record, 8));
    status = put(w, record, sizeof record, error);
    for (i = 0; i < w->cache->geometry.n_layers && status == KIVI_OK; i++)
        status = put_layer(w, i, &sequence->layers[i], error);
    return status;
}

/* Marks a sequence as being read, so that it cannot change while it is written without the lock. */
static void mark_reading(const struct kivi_cache *cache, struct kivi_sequence *sequence, int begin)
{
    uint32_t i;

    for (i = 0; i < cache->geometry.n_layers; i++)
        sequence->layers[i].readers += begin ? 1u : -1u;
}

static kivi_status save(kivi_cache *cache, struct kivi_sequence *const *sequences, size_t n,
                        kivi_write_fn write, void *context, kivi_error *error)
{
    struct writer w = {.cache = cache,
                       .write = write,
                       .context = context,
                       .kernels = kivi_host_kernels(cache->backend)};
    unsigned char header[KIVI_HEADER_BYTES];
    kivi_status status;
    size_t i;

    w.buffer = kivi_heap_alloc(&cache->heap, BUFFER_BYTES, 0);
    if (!w.buffer)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a buffer of %zu bytes",
                         BUFFER_BYTES);
    kivi_format_header(&cache->geometry, n, header);
    status = put(&w, header, sizeof header, error);
    for (i = 0; i < n && status == KIVI_OK; i++)
        status = put_sequence(&w, sequences[i], error);
    if (status == KIVI_OK)
        status = flush(&w, error);
    kivi_heap_free(&cache->heap, w.buffer, BUFFER_BYTES);
    return status;
}

kivi_status kivi_seq_save(const kivi_cache *cache, kivi_seq seq, kivi_write_fn write, void *context,
                          kivi_error *error)
{
    kivi_cache *c = (kivi_cache *)cache; /* marking is bookkeeping */
    struct kivi_sequence *sequence;
    kivi_status status;
    KIVI_DETAIL(error);

    if (!cache || !write)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "write" : "cache");
    kivi_lock_take(&c->lock);
    sequence = kivi_sequence_find(c, seq, error);
    status = sequence ? kivi_sequence_idle(c, sequence, 0, error) : error->status;
    if (status == KIVI_OK)
        mark_reading(c, sequence, 1);
    kivi_lock_release(&c->lock);
    if (status != KIVI_OK)
        return status;
    status = save(c, &sequence, 1, write, context, error);
    kivi_lock_take(&c->lock);
    mark_reading(c, sequence, 0);
    kivi_lock_release(&c->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

kivi_status kivi_cache_save(const kivi_cache *cache, kivi_write_fn write, void *context,
                            kivi_error *error)
{
    kivi_cache *c = (kivi_cache *)cache;
    struct kivi_sequence **sequences;
    size_t n = 0, i;
    uint32_t slot;
    kivi_status status = KIVI_OK;
    KIVI_DETAIL(error);

    if (!cache || !write)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "write" : "cache");
    sequences = kivi_heap_alloc(&c->heap, c->max_sequences * sizeof *sequences, 0);
    if (!sequences)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to save a cache");
    kivi_lock_take(&c->lock);
    for (slot = 0; slot < c->max_sequences && status == KIVI_OK; slot++) {
        if (!c->sequences[slot])
            continue;
        status = kivi_sequence_idle(c, c->sequences[slot], 0, error);
        if (status == KIVI_OK)
            sequences[n++] = c->sequences[slot];
    }
    for (i = 0; i < n && status == KIVI_OK; i++)
        mark_reading(c, sequences[i], 1);
    kivi_lock_release(&c->lock);
    if (status == KIVI_OK) {
        status = save(c, sequences, n, write, context, error);
        kivi_lock_take(&c->lock);
        for (i = 0; i < n; i++)
            mark_reading(c, sequences[i], 0);
        kivi_lock_release(&c->lock);
    }
    kivi_heap_free(&c->heap, sequences, c->max_sequences * sizeof *sequences);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

kivi_status kivi_seq_save_size(const kivi_cache *cache, kivi_seq seq, uint64_t *bytes,
                               kivi_error *error)
{
    kivi_cache *c = (kivi_cache *)cache;
    const struct kivi_sequence *sequence;
    uint32_t i;
    KIVI_DETAIL(error);

    if (!cache || !bytes)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "bytes" : "cache");
    kivi_lock_take(&c->lock);
    sequence = kivi_sequence_find(c, seq, error);
    if (sequence) {
        *bytes = KIVI_HEADER_BYTES + KIVI_SEQUENCE_BYTES;
        for (i = 0; i < c->geometry.n_layers; i++)
            *bytes +=
                KIVI_LAYER_BYTES + kivi_saved_layer_of(c, i, &sequence->layers[i]).payload + 4;
    }
    kivi_lock_release(&c->lock);
    return sequence ? kivi_succeed(error) : error->status;
}
