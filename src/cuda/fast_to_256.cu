#include "fast_launch.cuh"

kivi_cuda_attend kivi_cuda_find_fast_to_256(uint32_t k_bits, uint32_t v_bits, kivi_cuda_blocks blocks[2])
{
    return kivi_cuda_find_bits<kivi_cuda_fast_launch, 256, true>(k_bits, v_bits, blocks);
}
