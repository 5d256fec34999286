#include "many_launch.cuh"

kivi_cuda_attend_many_rows kivi_cuda_find_many_128(uint32_t k_bits, uint32_t v_bits, int *blocks)
{
    return kivi_cuda_find_bits<kivi_cuda_many_launch, 128, false>(k_bits, v_bits, blocks);
}
