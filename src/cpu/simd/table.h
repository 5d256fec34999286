/*
 * A kernel table for a vector instruction set: the last thing that its source file includes, after its
 * vocabulary. The vocabulary is all that differs between instruction sets:
 *
 *   LANES            lanes of 32 bits in a vector: 4, 8 or 16
 *   ACCUMULATORS     sums of dot products (VD) that registers have room for, beside codes and digits: as many at least
 *                    as MAX_ROWS have
 *   PAGES_AHEAD      how many bytes before f16 rows are read their pages are touched (rows.h); may be missing
 *   VI, VF, VM       integers, floats, and the result of a comparison
 *   vi_*, vf_*, vm_* operations on them, lane by lane unless their comment says otherwise
 *   VQ, vq_load      four digits, as dot products take them
 *   VS, vs_*         sixteen integers of 16 bits: f16 numbers in their order, vs_of_floats from VECTORS vectors, or codes;
 *                    vs_narrow takes VECTORS of 32 bits (src/avx2/ordered.h has the rest)
 *   vf_code          (words, shift, bits): the code at that bit of each word, less 2^(bits - 1), times
 *                    2^(32 - bits): as if it were signed, and at the top
 *   VD, vd_*         four-way dot products of bytes, vd_signed of codes (unsigned) with signed digits,
 *                    vd_unsigned of codes of 2 bits with unsigned digits; vd_sum gives the lanes' sums of
 *                    32 bits, and before it 4 additions to each have to fit
 *   MOST_DIGITS      (bits): digits with which they are worth while, 2 at most; 0 if floats are always as good.
 *                    Codes of 2 bits have one at least, those of 4 and 8 bits two or none
 *   STREAMS          (bits): in how many streams lines are asked for (ahead.h), MAX_STREAMS at most; may be missing
 *   ROW_STREAMS      in how many streams f16 rows are asked for (rows.h), but by an AMD; may be missing
 *   AGAIN            how many bytes later a line is asked for once more, by a CPU that wants one stream and is slow to
 *                    take lines from the second-level cache; may be missing
 *   FEW_ROWS         up to so many rows memory is the limit, and not arithmetic; may be missing
 *   CODE_OFFSET      (bits): what vd_signed takes from the codes; may be missing
 *   SHIFT_SIGNED, SHIFT_UNSIGNED  (bits, place): by how much codes of that place in a byte are shifted
 *                    right to fit these
 *   vd_again         (words, side): where so many vectors are read again, for another place; may be missing
 *   HAS_CRC32C       if there are instructions for it: crc_add1, crc_add8
 *
 * src/avx2/ymm.h is one to compare with.
 */
#ifndef KIVI_SIMD_TABLE_H
#define KIVI_SIMD_TABLE_H

#include <math.h>
#include <string.h>

#include "../kernels.h"

/* A loop of few turns whose variables are to stay in registers. Clang's plain "unroll" may come too late for
 * that. Sanitizers instrument every copy of a loop, which takes compilers minutes: they get it as it is. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KIVI_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KIVI_SANITIZED
#endif
#endif
#if defined(KIVI_SANITIZED)
#define KIVI_UNROLL
#elif defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed" /* where the number of turns is no constant */
#define KIVI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KIVI_UNROLL _Pragma("GCC unroll 32")
#endif

/* A loop that is a function of its own: compilers do better with the registers of one at a time. */
#if defined(__GNUC__)
#define KIVI_APART static __attribute__((noinline))
#else
#define KIVI_APART static
#endif

#ifndef PAGES_AHEAD
#define PAGES_AHEAD 0u
#endif

#ifndef STREAMS
#define STREAMS(bits) 1u
#endif

#ifndef ROW_STREAMS
#define ROW_STREAMS 1u
#endif

#ifndef AGAIN
#define AGAIN 0u
#endif

#ifndef FEW_ROWS
#define FEW_ROWS 0u
#endif

#ifndef CODE_OFFSET
#define CODE_OFFSET(bits) 0.0f
#endif

#ifndef vd_again
#define vd_again(words, side) (words)
#endif

#include "ahead.h"
#include "fold.h"
#include "codes.h"
#include "floats.h"
#include "keys.h"
#include "values.h"
#include "rows.h"
#include "convert.h"
#include "ranges.h"
#include "quantizer.h"
#include "softmax.h"

#if defined(HAS_CRC32C)
#include "checksum.h"
#else
#include "../../core/crc32c.h"
#define checksum kivi_crc32c
#endif

#define KIVI_SIMD_TABLE(variable, title, about, features)                                          \
    const struct kivi_kernels variable = {                                                         \
        .name = title,                                                                             \
        .description = about,                                                                      \
        .required = features,                                                                      \
        .to_f16 = {f16_from_f32, f16_from_f16, f16_from_bf16},                                     \
        .quantize_k = quantize_k,                                                                  \
        .quantize_v = quantize_v,                                                                  \
        .k_scores = k_scores,                                                                      \
        .v_accumulate = v_accumulate,                                                              \
        .f16_scores = f16_scores,                                                                  \
        .f16_accumulate = f16_accumulate,                                                          \
        .softcap = softcap,                                                                        \
        .max = largest,                                                                            \
        .exp_sum = exp_sum,                                                                        \
        .scale = scale,                                                                            \
        .crc32c = checksum,                                                                        \
    }

#endif
