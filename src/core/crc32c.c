#include "crc32c.h"

#define POLYNOMIAL 0x82f63b78u /* reflected */

static uint32_t next(uint32_t crc)
{
    return crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
}

static uint32_t add_byte(uint32_t crc, unsigned char byte)
{
    int bit;

    crc ^= byte;
    for (bit = 0; bit < 8; bit++)
        crc = next(crc);
    return crc;
}

/* Eight bytes at a time: table k advances a byte by k more bytes. The tables are filled in at every
 * call: no lock or constructor is needed, and for large data it does not show. */
static uint32_t add_by_tables(uint32_t crc, const unsigned char *p, size_t n_words)
{
    uint32_t t[8][256], i, k;

    for (i = 0; i < 256; i++)
        t[0][i] = add_byte(0, (unsigned char)i);
    for (k = 1; k < 8; k++)
        for (i = 0; i < 256; i++)
            t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 0xff];
    for (; n_words > 0; n_words--, p += 8)
        crc = t[7][p[0] ^ (crc & 0xff)] ^ t[6][p[1] ^ (crc >> 8 & 0xff)]
              ^ t[5][p[2] ^ (crc >> 16 & 0xff)] ^ t[4][p[3] ^ (crc >> 24)] ^ t[3][p[4]] ^ t[2][p[5]]
              ^ t[1][p[6]] ^ t[0][p[7]];
    return crc;
}

#define SMALL 512 /* bytes for which filling the tables costs more than it saves */

uint32_t kivi_crc32c(uint32_t crc, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    size_t words = bytes / 8;

    crc = ~crc;
    if (bytes >= SMALL)
        crc = add_by_tables(crc, p, words);
    else
        words = 0;
    for (p += words * 8, bytes -= words * 8; bytes > 0; bytes--)
        crc = add_byte(crc, *p++);
    return ~crc;
}
