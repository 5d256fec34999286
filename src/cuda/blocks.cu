/* Device memory: pages and windows, and what steps need. */
#include "context.cuh"

struct kivi_cuda_retired {
    struct kivi_cuda_retired *next;
    void *memory;
};

kivi_status kivi_cuda_status(cudaError_t code, const char *what, kivi_error *error)
{
    if (code == cudaSuccess)
        return KIVI_OK;
    (void)cudaGetLastError(); /* the host application is not to find it */
    return kivi_fail(error,
                     code == cudaErrorMemoryAllocation ? KIVI_ERROR_MEMORY : KIVI_ERROR_DEVICE,
                     "%s: %s (%s)", what, cudaGetErrorString(code), cudaGetErrorName(code));
}

kivi_status kivi_cuda_reserve(kivi_cuda_context *c, kivi_cuda_buffer *buffer, size_t bytes, bool zero,
                              kivi_error *error)
{
    struct kivi_cuda_retired *old = NULL;
    const size_t more = buffer->bytes * 3 / 2, least = (bytes + 4095) / 4096 * 4096;
    size_t size = more > least ? (more + 4095) / 4096 * 4096 : least;
    void *memory;
    cudaError_t code;

    if (bytes <= buffer->bytes)
        return KIVI_OK;
    if (buffer->memory && c->on_device) {
        old = (struct kivi_cuda_retired *)c->allocator.alloc(c->allocator.context, sizeof *old, 64);
        if (!old)
            return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for this call");
    }
    code = cudaMalloc(&memory, size);
    if (code == cudaErrorMemoryAllocation && size > least) { /* there may be room for what is needed */
        (void)cudaGetLastError();
        size = least;
        code = cudaMalloc(&memory, size);
    }
    if (code == cudaSuccess && zero) {
        code = cudaMemsetAsync(memory, 0, size, c->copies);
        if (code == cudaSuccess)
            code = cudaStreamSynchronize(c->copies);
        if (code != cudaSuccess)
            (void)cudaFree(memory);
    }
    if (code != cudaSuccess) {
        if (old)
            c->allocator.release(c->allocator.context, old, sizeof *old);
        return kivi_cuda_status(code, "device memory for this call", error);
    }
    if (old) {
        old->memory = buffer->memory;
        old->next = buffer->retired;
        buffer->retired = old;
    } else {
        (void)cudaFree(buffer->memory); /* calls on the host's arrays have waited, and no graph has any */
    }
    buffer->memory = memory;
    buffer->bytes = size;
    return KIVI_OK;
}

void kivi_cuda_release(kivi_cuda_context *c, kivi_cuda_buffer *buffer)
{
    (void)cudaFree(buffer->memory);
    while (buffer->retired) {
        struct kivi_cuda_retired *next = buffer->retired->next;

        (void)cudaFree(buffer->retired->memory);
        c->allocator.release(c->allocator.context, buffer->retired, sizeof *buffer->retired);
        buffer->retired = next;
    }
}

/* ------------------------------------------------------------------ blocks */

void *kivi_cuda_block_alloc(void *context, size_t bytes)
{
    const kivi_cuda_guard guard((kivi_cuda_context *)context);
    void *memory;

    if (cudaMalloc(&memory, bytes) == cudaSuccess)
        return memory;
    (void)cudaGetLastError();
    return NULL;
}

void kivi_cuda_block_free(void *context, void *block, size_t bytes)
{
    const kivi_cuda_guard guard((kivi_cuda_context *)context);

    (void)bytes;
    (void)cudaFree(block); /* waits for all that is at work on it */
}

/* Copies on the cache's own stream, after every step so far; waits for it if `wait`, else the next step
 * does. */
static kivi_status copy(kivi_cuda_context *c, void *to, const void *from, size_t bytes,
                        cudaMemcpyKind kind, bool wait, kivi_error *error)
{
    const kivi_cuda_guard guard(c);
    cudaError_t code = cudaSuccess;

    kivi_lock_take(&c->lock);
    if (c->step_pending)
        code = cudaStreamWaitEvent(c->copies, c->stepped, 0);
    if (code == cudaSuccess)
        code = cudaMemcpyAsync(to, from, bytes, kind, c->copies);
    if (code == cudaSuccess && wait) {
        code = cudaStreamSynchronize(c->copies);
    } else if (code == cudaSuccess) {
        code = cudaEventRecord(c->copied, c->copies);
        c->copy_pending = true;
    }
    kivi_lock_release(&c->lock);
    return kivi_cuda_status(code, "copy of device memory", error);
}

kivi_status kivi_cuda_block_copy(void *context, void *to, const void *from, size_t bytes,
                                 kivi_error *error)
{
    return copy((kivi_cuda_context *)context, to, from, bytes, cudaMemcpyDeviceToDevice, false,
                error);
}

kivi_status kivi_cuda_block_read(void *context, void *host, const void *block, size_t offset,
                                 size_t bytes, kivi_error *error)
{
    return copy((kivi_cuda_context *)context, host, (const char *)block + offset, bytes,
                cudaMemcpyDeviceToHost, true, error);
}

kivi_status kivi_cuda_block_write(void *context, void *block, size_t offset, const void *host,
                                  size_t bytes, kivi_error *error)
{
    return copy((kivi_cuda_context *)context, (char *)block + offset, host, bytes,
                cudaMemcpyHostToDevice, true, error);
}
