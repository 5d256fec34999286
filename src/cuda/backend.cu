/*
 * The CUDA backend: a module that the library opens at run time (core/module.c). It works in the
 * device's primary context, which it shares with the host application.
 *
 * Sources: backend.cu (this: devices, and what a cache keeps), primary.cu (that context), blocks.cu
 * (device memory), run.cu (a step from the host's side), streams.cu (what it waits for), overlap.cuh and
 * overlap.cu (what need not wait), schedule.cu (how its attention is split),
 * attend_fast.cuh and fast_*.cu (attention on tensor cores), attend_many.cuh and many_*.cu (the same of
 * many queries, prompts), bits.cuh (what both are compiled for), attend_general.cu (attention for every
 * shape), results.cuh (what becomes of results), append*.cu (quantizing and storing), upload.cu (tables
 * too long for kernel arguments), step.cuh and schedule.cuh (what all kernels share).
 */
#include <stdio.h>
#include <string.h>

#include "context.cuh"

namespace {

constexpr int LEAST_CAPABILITY = 8;        /* tensor cores with asynchronous copies */
constexpr uint32_t GENERAL_LEAST_COST = 4; /* one pass of a block */

/* The number of devices; *reason is static. */
int count_devices(const char **reason)
{
    int n = 0;
    const cudaError_t code = cudaGetDeviceCount(&n);

    *reason = "";
    if (code == cudaSuccess && n > 0)
        return n;
    (void)cudaGetLastError();
    if (code == cudaErrorInsufficientDriver)
        *reason = "the NVIDIA driver is missing, or older than the CUDA runtime of this module";
    else if (code == cudaSuccess || code == cudaErrorNoDevice)
        *reason = "there is no NVIDIA GPU";
    else
        *reason = cudaGetErrorString(code);
    return 0;
}

int available(const struct kivi_backend *, const char **reason)
{
    const int n = count_devices(reason);

    for (int i = 0; i < n; i++) {
        int major = 0;

        if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i) == cudaSuccess
            && major >= LEAST_CAPABILITY)
            return 1;
    }
    if (n > 0)
        *reason = "no GPU has compute capability 8.0 or later";
    return 0;
}

kivi_status check_device(int device, kivi_error *error)
{
    const char *reason;
    const int n = count_devices(&reason);
    int major = 0;

    if (device < 0 || device >= n)
        return kivi_fail(error, KIVI_ERROR_DEVICE, "device %d: there are %d CUDA devices%s%s", device,
                         n, *reason ? ", " : "", reason);
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (major < LEAST_CAPABILITY)
        return kivi_fail(error, KIVI_ERROR_UNSUPPORTED,
                         "device %d has compute capability %d, not 8.0 or later", device, major);
    return KIVI_OK;
}

kivi_cuda_split find_split(const kivi_cuda_blocks *blocks, uint32_t least_cost, int multiprocessors)
{
    /* at least, every part within a task has a unit to do */
    return {(uint32_t)blocks->warps, (uint32_t)(blocks->per_sm * multiprocessors),
            least_cost > KIVI_CUDA_EDGE_COST ? least_cost : KIVI_CUDA_EDGE_COST};
}

/* As measured: large parts are better where 8 of them share a task; if small ones have less than 8 warps, where 2 do;
 * and if they have but 2, always. Of 1 (f16 above 128 channels) nothing was measured. */
uint32_t find_few_tasks(const kivi_cuda_path &path)
{
    const uint32_t parts = path.large.max_parts;

    return path.small.n_warps >= 8 ? parts / 8 : path.small.n_warps >= 4 ? parts / 2 : parts ? UINT32_MAX : 0;
}

/* Whether offsets in a page are below 2^32, which fast_codes.cuh takes for granted. */
bool has_small_pages(const struct kivi_layer_geometry *l, uint32_t n_kv_heads)
{
    return l->page_head_stride * n_kv_heads <= UINT32_MAX;
}

/* The kernels of a layer: those of its very dimension, or else for any up to some other; or NULL. */
template <class Find, class Blocks>
auto find_kernels(Find *of_64, Find *of_128, Find *to_128, Find *to_256, const struct kivi_layer_geometry *l,
                  Blocks *blocks) -> decltype(of_64(0, 0, blocks))
{
    const uint32_t most = l->k.dim > l->v.dim ? l->k.dim : l->v.dim;
    decltype(of_64(0, 0, blocks)) found = NULL;

    if (l->k.dim == l->v.dim && most == 64)
        found = of_64(l->k.bits, l->v.bits, blocks);
    if (l->k.dim == l->v.dim && most == 128)
        found = of_128(l->k.bits, l->v.bits, blocks);
    if (!found && most <= 128)
        found = to_128(l->k.bits, l->v.bits, blocks);
    if (!found && most <= 256)
        found = to_256(l->k.bits, l->v.bits, blocks);
    return found;
}

