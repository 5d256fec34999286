/*
 * Attention for every head dimension and bit width, in f32 on the ordinary cores: the slower path of
 * what attend_fast.cuh was not compiled for. A block works on four units at a time: one thread to a
 * token for the scores, one to some channels for the output.
 */
#include "kernels.cuh"
#include "results.cuh"

namespace {

constexpr uint32_t THREADS = 128, TOKENS = 128, MAX_DIM = 512, PER_THREAD = MAX_DIM / THREADS;
constexpr uint32_t ROOM = 512; /* float4, to merge in */

struct alignas(16) tile_state {
    float q[KIVI_CUDA_ROWS][MAX_DIM]; /* then the result */
    float sums[2 * KIVI_CUDA_ROWS];   /* the end of the result, if v_dim is 512 */
    float p[TOKENS][KIVI_CUDA_ROWS];
    float warp_max[THREADS / 32][KIVI_CUDA_ROWS];
    float max[KIVI_CUDA_ROWS], shrink[KIVI_CUDA_ROWS], sum[KIVI_CUDA_ROWS];
};

__device__ float code_at(const uint32_t *words, size_t word, uint32_t shift, uint32_t bits)
{
    return (float)(words[word] >> shift & ((1u << bits) - 1u));
}

/* score[r] = q[r] . key, for one token. */
__device__ void score_token(const kivi_cuda_step &s, const kivi_cuda_item &item,
                            const kivi_cuda_rows &rows, uint32_t head, uint64_t token,
                            const float (*q)[MAX_DIM], float score[KIVI_CUDA_ROWS])
{
    const kivi_cuda_row row = kivi_cuda_find_row(rows, token);
    const uint32_t dim = s.k.dim;

    for (uint32_t r = 0; r < KIVI_CUDA_ROWS; r++)
        score[r] = 0;
    if (row.data || s.k.bits == 16) {
        const unsigned char *page = NULL;
        kivi_cuda_row from = row;

        if (!row.data) {
            page = kivi_cuda_page(s, item, (uint32_t)(token / s.page_tokens)) + head * s.page_head_stride;
            from.data = page + token % s.page_tokens / s.k.tokens * s.k.block_bytes;
            from.at = (int64_t)(token % s.k.tokens) * dim;
        }
        for (uint32_t c = 0; c < dim; c += 8) {
            kivi_cuda_half8 x;

            x.vector = kivi_cuda_row8(from, c);
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (uint32_t r = 0; r < KIVI_CUDA_ROWS; r++)
                    score[r] = fmaf(q[r][c + i], __half2float(x.half[i]), score[r]);
        }
    } else {
        const unsigned char *page = kivi_cuda_page(s, item, (uint32_t)(token / s.page_tokens))
                                    + head * s.page_head_stride;
        const unsigned char *block = page
                                     + token % s.page_tokens / s.k.tokens * s.k.block_bytes;
        const __half *scales = (const __half *)(block + s.k.code_bytes);
        const __half *minima = (const __half *)(block + s.k.code_bytes + s.k.scale_bytes);
        const uint32_t n = 32 / s.k.bits;

        for (uint32_t c = 0; c < dim; c++) {
            uint32_t shift;
            const size_t word = (token % s.k.tokens / KIVI_TILE * (s.k.dim_pad / n) + c / n)
                                    * KIVI_TILE
                                + token % KIVI_TILE;

            shift = 8 * (c % n % 4) + s.k.bits * (c % n / 4);
            const float x = fmaf(code_at((const uint32_t *)block, word, shift, s.k.bits),
                                 __half2float(scales[c]), __half2float(minima[c]));

#pragma unroll
            for (uint32_t r = 0; r < KIVI_CUDA_ROWS; r++)
                score[r] = fmaf(q[r][c], x, score[r]);
        }
    }
}

/* Channel c of the value of a token that is no row. */
__device__ float packed_value(const kivi_cuda_step &s, const kivi_cuda_item &item, uint32_t head,
                              uint64_t token, uint32_t c)
{
    const unsigned char *page = kivi_cuda_page(s, item, (uint32_t)(token / s.page_tokens))
                                + head * s.page_head_stride + s.page_v_offset;
    const unsigned char *block = page + token % s.page_tokens / s.v.tokens * s.v.block_bytes;
    const uint32_t in = token % s.v.tokens;

    if (s.v.bits == 16) {
        return __half2float(((const __half *)block)[in * s.v.dim + c]);
    } else {
        const __half *scales = (const __half *)(block + s.v.code_bytes);
        const __half *minima = (const __half *)(block + s.v.code_bytes + s.v.scale_bytes);
        const uint32_t n = 32 / s.v.bits, group = c / s.v.group_size * KIVI_TILE + in;
        const uint32_t shift = 8 * (in % n % 4) + s.v.bits * (in % n / 4);

        return fmaf(code_at((const uint32_t *)block, in / n * s.v.dim_pad + c, shift, s.v.bits),
                    __half2float(scales[group]), __half2float(minima[group]));
    }
}

__device__ void load_queries(const kivi_cuda_step &s, const kivi_cuda_item &item,
                             const kivi_cuda_segment &g, tile_state &m)
{
    const float factor = s.softcap > 0 ? s.scale : s.scale * 1.44269504f;
    const uint32_t n_rows = kivi_cuda_tile_rows(s, item, g.tile);

    for (uint32_t i = threadIdx.x; i < KIVI_CUDA_ROWS * s.k.dim; i += THREADS) {
        const uint32_t r = i / s.k.dim, c = i % s.k.dim;
        const uint32_t token = kivi_cuda_query(s, g.tile, r);
        const uint32_t head = kivi_cuda_query_head(s, g, r, token);
        float x = 0;

        if (r < n_rows) {
            x = kivi_cuda_element(item.q, item.q_type,
                                  (int64_t)token * item.q_token + (int64_t)head * item.q_head + c);
            if (!(fabsf(x * s.scale) <= 1e30f)) {
                kivi_cuda_report(s, g.item, token, 0);
                x = 0;
            }
        }
        m.q[r][c] = x * factor;
    }
    if (threadIdx.x < KIVI_CUDA_ROWS) {
        m.max[threadIdx.x] = -INFINITY;
        m.sum[threadIdx.x] = 0;
    }
}

/* Scores of this thread's token to weights; the largest of each row decides their unit. */
__device__ void weigh(const kivi_cuda_step &s, const kivi_cuda_item &item,
                      const kivi_cuda_segment &g, uint64_t token, uint64_t end,
                      float score[KIVI_CUDA_ROWS], tile_state &m)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    for (uint32_t r = 0; r < KIVI_CUDA_ROWS; r++) {
        const uint64_t position = item.q_position + kivi_cuda_query(s, g.tile, r);
        float max;

        if (s.softcap > 0)
            score[r] = s.softcap * 1.44269504f * tanhf(score[r] / s.softcap);
        if (token >= end || token > position || (s.window && position - token >= s.window))
            score[r] = -INFINITY;
        max = score[r];
        for (int i = 16; i > 0; i /= 2)
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, i));
        if (lane == 0)
            m.warp_max[warp][r] = max;
    }
    __syncthreads();
    if (threadIdx.x < KIVI_CUDA_ROWS) {
        float max = m.max[threadIdx.x];

        for (uint32_t w = 0; w < THREADS / 32; w++)
            max = fmaxf(max, m.warp_max[w][threadIdx.x]);
        m.shrink[threadIdx.x] = max > -INFINITY ? exp2f(m.max[threadIdx.x] - max) : 1.0f;
        m.max[threadIdx.x] = max;
    }
    __syncthreads();
    for (uint32_t r = 0; r < KIVI_CUDA_ROWS; r++) {
        float p = score[r] > -INFINITY ? exp2f(score[r] - m.max[r]) : 0.0f;

        m.p[threadIdx.x][r] = p;
        for (int i = 16; i > 0; i /= 2)
            p += __shfl_xor_sync(0xffffffffu, p, i);
        if (lane == 0)
            m.warp_max[warp][r] = p; /* everyone is past reading the maxima */
    }
    __syncthreads();
    if (threadIdx.x < KIVI_CUDA_ROWS) {
        float sum = m.sum[threadIdx.x] * m.shrink[threadIdx.x];

        for (uint32_t w = 0; w < THREADS / 32; w++)
            sum += m.warp_max[w][threadIdx.x];
        m.sum[threadIdx.x] = sum;
    }
}

