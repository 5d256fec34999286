/* Calls that must be refused, and what they say of it. */
#ifndef KIVI_TESTS_REFUSAL_H
#define KIVI_TESTS_REFUSAL_H

#include <check.h>
#include <kivi/kivi.h>
#include <string.h>

static inline void check_refusal(const char *what, kivi_status expected, kivi_status got,
                                 const kivi_error *error)
{
    ck_assert_msg(got == expected, "%s: %s, not %s", what, kivi_status_string(got),
                  kivi_status_string(expected));
    if (!error)
        return;
    ck_assert_msg(error->status == expected, "%s: the detail has %s", what,
                  kivi_status_string(error->status));
    ck_assert_msg(memchr(error->message, '\0', sizeof error->message) != NULL,
                  "%s: the message does not end", what);
    ck_assert_msg(error->message[0] != '\0', "%s: no message", what);
    ck_assert_msg(error->item < 2 || error->item == SIZE_MAX, "%s: item %zu", what, error->item);
}

/* Evaluates the call, which passes `error`, with a place for the detail and without. */
#define REFUSED(expected_status, call)                                                             \
    do {                                                                                           \
        kivi_error detail, *error = &detail;                                                       \
        memset(&detail, 'x', sizeof detail);                                                       \
        check_refusal(#call, KIVI_ERROR_##expected_status, call, error);                           \
        error = NULL;                                                                              \
        check_refusal(#call, KIVI_ERROR_##expected_status, call, error);                           \
    } while (0)

/* Evaluates the call, which passes `error` and does as it should: the detail says so. */
#define ACCEPTED(call)                                                                             \
    do {                                                                                           \
        kivi_error detail, *error = &detail;                                                       \
        memset(&detail, 'x', sizeof detail);                                                       \
        ck_assert_msg((call) == KIVI_OK, "%s: %s", #call, detail.message);                         \
        ck_assert_msg(detail.status == KIVI_OK && detail.item == SIZE_MAX                          \
                          && detail.message[0] == '\0',                                            \
                      "%s: the detail is of an error", #call);                                     \
    } while (0)

/* No cache is made of the configuration. */
static inline void check_config(const kivi_config *config, const char *what, kivi_status expected)
{
    kivi_error error;
    kivi_cache *cache = (kivi_cache *)(void *)&error; /* to be overwritten */

    memset(&error, 'x', sizeof error);
    check_refusal(what, expected, kivi_cache_create(config, &cache, &error), &error);
    ck_assert_msg(cache == NULL, "%s: *cache is not NULL", what);
    check_refusal(what, expected, kivi_cache_create(config, &cache, NULL), NULL);
}

#endif
