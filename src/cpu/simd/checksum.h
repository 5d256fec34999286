/* CRC-32C by the instructions of a vocabulary that has them: crc_add1 and crc_add8 add bytes. */
#ifndef KIVI_SIMD_CHECKSUM_H
#define KIVI_SIMD_CHECKSUM_H

static uint32_t checksum(uint32_t crc, const void *data, size_t bytes)
{
    const unsigned char *p = data;

    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;

        memcpy(&word, p, sizeof word);
        crc = crc_add8(crc, word);
    }
    for (; bytes > 0; bytes--)
        crc = crc_add1(crc, *p++);
    return ~crc;
}

#endif
