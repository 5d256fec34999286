#include "kernels.cuh"

#include <string.h>

namespace {

/* Kernel arguments may have 4 KB, and 32764 bytes since CUDA 12.1. */
#if CUDART_VERSION >= 12010
constexpr size_t PIECE = 32704;
#else
constexpr size_t PIECE = 4032;
#endif
constexpr uint32_t THREADS = 256;

template <size_t size> struct piece {
    uint4 *to;
    uint32_t n; /* of 16 bytes */
    uint4 data[size / 16];
};

template <size_t size>
__global__ void __launch_bounds__(THREADS) unpack(const __grid_constant__ piece<size> p)
{
    kivi_cuda_wait_for_stream();
    for (uint32_t i = threadIdx.x; i < p.n; i += THREADS)
        p.to[i] = p.data[i];
}

template <size_t size>
cudaError_t send(char *device, const char *host, size_t bytes, cudaStream_t stream, bool overlap)
{
    piece<size> p;

    p.to = (uint4 *)device;
    p.n = (uint32_t)(bytes / 16);
    memcpy(p.data, host, bytes);
    return kivi_cuda_launch(unpack<size>, dim3(1), THREADS, 0, stream, overlap, p);
}

} // namespace

bool kivi_cuda_can_overlap()
{
    cudaFuncAttributes a;

    return cudaFuncGetAttributes(&a, unpack<PIECE>) == cudaSuccess && a.ptxVersion >= 90;
}

cudaError_t kivi_cuda_upload(void *device, const void *host, size_t bytes, cudaStream_t stream,
                             bool overlap)
{
    size_t at = 0;

    while (at < bytes) {
        const size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        const cudaError_t status = n <= 8000 && PIECE > 8000
                                       ? send<8000>((char *)device + at, (const char *)host + at, n,
                                                    stream, overlap)
                                       : send<PIECE>((char *)device + at, (const char *)host + at,
                                                     n, stream, overlap);

        if (status != cudaSuccess)
            return status;
        at += n;
    }
    return cudaSuccess;
}
