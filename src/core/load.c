/*
 * Reading sequences in the format of docs/format.md. Nothing in the data is believed: lengths are
 * checked against each other and the geometry, memory is taken as the data that fills it arrives, and
 * sequences appear once all of them have been read and every checksum held.
 */
#include <string.h>

#include "../cpu/kernels.h"
#include "crc32c.h"
#include "format.h"
#include "half.h"
#include "registry.h"

#define BUFFER_BYTES ((size_t)1 << 18)
#define MAX_HEAD_TOKENS ((uint64_t)1 << 52) /* tokens times kv heads: sizes then fit 64 bits */
#define MAX_ROWS ((uint64_t)1 << 14)        /* of a ring, whatever the writer's rollback was */

struct reader {
    kivi_cache *cache;
    kivi_read_fn read;
    void *context;
    unsigned char *buffer; /* BUFFER_BYTES */
    size_t begin, end;     /* what of it has been read and not yet taken */
    uint64_t left;         /* of the section, not yet read */
    const struct kivi_kernels *kernels;
    uint32_t crc;
};

static kivi_status damaged(kivi_error *error, const char *what)
{
    return kivi_fail(error, KIVI_ERROR_FORMAT, "saved data: %s", what);
}

static kivi_status read_bytes(struct reader *r, void *to, size_t bytes, kivi_error *error)
{
    if (r->read(r->context, to, bytes) != 0)
        return kivi_fail(error, KIVI_ERROR_IO, "the read callback failed, or the data ends early");
    return KIVI_OK;
}

/* A record that ends in its own CRC-32C. */
static kivi_status read_record(struct reader *r, unsigned char *record, size_t bytes,
                               const char *what, kivi_error *error)
{
    const kivi_status status = read_bytes(r, record, bytes, error);

    if (status == KIVI_OK && kivi_get32(record + bytes - 4) != kivi_crc32c(0, record, bytes - 4))
        return damaged(error, what);
    return status;
}

/* The next `bytes` bytes of the section, in the buffer until the next call; at most BUFFER_BYTES. */
static kivi_status take(struct reader *r, size_t bytes, unsigned char **data, kivi_error *error)
{
    if (r->end - r->begin < bytes) {
        const size_t kept = r->end - r->begin;
        size_t more = BUFFER_BYTES - kept;
        kivi_status status;

        if (more > r->left)
            more = (size_t)r->left;
        if (kept + more < bytes)
            return damaged(error, "a section is shorter than its lengths say");
        memmove(r->buffer, r->buffer + r->begin, kept);
        status = read_bytes(r, r->buffer + kept, more, error);
        if (status != KIVI_OK)
            return status;
        r->crc = r->kernels->crc32c(r->crc, r->buffer + kept, more);
        r->left -= more;
        r->begin = 0;
        r->end = kept + more;
    }
    *data = r->buffer + r->begin;
    r->begin += bytes;
    return KIVI_OK;
}

static int all_finite(const uint16_t *halves, size_t n)
{
    int finite = 1;
    size_t i;

    for (i = 0; i < n; i++)
        finite &= kivi_f16_is_finite(halves[i]);
    return finite;
}

static int none_negative(const uint16_t *halves, size_t n)
{
    uint16_t all = 0;
    size_t i;

    for (i = 0; i < n; i++)
        all |= halves[i];
    return all >> 15 == 0;
}

/* The largest dequantized number of a block, f16 but for the rounding of its scale. */
#define LARGEST 65600.0f

/* Scales and minima of a block that something can have been quantized to. */
static int are_sound(const struct kivi_layout *l, const void *block)
{
    const uint16_t *scales = kivi_scales_const(l, block), *minima = kivi_minima_const(l, block);
    const float top = (float)((1u << l->bits) - 1);
    const size_t n = l->scale_bytes / sizeof *scales;
    int sound = none_negative(scales, n) && all_finite(scales, n) && all_finite(minima, n);
    size_t i;

    for (i = 0; i < n; i++)
        sound &= kivi_f32_from_f16(minima[i]) + top * kivi_f32_from_f16(scales[i]) <= LARGEST;
    return sound;
}

/* kivi_format_visit */
static kivi_status get_block(void *reader, const struct kivi_layout *l, void *to, uint32_t tokens,
                             kivi_error *error)
{
    struct reader *r = reader;
    unsigned char *data;
    int sound;
    kivi_status status = take(r, l->block_bytes, &data, error);

    (void)tokens; /* the others are zeros */
    if (status != KIVI_OK)
        return status;
    kivi_format_swap(data, l->bits == 16 ? 0 : l->code_bytes,
                     l->bits == 16 ? l->block_bytes : 2 * (size_t)l->scale_bytes);
    sound = l->bits == 16 ? all_finite((const uint16_t *)(void *)data, l->block_bytes / 2)
                          : are_sound(l, data);
    if (!sound)
        return damaged(error, "a number is not finite, or a scale negative or too large");
    return r->cache->backend->block_write(r->cache->context, to, 0, data, l->block_bytes, error);
}

