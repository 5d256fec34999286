/* The vector vocabulary of src/cpu/simd in AVX-512 F, BW, DQ, VL: sixteen lanes of 32 bits. */
#ifndef KIVI_AVX512_ZMM_H
#define KIVI_AVX512_ZMM_H

#include <immintrin.h>
#include <stdint.h>

#define KIVI_INLINE static inline __attribute__((always_inline))

#define LANES 16
#define ACCUMULATORS 16 /* of dot products: what 32 registers hold beside the rest */
#define PAGES_AHEAD 32768u
#define STREAMS(bits) ((bits) == 2 ? 3u : 4u) /* these two measured on an Intel, and */
#define ROW_STREAMS 4u
#define AGAIN 2048u /* measured on a Zen 5: docs/performance-notes.md */
#define FEW_ROWS 2u

typedef __m512i VI;
typedef __m512 VF;
typedef __mmask16 VM;

/* ---------------------------------------------------------------- integers */

KIVI_INLINE VI vi_zero(void) { return _mm512_setzero_si512(); }
KIVI_INLINE VI vi_set(int32_t x) { return _mm512_set1_epi32(x); }
KIVI_INLINE VI vi_load(const void *p) { return _mm512_loadu_si512(p); }
KIVI_INLINE void vi_store(void *p, VI a) { _mm512_storeu_si512(p, a); }
KIVI_INLINE VI vi_add(VI a, VI b) { return _mm512_add_epi32(a, b); }
KIVI_INLINE VI vi_and(VI a, VI b) { return _mm512_and_si512(a, b); }
KIVI_INLINE VI vi_or(VI a, VI b) { return _mm512_or_si512(a, b); }
KIVI_INLINE VI vi_shift_left(VI a, unsigned n) { return _mm512_slli_epi32(a, n); }
KIVI_INLINE VI vi_shift_right(VI a, unsigned n) { return _mm512_srli_epi32(a, n); }
KIVI_INLINE VI vi_shift_signed(VI a, unsigned n) { return _mm512_srai_epi32(a, n); }
/* By a number that is no constant. */
KIVI_INLINE VI vi_shift_right_by(VI a, uint32_t n)
{
    return _mm512_srl_epi32(a, _mm_cvtsi32_si128((int)n));
}

/* Four digits: here in every lane. */
typedef VI VQ;

/* Fours i of those at p. */
KIVI_INLINE VQ vq_load(const uint8_t *p, uint32_t i)
{
    int32_t four;
    __builtin_memcpy(&four, p + 4 * i, 4);
    return _mm512_set1_epi32(four);
}

/* The low bytes of 16 lanes. */
KIVI_INLINE void vi_store_bytes(uint8_t *to, const VI *a)
{
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(a[0]));
}

/* The bytes of four vectors whose lanes fit one: lane 4 * i + w has fours i of vector w. */
KIVI_INLINE VI vi_pack_signed(const VI *a)
{
    return _mm512_packs_epi16(_mm512_packs_epi32(a[0], a[1]), _mm512_packs_epi32(a[2], a[3]));
}
KIVI_INLINE VI vi_pack_unsigned(const VI *a)
{
    return _mm512_packus_epi16(_mm512_packs_epi32(a[0], a[1]), _mm512_packs_epi32(a[2], a[3]));
}

/* The sums of the four bytes of each lane. */
KIVI_INLINE VI vi_sum_signed(VI a)
{
    const VI pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), a);
    return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
KIVI_INLINE VI vi_sum_unsigned(VI a)
{
    const VI pairs = _mm512_maddubs_epi16(a, _mm512_set1_epi8(1));
    return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}

/* ------------------------------------------------------------------ floats */

KIVI_INLINE VF vf_zero(void) { return _mm512_setzero_ps(); }
KIVI_INLINE VF vf_set(float x) { return _mm512_set1_ps(x); }
KIVI_INLINE VF vf_load(const float *p) { return _mm512_loadu_ps(p); }
KIVI_INLINE void vf_store(float *p, VF a) { _mm512_storeu_ps(p, a); }
KIVI_INLINE VF vf_add(VF a, VF b) { return _mm512_add_ps(a, b); }
KIVI_INLINE VF vf_sub(VF a, VF b) { return _mm512_sub_ps(a, b); }
KIVI_INLINE VF vf_mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
KIVI_INLINE VF vf_div(VF a, VF b) { return _mm512_div_ps(a, b); }
KIVI_INLINE VF vf_min(VF a, VF b) { return _mm512_min_ps(a, b); }
KIVI_INLINE VF vf_max(VF a, VF b) { return _mm512_max_ps(a, b); }
KIVI_INLINE VF vf_fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
/* a * p[i] + c. */
KIVI_INLINE VF vf_fma_number(VF a, const float *p, uint32_t i, VF c)
{
    return vf_fma(a, vf_set(p[i]), c);
}
KIVI_INLINE VF vf_abs(VF a) { return _mm512_abs_ps(a); }
KIVI_INLINE VF vf_of(VI a) { return _mm512_cvtepi32_ps(a); }
KIVI_INLINE VI vi_round(VF a) { return _mm512_cvtps_epi32(a); } /* nearest, ties to even */
KIVI_INLINE VF vf_nearest(VF a) { return _mm512_roundscale_ps(a, 8); } /* whole number, as vi_round */
KIVI_INLINE VI vi_bits(VF a) { return _mm512_castps_si512(a); }
KIVI_INLINE VF vf_bits(VI a) { return _mm512_castsi512_ps(a); }

