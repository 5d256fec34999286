/*
 * Which stream a step goes to, and what it waits for there: what the cache did before on other streams, on its own,
 * and, in a graph, in the same capture. On one stream kernels follow one another (overlap.cuh).
 */
#include "context.cuh"

namespace {

constexpr uint64_t DEFAULT_STREAM = 0, NO_NUMBER = UINT64_MAX;

/* Numbers tell streams apart, and handles do not: cudaStreamPerThread is another stream in every thread, and what one
 * had that was destroyed, the next one may have. */
uint64_t number_of(cudaStream_t stream)
{
#if CUDART_VERSION >= 12000
    unsigned long long number;

    if (cudaStreamGetId(stream, &number) == cudaSuccess)
        return number + 1; /* none of the others above */
    (void)cudaGetLastError();
#else
    (void)stream;
#endif
    return NO_NUMBER;
}

/* Whether the cache's last step, or the last that was captured, may be on another stream. */
bool was_elsewhere(uint64_t last, const kivi_cuda_target &to)
{
    return last != to.number || to.number == NO_NUMBER;
}

bool is_same_capture(const kivi_cuda_context *c, const kivi_cuda_target &to)
{
    return c->capture_pending && c->capture == to.capture;
}

} // namespace

/* A stream that is captured must not be asked for its number: that would end the capture. */
kivi_cuda_target kivi_cuda_find_target(cudaStream_t stream)
{
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    kivi_cuda_target to = {stream, DEFAULT_STREAM, false, 0};

    if (stream == NULL || stream == cudaStreamLegacy)
        return to;
    if (cudaStreamGetCaptureInfo(stream, &status, &to.capture) != cudaSuccess)
        (void)cudaGetLastError();
    to.captured = status != cudaStreamCaptureStatusNone;
    if (!to.captured)
        to.number = number_of(stream);
    else
        to.number = stream == cudaStreamPerThread ? NO_NUMBER : (uint64_t)(uintptr_t)stream;
    return to;
}

cudaError_t kivi_cuda_wait_for_others(kivi_cuda_context *c, const kivi_cuda_target &to)
{
    cudaError_t code = cudaSuccess;

    if (c->step_pending && (to.captured || was_elsewhere(c->stream, to)))
        code = to.captured ? cudaEventSynchronize(c->stepped)
                           : cudaStreamWaitEvent(to.stream, c->stepped, 0);
    if (code == cudaSuccess && c->copy_pending) {
        code = to.captured ? cudaEventSynchronize(c->copied)
                           : cudaStreamWaitEvent(to.stream, c->copied, 0);
        c->copy_pending = code != cudaSuccess;
    }
    if (code == cudaSuccess && to.captured && is_same_capture(c, to) && was_elsewhere(c->captured_on, to))
        code = cudaStreamWaitEvent(to.stream, c->captured, 0);
    return code;
}

cudaError_t kivi_cuda_note_step(kivi_cuda_context *c, const kivi_cuda_target &to)
{
    if (to.captured) {
        c->capture = to.capture;
        c->captured_on = to.number;
        c->capture_pending = true;
        return cudaEventRecord(c->captured, to.stream);
    }
    c->stream = to.number;
    c->step_pending = true;
    return cudaEventRecord(c->stepped, to.stream);
}

kivi_cuda_news *kivi_cuda_find_last(kivi_cuda_context *c, const kivi_cuda_target &to)
{
    if (to.captured && !is_same_capture(c, to))
        c->last_captured = {UINT64_MAX, UINT64_MAX};
    return to.captured ? &c->last_captured : &c->last;
}
