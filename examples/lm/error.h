/* How a part of kivi-lm says what went wrong: one printable line. */
#ifndef LM_ERROR_H
#define LM_ERROR_H

#include <stdarg.h>
#include <stdio.h>

#if defined(__GNUC__)
#define LM_LIKE_PRINTF __attribute__((format(printf, 2, 3)))
#else
#define LM_LIKE_PRINTF
#endif

struct lm_error {
    char text[320];
};

/* Writes the line and returns -1. Text that comes from a file may hold anything: bytes that do
 * not print become '?', so that it stays one line. */
static inline int LM_LIKE_PRINTF lm_fail(struct lm_error *error, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    for (char *c = error->text; *c; c++) {
        if (*c < ' ' || *c > '~')
            *c = '?';
    }
    return -1;
}

#endif
