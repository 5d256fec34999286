/* The vector vocabulary of src/cpu/simd in AVX2, FMA and F16C: eight lanes of 32 bits. */
#ifndef KIVI_AVX2_YMM_H
#define KIVI_AVX2_YMM_H

#include <immintrin.h>
#include <stdint.h>

#define KIVI_INLINE static inline __attribute__((always_inline))

#define LANES 8
#define STREAMS(bits) 2u /* measured on an Intel: docs/performance-notes.md */

typedef __m256i VI;
typedef __m256 VF;
typedef __m256 VM;

/* ---------------------------------------------------------------- integers */

KIVI_INLINE VI vi_zero(void) { return _mm256_setzero_si256(); }
KIVI_INLINE VI vi_set(int32_t x) { return _mm256_set1_epi32(x); }
KIVI_INLINE VI vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
KIVI_INLINE void vi_store(void *p, VI a) { _mm256_storeu_si256((__m256i *)p, a); }
KIVI_INLINE VI vi_add(VI a, VI b) { return _mm256_add_epi32(a, b); }
KIVI_INLINE VI vi_and(VI a, VI b) { return _mm256_and_si256(a, b); }
KIVI_INLINE VI vi_or(VI a, VI b) { return _mm256_or_si256(a, b); }
KIVI_INLINE VI vi_shift_left(VI a, int n) { return _mm256_slli_epi32(a, n); }
KIVI_INLINE VI vi_shift_right(VI a, int n) { return _mm256_srli_epi32(a, n); }
KIVI_INLINE VI vi_shift_signed(VI a, int n) { return _mm256_srai_epi32(a, n); }
/* By a number that is no constant. */
KIVI_INLINE VI vi_shift_right_by(VI a, uint32_t n)
{
    return _mm256_srl_epi32(a, _mm_cvtsi32_si128((int)n));
}

/* Four digits: here in every lane. */
typedef VI VQ;

/* Fours i of those at p. */
KIVI_INLINE VQ vq_load(const uint8_t *p, uint32_t i)
{
    int32_t four;
    __builtin_memcpy(&four, p + 4 * i, 4);
    return _mm256_set1_epi32(four);
}

/* The low bytes of 16 lanes. */
KIVI_INLINE void vi_store_bytes(uint8_t *to, const VI *a)
{
    const VI byte = _mm256_set1_epi32(0xff);
    const VI words = _mm256_packus_epi32(vi_and(a[0], byte), vi_and(a[1], byte));
    const VI ordered = _mm256_permute4x64_epi64(words, 0xd8);

    _mm_storeu_si128((__m128i *)to, _mm_packus_epi16(_mm256_castsi256_si128(ordered),
                                                     _mm256_extracti128_si256(ordered, 1)));
}

/* The bytes of four vectors whose lanes fit one: lane 4 * i + w has fours i of vector w. */
KIVI_INLINE VI vi_pack_signed(const VI *a)
{
    return _mm256_packs_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(a[2], a[3]));
}
KIVI_INLINE VI vi_pack_unsigned(const VI *a)
{
    return _mm256_packus_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(a[2], a[3]));
}

/* The sums of the four bytes of each lane. */
KIVI_INLINE VI vi_sum_signed(VI a)
{
    const VI pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), a);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
