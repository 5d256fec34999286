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

struct kivi_sequence *kivi_sequence_new(kivi_cache *cache, kivi_error *error)
{
    struct kivi_sequence *sequence = kivi_heap_alloc(&cache->heap, sequence_size(cache), 1);

    if (!sequence)
        kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for a sequence of %u layers",
                  cache->geometry.n_layers);
    return sequence;
}

void kivi_sequence_free(kivi_cache *cache, struct kivi_sequence *sequence)
{
    uint32_t i;

    if (!sequence)
        return;
    for (i = 0; i < cache->geometry.n_layers; i++)
        kivi_layer_clear(cache, i, &sequence->layers[i]);
    kivi_heap_free(&cache->heap, sequence, sequence_size(cache));
}

kivi_status kivi_sequence_room(const kivi_cache *cache, uint64_t n, kivi_error *error)
{
    if (n <= cache->max_sequences - cache->n_sequences)
        return KIVI_OK;
    return kivi_fail(error, KIVI_ERROR_CAPACITY,
                     "max_sequences: %u of %u sequences are alive, there is no room for %llu more",
                     cache->n_sequences, cache->max_sequences, (unsigned long long)n);
}

kivi_status kivi_token_room(const kivi_cache *cache, uint32_t layer, uint64_t n, kivi_error *error)
{
    if (!cache->capacity || n <= cache->capacity - cache->layer_tokens[layer])
        return KIVI_OK;
    return kivi_fail(error, KIVI_ERROR_CAPACITY,
                     "capacity: layer %u holds %llu tokens, %llu more exceed %llu", layer,
                     (unsigned long long)cache->layer_tokens[layer], (unsigned long long)n,
                     (unsigned long long)cache->capacity);
}

void kivi_sequence_publish(kivi_cache *cache, struct kivi_sequence *sequence)
{
    uint32_t slot = cache->first_free, i;

    while (cache->sequences[slot])
        slot++;
    sequence->id = ++cache->generations[slot] << SLOT_BITS | slot;
    cache->sequences[slot] = sequence;
    cache->first_free = slot + 1;
    cache->n_sequences++;
    for (i = 0; i < cache->geometry.n_layers; i++)
        cache->layer_tokens[i] += sequence->layers[i].span.n;
}

void kivi_sequence_remove(kivi_cache *cache, struct kivi_sequence *sequence)
{
    const uint32_t slot = (uint32_t)(sequence->id & (((uint64_t)1 << SLOT_BITS) - 1));
    uint32_t i;

    for (i = 0; i < cache->geometry.n_layers; i++)
        cache->layer_tokens[i] -= sequence->layers[i].span.n;
    cache->sequences[slot] = NULL;
    cache->n_sequences--;
    if (slot < cache->first_free)
        cache->first_free = slot;
    kivi_sequence_free(cache, sequence);
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

void kivi_sequence_claim(const kivi_cache *cache, const struct kivi_sequence *sequence,
                         uint64_t n_new)
{
    uint32_t i;

    for (i = 0; n_new > 0 && i < cache->geometry.n_layers; i++) {
        const struct kivi_layer *layer = &sequence->layers[i];
        const struct kivi_span after = kivi_layer_after(cache, layer, n_new);

        kivi_layer_claim(cache, i, layer, &after);
    }
}

void kivi_sequence_count(const kivi_cache *cache, const struct kivi_sequence *sequence,
                         uint64_t n_new, uint64_t *n_windows, uint64_t *n_pages)
{
    uint32_t i;

    *n_windows = *n_pages = 0;
    for (i = 0; n_new > 0 && i < cache->geometry.n_layers; i++) {
        const struct kivi_layer *layer = &sequence->layers[i];
        const struct kivi_span after = kivi_layer_after(cache, layer, n_new);
        uint64_t windows, pages;

        kivi_layer_count(cache, i, layer, &after, &windows, &pages);
        *n_windows += windows;
        *n_pages += pages;
    }
}

kivi_status kivi_seq_create(kivi_cache *cache, kivi_seq *seq, kivi_error *error)
{
    struct kivi_sequence *sequence = NULL;
    kivi_status status;
    KIVI_DETAIL(error);

    if (seq)
        *seq = 0;
    if (!cache || !seq)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "seq" : "cache");
    kivi_lock_take(&cache->lock);
    status = kivi_sequence_room(cache, 1, error);
    if (status == KIVI_OK) {
        sequence = kivi_sequence_new(cache, error);
        status = sequence ? KIVI_OK : error->status;
    }
    if (sequence) {
        kivi_sequence_publish(cache, sequence);
        *seq = sequence->id;
    }
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
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

/* A new sequence, not yet in the table, that shares everything with *from. */
static kivi_status copy_of(kivi_cache *cache, const struct kivi_sequence *from,
                           struct kivi_sequence **copy, kivi_error *error)
{
    kivi_status status = KIVI_OK;
    uint32_t i;

    *copy = kivi_sequence_new(cache, error);
    if (!*copy)
        return error->status;
    for (i = 0; i < cache->geometry.n_layers && status == KIVI_OK; i++)
        status = kivi_layer_share(cache, &(*copy)->layers[i], &from->layers[i], error);
    if (status != KIVI_OK) {
        kivi_sequence_free(cache, *copy);
        *copy = NULL;
    }
    return status;
}

static kivi_status check_fork(const kivi_cache *cache, const struct kivi_sequence *from,
                              kivi_error *error)
{
    kivi_status status = kivi_sequence_idle(cache, from, 0, error);
    uint32_t i;

    if (status == KIVI_OK)
        status = kivi_sequence_room(cache, 1, error);
    for (i = 0; i < cache->geometry.n_layers && status == KIVI_OK; i++)
        status = kivi_token_room(cache, i, from->layers[i].span.n, error);
    return status;
}

kivi_status kivi_seq_fork(kivi_cache *cache, kivi_seq source, kivi_seq *seq, kivi_error *error)
{
    struct kivi_sequence *from, *to;
    kivi_status status;
    KIVI_DETAIL(error);

    if (seq)
        *seq = 0;
    if (!cache || !seq)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", cache ? "seq" : "cache");
    kivi_lock_take(&cache->lock);
    from = kivi_sequence_find(cache, source, error);
    status = from ? check_fork(cache, from, error) : error->status;
    if (status == KIVI_OK)
        status = copy_of(cache, from, &to, error);
    if (status == KIVI_OK) {
        kivi_sequence_publish(cache, to);
        *seq = to->id;
    }
    kivi_lock_release(&cache->lock);
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

/* Checks the arrays of a call on n sequences, of which the second is `numbers`. */
static kivi_status check_arrays(const kivi_cache *cache, const kivi_seq *seqs, const void *numbers,
                                const char *name, size_t n, kivi_error *error)
{
    if (!cache || (n && (!seqs || !numbers)))
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL",
                         !cache  ? "cache"
                         : !seqs ? "seqs"
                                 : name);
    if (n > cache->max_sequences)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "n is %zu, above max_sequences %u", n,
                         cache->max_sequences);
    return kivi_succeed(error);
}

