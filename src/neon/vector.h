/* The vector vocabulary of src/cpu/simd in AArch64's Advanced SIMD: four lanes of 32 bits. */
#ifndef KIVI_NEON_VECTOR_H
#define KIVI_NEON_VECTOR_H

#include <arm_neon.h>
#include <stdint.h>

/* GCC's first scheduling pass takes no heed of registers: the unrolled loops would spill half of theirs. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns")
#endif

#define KIVI_INLINE static inline __attribute__((always_inline))

#define LANES 4

typedef int32x4_t VI;
typedef float32x4_t VF;
typedef uint32x4_t VM;

/* ---------------------------------------------------------------- integers */

/* Shifts are operators and not intrinsics, which want a constant even where nothing is optimized. */

KIVI_INLINE VI vi_zero(void) { return vdupq_n_s32(0); }
KIVI_INLINE VI vi_set(int32_t x) { return vdupq_n_s32(x); }
KIVI_INLINE VI vi_load(const void *p) { return vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)p)); }
KIVI_INLINE void vi_store(void *p, VI a) { vst1q_u8((uint8_t *)p, vreinterpretq_u8_s32(a)); }
KIVI_INLINE VI vi_add(VI a, VI b) { return vaddq_s32(a, b); }
KIVI_INLINE VI vi_and(VI a, VI b) { return vandq_s32(a, b); }
KIVI_INLINE VI vi_or(VI a, VI b) { return vorrq_s32(a, b); }
KIVI_INLINE VI vi_shift_left(VI a, int n) { return a << n; }
KIVI_INLINE VI vi_shift_right(VI a, int n) { return (VI)((uint32x4_t)a >> n); }
KIVI_INLINE VI vi_shift_signed(VI a, int n) { return a >> n; }
KIVI_INLINE VI vi_shift_right_by(VI a, uint32_t n) { return (VI)((uint32x4_t)a >> n); }

/* Four digits: those of a lane, which the instructions repeat. */
typedef struct {
    VI fours;
    uint32_t lane;
} VQ;

/* Fours i of those at p. */
KIVI_INLINE VQ vq_load(const uint8_t *p, uint32_t i)
{
    return (VQ){vi_load(p), i};
}

/* f(..., lane), which wants a constant, too. */
#define IN_LANE(lane, f, ...)                                                                      \
    ((lane) == 0   ? f(__VA_ARGS__, 0)                                                             \
     : (lane) == 1 ? f(__VA_ARGS__, 1)                                                             \
     : (lane) == 2 ? f(__VA_ARGS__, 2)                                                             \
                   : f(__VA_ARGS__, 3))

/* The low bytes of 16 lanes. */
KIVI_INLINE void vi_store_bytes(uint8_t *to, const VI *a)
{
    const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_s32(a[0]), vreinterpretq_u16_s32(a[1]));
    const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_s32(a[2]), vreinterpretq_u16_s32(a[3]));

    vst1q_u8(to, vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)));
}

/* The bytes of four vectors whose lanes fit one. */
KIVI_INLINE VI vi_pack_signed(const VI *a)
{
    const int16x8_t low = vuzp1q_s16(vreinterpretq_s16_s32(a[0]), vreinterpretq_s16_s32(a[1]));
    const int16x8_t high = vuzp1q_s16(vreinterpretq_s16_s32(a[2]), vreinterpretq_s16_s32(a[3]));

    return vreinterpretq_s32_s8(vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
}
KIVI_INLINE VI vi_pack_unsigned(const VI *a) { return vi_pack_signed(a); }

/* The sums of the four bytes of each lane. */
KIVI_INLINE VI vi_sum_signed(VI a) { return vpaddlq_s16(vpaddlq_s8(vreinterpretq_s8_s32(a))); }
KIVI_INLINE VI vi_sum_unsigned(VI a)
{
    return vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(vreinterpretq_u8_s32(a))));
}

/* ------------------------------------------------------------------ floats */

