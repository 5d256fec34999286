/* The instructions of the tensor core path (sm_80 and later). */
#ifndef KIVI_CUDA_MMA_CUH
#define KIVI_CUDA_MMA_CUH

#include <cuda_fp16.h>
#include <stdint.h>

/*
 * d += a * b: a is 16x16 f16 by rows, b 16x8 by columns, d 16x8 f32. With lane = 4 g + t, a lane holds
 *   a0: row g, columns 2t, 2t+1;  a1: row g + 8;  a2, a3: the same rows, columns 2t + 8, 2t + 9
 *   b0: rows 2t, 2t+1 of column g;  b1: rows 2t + 8, 2t + 9
 *   d0, d1: row g, columns 2t, 2t+1;  d2, d3: row g + 8.
 * Any permutation of the contraction is as good, if a and b share it.
 */
__device__ __forceinline__ void kivi_cuda_mma(float d[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* The same where only d0 and d1 are wanted: rows g + 8 of a may be anything, and so may d2 and d3. */
__device__ __forceinline__ void kivi_cuda_mma_upper(float d[4], uint32_t a0, uint32_t a2, uint32_t b0,
                                                    uint32_t b1)
{
    asm("{\n\t.reg .b32 any;\n\t"
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, any, %5, any}, "
        "{%6, %7}, {%0, %1, %2, %3};\n\t}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a2), "r"(b0), "r"(b1));
}

/* The thread's place in its warp. Volatile: what follows from it is computed where it is needed, and not kept
 * from a kernel's beginning on, in local memory. */
__device__ __forceinline__ uint32_t kivi_cuda_lane()
{
    uint32_t lane;

    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

/* Transposes an 8x8 matrix of 16-bit numbers: lane 4 g + t gives row g, columns 2t and 2t+1. */
__device__ __forceinline__ uint32_t kivi_cuda_transpose(uint32_t x)
{
    uint32_t y;

    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

/* Four 8x8 matrices of f16: lane 8 i + j gives the address, in shared memory, of row j of matrix i, and gets the pairs
 * of each. */
__device__ __forceinline__ void kivi_cuda_load_matrices(uint32_t x[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row));
}

/* The same, transposed. */
__device__ __forceinline__ void kivi_cuda_load_transposed(uint32_t x[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row));
}

__device__ __forceinline__ float kivi_cuda_exp2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float kivi_cuda_inverse(float x)
{
    float y;

    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t kivi_cuda_bits(__half2 x)
{
    return *reinterpret_cast<uint32_t *>(&x);
}

__device__ __forceinline__ __half2 kivi_cuda_half2(uint32_t x)
{
    return *reinterpret_cast<__half2 *>(&x);
}

__device__ __forceinline__ uint32_t kivi_cuda_mul2(uint32_t a, uint32_t b)
{
    return kivi_cuda_bits(__hmul2(kivi_cuda_half2(a), kivi_cuda_half2(b)));
}

__device__ __forceinline__ uint32_t kivi_cuda_fma2(uint32_t a, uint32_t b, uint32_t c)
{
    return kivi_cuda_bits(
        __hfma2(kivi_cuda_half2(a), kivi_cuda_half2(b), kivi_cuda_half2(c)));
}

/* What rounding lost of a * b = product, plus c * b: the low half of a two-part number. */
__device__ __forceinline__ uint32_t kivi_cuda_low2(uint32_t a, uint32_t b, uint32_t product,
                                                   uint32_t c)
{
    const __half2 lost = __hfma2(kivi_cuda_half2(a), kivi_cuda_half2(b), __hneg2(kivi_cuda_half2(product)));

    return kivi_cuda_fma2(c, b, kivi_cuda_bits(lost));
}

/* 16 bytes from global to shared memory, without waiting. */
__device__ __forceinline__ void kivi_cuda_copy16(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global));
}

/* The same of the first `bytes` bytes, and zeros in place of the rest. */
__device__ __forceinline__ void kivi_cuda_copy16_or_zero(void *shared, const void *global, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(bytes < 16 ? bytes : 16u));
}

__device__ __forceinline__ void kivi_cuda_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most `n` groups of this thread are on their way. */
template <int n> __device__ __forceinline__ void kivi_cuda_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

#endif