/* How the layer's attention is done. */
kivi_cuda_path find_path(const struct kivi_layer_geometry *l, uint32_t n_kv_heads, int multiprocessors)
{
    kivi_cuda_blocks blocks[2];
    kivi_cuda_path path;
    int many;

    path.attend = NULL;
    if (has_small_pages(l, n_kv_heads))
        path.attend = find_kernels(kivi_cuda_find_fast_64, kivi_cuda_find_fast_128, kivi_cuda_find_fast_to_128,
                                   kivi_cuda_find_fast_to_256, l, blocks);
    path.fast = path.attend != NULL;
    if (!path.fast) {
        path.attend = kivi_cuda_attend_general;
        blocks[0] = kivi_cuda_general_blocks();
        blocks[1] = {0, 0};
    }
    path.small = find_split(&blocks[0], path.fast ? blocks[0].warps : GENERAL_LEAST_COST, multiprocessors);
    path.large = find_split(&blocks[1], blocks[1].warps, multiprocessors);
    path.few_tasks = find_few_tasks(path);
    path.attend_many = NULL;
    if (path.fast)
        path.attend_many = find_kernels(kivi_cuda_find_many_64, kivi_cuda_find_many_128, kivi_cuda_find_many_to_128,
                                        kivi_cuda_find_many_to_256, l, &many);
    path.many_blocks = path.attend_many ? (uint32_t)(many * multiprocessors) : 0;
    return path;
}

kivi_status find_paths(kivi_cuda_context *c, kivi_error *error)
{
    const struct kivi_geometry *g = c->geometry;
    int multiprocessors = 0;
    cudaError_t code =
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, c->device);

    if (code != cudaSuccess)
        return kivi_cuda_status(code, "multiprocessors of the device", error);
    for (uint32_t i = 0; i < g->n_layers; i++) {
        uint32_t j = 0;

        while (j < i
               && (g->layers[j].k.bits != g->layers[i].k.bits
                   || g->layers[j].v.bits != g->layers[i].v.bits))
            j++;
        c->paths[i] = j < i ? c->paths[j] : find_path(&g->layers[i], g->n_kv_heads, multiprocessors);
    }
    return kivi_cuda_status(cudaGetLastError(), "kernels of the device", error);
}

/* Streams, events and the word for inputs that are not finite. */
kivi_status open_device(kivi_cuda_context *c, kivi_error *error)
{
    struct cudaDeviceProp properties;
    void *bad = NULL;
    cudaError_t code = cudaGetDeviceProperties(&properties, c->device);

    if (code == cudaSuccess) {
        snprintf(c->name, sizeof c->name, "%.63s", properties.name);
        c->overlap = kivi_cuda_can_overlap();
        code = cudaStreamCreateWithFlags(&c->copies, cudaStreamNonBlocking);
    }
    if (code == cudaSuccess)
        code = cudaEventCreateWithFlags(&c->stepped, cudaEventDisableTiming);
    if (code == cudaSuccess)
        code = cudaEventCreateWithFlags(&c->copied, cudaEventDisableTiming);
    if (code == cudaSuccess)
        code = cudaEventCreateWithFlags(&c->captured, cudaEventDisableTiming);
    if (code == cudaSuccess)
        code = cudaHostAlloc(&bad, sizeof *c->bad, cudaHostAllocMapped | cudaHostAllocPortable);
    if (code == cudaSuccess) {
        c->bad = (volatile unsigned long long *)bad;
        *c->bad = KIVI_CUDA_NOT_BAD;
        code = cudaHostGetDevicePointer((void **)&c->bad_on_device, bad, 0);
    }
    if (code != cudaSuccess)
        return kivi_cuda_status(code, "CUDA device", error);
    return find_paths(c, error);
}

