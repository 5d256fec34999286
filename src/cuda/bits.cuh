/* The bit widths that attention on tensor cores is compiled for. */
#ifndef KIVI_CUDA_BITS_CUH
#define KIVI_CUDA_BITS_CUH

#include <stddef.h>
#include <stdint.h>

/* What Launch<dimension, bits of keys, bits of values>::find makes of `blocks`, or NULL. */
template <template <int, int, int> class Launch, int D, class Blocks>
auto kivi_cuda_find_bits(uint32_t k_bits, uint32_t v_bits, Blocks *blocks) -> decltype(Launch<D, 2, 2>::find(blocks))
{
    if (k_bits == 2 && v_bits == 2)
        return Launch<D, 2, 2>::find(blocks);
    if (k_bits == 4 && v_bits == 4)
        return Launch<D, 4, 4>::find(blocks);
    if (k_bits == 4 && v_bits == 2)
        return Launch<D, 4, 2>::find(blocks);
    if (k_bits == 2 && v_bits == 4)
        return Launch<D, 2, 4>::find(blocks);
    if (k_bits == 8 && v_bits == 8)
        return Launch<D, 8, 8>::find(blocks);
    if (k_bits == 16 && v_bits == 16)
        return Launch<D, 16, 16>::find(blocks);
    return NULL;
}

#endif
