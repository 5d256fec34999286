/*
 * The primary context of a cache's device, through the driver: cudaSetDevice makes a context on the caller's own device
 * where there was none, and takes the place of one that the host application made itself.
 */
#include <cuda.h>

#include "context.cuh"

namespace {

/* The module does not link the driver, so that where there is none it can still be opened, and say so. */
template <class Function> bool find_function(const char *name, Function *function)
{
    void *found = NULL;
#if CUDART_VERSION >= 12050
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t code = cudaGetDriverEntryPointByVersion(name, &found, 11000, cudaEnableDefault, &result);
#else
    const cudaError_t code = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault);
#endif

    (void)cudaGetLastError();
    *function = (Function)found;
    return code == cudaSuccess && found;
}

/* The form of version 11, which knows no green contexts: CUDA_ERROR_NOT_SUPPORTED for a stream of one. */
typedef CUresult(CUDAAPI *find_context)(CUstream stream, CUcontext *context);

struct driver {
    decltype(&cuDeviceGet) get;
    decltype(&cuDevicePrimaryCtxRetain) retain;
    decltype(&cuDevicePrimaryCtxRelease) release;
    decltype(&cuCtxPushCurrent) push;
    decltype(&cuCtxPopCurrent) pop;
    find_context context_of;
    bool found;

    driver()
        : found(find_function("cuDeviceGet", &get) & find_function("cuDevicePrimaryCtxRetain", &retain)
                & find_function("cuDevicePrimaryCtxRelease", &release)
                & find_function("cuCtxPushCurrent", &push) & find_function("cuCtxPopCurrent", &pop)
                & find_function("cuStreamGetCtx", &context_of))
    {
    }
};

const driver &find_driver()
{
    static const driver d;

    return d;
}

} // namespace

kivi_status kivi_cuda_retain(kivi_cuda_context *c, kivi_error *error)
{
    const driver &d = find_driver();
    CUresult code = d.found ? d.get(&c->handle, c->device) : CUDA_ERROR_NOT_FOUND;

    if (code == CUDA_SUCCESS)
        code = d.retain(&c->primary, c->handle);
    if (code != CUDA_SUCCESS)
        c->primary = NULL;
    return kivi_cuda_status((cudaError_t)code, "context of the device", error); /* the same numbers */
}

void kivi_cuda_let_go(kivi_cuda_context *c)
{
    if (c->primary)
        (void)find_driver().release(c->handle);
}

kivi_status kivi_cuda_check_stream(const kivi_cuda_context *c, cudaStream_t stream, kivi_error *error)
{
    CUcontext context = c->primary;
    const CUresult code = stream ? find_driver().context_of(stream, &context) : CUDA_SUCCESS;

    if (code != CUDA_SUCCESS && code != CUDA_ERROR_NOT_SUPPORTED)
        return kivi_cuda_status((cudaError_t)code, "attention.stream", error);
    if (context != c->primary)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT,
                         "attention.stream: not a stream of device %d in its primary context", c->device);
    return KIVI_OK;
}

kivi_cuda_guard::kivi_cuda_guard(const kivi_cuda_context *c)
    : pushed_(find_driver().push(c->primary) == CUDA_SUCCESS), mode_(cudaStreamCaptureModeRelaxed)
{
    cudaThreadExchangeStreamCaptureMode(&mode_);
}

kivi_cuda_guard::~kivi_cuda_guard()
{
    CUcontext popped;

    cudaThreadExchangeStreamCaptureMode(&mode_);
    if (pushed_)
        (void)find_driver().pop(&popped);
}
