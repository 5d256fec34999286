/* The bit widths that attention on tensor cores is compiled for. */
#ifndef KIVI_CUDA_BITS_CUH
#define KIVI_CUDA_BITS_CUH

#include <stddef.h>
#include <stdint.h>

/* What Launch<D, ANY, bits of keys, bits of values>::find makes of `blocks`, or NULL. Widths that are seldom seen
 * together have kernels for ANY dimension up to D alone, which take that one, too. */
template <template <int, bool, int, int> class Launch, int D, bool ANY, class Blocks>
auto kivi_cuda_find_bits(uint32_t k_bits, uint32_t v_bits, Blocks *blocks)
    -> decltype(Launch<D, ANY, 2, 2>::find(blocks))
{
    if (k_bits == 2 && v_bits == 2)
        return Launch<D, ANY, 2, 2>::find(blocks);
    if (k_bits == 4 && v_bits == 4)
        return Launch<D, ANY, 4, 4>::find(blocks);
    if (k_bits == 4 && v_bits == 2)
        return Launch<D, ANY, 4, 2>::find(blocks);
    if (k_bits == 2 && v_bits == 4)
        return Launch<D, ANY, 2, 4>::find(blocks);
    if (k_bits == 8 && v_bits == 8)
        return Launch<D, ANY, 8, 8>::find(blocks);
    if (k_bits == 16 && v_bits == 16)
        return Launch<D, ANY, 16, 16>::find(blocks);
    if constexpr (ANY) {
        if (k_bits == 8 && v_bits == 4)
            return Launch<D, ANY, 8, 4>::find(blocks);
        if (k_bits == 8 && v_bits == 2)
            return Launch<D, ANY, 8, 2>::find(blocks);
        if (k_bits == 4 && v_bits == 8)
            return Launch<D, ANY, 4, 8>::find(blocks);
        if (k_bits == 2 && v_bits == 8)
            return Launch<D, ANY, 2, 8>::find(blocks);
    }
    return NULL;
}

#endif