KIVI_INLINE VI vi_sum_unsigned(VI a)
{
    const VI pairs = _mm256_maddubs_epi16(a, _mm256_set1_epi8(1));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* ------------------------------------------------------------------ floats */

KIVI_INLINE VF vf_zero(void) { return _mm256_setzero_ps(); }
KIVI_INLINE VF vf_set(float x) { return _mm256_set1_ps(x); }
KIVI_INLINE VF vf_load(const float *p) { return _mm256_loadu_ps(p); }
KIVI_INLINE void vf_store(float *p, VF a) { _mm256_storeu_ps(p, a); }
KIVI_INLINE VF vf_add(VF a, VF b) { return _mm256_add_ps(a, b); }
KIVI_INLINE VF vf_sub(VF a, VF b) { return _mm256_sub_ps(a, b); }
KIVI_INLINE VF vf_mul(VF a, VF b) { return _mm256_mul_ps(a, b); }
KIVI_INLINE VF vf_div(VF a, VF b) { return _mm256_div_ps(a, b); }
KIVI_INLINE VF vf_min(VF a, VF b) { return _mm256_min_ps(a, b); }
KIVI_INLINE VF vf_max(VF a, VF b) { return _mm256_max_ps(a, b); }
KIVI_INLINE VF vf_fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
/* a * p[i] + c. */
KIVI_INLINE VF vf_fma_number(VF a, const float *p, uint32_t i, VF c)
{
    return vf_fma(a, vf_set(p[i]), c);
}
KIVI_INLINE VF vf_abs(VF a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
KIVI_INLINE VF vf_of(VI a) { return _mm256_cvtepi32_ps(a); }
KIVI_INLINE VI vi_round(VF a) { return _mm256_cvtps_epi32(a); } /* nearest, ties to even */
KIVI_INLINE VF vf_nearest(VF a) { return _mm256_round_ps(a, 8); } /* whole number, as vi_round */
KIVI_INLINE VI vi_bits(VF a) { return _mm256_castps_si256(a); }
KIVI_INLINE VF vf_bits(VI a) { return _mm256_castsi256_ps(a); }

KIVI_INLINE VM vm_equal(VF a, VF b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
KIVI_INLINE VM vm_less(VF a, VF b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
/* Bit i is lane i. */
KIVI_INLINE uint32_t vm_lanes(VM m) { return (uint32_t)_mm256_movemask_ps(m); }
/* n, and 1 more where m. */
KIVI_INLINE VI vi_count(VI n, VM m) { return _mm256_sub_epi32(n, _mm256_castps_si256(m)); }
KIVI_INLINE VF vf_select(VM m, VF yes, VF no) { return _mm256_blendv_ps(no, yes, m); }

/* a * 2^n, n whole and a normal number's exponent, where m; else 0, whatever a and n are. */
KIVI_INLINE VF vf_times_power(VF a, VF n, VM m)
{
    /* the bits of 2^n as a number */
    const VF bits = vf_fma(n, vf_set(0x1p23f), vf_set(127 * 0x1p23f));

    return _mm256_and_ps(m, vf_mul(a, vf_bits(vi_round(bits))));
}

/* The larger of a, which is not negative, and the size of b. */
KIVI_INLINE VF vf_larger(VF a, VF b) { return vf_max(a, vf_abs(b)); }

/* The largest of each four lanes, in all of them. */
KIVI_INLINE VF vf_largest_of_four(VF a)
{
    a = vf_max(a, _mm256_permute_ps(a, 0xb1));
    return vf_max(a, _mm256_permute_ps(a, 0x4e));
}

KIVI_INLINE float vf_sum(VF a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

KIVI_INLINE float vf_largest(VF a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* Lane i is the sum of vector i, of LANES vectors. */
KIVI_INLINE VF vf_sums(const VF *a)
{
    const VF low = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    const VF high = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));

    return vf_add(_mm256_permute2f128_ps(low, high, 0x20),
                  _mm256_permute2f128_ps(low, high, 0x31));
}

/* ----------------------------------------------------------- half precision */

KIVI_INLINE VF vf_load_half(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
KIVI_INLINE void vf_store_half(uint16_t *p, VF a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
KIVI_INLINE VF vf_round_half(VF a)
{
    return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
KIVI_INLINE VF vf_load_bf16(const uint16_t *p)
{
    const __m128i x = _mm_loadu_si128((const __m128i *)p);
    return vf_bits(vi_shift_left(_mm256_cvtepu16_epi32(x), 16));
}

/* ------------------------------------------------------- f16 numbers in order */

#include "ordered.h"

/* From sixteen floats, rounded to f16. */
KIVI_INLINE VS vs_of_floats(const VF *a)
{
    return vs_order(_mm256_set_m128i(_mm256_cvtps_ph(a[1], _MM_FROUND_TO_NEAREST_INT),
                                     _mm256_cvtps_ph(a[0], _MM_FROUND_TO_NEAREST_INT)));
}
/* From integers that fit. */
KIVI_INLINE VS vs_narrow(const VI *a)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a[0], a[1]), 0xd8);
}

/* ----------------------------------------------------- what simd/codes.h needs */

/* Of more than one vector compilers would keep the words for the next place, in memory: 16 registers do not hold them. */
KIVI_INLINE const uint32_t *vd_again(const uint32_t *words, uint32_t side)
{
    if (side > 1)
        __asm__ volatile("" : "+r"(words));
    return words;
}
#define vd_again vd_again

/* ------------------------------------------------ what simd/dot_pairs.h needs */

/* Neighbouring bytes, unsigned times signed, and their sum in 16 bits. */
KIVI_INLINE VI vi_pairs(VI u, VI s) { return _mm256_maddubs_epi16(u, s); }
KIVI_INLINE VI vi_add16(VI a, VI b) { return _mm256_add_epi16(a, b); }
/* The sum of neighbouring 16 bits. */
KIVI_INLINE VI vi_widen(VI a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }

/* ------------------------------------------------- what simd/floats.h needs */

/* The code at bit `shift` of each word, less 2^(bits - 1), times 2^(32 - bits). The last two are constants. */
KIVI_INLINE VF vf_code(VI words, uint32_t shift, uint32_t bits)
{
    if (bits == 2) { /* two bits of a lane choose one of four numbers */
        const VF codes = _mm256_setr_ps(-0x1p31f, -0x1p30f, 0, 0x1p30f, -0x1p31f, -0x1p30f, 0, 0x1p30f);

        return _mm256_permutevar_ps(codes, vi_shift_right(words, (int)shift));
    }
    words = _mm256_xor_si256(words, vi_set(bits == 4 ? (int)0x88888888 : (int)0x80808080));
    if (bits == 4) /* the upper halves of bytes */
        words = vi_and(shift % 8 == 0 ? vi_shift_left(words, 4) : words, vi_set((int)0xf0f0f0f0));
    { /* bytes choose bytes; 0x80 is 0 */
        const int top = (int)(shift / 8 << 24 | 0x808080);
        const VI byte = _mm256_setr_epi32(top, top + 0x4000000, top + 0x8000000, top + 0xc000000,
                                          top, top + 0x4000000, top + 0x8000000, top + 0xc000000);

        return vf_of(_mm256_shuffle_epi8(words, byte));
    }
}

/* ---------------------------------------------- what simd/checksum.h needs */

#define HAS_CRC32C

KIVI_INLINE uint32_t crc_add1(uint32_t crc, uint8_t x) { return _mm_crc32_u8(crc, x); }
KIVI_INLINE uint32_t crc_add8(uint32_t crc, uint64_t x) { return (uint32_t)_mm_crc32_u64(crc, x); }

#endif