KIVI_INLINE VF vf_zero(void) { return vdupq_n_f32(0); }
KIVI_INLINE VF vf_set(float x) { return vdupq_n_f32(x); }
KIVI_INLINE VF vf_load(const float *p) { return vld1q_f32(p); }
KIVI_INLINE void vf_store(float *p, VF a) { vst1q_f32(p, a); }
KIVI_INLINE VF vf_add(VF a, VF b) { return vaddq_f32(a, b); }
KIVI_INLINE VF vf_sub(VF a, VF b) { return vsubq_f32(a, b); }
KIVI_INLINE VF vf_mul(VF a, VF b) { return vmulq_f32(a, b); }
KIVI_INLINE VF vf_div(VF a, VF b) { return vdivq_f32(a, b); }
KIVI_INLINE VF vf_min(VF a, VF b) { return vminq_f32(a, b); }
KIVI_INLINE VF vf_max(VF a, VF b) { return vmaxq_f32(a, b); }
KIVI_INLINE VF vf_fma(VF a, VF b, VF c) { return vfmaq_f32(c, a, b); }
KIVI_INLINE VF vf_abs(VF a) { return vabsq_f32(a); }
KIVI_INLINE VF vf_of(VI a) { return vcvtq_f32_s32(a); }
KIVI_INLINE VI vi_round(VF a) { return vcvtnq_s32_f32(a); } /* nearest, ties to even */
KIVI_INLINE VF vf_nearest(VF a) { return vrndnq_f32(a); } /* whole number, as vi_round */
KIVI_INLINE VI vi_bits(VF a) { return vreinterpretq_s32_f32(a); }
KIVI_INLINE VF vf_bits(VI a) { return vreinterpretq_f32_s32(a); }

KIVI_INLINE VM vm_equal(VF a, VF b) { return vceqq_f32(a, b); }
KIVI_INLINE VM vm_less(VF a, VF b) { return vcltq_f32(a, b); }
/* Bit i is lane i. */
KIVI_INLINE uint32_t vm_lanes(VM m)
{
    const uint32x4_t bits = {1, 2, 4, 8};

    return vaddvq_u32(vandq_u32(m, bits));
}
/* n, and 1 more where m. */
KIVI_INLINE VI vi_count(VI n, VM m) { return vsubq_s32(n, vreinterpretq_s32_u32(m)); }
KIVI_INLINE VF vf_select(VM m, VF yes, VF no) { return vbslq_f32(m, yes, no); }

/* a * 2^n, n whole and a normal number's exponent, where m; else 0, whatever a and n are. */
KIVI_INLINE VF vf_times_power(VF a, VF n, VM m)
{
    /* the bits of 2^n as a number */
    const VF bits = vf_fma(n, vf_set(0x1p23f), vf_set(127 * 0x1p23f));

    return vreinterpretq_f32_u32(
        vandq_u32(m, vreinterpretq_u32_f32(vf_mul(a, vf_bits(vi_round(bits))))));
}

/* The larger of a, which is not negative, and the size of b. */
KIVI_INLINE VF vf_larger(VF a, VF b) { return vmaxq_f32(a, vabsq_f32(b)); }

/* The largest of each four lanes, in all of them. */
KIVI_INLINE VF vf_largest_of_four(VF a) { return vdupq_n_f32(vmaxvq_f32(a)); }

KIVI_INLINE float vf_sum(VF a) { return vaddvq_f32(a); }
KIVI_INLINE float vf_largest(VF a) { return vmaxvq_f32(a); }

/* Lane i is the sum of vector i, of LANES vectors. */
KIVI_INLINE VF vf_sums(const VF *a)
{
    return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));
}

/* ----------------------------------------------------------- half precision */