/* Finds sequences [0, n), which must be distinct and idle: see kivi_sequence_idle. */
static kivi_status find_all(kivi_cache *cache, const kivi_seq *seqs, size_t n, int also_readers,
                            struct kivi_sequence **sequences, kivi_error *error)
{
    size_t i;

    cache->epoch++;
    for (i = 0; i < n; i++) {
        kivi_status status;

        sequences[i] = kivi_sequence_find(cache, seqs[i], error);
        if (!sequences[i])
            status = error->status;
        else if (sequences[i]->epoch == cache->epoch)
            status = kivi_fail(error, KIVI_ERROR_ARGUMENT,
                               "seqs[%zu] is the same sequence as one before it", i);
        else
            status = kivi_sequence_idle(cache, sequences[i], also_readers, error);
        if (status != KIVI_OK)
            return kivi_blame_item(error, status, i);
        sequences[i]->epoch = cache->epoch;
    }
    return KIVI_OK;
}

/* Whether the tokens that every layer has after the reordering are within the capacity. */
static kivi_status check_reorder(const kivi_cache *cache, struct kivi_sequence *const *sequences,
                                 const uint32_t *parents, size_t n, kivi_error *error)
{
    kivi_status status = KIVI_OK;
    uint32_t l;
    size_t i;

    for (l = 0; cache->capacity && l < cache->geometry.n_layers && status == KIVI_OK; l++) {
        uint64_t before = 0, after = 0;

        for (i = 0; i < n; i++) {
            before += sequences[i]->layers[l].span.n;
            after += sequences[parents[i]]->layers[l].span.n;
        }
        if (after > before)
            status = kivi_token_room(cache, l, after - before, error);
    }
    return status;
}

/* With the lock held, and room for n sequences and their n copies. */
static kivi_status reorder(kivi_cache *cache, const kivi_seq *seqs, const uint32_t *parents,
                           size_t n, struct kivi_sequence **sequences,
                           struct kivi_sequence **copies, kivi_error *error)
{
    kivi_status status = find_all(cache, seqs, n, 1, sequences, error);
    size_t i;

    if (status == KIVI_OK)
        status = check_reorder(cache, sequences, parents, n, error);
    for (i = 0; i < n && status == KIVI_OK; i++)
        status = copy_of(cache, sequences[parents[i]], &copies[i], error);
    for (i = 0; i < n; i++) {
        if (status == KIVI_OK) {
            kivi_sequence_replace(cache, sequences[i], copies[i]->layers);
            kivi_heap_free(&cache->heap, copies[i], sequence_size(cache));
        } else {
            kivi_sequence_free(cache, copies[i]);
        }
    }
    return status;
}

