#include "edit.h"

#include "../cpu/scalar.h"
#include "half.h"
#include "registry.h"

const struct kivi_layer_geometry *kivi_edit_geometry(const struct kivi_edit *e)
{
    return &e->cache->geometry.layers[e->index];
}

kivi_status kivi_edit_read(const struct kivi_edit *e, const void *from, size_t bytes, void *host,
                           kivi_error *error)
{
    return e->cache->backend->block_read(e->cache->context, host, from, 0, bytes, error);
}

kivi_status kivi_edit_write(const struct kivi_edit *e, void *to, size_t bytes, const void *host,
                            kivi_error *error)
{
    return e->cache->backend->block_write(e->cache->context, to, 0, host, bytes, error);
}

kivi_status kivi_edit_copy(const struct kivi_edit *e, void *to, const void *from, size_t bytes,
                           kivi_error *error)
{
    return e->cache->backend->block_copy(e->cache->context, to, from, bytes, error);
}

kivi_status kivi_edit_copy_window(const struct kivi_edit *e, kivi_error *error)
{
    kivi_status status;

    kivi_lock_take(&e->cache->lock);
    status = kivi_layer_new_window(e->cache, e->fresh, error);
    kivi_lock_release(&e->cache->lock);
    if (status != KIVI_OK)
        return status;
    return kivi_edit_copy(e, e->fresh->window->memory, e->old->window->memory,
                          e->cache->geometry.window_bytes, error);
}

void kivi_edit_narrow(const struct kivi_edit *e, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        const float x = e->numbers[i] < KIVI_F16_MAX ? e->numbers[i] : KIVI_F16_MAX;

        e->numbers[i] = x > -KIVI_F16_MAX ? x : -KIVI_F16_MAX;
    }
    e->kernels->to_f16[KIVI_F32](e->rows, e->numbers, n);
}

/* Host memory for a block of any layer, in one piece: [f32 rows][f16 rows][packed block][turn]; four
 * bytes a number hold codes of 8 or 16 bits, with the scales of the smallest dimension too. */
static size_t scratch_bytes(const struct kivi_geometry *g, size_t numbers)
{
    return numbers * (4 + 2 + 4) + g->k_dim * sizeof(float);
}

kivi_status kivi_edit_find(struct kivi_edit *e, kivi_seq seq, kivi_error *error)
{
    e->sequence = kivi_sequence_find(e->cache, seq, error);
    return e->sequence ? kivi_sequence_idle(e->cache, e->sequence, 1, error) : error->status;
}

static void mark_writing(const struct kivi_edit *e, int begin)
{
    uint32_t i;

    for (i = 0; i < e->cache->geometry.n_layers; i++)
        e->sequence->layers[i].writers += begin ? 1u : -1u;
}

kivi_status kivi_edit_prepare(struct kivi_edit *e,
                              kivi_status (*prepare_layer)(const struct kivi_edit *, kivi_error *),
                              kivi_error *error)
{
    kivi_cache *cache = e->cache;
    const struct kivi_geometry *g = &cache->geometry;
    const size_t numbers = (size_t)g->group_size * max_u64(g->k_dim, g->v_dim);
    kivi_status status = KIVI_OK;
    uint32_t i;

    mark_writing(e, 1);
    kivi_lock_release(&cache->lock);
    e->kernels = kivi_host_kernels(cache->backend);
    e->prepared = kivi_sequence_new(cache, error);
    e->numbers = kivi_heap_alloc(&cache->heap, scratch_bytes(g, numbers), 0);
    if (!e->prepared || !e->numbers) {
        status = kivi_fail(error, KIVI_ERROR_MEMORY, "no memory to edit a sequence");
    } else {
        e->rows = (uint16_t *)(void *)(e->numbers + numbers);
        e->block = e->rows + numbers;
        e->turn = (float *)e->block + numbers;
    }
    for (i = 0; i < g->n_layers && status == KIVI_OK; i++) {
        e->index = i;
        e->old = &e->sequence->layers[i];
        e->fresh = &e->prepared->layers[i];
        status = prepare_layer(e, error);
    }
    kivi_heap_free(&cache->heap, e->numbers, scratch_bytes(g, numbers));
    kivi_lock_take(&cache->lock);
    mark_writing(e, 0);
    return status;
}
