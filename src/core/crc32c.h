/* CRC-32C (Castagnoli), as in RFC 3720: polynomial 0x1EDC6F41, reflected. */
#ifndef KIVI_CRC32C_H
#define KIVI_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The checksum of what gave `crc` (0 for nothing) followed by `bytes` bytes. */
uint32_t kivi_crc32c(uint32_t crc, const void *data, size_t bytes);

#endif
