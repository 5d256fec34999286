/*
 * Which kernels of a stream may be at work at a time. From compute capability 9.0 on, a kernel of ours may start while
 * the one before it still runs. Three rules make that safe:
 *
 * 1. A call's first kernel lets the next kernel start only when all that was before the call is done and can be seen.
 *    So when a call begins, of all calls only the last one can still be writing.
 * 2. Until a kernel has waited for that, it reads its arguments, and codes that are settled: those of tokens that were
 *    codes before the last call (kivi_cuda_settle). All else is for afterwards: queries, new rows, windows, tables
 *    that were uploaded.
 * 3. What appends a few tokens may run beside the attention of its own call, which reads no row and no code that it
 *    writes (kivi_cuda_runs_beside). It lets the next kernel start at once, since all before the call is done or it
 *    would not have started itself, and waits at its end.
 *
 * Every block of a kernel that may start early waits, even one without work: whoever waits for a kernel relies on that
 * for all before it. Kernels that may not (attend_many.cuh) start when all before them is done, and the next one after
 * them.
 */
#ifndef KIVI_CUDA_OVERLAP_CUH
#define KIVI_CUDA_OVERLAP_CUH

#include "step.cuh"

/* Tokens that became codes in a call, at most, of one sequence. */
struct kivi_cuda_news {
    uint64_t k, v;
};

/*
 * Notes in the items of a call how many units of each sequence are settled. At most so many tokens became codes in the
 * call before it, `last`, as in the item of it of which most did. (A kernel of the caller's between the two may let the
 * next one start sooner, and changes nothing in that.) Returns how many do in this one.
 */
kivi_cuda_news kivi_cuda_settle(const kivi_cuda_news &last, const kivi_step *step, kivi_cuda_item *items);

/* Whether the append of a few tokens runs beside the attention of its call, if that is `attended`, the kernel before.
 * Not if tables are uploaded, by a kernel of their own that has to be waited for; nor if new rows take the place of
 * some that the attention reads; nor if the gate counts: attention may yet find a query that is not finite, and of
 * windows what is older than all that it reads is visible, too. */
bool kivi_cuda_runs_beside(const kivi_cuda_step *step, bool replaces_rows, bool attended);

#ifdef __CUDACC__

/* When all blocks have been here, the next kernel may start. */
__device__ __forceinline__ void kivi_cuda_let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Until all that was before is done and can be seen. Then the next kernel may start. */
__device__ __forceinline__ void kivi_cuda_wait_for_stream()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    kivi_cuda_let_next_start();
}

#endif

/* Starts a kernel, which may overlap with the one before it if `overlap`: then it has to wait. */
template <class Argument, class... More>
cudaError_t kivi_cuda_launch(void (*kernel)(Argument, More...), dim3 grid, uint32_t threads,
                             size_t shared, cudaStream_t stream, bool overlap,
                             const Argument &argument, More... more)
{
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};

    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlap ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, argument, more...);
}

/* Whether the kernels that the current device runs were compiled to wait (upload.cu). */
bool kivi_cuda_can_overlap();

#endif
