#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static void fill_in(kivi_error *error, kivi_status status, size_t item, const char *format,
                    va_list arguments)
{
    size_t n = 0;

    error->status = status;
    error->item = item;
    if (item != SIZE_MAX)
        n = (size_t)snprintf(error->message, sizeof error->message, "items[%zu]", item);
    vsnprintf(error->message + n, sizeof error->message - n, format, arguments);
}

kivi_status kivi_fail(kivi_error *error, kivi_status status, const char *format, ...)
{
    if (error) {
        va_list arguments;

        va_start(arguments, format);
        fill_in(error, status, SIZE_MAX, format, arguments);
        va_end(arguments);
    }
    return status;
}

kivi_status kivi_fail_item(kivi_error *error, kivi_status status, size_t item, const char *format,
                           ...)
{
    if (error) {
        va_list arguments;

        va_start(arguments, format);
        fill_in(error, status, item, format, arguments);
        va_end(arguments);
    }
    return status;
}

kivi_status kivi_blame_item(kivi_error *error, kivi_status status, size_t item)
{
    if (error)
        error->item = item;
    return status;
}

kivi_status kivi_succeed(kivi_error *error)
{
    if (error) {
        error->status = KIVI_OK;
        error->item = SIZE_MAX;
        error->message[0] = '\0';
    }
    return KIVI_OK;
}

const char *kivi_status_string(kivi_status status)
{
    switch (status) {
    case KIVI_OK:
        return "success";
    case KIVI_ERROR_ARGUMENT:
        return "invalid argument";
    case KIVI_ERROR_MEMORY:
        return "out of memory";
    case KIVI_ERROR_CAPACITY:
        return "capacity or memory budget exceeded";
    case KIVI_ERROR_SEQUENCE:
        return "no such sequence";
    case KIVI_ERROR_NOT_FINITE:
        return "input is not finite in f16";
    case KIVI_ERROR_BACKEND:
        return "backend unknown or not available";
    case KIVI_ERROR_UNSUPPORTED:
        return "not supported by this backend";
    case KIVI_ERROR_BUSY:
        return "sequence is in use by another call";
    case KIVI_ERROR_FORMAT:
        return "saved data is damaged or does not fit this cache";
    case KIVI_ERROR_IO:
        return "read or write callback failed";
    case KIVI_ERROR_DEVICE:
        return "device failure";
    }
    return "unknown status";
}

const char *kivi_version(void)
{
    return KIVI_VERSION_STRING;
}
