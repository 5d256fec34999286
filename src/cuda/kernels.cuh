/* What run.cu launches. All return cudaSuccess or what the launch said. */
#ifndef KIVI_CUDA_KERNELS_CUH
#define KIVI_CUDA_KERNELS_CUH

#include "overlap.cuh"

/* Attention of the step's parts, for one combination of dimension and bits. */
typedef cudaError_t (*kivi_cuda_attend)(const kivi_cuda_step *step, cudaStream_t stream);

/* Blocks of so many warps, of which a multiprocessor of the current device holds so many at a time. */
struct kivi_cuda_blocks {
    int warps, per_sm;
};

/* Any combination. */
cudaError_t kivi_cuda_attend_general(const kivi_cuda_step *step, cudaStream_t stream);
kivi_cuda_blocks kivi_cuda_general_blocks();

/* The tensor core path, or NULL if it was not compiled for the combination: of head dimension 64 or 128, of keys as of
 * values, or of any dimensions up to 128 or 256. It takes blocks of either kind, the second of twice as many warps, of
 * which small multiprocessors hold none. */
kivi_cuda_attend kivi_cuda_find_fast_64(uint32_t k_bits, uint32_t v_bits, kivi_cuda_blocks blocks[2]);
kivi_cuda_attend kivi_cuda_find_fast_128(uint32_t k_bits, uint32_t v_bits, kivi_cuda_blocks blocks[2]);
kivi_cuda_attend kivi_cuda_find_fast_to_128(uint32_t k_bits, uint32_t v_bits, kivi_cuda_blocks blocks[2]);
kivi_cuda_attend kivi_cuda_find_fast_to_256(uint32_t k_bits, uint32_t v_bits, kivi_cuda_blocks blocks[2]);

/* Items of many query rows are attend_many.cuh's, where it was compiled for the layer: schedule.cu. */
#define KIVI_CUDA_MANY 32u      /* rows of an item, at least */
#define KIVI_CUDA_MANY_ROWS 64u /* of a block */
#define KIVI_CUDA_MANY_LEAST 8u /* units of a block, where it has but a share of a sequence */

/* The tiles of so many rows that an item has for each kv head; 0 unless its queries are many. */
__host__ __device__ __forceinline__ uint32_t kivi_cuda_many_tiles(const kivi_cuda_item &item, uint32_t heads_per_kv)
{
    return item.n_tiles ? 0 : (item.n_q * heads_per_kv + KIVI_CUDA_MANY_ROWS - 1) / KIVI_CUDA_MANY_ROWS;
}

/* What the attention of such items takes. */
struct kivi_cuda_many_plan {
    uint32_t n_blocks, n_partials;
    bool low_queries; /* some are f32 */
};

/* Floats of a partial result: [rows][dim] outputs, then unit and sum of each row. */
constexpr __host__ __device__ size_t kivi_cuda_many_floats(uint32_t dim)
{
    return KIVI_CUDA_MANY_ROWS * (dim + 2);
}

typedef cudaError_t (*kivi_cuda_attend_many_rows)(const kivi_cuda_step *step, const kivi_cuda_many_plan *plan,
                                                  float *partials, cudaStream_t stream);

/* The same for these; also NULL if it takes more shared memory than the current device has, a multiprocessor of which
 * holds so many blocks. */
kivi_cuda_attend_many_rows kivi_cuda_find_many_64(uint32_t k_bits, uint32_t v_bits, int *blocks);
kivi_cuda_attend_many_rows kivi_cuda_find_many_128(uint32_t k_bits, uint32_t v_bits, int *blocks);
kivi_cuda_attend_many_rows kivi_cuda_find_many_to_128(uint32_t k_bits, uint32_t v_bits, int *blocks);
kivi_cuda_attend_many_rows kivi_cuda_find_many_to_256(uint32_t k_bits, uint32_t v_bits, int *blocks);

/* How a step's append is split between its kernels: slabs of a kv head, at most. */
struct kivi_cuda_append_plan {
    uint32_t tiled, others;
    bool read_windows; /* whether the others read rows of a window */
    bool few;          /* it is one for append_tokens.cu */
    bool replaces_rows; /* new rows take the place of some that the call's attention reads */
};

/* Decides; notes in the items, which are complete, what is tiled. */
kivi_cuda_append_plan kivi_cuda_plan_append(const kivi_cuda_step *step, kivi_cuda_item *items);

/* Quantizes what leaves the windows, then stores the new rows there; `attended`: right after the step's
 * attention. */
cudaError_t kivi_cuda_append(const kivi_cuda_step *step, const kivi_cuda_append_plan *plan, bool attended,
                             cudaStream_t stream);

/* append_tokens.cu: at most so many tokens are new, and of as many the values leave the window, but no keys. */
#define KIVI_CUDA_FEW 8u
cudaError_t kivi_cuda_append_tokens(const kivi_cuda_step *step, const kivi_cuda_append_plan *plan, bool attended,
                                    cudaStream_t stream);

/* append_tiles.cu, for what is tiled: whether it knows the layout; at most `slabs` for a kv head, and all new rows
 * stored. */
bool kivi_cuda_fits_tiles(const kivi_layout *l);
cudaError_t kivi_cuda_append_tiles(const kivi_cuda_step *step, uint32_t slabs, cudaStream_t stream);

/* Reports keys and values that are not finite; max_new is the largest n_new of all items. */
cudaError_t kivi_cuda_check(const kivi_cuda_step *step, uint32_t max_new, cudaStream_t stream);

/* Copies host memory to the device through kernel arguments: the host's may be reused at once, and a
 * captured copy is complete in itself. Both are 16-byte aligned, bytes a multiple of 16. */
cudaError_t kivi_cuda_upload(void *device, const void *host, size_t bytes, cudaStream_t stream,
                             bool overlap);

#endif
