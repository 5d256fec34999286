/*
 * How the tokens of a prompt's attention come to shared memory (attend_many.cuh): a piece at a time, copied by all
 * threads of a block some stages ahead, and codes then unpacked.
 */
#ifndef KIVI_CUDA_MANY_PIECES_CUH
#define KIVI_CUDA_MANY_PIECES_CUH

#include "many_tiles.cuh"

/* Those of one kv head of an item, D channels wide or, if ANY, up to D: then what is beyond is 0 in rows, and in scales
 * and minima of keys. */
template <int D, bool ANY, int KB, int VB> struct kivi_cuda_pieces {
    using shape = kivi_cuda_many_shape<D, KB, VB>;

    const kivi_cuda_step &s;
    const kivi_cuda_item &item;
    const kivi_cuda_segment &segment;
    unsigned char *shared;
    kivi_cuda_units packed_units, fresh; /* all of whose tokens are codes, and new rows of f16 */

    __device__ __forceinline__ kivi_cuda_pieces(const kivi_cuda_step &step, const kivi_cuda_item &at,
                                                const kivi_cuda_segment &task, unsigned char *memory)
        : s(step), item(at), segment(task), shared(memory)
    {
        const uint64_t packed = max(item.k_packed, item.v_packed), sink = s.n_sink;
        const kivi_cuda_rows k = kivi_cuda_key_rows(s, item, task.head), v = kivi_cuda_value_rows(s, item, task.head);

        packed_units = kivi_cuda_whole_units(sink, min(item.k_packed, item.v_packed));
        fresh = kivi_cuda_whole_units(max(max(item.n_old, packed), sink), item.n);
        if (!kivi_cuda_rows_are_f16(k, item.n) || !kivi_cuda_rows_are_f16(v, item.n))
            fresh.end = 0;
    }

    __device__ __forceinline__ uint32_t k_dim() const
    {
        return ANY ? s.k.dim : D;
    }

    __device__ __forceinline__ uint32_t v_dim() const
    {
        return ANY ? s.v.dim : D;
    }

    /* Codes, scales and minima of a unit as they are. */
    __device__ __forceinline__ unsigned char *packed(uint32_t stage) const
    {
        return shared + shape::PACKED + stage * shape::STAGE;
    }

    /* The piece that begins at `token`, of those before `end`. */
    __device__ __forceinline__ kivi_cuda_piece find_piece(uint64_t token, uint64_t end) const
    {
        const uint32_t unit = (uint32_t)(token / KIVI_CUDA_UNIT);
        const uint64_t first = token / KIVI_CUDA_UNIT * KIVI_CUDA_UNIT;
        uint64_t stop = first + KIVI_CUDA_UNIT;
        const uint64_t ends[] = {end, s.n_sink, item.v_packed, item.k_packed};
        uint32_t what = (uint32_t)(token - first);

#pragma unroll
        for (int i = 0; i < 4; i++)
            if (token < ends[i] && ends[i] < stop)
                stop = ends[i];
        what |= (uint32_t)(stop - first) << 8;
        what |= token >= s.n_sink && token < item.k_packed ? kivi_cuda_piece::K_CODES : 0;
        what |= token >= s.n_sink && token < item.v_packed ? kivi_cuda_piece::V_CODES : 0;
        what |= fresh.has(unit) ? kivi_cuda_piece::FRESH : 0;
        return {unit, what};
    }

    /* The piece after this one; false if there is none. Most are like the one before. */
    __device__ __forceinline__ bool go_on(kivi_cuda_piece &piece, uint64_t end) const
    {
        const uint32_t next = piece.unit + 1;

        if (piece.is_whole() && next < (uint32_t)(end / KIVI_CUDA_UNIT)
            && (piece.is(kivi_cuda_piece::FRESH) ? fresh.has(next)
                                                 : packed_units.has(piece.unit) && packed_units.has(next))) {
            piece.unit = next;
            return true;
        }

        const uint64_t token = piece.first() + piece.end();

        if (token < end)
            piece = find_piece(token, end);
        return token < end;
    }

    /* Rows of a page of the f16 cache type, unit number `at` there; beyond the first n, which may not be there yet,
     * zeros. */
    static __device__ __forceinline__ void copy_rows(unsigned char *to, const unsigned char *page, uint32_t at,
                                                     uint32_t dim, uint32_t n)
    {
        const unsigned char *from = page + at * KIVI_CUDA_UNIT * 2 * dim;

#pragma unroll
        for (uint32_t i = threadIdx.x; i < shape::TILE / 16; i += KIVI_CUDA_MANY_THREADS) {
            const uint32_t row = i / (D / 8), chunk = i % (D / 8), place = ANY ? row * (dim / 8) + chunk : i;

            kivi_cuda_copy16_or_zero((uint4 *)to + kivi_cuda_many_chunk<D>(row, chunk), from + 16 * place,
                                     row < n && (!ANY || 8 * chunk < dim) ? 16 : 0);
        }
    }

    /* New rows of a unit: `data`, at the head. */
    __device__ __forceinline__ void fetch_fresh(unsigned char *to, const void *data, int64_t stride, uint32_t dim,
                                                uint32_t u) const
    {
        constexpr uint32_t PER_ROW = D / 8, STEP = KIVI_CUDA_MANY_THREADS / PER_ROW;
        const uint32_t row = threadIdx.x / PER_ROW, chunk = threadIdx.x % PER_ROW;
        const __half *from = (const __half *)data + 8 * chunk
                             + ((int64_t)u * KIVI_CUDA_UNIT - (int64_t)item.n_old + row) * stride;
        uint4 *first = (uint4 *)to + kivi_cuda_many_chunk<D>(row, chunk);

#pragma unroll
        for (uint32_t i = 0; i < KIVI_CUDA_UNIT / STEP; i++, from += STEP * stride) {
            uint4 *at = STEP % 8 == 0 ? first + i * STEP * PER_ROW /* permuted like the first */
                                      : (uint4 *)to + kivi_cuda_many_chunk<D>(row + i * STEP, chunk);

            if (ANY)
                kivi_cuda_copy16_or_zero(at, from, 8 * chunk < dim ? 16 : 0);
            else
                kivi_cuda_copy16(at, from);
        }
    }

    /* Codes, scales and minima of a unit as they are, at place `at` of a page: those of keys, of values or both. */
    __device__ __forceinline__ void fetch_packed(unsigned char *to, const unsigned char *page, uint32_t at, bool keys,
                                                 bool values) const
    {
        const uint32_t shift = 31 - __clz(s.k.tokens / KIVI_CUDA_UNIT), block = (at >> shift) * s.k.block_bytes;
        const uint32_t unit_bytes = ANY ? 4 * KB * s.k.dim_pad : shape::K_SCALES; /* of codes of keys */
        const unsigned char *codes = page + (block + (at & ((1u << shift) - 1)) * unit_bytes);
        const uint64_t values_at = s.page_v_offset + (uint64_t)at * s.v.block_bytes;

        if constexpr (ANY) {
            fetch_spread(to, codes, page + (block + s.k.code_bytes), page + values_at, keys, values);
        } else {
            const unsigned char *scales = page + (block + s.k.code_bytes - shape::K_SCALES);
            const unsigned char *of_values = page + (values_at - shape::V_CODES);
            const uint32_t end = shape::V_CODES + (uint32_t)s.v.block_bytes;

#pragma unroll
            for (uint32_t i = 0; i < shape::STAGE; i += 16 * KIVI_CUDA_MANY_THREADS) {
                const uint32_t j = i + 16 * threadIdx.x;

                if (j < shape::V_CODES ? keys : values && j < end)
                    kivi_cuda_copy16(to + j,
                                     (j < shape::K_SCALES ? codes : j < shape::V_CODES ? scales : of_values) + j);
            }
        }
    }

    /* The same of dimensions that are less: to where all would be of D channels. */
    __device__ __forceinline__ void fetch_spread(unsigned char *to, const unsigned char *codes,
                                                 const unsigned char *scales, const unsigned char *of_values, bool keys,
                                                 bool values) const
    {
        constexpr uint32_t STEP = 16 * KIVI_CUDA_MANY_THREADS, V_ROW = 4 * D, HALF = 2 * D; /* bytes */
        const uint32_t k_pad = s.k.dim_pad, v_row = 4 * s.v.dim_pad, first = 16 * threadIdx.x;

        if (keys) {
            for (uint32_t i = first; i < 4 * KB * k_pad; i += STEP)
                kivi_cuda_copy16(to + i, codes + i);
            for (uint32_t i = first; i < 2 * HALF; i += STEP) { /* scales, then minima */
                const uint32_t at = i % HALF;

                kivi_cuda_copy16_or_zero(to + shape::K_SCALES + i, scales + i / HALF * 2 * k_pad + at,
                                         at < 2 * k_pad ? 16 : 0);
            }
        }
        if (values) {
            for (uint32_t i = first; i < VB * V_ROW; i += STEP)
                if (i % V_ROW < v_row)
                    kivi_cuda_copy16(to + shape::V_CODES + i, of_values + i / V_ROW * v_row + i % V_ROW);
            for (uint32_t i = first; i < 128 * s.v.n_groups; i += STEP)
                kivi_cuda_copy16(to + shape::V_SCALES + i, of_values + s.v.code_bytes + i);
        }
    }

    /* Starts to copy a piece's unit to shared memory: rows to their tiles, codes as they are. */
    __device__ __forceinline__ void fetch(const kivi_cuda_piece &piece, uint32_t stage) const
    {
        unsigned char *keys = shared + shape::KEYS + stage * shape::TILE;
        unsigned char *values = shared + shape::VALUES + stage * shape::TILE;

        if (piece.is(kivi_cuda_piece::FRESH)) {
            fetch_fresh(keys, (const __half *)item.k + (int64_t)segment.head * item.k_head, item.k_token, k_dim(),
                        piece.unit);
            fetch_fresh(values, (const __half *)item.v + (int64_t)segment.head * item.v_head, item.v_token, v_dim(),
                        piece.unit);
            kivi_cuda_copy_commit();
            return;
        }
        if (piece.is(kivi_cuda_piece::K_CODES | kivi_cuda_piece::V_CODES)) {
            const uint32_t index = kivi_cuda_divide(piece.unit, s.units_per_page);
            const uint32_t at = piece.unit - index * s.units_per_page.by;
            const unsigned char *page = kivi_cuda_page(s, item, index) + segment.head * s.page_head_stride;

            if constexpr (KB < 16 || VB < 16)
                fetch_packed(packed(stage), page, at, KB < 16 && piece.is(kivi_cuda_piece::K_CODES),
                             VB < 16 && piece.is(kivi_cuda_piece::V_CODES));
            if (KB == 16 && piece.is(kivi_cuda_piece::K_CODES))
                copy_rows(keys, page, at, k_dim(), kivi_cuda_in_unit(piece.unit, item.k_packed));
            if (VB == 16 && piece.is(kivi_cuda_piece::V_CODES))
                copy_rows(values, page + s.page_v_offset, at, v_dim(), kivi_cuda_in_unit(piece.unit, item.v_packed));
        }
        if (!piece.is(kivi_cuda_piece::K_CODES))
            kivi_cuda_fetch_rows<D, ANY, KIVI_CUDA_MANY_THREADS, 0>(
                (uint4 *)keys, kivi_cuda_key_rows(s, item, segment.head), piece.unit, threadIdx.x);
        if (!piece.is(kivi_cuda_piece::V_CODES))
            kivi_cuda_fetch_rows<D, ANY, KIVI_CUDA_MANY_THREADS, 0>(
                (uint4 *)values, kivi_cuda_value_rows(s, item, segment.head), piece.unit, threadIdx.x);
        kivi_cuda_copy_commit();
    }

    /* Codes to their tiles, those of values less `middle`, by all threads. */
    template <int middle> __device__ __forceinline__ void unpack(const kivi_cuda_piece &piece, uint32_t stage) const
    {
        const unsigned char *from = packed(stage);

        if constexpr (KB < 16)
            if (piece.is(kivi_cuda_piece::K_CODES))
                kivi_cuda_unpack<D, KB, true, 0>((const uint32_t *)from, shared + shape::KEYS + stage * shape::TILE);
        if constexpr (VB < 16)
            if (piece.is(kivi_cuda_piece::V_CODES))
                kivi_cuda_unpack<D, VB, false, middle>((const uint32_t *)(from + shape::V_CODES),
                                                       shared + shape::VALUES + stage * shape::TILE);
    }
};

#endif