/* n rows, of which those from `first` on are kept, at to(first), to(first + 1), ... */
static kivi_status get_rows(struct reader *r, uint64_t begin, uint64_t end, uint64_t first,
                            uint32_t head, void *window, uint32_t dim,
                            uint16_t *(*to)(const struct kivi_geometry *, void *, uint32_t,
                                            uint64_t),
                            kivi_error *error)
{
    uint64_t t;

    for (t = begin; t < end; t++) {
        unsigned char *data;
        kivi_status status = take(r, (size_t)dim * 2, &data, error);

        if (status != KIVI_OK)
            return status;
        kivi_format_swap(data, 0, (size_t)dim * 2);
        if (!all_finite((const uint16_t *)(void *)data, dim))
            return damaged(error, "a row is not finite");
        if (t >= first)
            status = r->cache->backend->block_write(r->cache->context,
                                                    to(&r->cache->geometry, window, head, t), 0,
                                                    data, (size_t)dim * 2, error);
        if (status != KIVI_OK)
            return status;
    }
    return KIVI_OK;
}

static kivi_status check_layer(const struct reader *r, uint32_t index,
                               const struct kivi_saved_layer *s, kivi_error *error)
{
    const struct kivi_geometry *g = &r->cache->geometry;
    const struct kivi_layer_geometry *l = &g->layers[index];

    if (s->k_bits != l->k.bits || s->v_bits != l->v.bits)
        return kivi_fail(error, KIVI_ERROR_FORMAT,
                         "saved data: layer %u has %u and %u bits, in this cache %u and %u", index,
                         s->k_bits, s->v_bits, l->k.bits, l->v.bits);
    if (s->n > MAX_HEAD_TOKENS / g->n_kv_heads || s->k_base >= g->residual_length
        || s->k_base > s->n || s->k_base % g->group_size
        || s->k_packed != kivi_keys_packed(g, s->n, s->k_base)
        || s->v_packed != kivi_values_packed(g, s->n) || s->k_low > s->k_packed
        || s->v_low > s->v_packed || s->n - s->k_low > MAX_ROWS || s->n - s->v_low > MAX_ROWS
        || s->payload != kivi_payload_bytes(g, index, s))
        return damaged(error, "the lengths of a layer do not fit each other");
    return KIVI_OK;
}

static kivi_status get_payload(struct reader *r, uint32_t index, struct kivi_layer *layer,
                               const struct kivi_saved_layer *s, kivi_error *error)
{
    kivi_cache *cache = r->cache;
    const struct kivi_geometry *g = &cache->geometry;
    const uint32_t page_tokens = g->layers[index].page_tokens;
    const uint64_t sinks = s->n < g->n_sink ? s->n : g->n_sink;
    kivi_status status = KIVI_OK;
    uint64_t slab;
    uint32_t head;

    layer->k_low = max_u64(s->k_low, s->n > g->k_ring ? s->n - g->k_ring : 0);
    layer->v_low = max_u64(s->v_low, s->n > g->v_ring ? s->n - g->v_ring : 0);
    for (slab = 0; slab < s->k_packed && status == KIVI_OK; slab += KIVI_FORMAT_SLAB) {
        if (slab / page_tokens == layer->n_pages) {
            kivi_lock_take(&cache->lock);
            status = kivi_layer_add_page(cache, layer, NULL, error);
            kivi_lock_release(&cache->lock);
        }
        if (status == KIVI_OK)
            status = kivi_format_slab(&r->cache->geometry, index, layer, slab, get_block, r, error);
    }
    if (s->n && status == KIVI_OK) {
        kivi_lock_take(&cache->lock);
        status = kivi_layer_new_window(cache, layer, error);
        kivi_lock_release(&cache->lock);
    }
    for (head = 0; s->n && head < g->n_kv_heads && status == KIVI_OK; head++) {
        void *window = layer->window->memory;

        status = get_rows(r, 0, sinks, 0, head, window, g->k_dim, kivi_sink_key, error);
        if (status == KIVI_OK)
            status = get_rows(r, 0, sinks, 0, head, window, g->v_dim, kivi_sink_value, error);
        if (status == KIVI_OK)
            status = get_rows(r, s->k_low, s->n, layer->k_low, head, window, g->k_dim,
                              kivi_window_key, error);
        if (status == KIVI_OK)
            status = get_rows(r, s->v_low, s->n, layer->v_low, head, window, g->v_dim,
                              kivi_window_value, error);
    }
    return status;
}

