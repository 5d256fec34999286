#include "fast_table.cuh"

kivi_cuda_attend kivi_cuda_find_fast_128(uint32_t k_bits, uint32_t v_bits, int *per_sm, int *warps)
{
    return kivi_cuda_fast_table<128>::find(k_bits, v_bits, per_sm, warps);
}
