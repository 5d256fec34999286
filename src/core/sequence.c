/* Sequences: the table of a cache, and the calls on whole sequences that move no tokens. */
#include "cache.h"

#include <string.h>

/* A sequence's number is its slot and how often the slot has been used. */
#define SLOT_BITS 20

static size_t sequence_size(const kivi_cache *cache)
{
    return sizeof(struct kivi_sequence) + cache->geometry.n_layers * sizeof(struct kivi_layer);
}

struct kivi_sequence *kivi_sequence_find(const kivi_cache *cache, kivi_seq seq, kivi_error *error)
{
    const uint64_t slot = seq & (((uint64_t)1 << SLOT_BITS) - 1);
    struct kivi_sequence *sequence = slot < cache->max_sequences ? cache->sequences[slot] : NULL;

    if (sequence && sequence->id == seq)
        return sequence;
    kivi_fail(error, KIVI_ERROR_SEQUENCE, "there is no sequence %llu in this cache",
              (unsigned long long)seq);
    return NULL;
}

struct kivi_sequence *kivi_sequence_add(kivi_cache *cache, kivi_error *error)
{
    struct kivi_sequence *sequence;
    uint32_t slot = 0;

    if (cache->n_sequences == cache->max_sequences) {
        kivi_fail(error, KIVI_ERROR_CAPACITY, "max_sequences: %u sequences are alive",
                  cache->max_sequences);
        return NULL;
    }
    while (cache->sequences[slot])
        slot++;
    sequence = kivi_heap_alloc(&cache->heap, sequence_size(cache), 1);
    if (!sequence) {
        kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a sequence of %u layers",
                  cache->geometry.n_layers);
        return NULL;
    }
    sequence->id = ++cache->generations[slot] << SLOT_BITS | slot;
    cache->sequences[slot] = sequence;
    cache->n_sequences++;
    return sequence;
}

void kivi_sequence_remove(kivi_cache *cache, struct kivi_sequence *sequence)
{
    uint32_t i;

    for (i = 0; i < cache->geometry.n_layers; i++) {
        cache->layer_tokens[i] -= sequence->layers[i].span.n;
        kivi_layer_clear(cache, i, &sequence->layers[i]);
    }
    cache->sequences[sequence->id & (((uint64_t)1 << SLOT_BITS) - 1)] = NULL;
    cache->n_sequences--;
    kivi_heap_free(&cache->heap, sequence, sequence_size(cache));
}

void kivi_sequence_replace(kivi_cache *cache, struct kivi_sequence *sequence,
                           struct kivi_layer *fresh)
{
    uint32_t i;

    for (i = 0; i < cache->geometry.n_layers; i++) {
        cache->layer_tokens[i] -= sequence->layers[i].span.n;
        cache->layer_tokens[i] += fresh[i].span.n;
        kivi_layer_clear(cache, i, &sequence->layers[i]);
        sequence->layers[i] = fresh[i];
    }
}

kivi_status kivi_sequence_idle(const kivi_cache *cache, const struct kivi_sequence *sequence,
                               int also_readers, kivi_error *error)
{
    uint32_t i;

    for (i = 0; i < cache->geometry.n_layers; i++) {
        const struct kivi_layer *layer = &sequence->layers[i];

        if (layer->writers || (also_readers && layer->readers))
            return kivi_fail(error, KIVI_ERROR_BUSY,
                             "another call is working on layer %u of sequence %llu", i,
                             (unsigned long long)sequence->id);
    }
    return KIVI_OK;
}

kivi_status kivi_seq_create(kivi_cache *cache, kivi_seq *seq, kivi_error *error)
{
    struct kivi_sequence *sequence;
    KIVI_DETAIL(error);

    if (!cache || !seq)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "seq" : "cache");
    kivi_lock_take(&cache->lock);
    sequence = kivi_sequence_add(cache, error);
    *seq = sequence ? sequence->id : 0;
    kivi_lock_release(&cache->lock);
    return sequence ? kivi_succeed(error) : error->status;
}

kivi_status kivi_seq_destroy(kivi_cache *cache, kivi_seq seq, kivi_error *error)
{
    struct kivi_sequence *sequence;
    kivi_status status;
    KIVI_DETAIL(error);

    if (!cache)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "cache is NULL");
    kivi_lock_take(&cache->lock);
    sequence = kivi_sequence_find(cache, seq, error);
    status = sequence ? kivi_sequence_idle(cache, sequence, 1, error) : error->status;
    if (status == KIVI_OK)
        kivi_sequence_remove(cache, sequence);
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

kivi_status kivi_seq_length(const kivi_cache *cache, kivi_seq seq, uint32_t layer,
                            uint64_t *n_tokens, kivi_error *error)
{
    kivi_lock *lock;
    const struct kivi_sequence *sequence;
    KIVI_DETAIL(error);

    if (!cache || !n_tokens)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "n_tokens" : "cache");
    if (layer >= cache->geometry.n_layers)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "layer is %u of %u", layer,
                         cache->geometry.n_layers);
    lock = (kivi_lock *)&cache->lock;
    kivi_lock_take(lock);
    sequence = kivi_sequence_find(cache, seq, error);
    if (sequence)
        *n_tokens = sequence->layers[layer].span.n;
    kivi_lock_release(lock);
    return sequence ? kivi_succeed(error) : error->status;
}

