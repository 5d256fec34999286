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

/* KIVI_OK, with *error cleared. */
kivi_status kivi_succeed(kivi_error *error);

#endif
