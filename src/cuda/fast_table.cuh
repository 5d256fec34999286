/* The bit widths that attend_fast.cuh is compiled for. */
#ifndef KIVI_CUDA_FAST_TABLE_CUH
#define KIVI_CUDA_FAST_TABLE_CUH

#include "attend_fast.cuh"
#include "kernels.cuh"

template <int D, int KB, int VB> struct kivi_cuda_fast_launch {
    using shape = kivi_cuda_fast_shape<D, KB, VB>;
    static constexpr int SHARED = shape::WARPS * shape::WARP_BYTES;

    /* Eight bits are precise always: their quantization error leaves no room for another. So is f16. */
    static constexpr bool ALWAYS = KB >= 8 || VB >= 8;

    static cudaError_t launch(const kivi_cuda_step *step, cudaStream_t stream)
    {
        const auto kernel = ALWAYS || step->precise ? kivi_cuda_attend_fast<D, KB, VB, true>
                                                    : kivi_cuda_attend_fast<D, KB, VB, ALWAYS>;

        return kivi_cuda_launch(kernel, dim3(step->n_parts), shape::THREADS, SHARED, stream,
                                step->overlap, *step);
    }

    static bool prepare(void (*kernel)(kivi_cuda_step), int *per_sm)
    {
        return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED)
                   == cudaSuccess
               && cudaOccupancyMaxActiveBlocksPerMultiprocessor(per_sm, kernel, shape::THREADS,
                                                                SHARED)
                      == cudaSuccess
               && *per_sm >= 1;
    }

    static kivi_cuda_attend find(int *per_sm, int *warps)
    {
        *per_sm = 0;
        *warps = shape::WARPS;
        return prepare(kivi_cuda_attend_fast<D, KB, VB, true>, per_sm)
                       && prepare(kivi_cuda_attend_fast<D, KB, VB, ALWAYS>, per_sm)
                   ? launch
                   : NULL;
    }
};

template <int D> struct kivi_cuda_fast_table {
    static kivi_cuda_attend find(uint32_t k_bits, uint32_t v_bits, int *per_sm, int *warps)
    {
        if (k_bits == 2 && v_bits == 2)
            return kivi_cuda_fast_launch<D, 2, 2>::find(per_sm, warps);
        if (k_bits == 4 && v_bits == 4)
            return kivi_cuda_fast_launch<D, 4, 4>::find(per_sm, warps);
        if (k_bits == 4 && v_bits == 2)
            return kivi_cuda_fast_launch<D, 4, 2>::find(per_sm, warps);
        if (k_bits == 2 && v_bits == 4)
            return kivi_cuda_fast_launch<D, 2, 4>::find(per_sm, warps);
        if (k_bits == 8 && v_bits == 8)
            return kivi_cuda_fast_launch<D, 8, 8>::find(per_sm, warps);
        if (k_bits == 16 && v_bits == 16)
            return kivi_cuda_fast_launch<D, 16, 16>::find(per_sm, warps);
        return NULL;
    }
};

#endif