static kivi_status get_layer(struct reader *r, uint32_t index, struct kivi_layer *layer,
                             kivi_error *error)
{
    unsigned char record[KIVI_LAYER_BYTES], crc[4];
    struct kivi_saved_layer s;
    kivi_status status =
        read_record(r, record, sizeof record, "the record of a layer is damaged", error);

    if (status != KIVI_OK)
        return status;
    s.k_bits = kivi_get32(record);
    s.v_bits = kivi_get32(record + 4);
    s.n = kivi_get64(record + 8);
    s.k_packed = kivi_get64(record + 16);
    s.v_packed = kivi_get64(record + 24);
    s.k_base = kivi_get64(record + 32);
    s.k_low = kivi_get64(record + 40);
    s.v_low = kivi_get64(record + 48);
    s.payload = kivi_get64(record + 56);
    if (kivi_get32(record + 64) != 0)
        return damaged(error, "a reserved field of a layer is not 0");
    status = check_layer(r, index, &s, error);
    if (status != KIVI_OK)
        return status;
    layer->span.n = s.n;
    layer->span.k_packed = s.k_packed;
    layer->span.v_packed = s.v_packed;
    layer->k_base = s.k_base;
    r->begin = r->end = 0;
    r->left = s.payload;
    r->crc = 0;
    status = get_payload(r, index, layer, &s, error);
    if (status == KIVI_OK)
        status = read_bytes(r, crc, sizeof crc, error);
    if (status == KIVI_OK && kivi_get32(crc) != r->crc)
        status = damaged(error, "the checksum of a layer does not match");
    return status;
}

static kivi_status read_header(struct reader *r, uint64_t *n, kivi_error *error)
{
    unsigned char header[KIVI_HEADER_BYTES], expected[KIVI_HEADER_BYTES];
    const kivi_status status = read_bytes(r, header, sizeof header, error);

    if (status != KIVI_OK)
        return status;
    if (memcmp(header, KIVI_FORMAT_MAGIC, 8) != 0)
        return damaged(error, "this is not a saved cache");
    if (kivi_get32(header + 8) != KIVI_FORMAT_VERSION)
        return kivi_fail(error, KIVI_ERROR_FORMAT, "saved data: version %u, this library reads %u",
                         kivi_get32(header + 8), KIVI_FORMAT_VERSION);
    if (kivi_get32(header + 52) != kivi_crc32c(0, header, 52))
        return damaged(error, "the header is damaged");
    *n = kivi_get64(header + 40);
    kivi_format_header(&r->cache->geometry, *n, expected);
    if (memcmp(header, expected, sizeof header) != 0)
        return kivi_fail(error, KIVI_ERROR_FORMAT,
                         "saved data: %u layers, %u kv heads, dimensions %u and %u, groups of %u, "
                         "residual %u, %u sinks do not fit this cache",
                         kivi_get32(header + 12), kivi_get32(header + 16), kivi_get32(header + 20),
                         kivi_get32(header + 24), kivi_get32(header + 28), kivi_get32(header + 32),
                         kivi_get32(header + 36));
    return KIVI_OK;
}

static kivi_status get_sequence(struct reader *r, kivi_seq *old_seq,
                                struct kivi_sequence **sequence, kivi_error *error)
{
    unsigned char record[KIVI_SEQUENCE_BYTES];
    uint32_t i;
    kivi_status status =
        read_record(r, record, sizeof record, "the record of a sequence is damaged", error);

    if (status != KIVI_OK)
        return status;
    *old_seq = kivi_get64(record);
    *sequence = kivi_sequence_new(r->cache, error); /* from here on the caller frees it */
    if (!*sequence)
        return error->status;
    for (i = 0; i < r->cache->geometry.n_layers && status == KIVI_OK; i++)
        status = get_layer(r, i, &(*sequence)->layers[i], error);
    return status;
}

/* All sequences appear, or none: with the lock held. */
static kivi_status publish(kivi_cache *cache, struct kivi_sequence **sequences, size_t n,
                           kivi_seq *new_seqs, kivi_error *error)
{
    kivi_status status = kivi_sequence_room(cache, n, error);
    uint32_t l;
    size_t i;

    for (l = 0; l < cache->geometry.n_layers && status == KIVI_OK; l++) {
        uint64_t more = 0;

        for (i = 0; i < n; i++)
            more += sequences[i]->layers[l].span.n;
        status = kivi_token_room(cache, l, more, error);
    }
    for (i = 0; i < n && status == KIVI_OK; i++) {
        kivi_sequence_publish(cache, sequences[i]);
        new_seqs[i] = sequences[i]->id;
    }
    return status;
}

