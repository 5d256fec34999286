/* Structs that differ from a good one in one field: tables of arguments that must be refused. */
#ifndef KIVI_TESTS_MISTAKE_H
#define KIVI_TESTS_MISTAKE_H

#include <kivi/kivi.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct mistake {
    const char *name;
    size_t offset, bytes; /* of the field */
    uint64_t value;       /* its new value, or the bits of it */
    kivi_status expected;
};

/* `field` of `type` becomes `x`, which is refused with KIVI_ERROR_<status>. */
#define MISTAKE(type, field, x, status)                                                            \
    {                                                                                              \
#field " = " #x, offsetof(type, field), sizeof(((type *)0)->field), x, KIVI_ERROR_##status \
    }

/* Bits of floats. */
#define BITS_OF_NAN 0x7fc00000
#define BITS_OF_INFINITY 0x7f800000
#define BITS_OF_MINUS_ONE 0xbf800000

/* Makes the mistake; every field has four or eight bytes. */
static inline void mistake_make(const struct mistake *mistake, void *object)
{
    const uint32_t narrow = (uint32_t)mistake->value;

    if (mistake->bytes == sizeof narrow)
        memcpy((char *)object + mistake->offset, &narrow, sizeof narrow);
    else
        memcpy((char *)object + mistake->offset, &mistake->value, sizeof mistake->value);
}

#endif