void close_context(void *context)
{
    kivi_cuda_context *c = (kivi_cuda_context *)context;
    const kivi_allocator allocator = c->allocator;

    if (c->primary) {
        const kivi_cuda_guard guard(c);

        if (c->step_pending)
            (void)cudaEventSynchronize(c->stepped);
        if (c->copies) {
            (void)cudaStreamSynchronize(c->copies);
            (void)cudaStreamDestroy(c->copies);
        }
        if (c->stepped)
            (void)cudaEventDestroy(c->stepped);
        if (c->copied)
            (void)cudaEventDestroy(c->copied);
        if (c->captured)
            (void)cudaEventDestroy(c->captured);
        if (c->bad)
            (void)cudaFreeHost((void *)c->bad);
        kivi_cuda_release(c, &c->partials);
        kivi_cuda_release(c, &c->many_partials);
        kivi_cuda_release(c, &c->arrivals);
        kivi_cuda_release(c, &c->tables);
        kivi_cuda_release(c, &c->staging);
        (void)cudaGetLastError();
    }
    kivi_cuda_let_go(c);
    kivi_lock_destroy(&c->lock);
    allocator.release(allocator.context, c->paths, c->geometry->n_layers * sizeof *c->paths);
    allocator.release(allocator.context, c, sizeof *c);
}

kivi_status open_context(const struct kivi_backend *, const struct kivi_geometry *geometry,
                         const kivi_config *config, void **context, kivi_error *error)
{
    const kivi_allocator *a = &config->allocator;
    kivi_status status = check_device(config->device, error);
    kivi_cuda_context *c;

    if (status != KIVI_OK)
        return status;
    c = (kivi_cuda_context *)a->alloc(a->context, sizeof *c, 64);
    if (!c)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for the backend");
    memset(c, 0, sizeof *c);
    c->geometry = geometry;
    c->allocator = *a;
    c->device = config->device;
    c->on_device = config->memory == KIVI_MEMORY_DEVICE;
    c->paths =
        (kivi_cuda_path *)a->alloc(a->context, geometry->n_layers * sizeof *c->paths, 64);
    if (!c->paths || kivi_lock_init(&c->lock) != 0) {
        if (c->paths)
            a->release(a->context, c->paths, geometry->n_layers * sizeof *c->paths);
        a->release(a->context, c, sizeof *c);
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for the backend");
    }
    status = kivi_cuda_retain(c, error);
    if (status == KIVI_OK) {
        const kivi_cuda_guard guard(c);

        status = open_device(c, error);
    }
    if (status != KIVI_OK) {
        close_context(c);
        return status;
    }
    *context = c;
    return KIVI_OK;
}

int describe(void *context, char *text, size_t capacity)
{
    const kivi_cuda_context *c = (const kivi_cuda_context *)context;
    const struct kivi_geometry *g = c->geometry;
    uint32_t n = 0, n_prompts = 0, first = 0, first_prompts = 0;

    for (uint32_t i = g->n_layers; i-- > 0;)
        if (!c->paths[i].fast) {
            n++;
            first = i;
        } else if (!c->paths[i].attend_many) {
            n_prompts++;
            first_prompts = i;
        }
    if (n > 0)
        return snprintf(text, capacity,
                        " Device %d: %s. Slow path: attention of %u of %u layers, from layer %u on, is not "
                        "done by tensor cores (dimensions %u and %u, %u and %u bits%s).",
                        c->device, c->name, n, g->n_layers, first, g->k_dim, g->v_dim,
                        g->layers[first].k.bits, g->layers[first].v.bits,
                        has_small_pages(&g->layers[first], g->n_kv_heads) ? "" : ", pages of 4 GB or more");
    if (n_prompts > 0)
        return snprintf(text, capacity,
                        " Device %d: %s. Slow path: prompts in %u of %u layers, from layer %u on, go 8 query rows at "
                        "a time, as the device has little shared memory (dimensions %u and %u, %u and %u bits).",
                        c->device, c->name, n_prompts, g->n_layers, first_prompts, g->k_dim, g->v_dim,
                        g->layers[first_prompts].k.bits, g->layers[first_prompts].v.bits);
    return snprintf(text, capacity, " Device %d: %s.", c->device, c->name);
}

const struct kivi_backend backend = {
    KIVI_BACKEND_ABI,
    sizeof(struct kivi_backend),
    "cuda",
    "NVIDIA GPU of compute capability 8.0 or later",
    NULL,
    available,
    open_context,
    close_context,
    kivi_cuda_block_alloc,
    kivi_cuda_block_free,
    kivi_cuda_block_copy,
    kivi_cuda_block_read,
    kivi_cuda_block_write,
    kivi_cuda_begin,
    kivi_cuda_part,
    kivi_cuda_end,
    describe,
};

} // namespace

/* KIVI_MODULE_ENTRY */
extern "C" __attribute__((visibility("default"))) const struct kivi_backend *kivi_module_backend(void)
{
    return &backend;
}
