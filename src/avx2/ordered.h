/*
 * f16 numbers as integers of 16 bits in the same order, so that sixteen of them are compared at a time and none is
 * converted: what simd/ranges.h and simd/quantizer.h need, for AVX2 and, as wide, AVX-512.
 */
#ifndef KIVI_AVX2_ORDERED_H
#define KIVI_AVX2_ORDERED_H

/* Sixteen integers of 16 bits. */
typedef __m256i VS;

KIVI_INLINE VS vs_zero(void) { return _mm256_setzero_si256(); }
KIVI_INLINE VS vs_set(int16_t x) { return _mm256_set1_epi16(x); }
KIVI_INLINE VS vs_sub(VS a, VS b) { return _mm256_sub_epi16(a, b); }
KIVI_INLINE VS vs_or(VS a, VS b) { return _mm256_or_si256(a, b); }
KIVI_INLINE VS vs_min(VS a, VS b) { return _mm256_min_epi16(a, b); }
KIVI_INLINE VS vs_max(VS a, VS b) { return _mm256_max_epi16(a, b); }
KIVI_INLINE VS vs_shift_left(VS a, int n) { return _mm256_slli_epi16(a, n); }
KIVI_INLINE void vs_store(int16_t *to, VS a) { _mm256_storeu_si256((__m256i *)to, a); }
/* n, and 1 more where a > b. */
KIVI_INLINE VS vs_count(VS n, VS a, VS b) { return vs_sub(n, _mm256_cmpgt_epi16(a, b)); }

/* From f16 numbers, finite or infinite; 0 and -0 are the same. */
KIVI_INLINE VS vs_order(__m256i halves)
{
    return _mm256_sign_epi16(_mm256_and_si256(halves, _mm256_set1_epi16(INT16_MAX)), halves);
}
KIVI_INLINE VS vs_of_halves(const uint16_t *x)
{
    return vs_order(_mm256_loadu_si256((const __m256i *)x));
}

/* To f16. */
KIVI_INLINE void vs_store_halves(uint16_t *to, VS a)
{
    const VS sign = _mm256_and_si256(a, _mm256_set1_epi16(INT16_MIN));

    _mm256_storeu_si256((__m256i *)to, vs_or(_mm256_abs_epi16(a), sign));
}

/* Lane i of the result is the least number of vector i, of 16 vectors; and the largest. */
#define LANES_MERGED(name, better)                                                                 \
    KIVI_INLINE VS name(const VS *a)                                                               \
    {                                                                                              \
        VS two[8], four[4], eight[2];                                                              \
        int i;                                                                                     \
                                                                                                   \
        for (i = 0; i < 8; i++)                                                                    \
            two[i] = better(_mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]),                         \
                            _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]));                        \
        for (i = 0; i < 4; i++)                                                                    \
            four[i] = better(_mm256_unpacklo_epi32(two[2 * i], two[2 * i + 1]),                    \
                             _mm256_unpackhi_epi32(two[2 * i], two[2 * i + 1]));                   \
        for (i = 0; i < 2; i++)                                                                    \
            eight[i] = better(_mm256_unpacklo_epi64(four[2 * i], four[2 * i + 1]),                 \
                              _mm256_unpackhi_epi64(four[2 * i], four[2 * i + 1]));                \
        return better(_mm256_permute2x128_si256(eight[0], eight[1], 0x20),                         \
                      _mm256_permute2x128_si256(eight[0], eight[1], 0x31));                        \
    }

LANES_MERGED(vs_least, vs_min)
LANES_MERGED(vs_largest, vs_max)

/* The words of four tokens from 16 codes of 2 bits of each. */
KIVI_INLINE void vs_store_words(uint32_t *to, const VS *codes)
{
    /* fours of bytes: codes 0-3, 4-7 of one token and of the next; 8-11, 12-15 */
    const VS two = _mm256_packs_epi16(codes[0], codes[1]);
    const VS next = _mm256_packs_epi16(codes[2], codes[3]);
    /* each second one beside the first; then all first ones */
    const __m256 a = _mm256_castsi256_ps(vs_or(two, _mm256_srli_epi64(two, 30)));
    const __m256 b = _mm256_castsi256_ps(vs_or(next, _mm256_srli_epi64(next, 30)));
    const VS eights = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
    const __m128i high = _mm_slli_epi32(_mm256_extracti128_si256(eights, 1), 4);

    _mm_storeu_si128((__m128i *)to, _mm_or_si128(_mm256_castsi256_si128(eights), high));
}

/* Sixteen words from their halves. */
KIVI_INLINE void vs_store_pairs(uint32_t *to, VS low, VS high)
{
    const VS a = _mm256_unpacklo_epi16(low, high), b = _mm256_unpackhi_epi16(low, high);

    _mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256((__m256i *)(to + 8), _mm256_permute2x128_si256(a, b, 0x31));
}

#endif
