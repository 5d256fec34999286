/*
 * A step of a few tokens, as in decoding, and of a few values that leave the window. A warp takes the keys or the
 * values of one kv head, four channels to a lane. It runs from cold instructions, so what counts is that they
 * are few.
 */
#include "append.cuh"
#include "kernels.cuh"
#include "mma.cuh"

namespace {

/* The values of one token, number t of its block. A block that is begun is written whole. */
__device__ void quantize_token(const kivi_layout &l, const __half *row, unsigned char *block,
                               uint32_t t, uint32_t lane)
{
    const uint32_t n = 32 / l.bits, levels = (1u << l.bits) - 1u, shift = code_shift(l.bits, t % n);
    uint32_t *codes = (uint32_t *)block + t / n * l.dim_pad;
    __half *scales = (__half *)(block + l.code_bytes) + t;

    if (t == 0)
        for (uint32_t i = lane; i < l.block_bytes / 16; i += 32)
            ((uint4 *)block)[i] = make_uint4(0, 0, 0, 0);
    __syncwarp();
#pragma unroll 1
    for (uint32_t c = 4 * lane; c - 4 * lane < l.dim; c += 4 * 32) {
        const bool used = c < l.dim;
        __half2 low = __half2half2(__ushort_as_half(0x7c00)), high = __hneg2(low);
        union {
            uint4 all;
            uint32_t of[4];
        } words = {};
        uint2 x = make_uint2(0, 0);
        range r;

        if (used) {
            x = __ldcg((const uint2 *)(row + c));
            words.all = __ldcg((const uint4 *)(codes + c));
            low = __hmin2(kivi_cuda_half2(x.x), kivi_cuda_half2(x.y));
            high = __hmax2(kivi_cuda_half2(x.x), kivi_cuda_half2(x.y));
        }
        low = __hmin2(low, __lowhigh2highlow(low));
        high = __hmax2(high, __lowhigh2highlow(high));
#pragma unroll 1
        for (uint32_t i = 1; i < l.group_size / 4; i *= 2) {
            low = __hmin2(low, __shfl_xor_sync(UINT32_MAX, low, i));
            high = __hmax2(high, __shfl_xor_sync(UINT32_MAX, high, i));
        }
        if (!used)
            continue;
        r = range_of(__lows2half2(low, high), l.bits);

        const float min = __half2float(r.min), scale = __half2float(r.scale);
        const float inverse = inverse_of(r);

#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t pair = i < 2 ? x.x : x.y, half = i % 2 ? pair >> 16 : pair;
            const uint32_t code =
                code_of(__ushort_as_half((unsigned short)half), min, scale, inverse, (float)levels);

            words.of[i] = (words.of[i] & ~(levels << shift)) | code << shift;
        }
        *(uint4 *)(codes + c) = words.all;
        if (c % l.group_size == 0) {
            scales[c / l.group_size * KIVI_TILE] = r.scale;
            scales[l.scale_bytes / 2 + c / l.group_size * KIVI_TILE] = r.min;
        }
    }
}

/* What a warp does: the keys or the values of one head of one item. */
__device__ void append(const kivi_cuda_step &s, const kivi_cuda_item &item, const kivi_cuda_rows &rows,
                       uint32_t index, uint32_t head, bool is_value, uint32_t lane)
{
    if (item.n_new == 0 || (s.gate && *s.gate != KIVI_CUDA_NOT_BAD))
        return;
    if (is_value)
#pragma unroll 1
        for (uint64_t token = rows.packed; token < item.v_after; token++) {
            const uint32_t at = (uint32_t)(token % SLAB);
            const __half *row = (const __half *)rows.ring + token % rows.ring_length.by * rows.dim;

            quantize_token(s.v, row,
                           slab_blocks(s, item, head, true, (uint32_t)(token / SLAB))
                               + at / KIVI_TILE * s.v.block_bytes,
                           at % KIVI_TILE, lane);
        }
    __syncwarp(); /* the new rows may replace those */
    store_rows(s, rows, index, is_value, lane, 32);
}

/* Grid: (keys and values of each head, items). With `beside`, the call's attention is the kernel before, and may still
 * run (overlap.cuh). So the next call's attention may start, too, and find its work while this one's ends. */
__global__ void __launch_bounds__(32) append_tokens(const __grid_constant__ kivi_cuda_step s, bool beside)
{
    const uint32_t head = blockIdx.x / 2, index = blockIdx.y;
    const bool is_value = blockIdx.x % 2;
    const kivi_cuda_item &item = kivi_cuda_items(s)[index];

    if (beside)
        kivi_cuda_let_next_start();
    else if (s.tables) /* may still be on their way */
        kivi_cuda_wait_for_stream();

    const kivi_cuda_rows rows = rows_of(s, item, head, is_value);

    if (!beside)
        kivi_cuda_wait_for_stream();
    append(s, item, rows, index, head, is_value, threadIdx.x);
    if (beside)
        kivi_cuda_wait_for_stream();
}

} // namespace

cudaError_t kivi_cuda_append_tokens(const kivi_cuda_step *step, const kivi_cuda_append_plan *plan, bool attended,
                                    cudaStream_t stream)
{
    return kivi_cuda_launch(append_tokens, dim3(2 * step->n_kv_heads, step->n_items), 32, 0, stream, step->overlap,
                            *step, kivi_cuda_runs_beside(step, plan->replaces_rows, attended));
}