KIVI_INLINE VM vm_equal(VF a, VF b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
KIVI_INLINE VM vm_less(VF a, VF b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
/* Bit i is lane i. */
KIVI_INLINE uint32_t vm_lanes(VM m) { return m; }
/* n, and 1 more where m. */
KIVI_INLINE VI vi_count(VI n, VM m) { return _mm512_mask_add_epi32(n, m, n, vi_set(1)); }
KIVI_INLINE VF vf_select(VM m, VF yes, VF no) { return _mm512_mask_blend_ps(m, no, yes); }

/* a * 2^n, n whole and a normal number's exponent, where m; else 0, whatever a and n are. */
KIVI_INLINE VF vf_times_power(VF a, VF n, VM m) { return _mm512_maskz_scalef_ps(m, a, n); }

/* The larger of a, which is not negative, and the size of b. */
KIVI_INLINE VF vf_larger(VF a, VF b) { return _mm512_range_ps(a, b, 11); }

/* The largest of each four lanes, in all of them. */
KIVI_INLINE VF vf_largest_of_four(VF a)
{
    a = vf_max(a, _mm512_permute_ps(a, 0xb1));
    return vf_max(a, _mm512_permute_ps(a, 0x4e));
}

KIVI_INLINE float vf_sum(VF a) { return _mm512_reduce_add_ps(a); }
KIVI_INLINE float vf_largest(VF a) { return _mm512_reduce_max_ps(a); }

/* Of four vectors: lane j of every quarter is vector j's sum of that quarter. */
KIVI_INLINE VF sums_of_four(const VF *a)
{
    const VF x = vf_add(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    const VF y = vf_add(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    const __m512d u = _mm512_castps_pd(x), v = _mm512_castps_pd(y);

    return vf_add(_mm512_castpd_ps(_mm512_unpacklo_pd(u, v)),
                  _mm512_castpd_ps(_mm512_unpackhi_pd(u, v)));
}

/* The sums of neighbouring quarters, those of a before those of b. */
KIVI_INLINE VF sums_of_quarters(VF a, VF b)
{
    return vf_add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/* Lane i is the sum of vector i, of LANES vectors. */
KIVI_INLINE VF vf_sums(const VF *a)
{
    return sums_of_quarters(sums_of_quarters(sums_of_four(a), sums_of_four(a + 4)),
                            sums_of_quarters(sums_of_four(a + 8), sums_of_four(a + 12)));
}

/* ----------------------------------------------------------- half precision */

KIVI_INLINE VF vf_load_half(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
KIVI_INLINE void vf_store_half(uint16_t *p, VF a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
KIVI_INLINE VF vf_round_half(VF a)
{
    return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
KIVI_INLINE VF vf_load_bf16(const uint16_t *p)
{
    const __m256i x = _mm256_loadu_si256((const __m256i *)p);
    return vf_bits(vi_shift_left(_mm512_cvtepu16_epi32(x), 16));
}

/* ------------------------------------------------------- f16 numbers in order */

#include "../avx2/ordered.h"

/* From sixteen floats, rounded to f16. */
KIVI_INLINE VS vs_of_floats(const VF *a)
{
    return vs_order(_mm512_cvtps_ph(a[0], _MM_FROUND_TO_NEAREST_INT));
}
/* From integers that fit. */
KIVI_INLINE VS vs_narrow(const VI *a) { return _mm512_cvtepi32_epi16(a[0]); }

/* ------------------------------------------------ what simd/dot_pairs.h needs */

/* Neighbouring bytes, unsigned times signed, and their sum in 16 bits. */
KIVI_INLINE VI vi_pairs(VI u, VI s) { return _mm512_maddubs_epi16(u, s); }
KIVI_INLINE VI vi_add16(VI a, VI b) { return _mm512_add_epi16(a, b); }
/* The sum of neighbouring 16 bits. */
KIVI_INLINE VI vi_widen(VI a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }

/* ------------------------------------------------- what simd/floats.h needs */

/* The code at bit `shift` of each word, less 2^(bits - 1), times 2^(32 - bits). The last two are constants. */
KIVI_INLINE VF vf_code(VI words, uint32_t shift, uint32_t bits)
{
    if (bits == 2) /* two bits of a lane choose one of four numbers */
        return _mm512_permutevar_ps(_mm512_set4_ps(0x1p30f, 0, -0x1p30f, -0x1p31f),
                                    vi_shift_right(words, shift));
    if (bits == 4) { /* four bits, one of sixteen */
        const VF codes = vf_mul(_mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7),
                                vf_set(0x1p28f));

        return _mm512_permutexvar_ps(vi_shift_right(words, shift), codes);
    } else { /* bytes choose bytes; 0x80 is 0 */
        const int top = (int)(shift / 8 << 24 | 0x808080);
        const VI byte = _mm512_set4_epi32(top + 0xc000000, top + 0x8000000, top + 0x4000000, top);

        words = _mm512_xor_si512(words, vi_set((int)0x80808080));
        return vf_of(_mm512_shuffle_epi8(words, byte));
    }
}

/* ---------------------------------------------- what simd/checksum.h needs */

#define HAS_CRC32C

KIVI_INLINE uint32_t crc_add1(uint32_t crc, uint8_t x) { return _mm_crc32_u8(crc, x); }
KIVI_INLINE uint32_t crc_add8(uint32_t crc, uint64_t x) { return (uint32_t)_mm_crc32_u64(crc, x); }

#endif
