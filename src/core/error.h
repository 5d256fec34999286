/* How a call reports failure. */
#ifndef KIVI_ERROR_H
#define KIVI_ERROR_H

#include <kivi/kivi.h>

#if defined(__GNUC__)
#define KIVI_PRINTF(string, first) __attribute__((format(printf, string, first)))
#else
#define KIVI_PRINTF(string, first)
#endif

/* Fills in *error if it is not NULL, and returns status. */
kivi_status kivi_fail(kivi_error *error, kivi_status status, const char *format, ...)
    KIVI_PRINTF(3, 4);

/* The same for an item at fault. The message begins with "items[item]". */
kivi_status kivi_fail_item(kivi_error *error, kivi_status status, size_t item, const char *format,
                           ...) KIVI_PRINTF(4, 5);

/* What failed did so for this item. Returns status. */
kivi_status kivi_blame_item(kivi_error *error, kivi_status status, size_t item);

/* KIVI_OK, with *error cleared. */
kivi_status kivi_succeed(kivi_error *error);

#endif
