/* What the host keeps for a cache on a device. */
#ifndef KIVI_CUDA_CONTEXT_CUH
#define KIVI_CUDA_CONTEXT_CUH

#include <cuda.h>

#include "kernels.cuh"

extern "C" {
#include "../core/error.h"
#include "../core/lock.h"
}

/* Device memory of a kind that steps need. It only grows; what it was before stays allocated until the
 * cache is closed, since a captured graph may refer to it, unless arrays are the host's. */
struct kivi_cuda_buffer {
    void *memory;
    size_t bytes;
    struct kivi_cuda_retired *retired;
};

/* How attention may be split. */
struct kivi_cuda_split {
    uint32_t n_warps;    /* of a part */
    uint32_t max_parts;  /* that the device runs at a time */
    uint32_t least_cost; /* below this much for each part, fewer parts are quicker */
};

/* Attention of a layer. */
struct kivi_cuda_path {
    kivi_cuda_attend attend;
    kivi_cuda_split small, large; /* the second in blocks of twice the warps, */
    uint32_t few_tasks;           /* up to so many tasks */
    kivi_cuda_attend_many_rows attend_many; /* of items of many query rows; NULL: as the others */
    uint32_t many_blocks;                   /* that the device runs at a time; 0 then */
    bool fast;
};

struct kivi_cuda_context {
    const struct kivi_geometry *geometry;
    kivi_allocator allocator;
    int device;
    CUdevice handle;
    CUcontext primary; /* of the device; NULL unless retained */
    bool on_device; /* the caller's arrays are device memory, and nothing waits */
    bool overlap;   /* of kernels in a stream */
    char name[64];
    struct kivi_cuda_path *paths; /* of each layer */

    kivi_lock lock; /* protects all below */
    cudaStream_t copies;  /* the cache's own stream, for blocks */
    cudaEvent_t stepped;  /* after the last step, which was on the stream of number `stream`; */
    cudaEvent_t copied;   /* after the last copy of a block; */
    cudaEvent_t captured; /* after the last step that was captured, on stream `captured_on` in capture `capture` */
    uint64_t stream, captured_on, capture;
    bool step_pending, copy_pending, capture_pending; /* whether the events were recorded since */
    struct kivi_cuda_news last, last_captured;        /* in the last step, and the last one that was captured */
    volatile unsigned long long *bad; /* mapped host memory: kivi_cuda_report */
    unsigned long long *bad_on_device;
    struct kivi_cuda_buffer partials, many_partials, arrivals, tables, staging;
};

/* primary.cu: the device's primary context, which the cache shares with the host application and keeps alive. */
kivi_status kivi_cuda_retain(kivi_cuda_context *c, kivi_error *error);
void kivi_cuda_let_go(kivi_cuda_context *c);

/* Refuses a stream of another context or device: a kernel that is launched there would run, and fault. */
kivi_status kivi_cuda_check_stream(const kivi_cuda_context *c, cudaStream_t stream, kivi_error *error);

/* It is current while this lives, whatever was or was not before, and capture allows memory to be taken. */
class kivi_cuda_guard
{
  public:
    explicit kivi_cuda_guard(const kivi_cuda_context *c);
    ~kivi_cuda_guard();

  private:
    bool pushed_;
    cudaStreamCaptureMode mode_;
};

/* KIVI_OK, or the failure of a CUDA call, named. */
kivi_status kivi_cuda_status(cudaError_t code, const char *what, kivi_error *error);

/* At least `bytes` bytes in the buffer, zeroed where new if `zero`. */
kivi_status kivi_cuda_reserve(kivi_cuda_context *c, kivi_cuda_buffer *buffer, size_t bytes, bool zero,
                              kivi_error *error);
void kivi_cuda_release(kivi_cuda_context *c, kivi_cuda_buffer *buffer);

/* blocks.cu: struct kivi_backend has the contracts. */
void *kivi_cuda_block_alloc(void *context, size_t bytes);
void kivi_cuda_block_free(void *context, void *block, size_t bytes);
kivi_status kivi_cuda_block_copy(void *context, void *to, const void *from, size_t bytes,
                                 kivi_error *error);
kivi_status kivi_cuda_block_read(void *context, void *host, const void *block, size_t offset,
                                 size_t bytes, kivi_error *error);
kivi_status kivi_cuda_block_write(void *context, void *block, size_t offset, const void *host,
                                  size_t bytes, kivi_error *error);

/* What the attention of a step takes, in units of codes, beside items of many queries. */
struct kivi_cuda_work {
    uint64_t cost, n_tasks;
    kivi_cuda_many_plan many;
};

/* schedule.cu. Finds the work, and each item's share in it; false if it is too much for one call. `many_blocks`:
 * attend_many.cuh's that run at a time, 0 if the layer has none. */
bool kivi_cuda_find_work(const kivi_step *step, kivi_cuda_item *items, uint32_t many_blocks, kivi_cuda_work *work);

/* In small parts or large ones. Of the small ones more overlap on a multiprocessor, when they begin and end. Where many
 * parts share a task, merging what they leave takes longer. */
const kivi_cuda_split *kivi_cuda_choose_split(const kivi_cuda_path *path, const kivi_cuda_work *work);

/* Divides it into parts, which all have something to do. A part that begins in one task and ends in another pays for
 * two ends, so none does if that takes not much more. Returns how many there are; `starts` takes one more than the
 * device runs at a time. */
uint32_t kivi_cuda_divide_work(const kivi_cuda_step *s, const kivi_cuda_item *items, const kivi_cuda_work *work,
                               const kivi_cuda_split *split, kivi_cuda_start *starts);

/* Where a step goes. */
struct kivi_cuda_target {
    cudaStream_t stream;
    uint64_t number; /* the stream's, or of those of one capture its handle */
    bool captured;
    unsigned long long capture; /* which one */
};

/* streams.cu; with the context's lock. */
kivi_cuda_target kivi_cuda_find_target(cudaStream_t stream);

/* The stream waits for what the cache did last elsewhere. A capture waits for what was captured with it; for all that
 * was not it cannot, so the host does. */
cudaError_t kivi_cuda_wait_for_others(kivi_cuda_context *c, const kivi_cuda_target &to);

/* Notes where the step went, once it is launched. */
cudaError_t kivi_cuda_note_step(kivi_cuda_context *c, const kivi_cuda_target &to);

/* What the call before this one made codes of, and may still be writing, for the next call to be replaced. In a graph
 * that is one of the same capture; where it is not known which came before, or the last one was not launched, all that
 * it may be. */
kivi_cuda_news *kivi_cuda_find_last(kivi_cuda_context *c, const kivi_cuda_target &to);

/* run.cu */
kivi_status kivi_cuda_begin(void *context, struct kivi_step *step, kivi_error *error);
void kivi_cuda_part(void *context, struct kivi_step *step, uint32_t phase, uint32_t part);
kivi_status kivi_cuda_end(void *context, struct kivi_step *step, int apply, kivi_error *error);

#endif
