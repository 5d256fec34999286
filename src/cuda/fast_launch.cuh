/* How the kernel of attend_fast.cuh is launched. */
#ifndef KIVI_CUDA_FAST_LAUNCH_CUH
#define KIVI_CUDA_FAST_LAUNCH_CUH

#include "attend_fast.cuh"
#include "bits.cuh"
#include "kernels.cuh"

template <int D, bool ANY, int KB, int VB> struct kivi_cuda_fast_launch {
    using shape = kivi_cuda_fast_shape<D, ANY, KB, VB>;

    /* Eight bits are precise always: their quantization error leaves no room for another. So is f16. */
    static constexpr bool ALWAYS = KB >= 8 || VB >= 8;

    static cudaError_t launch(const kivi_cuda_step *step, cudaStream_t stream)
    {
        const auto kernel = ALWAYS || step->precise ? kivi_cuda_attend_fast<D, ANY, KB, VB, true>
                                                    : kivi_cuda_attend_fast<D, ANY, KB, VB, ALWAYS>;

        return kivi_cuda_launch(kernel, dim3(step->n_parts), 32 * step->n_warps,
                                step->n_warps * shape::WARP_BYTES, stream, step->overlap, *step);
    }

    static bool allow(void (*kernel)(kivi_cuda_step), int warps)
    {
        return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, warps * shape::WARP_BYTES)
               == cudaSuccess;
    }

    /* Makes it ready. Returns how many blocks of the one kind and the other a multiprocessor holds. The limit is that of
     * all caches on the device, of which one may be at work in large blocks: it is never made less, not even for a
     * moment. */
    static void prepare(void (*kernel)(kivi_cuda_step), int n[2])
    {
        const int kinds = allow(kernel, 2 * shape::WARPS) ? 2 : allow(kernel, shape::WARPS) ? 1 : 0;

        for (int i = 0; i < 2; i++)
            if (i >= kinds
                || cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n[i], kernel, 32 * (shape::WARPS << i),
                                                                 (shape::WARPS << i) * shape::WARP_BYTES)
                       != cudaSuccess)
                n[i] = 0;
    }

    static kivi_cuda_attend find(kivi_cuda_blocks blocks[2])
    {
        int precise[2], quick[2];

        prepare(kivi_cuda_attend_fast<D, ANY, KB, VB, true>, precise);
        prepare(kivi_cuda_attend_fast<D, ANY, KB, VB, ALWAYS>, quick);
        for (int i = 0; i < 2; i++)
            blocks[i] = {shape::WARPS << i, precise[i] < quick[i] ? precise[i] : quick[i]};
        (void)cudaGetLastError(); /* that there is no room for the larger ones */
        return blocks[0].per_sm > 0 ? launch : NULL;
    }
};

#endif