/* Reads n sequences, of which there may be so many. */
static kivi_status get_sequences(struct reader *r, size_t n, kivi_seq *old_seqs, kivi_seq *new_seqs,
                                 kivi_error *error)
{
    kivi_cache *cache = r->cache;
    const size_t bytes = n * sizeof(struct kivi_sequence *);
    struct kivi_sequence **sequences = kivi_heap_alloc(&cache->heap, bytes, 1);
    kivi_status status = KIVI_OK;
    size_t i;

    if (!sequences)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to load %zu sequences", n);
    for (i = 0; i < n && status == KIVI_OK; i++)
        status = get_sequence(r, &old_seqs[i], &sequences[i], error);
    kivi_lock_take(&cache->lock);
    if (status == KIVI_OK)
        status = publish(cache, sequences, n, new_seqs, error);
    for (i = 0; i < n && status != KIVI_OK; i++)
        kivi_sequence_free(cache, sequences[i]);
    kivi_lock_release(&cache->lock);
    kivi_heap_free(&cache->heap, sequences, bytes);
    return status;
}

/* Reads a whole file of at most `capacity` sequences. */
static kivi_status load(kivi_cache *cache, kivi_read_fn read, void *context, kivi_seq *old_seqs,
                        kivi_seq *new_seqs, size_t capacity, size_t *n, kivi_error *error)
{
    struct reader r = {.cache = cache,
                       .read = read,
                       .context = context,
                       .kernels = kivi_host_kernels(cache->backend)};
    uint64_t n_sequences = 0;
    kivi_status status;

    r.buffer = kivi_heap_alloc(&cache->heap, BUFFER_BYTES, 0);
    if (!r.buffer)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a buffer of %zu bytes",
                         BUFFER_BYTES);
    status = read_header(&r, &n_sequences, error);
    if (status == KIVI_OK) {
        *n = n_sequences > SIZE_MAX ? SIZE_MAX : (size_t)n_sequences;
        if (n_sequences > capacity)
            status = kivi_fail(error, KIVI_ERROR_CAPACITY,
                               "saved data: %llu sequences, there is room for %zu",
                               (unsigned long long)n_sequences, capacity);
    }
    if (status == KIVI_OK) {
        kivi_lock_take(&cache->lock);
        status = kivi_sequence_room(cache, n_sequences, error);
        kivi_lock_release(&cache->lock);
    }
    if (status == KIVI_OK && n_sequences)
        status = get_sequences(&r, (size_t)n_sequences, old_seqs, new_seqs, error);
    kivi_heap_free(&cache->heap, r.buffer, BUFFER_BYTES);
    return status;
}

kivi_status kivi_seq_load(kivi_cache *cache, kivi_read_fn read, void *context, kivi_seq *seq,
                          kivi_error *error)
{
    kivi_seq old_seq, new_seq = 0;
    size_t n = 0;
    kivi_status status;
    KIVI_DETAIL(error);

    if (seq)
        *seq = 0;
    if (!cache || !read || !seq)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL",
                         !cache  ? "cache"
                         : !read ? "read"
                                 : "seq");
    status = load(cache, read, context, &old_seq, &new_seq, 1, &n, error);
    if (n > 1)
        return kivi_fail(error, KIVI_ERROR_FORMAT,
                         "saved data: %zu sequences, which kivi_cache_load takes", n);
    if (status == KIVI_OK && n == 0)
        return damaged(error, "there is no sequence in it");
    if (status != KIVI_OK)
        return status;
    *seq = new_seq;
    return kivi_succeed(error);
}

kivi_status kivi_cache_load(kivi_cache *cache, kivi_read_fn read, void *context, kivi_seq *old_seqs,
                            kivi_seq *new_seqs, size_t capacity, size_t *n, kivi_error *error)
{
    kivi_status status;
    KIVI_DETAIL(error);

    if (!cache || !read || !n || (capacity && (!old_seqs || !new_seqs)))
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL",
                         !cache      ? "cache"
                         : !read     ? "read"
                         : !n        ? "n"
                         : !old_seqs ? "old_seqs"
                                     : "new_seqs");
    *n = 0;
    status = load(cache, read, context, old_seqs, new_seqs, capacity, n, error);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}