/* Conversions belong to the baseline; the FP16 extension adds arithmetic, which nothing here wants. */
KIVI_INLINE VF vf_load_half(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
KIVI_INLINE void vf_store_half(uint16_t *p, VF a)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
KIVI_INLINE VF vf_round_half(VF a) { return vcvt_f32_f16(vcvt_f16_f32(a)); }
KIVI_INLINE VF vf_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

/* ------------------------------------------------------- f16 numbers in order */

/* Sixteen integers of 16 bits. */
typedef int16x8x2_t VS;

KIVI_INLINE VS vs_set(int16_t x) { return (VS){{vdupq_n_s16(x), vdupq_n_s16(x)}}; }
KIVI_INLINE VS vs_zero(void) { return vs_set(0); }

#define BOTH_HALVES(name, operation)                                                               \
    KIVI_INLINE VS name(VS a, VS b)                                                                \
    {                                                                                              \
        return (VS){{operation(a.val[0], b.val[0]), operation(a.val[1], b.val[1])}};               \
    }

BOTH_HALVES(vs_sub, vsubq_s16)
BOTH_HALVES(vs_or, vorrq_s16)
BOTH_HALVES(vs_min, vminq_s16)
BOTH_HALVES(vs_max, vmaxq_s16)

KIVI_INLINE VS vs_shift_left(VS a, int n) { return (VS){{a.val[0] << n, a.val[1] << n}}; }
KIVI_INLINE void vs_store(int16_t *to, VS a)
{
    vst1q_s16(to, a.val[0]);
    vst1q_s16(to + 8, a.val[1]);
}

/* 1 more where a > b. */
KIVI_INLINE int16x8_t count_half(int16x8_t n, int16x8_t a, int16x8_t b)
{
    return vsubq_s16(n, vreinterpretq_s16_u16(vcgtq_s16(a, b)));
}
KIVI_INLINE VS vs_count(VS n, VS a, VS b)
{
    return (VS){{count_half(n.val[0], a.val[0], b.val[0]), count_half(n.val[1], a.val[1], b.val[1])}};
}

/* From f16 numbers, finite or infinite; 0 and -0 are the same. */
KIVI_INLINE int16x8_t in_order(int16x8_t halves)
{
    const int16x8_t sign = vshrq_n_s16(halves, 15);

    return vsubq_s16(veorq_s16(vandq_s16(halves, vdupq_n_s16(INT16_MAX)), sign), sign);
}
KIVI_INLINE VS vs_of_halves(const uint16_t *x)
{
    return (VS){{in_order(vreinterpretq_s16_u16(vld1q_u16(x))),
                 in_order(vreinterpretq_s16_u16(vld1q_u16(x + 8)))}};
}

KIVI_INLINE int16x8_t two_to_half(VF a, VF b)
{
    return vreinterpretq_s16_f16(vcombine_f16(vcvt_f16_f32(a), vcvt_f16_f32(b)));
}
/* From sixteen floats, rounded to f16. */
KIVI_INLINE VS vs_of_floats(const VF *a)
{
    return (VS){{in_order(two_to_half(a[0], a[1])), in_order(two_to_half(a[2], a[3]))}};
}

/* From integers that fit. */
KIVI_INLINE VS vs_narrow(const VI *a)
{
    return (VS){{vcombine_s16(vmovn_s32(a[0]), vmovn_s32(a[1])),
                 vcombine_s16(vmovn_s32(a[2]), vmovn_s32(a[3]))}};
}

/* To f16. */
KIVI_INLINE int16x8_t sign_apart(int16x8_t a)
{
    return vorrq_s16(vabsq_s16(a), vandq_s16(a, vdupq_n_s16(INT16_MIN)));
}
KIVI_INLINE void vs_store_halves(uint16_t *to, VS a)
{
    vst1q_u16(to, vreinterpretq_u16_s16(sign_apart(a.val[0])));
    vst1q_u16(to + 8, vreinterpretq_u16_s16(sign_apart(a.val[1])));
}

/* Lane i of the result is the least number of vector i, of 16 vectors; and the largest. */
#define LANES_MERGED(name, better, of_pairs)                                                       \
    KIVI_INLINE VS name(const VS *a)                                                               \
    {                                                                                              \
        VS all;                                                                                    \
        int i;                                                                                     \
                                                                                                   \
        for (i = 0; i < 2; i++, a += 8) {                                                          \
            const int16x8_t b = of_pairs(better(a[0].val[0], a[0].val[1]),                         \
                                         better(a[1].val[0], a[1].val[1]));                        \
            const int16x8_t c = of_pairs(better(a[2].val[0], a[2].val[1]),                         \
                                         better(a[3].val[0], a[3].val[1]));                        \
            const int16x8_t d = of_pairs(better(a[4].val[0], a[4].val[1]),                         \
                                         better(a[5].val[0], a[5].val[1]));                        \
            const int16x8_t e = of_pairs(better(a[6].val[0], a[6].val[1]),                         \
                                         better(a[7].val[0], a[7].val[1]));                        \
                                                                                                   \
            all.val[i] = of_pairs(of_pairs(b, c), of_pairs(d, e));                                 \
        }                                                                                          \
        return all;                                                                                \
    }

LANES_MERGED(vs_least, vminq_s16, vpminq_s16)
LANES_MERGED(vs_largest, vmaxq_s16, vpmaxq_s16)

/* The words of four tokens from 16 codes of 2 bits of each. */
KIVI_INLINE uint32x4_t fours_in_place(VS codes)
{
    const int32x4_t place = {0, 2, 4, 6};

    return vshlq_u32(vreinterpretq_u32_u8(vuzp1q_u8(vreinterpretq_u8_s16(codes.val[0]),
                                                    vreinterpretq_u8_s16(codes.val[1]))),
                     place);
}
KIVI_INLINE void vs_store_words(uint32_t *to, const VS *codes)
{
    vst1q_u32(to, vpaddq_u32(vpaddq_u32(fours_in_place(codes[0]), fours_in_place(codes[1])),
                             vpaddq_u32(fours_in_place(codes[2]), fours_in_place(codes[3]))));
}

/* Sixteen words from their halves. */
KIVI_INLINE void vs_store_pairs(uint32_t *to, VS low, VS high)
{
    int i;

    for (i = 0; i < 2; i++, to += 8) {
        vst1q_u32(to, vreinterpretq_u32_s16(vzip1q_s16(low.val[i], high.val[i])));
        vst1q_u32(to + 4, vreinterpretq_u32_s16(vzip2q_s16(low.val[i], high.val[i])));
    }
}

/* ------------------------------------------------- what simd/floats.h needs */

/* The code at bit `shift` of each word, less 2^(bits - 1), times 2^(32 - bits). The last two are constants. */
KIVI_INLINE VF vf_code(VI words, uint32_t shift, uint32_t bits)
{
    const int highest = (int)(bits == 2 ? 0xaaaaaaaa : bits == 4 ? 0x88888888 : 0x80808080);

    words = veorq_s32(words, vi_set(highest));
    if (bits == 2)
        return vf_of(vi_and(vi_shift_left(words, (int)(30 - shift)), vi_set((int)0xc0000000)));
    if (bits == 4) /* the upper halves of bytes */
        words = vi_and(shift % 8 == 0 ? vi_shift_left(words, 4) : words, vi_set((int)0xf0f0f0f0));
    /* bytes choose bytes; 255 is none, and 0 */
    {
        const uint8_t b = (uint8_t)(shift / 8);
        const uint8x16_t byte = {255, 255, 255, b, 255, 255, 255, b + 4, 255, 255, 255, b + 8, 255, 255, 255, b + 12};

        return vf_of(vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(words), byte)));
    }
}

/* a * p[i] + c. */
KIVI_INLINE VF vf_fma_number(VF a, const float *p, uint32_t i, VF c)
{
    return IN_LANE(i % 4, vfmaq_laneq_f32, c, a, vf_load(p + i / 4 * 4));
}

/* ---------------------------------------------- what simd/checksum.h needs */

/* Part of every CPU with the dot product, and optional before. */
#if defined(__ARM_FEATURE_CRC32) && defined(__AARCH64EL__)
#include <arm_acle.h>

#define HAS_CRC32C

KIVI_INLINE uint32_t crc_add1(uint32_t crc, uint8_t x) { return __crc32cb(crc, x); }
KIVI_INLINE uint32_t crc_add8(uint32_t crc, uint64_t x) { return __crc32cd(crc, x); }
#endif

#endif