/* Whether as many tokens as `source` has may join every layer. */
static kivi_status check_capacity(const kivi_cache *cache, const struct kivi_sequence *source,
                                  kivi_error *error)
{
    uint32_t i;

    for (i = 0; cache->capacity && i < cache->geometry.n_layers; i++)
        if (source->layers[i].span.n > cache->capacity - cache->layer_tokens[i])
            return kivi_fail(error, KIVI_ERROR_CAPACITY,
                             "capacity: layer %u holds %llu tokens, %llu more exceed %llu", i,
                             (unsigned long long)cache->layer_tokens[i],
                             (unsigned long long)source->layers[i].span.n,
                             (unsigned long long)cache->capacity);
    return KIVI_OK;
}

/* Every layer of *to, an empty sequence, becomes a copy of *from. */
static kivi_status share_all(kivi_cache *cache, struct kivi_sequence *to,
                             const struct kivi_sequence *from, kivi_error *error)
{
    uint32_t i;

    for (i = 0; i < cache->geometry.n_layers; i++) {
        const kivi_status status = kivi_layer_share(cache, &to->layers[i], &from->layers[i], error);

        if (status != KIVI_OK)
            return status;
        cache->layer_tokens[i] += from->layers[i].span.n;
    }
    return KIVI_OK;
}

kivi_status kivi_seq_fork(kivi_cache *cache, kivi_seq source, kivi_seq *seq, kivi_error *error)
{
    struct kivi_sequence *from, *to;
    kivi_status status;
    KIVI_DETAIL(error);

    if (!cache || !seq)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "seq" : "cache");
    *seq = 0;
    kivi_lock_take(&cache->lock);
    from = kivi_sequence_find(cache, source, error);
    status = from ? kivi_sequence_idle(cache, from, 0, error) : error->status;
    if (status == KIVI_OK)
        status = check_capacity(cache, from, error);
    to = status == KIVI_OK ? kivi_sequence_add(cache, error) : NULL;
    if (status == KIVI_OK && !to)
        status = error->status;
    if (to) {
        status = share_all(cache, to, from, error);
        if (status == KIVI_OK)
            *seq = to->id;
        else
            kivi_sequence_remove(cache, to);
    }
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

static kivi_status check_reorder(const kivi_cache *cache, const kivi_seq *seqs,
                                 const uint32_t *parents, size_t n, kivi_error *error)
{
    size_t i, j;

    for (i = 0; i < n; i++) {
        const struct kivi_sequence *sequence = kivi_sequence_find(cache, seqs[i], error);
        kivi_status status;

        if (!sequence)
            return error->status;
        if (parents[i] >= n)
            return kivi_fail(error, KIVI_ERROR_ARGUMENT, "parents[%zu] is %u of %zu", i, parents[i],
                             n);
        for (j = 0; j < i; j++)
            if (seqs[j] == seqs[i])
                return kivi_fail(error, KIVI_ERROR_ARGUMENT,
                                 "seqs[%zu] and seqs[%zu] are the same sequence", j, i);
        status = kivi_sequence_idle(cache, sequence, 1, error);
        if (status != KIVI_OK)
            return status;
    }
    return KIVI_OK;
}

/* Replaces the sequences by copies made beforehand, which share their pages: cannot fail. */
static void replace_all(kivi_cache *cache, const kivi_seq *seqs, struct kivi_sequence **copies,
                        size_t n, kivi_error *error)
{
    size_t i;

    for (i = 0; i < n; i++) {
        kivi_sequence_replace(cache, kivi_sequence_find(cache, seqs[i], error), copies[i]->layers);
        kivi_heap_free(&cache->heap, copies[i], sequence_size(cache));
        copies[i] = NULL;
    }
}

kivi_status kivi_seq_reorder(kivi_cache *cache, const kivi_seq *seqs, const uint32_t *parents,
                             size_t n, kivi_error *error)
{
    struct kivi_sequence **copies = NULL;
    kivi_status status;
    size_t i;
    uint32_t l;
    KIVI_DETAIL(error);

    if (!cache || (n && (!seqs || !parents)))
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL",
                         !cache ? "cache" : !seqs ? "seqs" : "parents");
    if (n == 0)
        return kivi_succeed(error);
    if (n > cache->max_sequences)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "n is %zu, above max_sequences %u", n,
                         cache->max_sequences);
    kivi_lock_take(&cache->lock);
    status = check_reorder(cache, seqs, parents, n, error);
    if (status == KIVI_OK) {
        copies = kivi_heap_alloc(&cache->heap, n * sizeof *copies, 1);
        if (!copies)
            status = kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to reorder %zu sequences", n);
    }
    for (i = 0; status == KIVI_OK && i < n; i++) {
        const struct kivi_sequence *from = kivi_sequence_find(cache, seqs[parents[i]], error);

        copies[i] = kivi_heap_alloc(&cache->heap, sequence_size(cache), 1);
        if (!copies[i])
            status = kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to reorder %zu sequences", n);
        for (l = 0; status == KIVI_OK && l < cache->geometry.n_layers; l++)
            status = kivi_layer_share(cache, &copies[i]->layers[l], &from->layers[l], error);
    }
    if (status == KIVI_OK)
        replace_all(cache, seqs, copies, n, error);
    for (i = 0; copies && i < n; i++) {
        for (l = 0; copies[i] && l < cache->geometry.n_layers; l++)
            kivi_layer_clear(cache, l, &copies[i]->layers[l]);
        kivi_heap_free(&cache->heap, copies[i], sequence_size(cache));
    }
    kivi_heap_free(&cache->heap, copies, n * sizeof *copies);
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}
