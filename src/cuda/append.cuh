/*
 * What the kernels of an append share: append.cu takes anything, append_tiles.cu whole slabs of new rows,
 * append_tokens.cu a few tokens. docs/numerics.md has the rule of quantization, which holds bit for bit.
 */
#ifndef KIVI_CUDA_APPEND_CUH
#define KIVI_CUDA_APPEND_CUH

#include "step.cuh"

namespace {

constexpr uint32_t SLAB = KIVI_CUDA_SLAB;

/* Scale and minimum of a group; `wide`: its range is beyond f16, differences are not rounded. */
struct range {
    __half scale, min;
    bool wide;
};

__device__ range range_of(__half2 ends, uint32_t bits)
{
    const float low = __low2float(ends), exact = __high2float(ends) - low;
    const __half rounded = __float2half_rn(exact);
    const float levels = (float)((1u << bits) - 1u);
    range r;

    r.wide = __hisinf(rounded) != 0;
    r.min = __float2half_rn(low + 0.0f); /* -0 becomes +0 */
    r.scale = __float2half_rn(__fdiv_rn(r.wide ? exact : __half2float(rounded), levels));
    return r;
}

/* For code_of; negative for a wide group. */
__device__ float inverse_of(const range &r)
{
    const float scale = __half2float(r.scale);

    return r.wide ? -1.0f : scale > 0 ? __frcp_rn(scale) : 0.0f;
}

/* Any width. One step of Newton's makes the quotient exact enough: a quotient of two f16 is never
 * within 2^-23 of a point where rounding to f16 turns. */
__device__ uint32_t code_of(__half x, float min, float scale, float inverse, float levels)
{
    const float exact = __half2float(x) - min;
    float above, quotient;

    if (inverse < 0) {
        above = exact;
        quotient = __fdiv_rn(above, scale);
    } else {
        above = __half2float(__float2half_rn(exact));
        quotient = above * inverse;
        quotient = fmaf(fmaf(-quotient, scale, above), inverse, quotient);
    }
    if (above == 0.0f)
        return 0;
    if (scale == 0.0f)
        return (uint32_t)levels;
    return (uint32_t)rintf(fminf(__half2float(__float2half_rn(quotient)), levels));
}

/* Where code i of a word lies. */
__device__ constexpr uint32_t code_shift(uint32_t bits, uint32_t i)
{
    return 8 * (i % 4) + bits * (i / 4);
}

/*
 * A code of 2 bits is the number of thresholds that `above` = f16(x - min) exceeds. The rule rounds
 * above / scale to f16, then to an integer, halves to even; so code > i where above > scale * t_i with
 * t_i halfway between i + 1/2 and its neighbour in f16. scale * t_i is exact in f32, and rounding it
 * down to f16 changes no comparison with an f16.
 */
__device__ constexpr float threshold_of(int i)
{
    return i == 0 ? 0.5f + 0x1p-12f : i == 1 ? 1.5f - 0x1p-11f : 2.5f + 0x1p-10f;
}

/* Rows of the keys or the values of one kv head. */
__device__ kivi_cuda_rows rows_of(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                  uint32_t head, bool is_value)
{
    return is_value ? kivi_cuda_value_rows(s, item, head) : kivi_cuda_key_rows(s, item, head);
}

/* Where their slab goes: the first of its blocks. A page has whole slabs. */
__device__ unsigned char *slab_blocks(const kivi_cuda_step &s, const kivi_cuda_item &item,
                                      uint32_t head, bool is_value, uint32_t slab)
{
    const kivi_layout &l = is_value ? s.v : s.k;
    const uint32_t per_page = s.page_tokens / SLAB;

    return kivi_cuda_page(s, item, slab / per_page) + head * s.page_head_stride
           + (is_value ? s.page_v_offset : 0)
           + (size_t)(slab % per_page * SLAB / l.tokens) * l.block_bytes;
}

/* The new rows of one head enter the sinks and the ring, as far as they belong there: the share of thread
 * `thread` of n_threads. */
__device__ void store_rows(const kivi_cuda_step &s, const kivi_cuda_rows &rows, uint32_t index,
                           bool is_value, uint32_t thread, uint32_t n_threads)
{
    const uint64_t oldest = rows.n > rows.ring_length.by ? rows.n - rows.ring_length.by : 0;
    const uint64_t in_sink = rows.n < rows.n_sink ? rows.n : rows.n_sink;
    const uint32_t n_sinks = in_sink > rows.n_old ? (uint32_t)(in_sink - rows.n_old) : 0;
    const uint64_t after = rows.n_old + n_sinks, begin = oldest > after ? oldest : after;
    const uint32_t oldest_at = (uint32_t)(oldest % rows.ring_length.by), per_row = rows.dim / 8;
    const uint32_t n = (n_sinks + (uint32_t)(rows.n - begin)) * per_row;

    for (uint32_t i = thread; i < n; i += n_threads) {
        const uint32_t row = i / per_row, c = i % per_row * 8;
        const uint64_t token = row < n_sinks ? rows.n_old + row : begin + (row - n_sinks);
        const int64_t at = (int64_t)(token - rows.n_old) * rows.fresh_token + rows.fresh_at + c;
        bool finite = true;
        const uint4 x = kivi_cuda_load8(rows.fresh, rows.type, at, &finite);

        if (!finite)
            kivi_cuda_report(s, index, (uint32_t)(token - rows.n_old), is_value ? 2 : 1);
        if (token < rows.n_sink)
            *(uint4 *)((__half *)rows.sink + token * rows.dim + c) = x;
        if (token >= oldest) {
            const uint32_t slot = oldest_at + (uint32_t)(token - oldest);

            *(uint4 *)((__half *)rows.ring
                       + (size_t)(slot < rows.ring_length.by ? slot : slot - rows.ring_length.by)
                             * rows.dim
                       + c) = x;
        }
    }
}

} // namespace

#endif