__global__ void __launch_bounds__(THREADS) attend(const __grid_constant__ kivi_cuda_step s)
{
    __shared__ tile_state m;
    __shared__ float4 room[ROOM];
    kivi_cuda_segment g;

    kivi_cuda_wait_for_stream();
    for (uint32_t segment = 0; segment < kivi_cuda_starts(s)[blockIdx.x].n_tasks; segment++) {
        kivi_cuda_next(s, blockIdx.x, segment, g);

        const kivi_cuda_item &item = kivi_cuda_items(s)[g.item];

        kivi_cuda_see(s, item, g, NULL, NULL);

        const kivi_cuda_rows keys = kivi_cuda_key_rows(s, item, g.head);
        const kivi_cuda_rows values = kivi_cuda_value_rows(s, item, g.head);
        const uint64_t stop = (uint64_t)g.end * KIVI_CUDA_UNIT;
        const uint64_t end = stop < item.n ? stop : item.n;
        float out[PER_THREAD][KIVI_CUDA_ROWS] = {};
        float *result = &m.q[0][0];

        load_queries(s, item, g, m);
        __syncthreads();
        for (uint64_t t = (uint64_t)g.begin * KIVI_CUDA_UNIT; t < end; t += TOKENS) {
            const uint32_t n = end - t < TOKENS ? (uint32_t)(end - t) : TOKENS;
            float score[KIVI_CUDA_ROWS] = {};

            if (threadIdx.x < n)
                score_token(s, item, keys, g.head, t + threadIdx.x, m.q, score);
            weigh(s, item, g, t + threadIdx.x, end, score, m);
            __syncthreads();
#pragma unroll
            for (uint32_t i = 0; i < PER_THREAD; i++) {
                const uint32_t c = threadIdx.x + i * THREADS;
                float part[KIVI_CUDA_ROWS] = {}; /* apart: what is small beside a long sum is lost */

                if (c >= s.v.dim)
                    break;
                for (uint32_t j = 0; j < n; j++) {
                    const kivi_cuda_row row = kivi_cuda_find_row(values, t + j);
                    bool finite = true;
                    const float x = row.data
                                        ? __half2float(kivi_cuda_to_f16(
                                              kivi_cuda_element(row.data, row.type, row.at + c),
                                              &finite))
                                        : packed_value(s, item, g.head, t + j, c);

#pragma unroll
                    for (uint32_t r = 0; r < KIVI_CUDA_ROWS; r++)
                        part[r] = fmaf(m.p[j][r], x, part[r]);
                }
#pragma unroll
                for (uint32_t r = 0; r < KIVI_CUDA_ROWS; r++)
                    out[i][r] = fmaf(out[i][r], m.shrink[r], part[r]);
            }
            __syncthreads();
        }
#pragma unroll
        for (uint32_t i = 0; i < PER_THREAD; i++) {
            const uint32_t c = threadIdx.x + i * THREADS;

            if (c < s.v.dim)
                for (uint32_t r = 0; r < KIVI_CUDA_ROWS; r++)
                    result[r * s.v.dim + c] = out[i][r];
        }
        if (threadIdx.x < KIVI_CUDA_ROWS) {
            float *ends = result + kivi_cuda_ends(s.v.dim, threadIdx.x);

            ends[0] = m.max[threadIdx.x];
            ends[1] = m.sum[threadIdx.x];
        }
        __syncthreads();
        kivi_cuda_finish(s, item, g, {result, 1, 0, s.v.dim}, room, ROOM);
        __syncthreads();
    }
}

} // namespace

kivi_cuda_blocks kivi_cuda_general_blocks()
{
    kivi_cuda_blocks blocks = {(int)THREADS / 32, 0};

    if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks.per_sm, attend, THREADS, 0) != cudaSuccess
        || blocks.per_sm < 1)
        blocks.per_sm = 1;
    return blocks;
}

cudaError_t kivi_cuda_attend_general(const kivi_cuda_step *step, cudaStream_t stream)
{
    return kivi_cuda_launch(attend, dim3(step->n_parts), THREADS, 0, stream, step->overlap, *step);
}
