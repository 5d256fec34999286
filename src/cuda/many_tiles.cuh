/*
 * What attention of many queries has in shared memory (attend_many.cuh): which tokens at a time, where they stand, and
 * how codes become numbers there.
 */
#ifndef KIVI_CUDA_MANY_TILES_CUH
#define KIVI_CUDA_MANY_TILES_CUH

#include "fast_rows.cuh"
#include "kernels.cuh"

#define KIVI_CUDA_MANY_THREADS 128u

/* Some tokens of a unit, in few registers. */
struct kivi_cuda_piece {
    enum : uint32_t {
        K_CODES = 1u << 16,
        V_CODES = 1u << 17,
        FRESH = 1u << 18, /* all of the unit is new, in rows of f16 */
        WHOLE = KIVI_CUDA_UNIT << 8
    };
    uint32_t unit;
    uint32_t what; /* the first token's place, that behind the last << 8, and of the bits above */

    __device__ __forceinline__ uint64_t first() const
    {
        return (uint64_t)unit * KIVI_CUDA_UNIT;
    }

    __device__ __forceinline__ uint32_t begin() const
    {
        return what & 255u;
    }

    __device__ __forceinline__ uint32_t end() const
    {
        return what >> 8 & 255u;
    }

    __device__ __forceinline__ bool is(uint32_t bits) const
    {
        return (what & bits) != 0;
    }

    __device__ __forceinline__ bool is_whole() const
    {
        return (what & 0xffffu) == WHOLE;
    }
};

/* Units begin .. end - 1. */
struct kivi_cuda_units {
    uint32_t begin, end;

    __device__ __forceinline__ bool has(uint32_t u) const
    {
        return u >= begin && u < end;
    }
};

/* The units of tokens begin .. end - 1 alone. */
__device__ __forceinline__ kivi_cuda_units kivi_cuda_whole_units(uint64_t begin, uint64_t end)
{
    return {(uint32_t)((begin + KIVI_CUDA_UNIT - 1) / KIVI_CUDA_UNIT), (uint32_t)(end / KIVI_CUDA_UNIT)};
}

/* Where everything is in shared memory, in bytes. Values of 256 channels have up to 8 groups. */
template <int D, int KB, int VB> struct kivi_cuda_many_shape {
    static constexpr uint32_t TILE = KIVI_CUDA_UNIT * D * 2; /* keys or values of a unit */
    static constexpr uint32_t QUERIES = KIVI_CUDA_MANY_ROWS * D * 2;
    static constexpr uint32_t KEYS = QUERIES, VALUES = KEYS + 2 * TILE;
    static constexpr uint32_t PACKED = VALUES + 2 * TILE;
    /* What is packed of a unit: codes of keys, their scales and minima, codes of values, theirs. */
    static constexpr uint32_t K_SCALES = KB == 16 ? 0 : 4 * D * KB, V_CODES = K_SCALES + (KB == 16 ? 0 : 4 * D);
    static constexpr uint32_t V_SCALES = V_CODES + (VB == 16 ? 0 : 4 * D * VB);
    static constexpr uint32_t STAGE = V_SCALES + (VB == 16 ? 0 : 4 * D);
    static constexpr uint32_t BYTES = PACKED + 2 * STAGE;
    /* What queries of f32 are beside f16: not always. */
    static constexpr uint32_t LOW_QUERIES = BYTES, MOST = LOW_QUERIES + QUERIES;
    static constexpr uint32_t ALIGNMENT = D > 128 ? 512 : 256; /* whole rows of tiles, at least */
    static_assert(D > 128 || MOST <= 98 * 1024, "every device has 99 KB, of which 1 is for the rest");
};

/* Where 16 bytes of a row of tokens, D channels wide, or of 32 numbers, a channel's, are in their tile: permuted so
 * that the rows of a matrix are in different banks. Rows begin at multiples of what is permuted, so that an address is
 * that of another chunk of its row with some of its bits turned over. */
template <int WIDTH> __device__ __forceinline__ uint32_t kivi_cuda_many_chunk(uint32_t row, uint32_t chunk)
{
    return WIDTH == 32 ? row * 4 + (chunk ^ (row / 2 & 3)) : kivi_cuda_row_chunk<WIDTH, 0>(row, chunk);
}

/* A word's codes as pairs of f16, less `middle`. */
template <int BITS, int middle>
__device__ __forceinline__ void kivi_cuda_take_codes(uint32_t word, uint32_t y[16 / BITS])
{
    const uint32_t pair[2] = {__byte_perm(word, 0, 0x4140), __byte_perm(word, 0, 0x4342)};
    constexpr uint32_t mask = ((1u << BITS) - 1u) * 0x00010001u;

#pragma unroll
    for (int i = 0; i < 16 / BITS; i++) {
        const int up = BITS * (i / 2); /* where the codes stand in their bytes */

        /* 1024 + code * 2^up, made the code: exactly. */
        y[i] = kivi_cuda_fma2((pair[i % 2] & mask << up) | 0x64006400u, kivi_cuda_power2(-up),
                              kivi_cuda_bits(__float2half2_rn(-(float)((1024 >> up) + middle))));
    }
}

/* The pairs of a word to place `at`, of as many, in rows of WIDTH numbers. */
template <int BITS, int WIDTH>
__device__ __forceinline__ void kivi_cuda_store_word(unsigned char *tile, uint32_t row, uint32_t at,
                                                     const uint32_t y[16 / BITS])
{
    if (BITS == 8) {
        ((uint2 *)tile)[2 * kivi_cuda_many_chunk<WIDTH>(row, at / 2) + at % 2] = make_uint2(y[0], y[1]);
    } else {
#pragma unroll
        for (int i = 0; i < 4 / BITS; i++)
            ((uint4 *)tile)[kivi_cuda_many_chunk<WIDTH>(row, at * (4 / BITS) + i)] =
                make_uint4(y[4 * i], y[4 * i + 1], y[4 * i + 2], y[4 * i + 3]);
    }
}

/* A unit's codes, less `middle`, to their tile, by all threads: keys in rows of tokens, values in rows of channels. */
template <int D, int BITS, bool keys, int middle>
__device__ __forceinline__ void kivi_cuda_unpack(const uint32_t *codes, unsigned char *tile)
{
    constexpr uint32_t N = 32 / BITS, ROWS = keys ? KIVI_CUDA_UNIT : D, WIDTH = keys ? D : KIVI_CUDA_UNIT;
    constexpr uint32_t WORDS = ROWS * WIDTH / N, EACH = WORDS / KIVI_CUDA_MANY_THREADS;

    static_assert(WORDS % KIVI_CUDA_MANY_THREADS == 0, "all threads have as many");
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t word = threadIdx.x + i * KIVI_CUDA_MANY_THREADS;
        uint32_t y[N / 2];

        kivi_cuda_take_codes<BITS, middle>(codes[word], y);
        kivi_cuda_store_word<BITS, WIDTH>(tile, word % ROWS, word / ROWS, y);
    }
}

#endif
