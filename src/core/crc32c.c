#include "crc32c.h"

#define POLYNOMIAL 0x82f63b78u /* reflected */
#define LANES 16               /* bytes at a time: table k advances a byte by k more bytes */

static uint32_t next(uint32_t crc)
{
    return crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
}

/* Filled in at every call: the state is on the stack, and no lock or constructor is needed. For large
 * data its cost (4096 steps) does not show. */
static void fill(uint32_t table[LANES][256])
{
    uint32_t i, k;

    for (i = 0; i < 256; i++) {
        uint32_t crc = i;

        for (k = 0; k < 8; k++)
            crc = next(crc);
        table[0][i] = crc;
    }
    for (k = 1; k < LANES; k++)
        for (i = 0; i < 256; i++)
            table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 0xff];
}

static uint32_t load_le32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint32_t kivi_crc32c(uint32_t crc, const void *data, size_t bytes)
{
    const unsigned char *p = data;

    crc = ~crc;
    if (bytes >= 1024) {
        uint32_t t[LANES][256];
        int i;

        fill(t);
        for (; bytes >= LANES; p += LANES, bytes -= LANES) {
            const uint32_t words[4] = {crc ^ load_le32(p), load_le32(p + 4), load_le32(p + 8),
                                       load_le32(p + 12)};

            crc = 0;
            for (i = 0; i < 4; i++)
                crc ^= t[15 - 4 * i][words[i] & 0xff] ^ t[14 - 4 * i][words[i] >> 8 & 0xff]
                       ^ t[13 - 4 * i][words[i] >> 16 & 0xff] ^ t[12 - 4 * i][words[i] >> 24];
        }
    }
    while (bytes-- > 0) {
        int bit;

        crc ^= *p++;
        for (bit = 0; bit < 8; bit++)
            crc = next(crc);
    }
    return ~crc;
}
