/* How the kernel of attend_fast.cuh is launched. */
#ifndef KIVI_CUDA_FAST_LAUNCH_CUH
#define KIVI_CUDA_FAST_LAUNCH_CUH

#include "attend_fast.cuh"
#include "bits.cuh"
#include "kernels.cuh"

template <int D, int KB, int VB> struct kivi_cuda_fast_launch {
    using shape = kivi_cuda_fast_shape<D, KB, VB>;

    /* Eight bits are precise always: their quantization error leaves no room for another. So is f16. */
    static constexpr bool ALWAYS = KB >= 8 || VB >= 8;

    static cudaError_t launch(const kivi_cuda_step *step, cudaStream_t stream)
    {
        const auto kernel = ALWAYS || step->precise ? kivi_cuda_attend_fast<D, KB, VB, true>
                                                    : kivi_cuda_attend_fast<D, KB, VB, ALWAYS>;

        return kivi_cuda_launch(kernel, dim3(step->n_parts), 32 * step->n_warps,
                                step->n_warps * shape::WARP_BYTES, stream, step->overlap, *step);
    }

    /* Makes it ready for blocks of so many warps. Returns how many a multiprocessor holds. */
    static int prepare(void (*kernel)(kivi_cuda_step), int warps)
    {
        int n = 0;

        return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    warps * shape::WARP_BYTES)
                           == cudaSuccess
                       && cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, kernel, 32 * warps,
                                                                        warps * shape::WARP_BYTES)
                              == cudaSuccess
                   ? n
                   : 0;
    }

    static kivi_cuda_attend find(kivi_cuda_blocks blocks[2])
    {
        for (int i = 0; i < 2; i++) {
            const int warps = shape::WARPS << i;
            const int precise = prepare(kivi_cuda_attend_fast<D, KB, VB, true>, warps);
            const int quick = prepare(kivi_cuda_attend_fast<D, KB, VB, ALWAYS>, warps);

            blocks[i] = {warps, precise < quick ? precise : quick};
        }
        (void)cudaGetLastError(); /* that there is no room for the larger ones */
        return blocks[0].per_sm > 0 ? launch : NULL;
    }
};

#endif
