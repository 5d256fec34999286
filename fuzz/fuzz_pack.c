/* The packing API on any numbers and any shape: what is packed unpacks to within half a scale, arrays of the official
 * code go through the packed order and back without a change, and what is not a packing is refused. */
#include <kivi/kivi.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"

#define MAX_TOKENS 256u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds)
{
    if (!holds)
        abort();
}

static void *room(size_t bytes)
{
    void *p = malloc(bytes + 1);

    require(p != NULL);
    return p;
}

/* What kivi.h says a packing is. */
static int is_packing(const kivi_packing *p)
{
    const int shape = (p->bits == 2 || p->bits == 4 || p->bits == 8)
                      && (p->group_size == 32 || p->group_size == 64 || p->group_size == 128)
                      && p->dim >= 8 && p->dim <= 512 && p->dim % 8 == 0 && p->n_tokens > 0;

    return shape
           && (p->axis == KIVI_PER_TOKEN
               || (p->axis == KIVI_PER_CHANNEL && p->n_tokens % p->group_size == 0));
}

/* One group: n numbers, `stride` apart. A scale that f16 rounds down, or to 0, leaves the largest code short. */
static void check_group(const uint16_t *halves, const float *rows, size_t n, size_t stride,
                        uint32_t bits)
{
    const double levels = (double)((1u << bits) - 1);
    double least = INFINITY, most = -INFINITY, bound;
    size_t i;

    for (i = 0; i < n; i++) {
        const double x = kivi_f32_from_f16(halves[i * stride]);

        least = fmin(least, x);
        most = fmax(most, x);
    }
    bound = (most - least) * (0.5 / levels + 0x1p-9) + levels * 0x1p-24
            + fmax(fabs(least), fabs(most)) * 0x1p-22;
    for (i = 0; i < n; i++)
        require(fabs((double)rows[i * stride] - (double)kivi_f32_from_f16(halves[i * stride]))
                <= bound);
}

static void check_rows(const kivi_packing *p, const uint16_t *halves, const float *rows)
{
    const int keys = p->axis == KIVI_PER_CHANNEL;
    const size_t outer = keys ? p->dim : (size_t)p->n_tokens;
    const size_t length = keys ? (size_t)p->n_tokens : p->dim;
    const size_t stride = keys ? p->dim : 1, outer_stride = keys ? 1 : p->dim;
    size_t o, i;

    for (o = 0; o < outer; o++) {
        for (i = 0; i < length; i += p->group_size) {
            const size_t at = o * outer_stride + i * stride;
            const size_t n = length - i < p->group_size ? length - i : p->group_size;

            check_group(halves + at, rows + at, n, stride, p->bits);
        }
    }
}

/* From the official arrays to the packed order and back: any codes, any scales. */
static void check_official(const kivi_packing *p, const uint16_t *halves, size_t bytes)
{
    const size_t words = (size_t)p->n_tokens * p->dim * p->bits / 32;
    const size_t length = p->axis == KIVI_PER_CHANNEL ? (size_t)p->n_tokens : p->dim;
    const size_t outer = p->axis == KIVI_PER_CHANNEL ? p->dim : (size_t)p->n_tokens;
    const size_t scales = outer * ((length + p->group_size - 1) / p->group_size);
    uint32_t *code = room(words * 4), *code_again = room(words * 4);
    uint16_t *scale = room(scales * 2), *min = room(scales * 2);
    void *packed = room(bytes);
    const kivi_status status = (memcpy(code, halves, words * 4), /* at most 16 bits to a number */
                                kivi_pack_from_official(p, code, halves, halves + 1, packed, NULL));

    if (p->axis == KIVI_PER_TOKEN && p->dim % (32 / p->bits)) {
        require(status == KIVI_ERROR_UNSUPPORTED);
    } else {
        require(status == KIVI_OK);
        require(kivi_pack_to_official(p, packed, code_again, scale, min, NULL) == KIVI_OK);
        require(memcmp(code, code_again, words * 4) == 0);
        require(memcmp(scale, halves, scales * 2) == 0);
        require(memcmp(min, halves + 1, scales * 2) == 0);
    }
    free(code);
    free(code_again);
    free(scale);
    free(min);
    free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kivi_packing p = {.size = sizeof p};
    uint16_t *halves;
    float *rows;
    void *packed;
    uint64_t bytes;
    size_t n, i;
    int finite = 1;
    kivi_in in;
    kivi_status status;

    if (size < 8)
        return 0;
    p.axis = (kivi_axis)(data[0] % 3);
    p.bits = data[1] % 10;
    p.group_size = data[2] % 5 * 32u;
    p.dim = data[3] * 4u;
    p.n_tokens = (data[4] | (uint32_t)data[5] << 8) % (MAX_TOKENS + 1);
    data += 8;
    size -= 8;
    bytes = kivi_packed_size(&p);
    require((bytes != 0) == is_packing(&p));
    n = (size_t)p.n_tokens * p.dim;
    halves = room((n + 1) * sizeof *halves); /* one more for minima that begin a step later */
    rows = room(n * sizeof *rows);
    packed = room((size_t)bytes);
    for (i = 0; i <= n; i++) {
        halves[i] =
            size < 2 ? 0 : (uint16_t)(data[2 * i % (size - 1)] | data[2 * i % (size - 1) + 1] << 8);
        finite &= i == n || kivi_f16_is_finite(halves[i]);
    }
    in = (kivi_in){halves, KIVI_F16, (ptrdiff_t)p.dim, 0};
    status = kivi_pack(&p, in, packed, NULL);
    require(status
            == (bytes == 0 ? KIVI_ERROR_ARGUMENT
                : finite   ? KIVI_OK
                           : KIVI_ERROR_NOT_FINITE));
    if (status == KIVI_OK) {
        require(kivi_unpack(&p, packed, rows, NULL) == KIVI_OK);
        check_rows(&p, halves, rows);
    }
    if (bytes)
        check_official(&p, halves, (size_t)bytes);
    free(rows);
    free(halves);
    free(packed);
    return 0;
}