kivi_status kivi_seq_reorder(kivi_cache *cache, const kivi_seq *seqs, const uint32_t *parents,
                             size_t n, kivi_error *error)
{
    struct kivi_sequence **tables;
    kivi_status status;
    size_t i;
    KIVI_DETAIL(error);

    status = check_arrays(cache, seqs, parents, "parents", n, error);
    if (status != KIVI_OK || n == 0)
        return status;
    for (i = 0; i < n; i++)
        if (parents[i] >= n)
            return kivi_fail(error, KIVI_ERROR_ARGUMENT, "parents[%zu] is %u of %zu", i, parents[i],
                             n);
    tables = kivi_heap_alloc(&cache->heap, 2 * n * sizeof(struct kivi_sequence *), 1);
    if (!tables)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to reorder %zu sequences", n);
    kivi_lock_take(&cache->lock);
    status = reorder(cache, seqs, parents, n, tables, tables + n, error);
    kivi_lock_release(&cache->lock);
    kivi_heap_free(&cache->heap, tables, 2 * n * sizeof(struct kivi_sequence *));
    return status == KIVI_OK ? kivi_succeed(error) : status;
}

/* Takes n blocks of a pool, and puts them before *held. */
static kivi_status hold(struct kivi_pool *pool, uint64_t n, struct kivi_block **held,
                        kivi_error *error)
{
    for (; n > 0; n--) {
        struct kivi_block *block = kivi_pool_take(pool, error);

        if (!block)
            return error->status;
        block->next_free = *held;
        *held = block;
    }
    return KIVI_OK;
}

static void let_go(struct kivi_pool *pool, struct kivi_block *held)
{
    while (held) {
        struct kivi_block *block = held;

        held = block->next_free;
        kivi_pool_drop(pool, block);
    }
}

/* Takes all blocks that the sequences' new tokens need, and lets them go: all at a time, since what one pool has free
 * is given back to the backend for the sake of another. */
static kivi_status reserve(kivi_cache *cache, struct kivi_sequence *const *sequences,
                           const uint64_t *n_new, size_t n, kivi_error *error)
{
    struct kivi_block *windows = NULL, *pages = NULL;
    kivi_status status = KIVI_OK;
    uint64_t more = 0;
    uint32_t l;
    size_t i;

    cache->epoch++;
    for (i = 0; i < n; i++)
        kivi_sequence_claim(cache, sequences[i], n_new[i]);
    for (i = 0; i < n && status == KIVI_OK; i++) {
        uint64_t n_windows, n_pages;

        more += n_new[i];
        for (l = 0; l < cache->geometry.n_layers && status == KIVI_OK; l++)
            status = kivi_token_room(cache, l, more, error);
        kivi_sequence_count(cache, sequences[i], n_new[i], &n_windows, &n_pages);
        if (status == KIVI_OK)
            status = hold(&cache->window_pool, n_windows, &windows, error);
        if (status == KIVI_OK)
            status = hold(&cache->page_pool, n_pages, &pages, error);
        if (status != KIVI_OK)
            kivi_blame_item(error, status, i);
    }
    let_go(&cache->window_pool, windows);
    let_go(&cache->page_pool, pages);
    return status;
}

kivi_status kivi_seq_reserve(kivi_cache *cache, const kivi_seq *seqs, const uint64_t *n_new,
                             size_t n, kivi_error *error)
{
    struct kivi_sequence **sequences;
    kivi_status status;
    size_t i;
    KIVI_DETAIL(error);

    status = check_arrays(cache, seqs, n_new, "n_new", n, error);
    if (status != KIVI_OK || n == 0)
        return status;
    for (i = 0; i < n; i++)
        if (n_new[i] > UINT32_MAX)
            return kivi_blame_item(
                error, kivi_fail(error, KIVI_ERROR_ARGUMENT, "n_new[%zu] is more than 2^32 - 1", i),
                i);
    sequences = kivi_heap_alloc(&cache->heap, n * sizeof(struct kivi_sequence *), 0);
    if (!sequences)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to look at %zu sequences", n);
    kivi_lock_take(&cache->lock);
    status = find_all(cache, seqs, n, 0, sequences, error);
    if (status == KIVI_OK)
        status = reserve(cache, sequences, n_new, n, error);
    kivi_lock_release(&cache->lock);
    kivi_heap_free(&cache->heap, sequences, n * sizeof(struct kivi_sequence *));
    return status == KIVI_OK ? kivi_succeed(error) : status;
}
