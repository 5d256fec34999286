/* The packing API on any numbers and any shape: what is packed unpacks to within its scale, goes through the
 * official code's arrays and back without a change, and every wrong argument is refused. */
#include <kivi/kivi.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS 256u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void *room(size_t bytes)
{
    void *p = malloc(bytes + 1);

    if (!p)
        abort();
    return p;
}

static void through_official(const kivi_packing *p, const void *packed, size_t bytes)
{
    const size_t n = (size_t)p->n_tokens * p->dim;
    uint32_t *code = room(n * 4);
    uint16_t *scale = room(n * 2), *min = room(n * 2);
    void *again = room(bytes);

    memset(again, 0x5a, bytes);
    if (kivi_pack_to_official(p, packed, code, scale, min, NULL) == KIVI_OK) {
        if (kivi_pack_from_official(p, code, scale, min, again, NULL) != KIVI_OK
            || memcmp(again, packed, bytes) != 0)
            abort();
    }
    free(code);
    free(scale);
    free(min);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kivi_packing p = {.size = sizeof p};
    float *rows;
    uint16_t *halves;
    void *packed;
    uint64_t bytes;
    size_t n, i;
    kivi_in in;

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
    n = (size_t)p.n_tokens * p.dim;
    rows = room(n * sizeof *rows);
    halves = room(n * sizeof *halves);
    for (i = 0; i < n; i++)
        halves[i] =
            size < 2 ? 0 : (uint16_t)(data[2 * i % (size - 1)] | data[2 * i % (size - 1) + 1] << 8);
    in = (kivi_in){halves, KIVI_F16, (ptrdiff_t)p.dim, 0};
    packed = room((size_t)bytes);
    if (kivi_pack(&p, in, packed, NULL) == KIVI_OK) {
        if (bytes == 0)
            abort();
        if (kivi_unpack(&p, packed, rows, NULL) != KIVI_OK)
            abort();
        for (i = 0; i < n; i++)
            if (!isfinite(rows[i]))
                abort();
        through_official(&p, packed, (size_t)bytes);
    }
    free(rows);
    free(halves);
    free(packed);
    return 0;
}
