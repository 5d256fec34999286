/* Backends: listed, found, described and chosen; and the texts that the library has. */
#include <check.h>
#include <kivi/kivi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/fixture.h"
#include "support/refusal.h"
#include "support/suite.h"

static struct fixture fixture;

static void set_up(void)
{
    fixture_open(&fixture, backend_name(0));
}

static void tear_down(void)
{
    fixture_close(&fixture);
}

START_TEST(texts)
{
    char version[32];
    int status;

    for (status = -100; status <= 100; status++) {
        const char *text = kivi_status_string((kivi_status)status);

        ck_assert_ptr_nonnull(text);
        ck_assert_str_ne(text, "");
        if (status < KIVI_ERROR_DEVICE || status > 0)
            ck_assert_str_eq(text, kivi_status_string((kivi_status)1000));
        else
            ck_assert_str_ne(text, kivi_status_string((kivi_status)1000));
    }
    snprintf(version, sizeof version, "%d.%d.%d", KIVI_VERSION_MAJOR, KIVI_VERSION_MINOR,
             KIVI_VERSION_PATCH);
    ck_assert_str_eq(kivi_version(), version);
}
END_TEST

/* Whatever room there is, the text is cut there and ends; the length is always the whole. */
START_TEST(describe)
{
    char whole[4096], part[4096];
    const size_t length = kivi_describe(fixture.cache, whole, sizeof whole);
    size_t room;

    ck_assert_uint_gt(length, 0);
    ck_assert_uint_eq(strlen(whole), length);
    ck_assert_ptr_nonnull(strstr(whole, backend_name(0)));
    /* Of two layers and kv heads, padded to 32 keys and 48 values in 2 groups, at 2 bits; docs/layout.md. */
    ck_assert_ptr_nonnull(strstr(whole, " 128.0 bytes a packed token (f16: 512.0)"));
    ck_assert_uint_eq(kivi_describe(fixture.cache, NULL, 0), length);
    for (room = 1; room <= length + 1; room++) {
        memset(part, 'x', sizeof part);
        ck_assert_uint_eq(kivi_describe(fixture.cache, part, room), length);
        ck_assert_uint_eq(strlen(part), room - 1);
        ck_assert_int_eq(strncmp(part, whole, room - 1), 0);
        ck_assert_int_eq(part[room], 'x');
    }
    ck_assert_uint_eq(kivi_describe(NULL, part, sizeof part), 0);
    ck_assert_str_eq(part, "");
    ck_assert_uint_eq(kivi_describe(NULL, NULL, 0), 0);
}
END_TEST

START_TEST(backends_are_listed)
{
    kivi_backend_info info, found;
    size_t i, n_recommended = 0;

    ck_assert_uint_ge(kivi_backend_count(), 2);
    for (i = 0; i < kivi_backend_count(); i++) {
        ck_assert_int_eq(kivi_backend_get(i, &info, NULL), KIVI_OK);
        ck_assert_str_ne(info.name, "");
        ck_assert_str_ne(info.description, "");
        ck_assert((info.reason[0] == '\0') == info.available);
        ck_assert(info.available || !info.recommended);
        n_recommended += (size_t)info.recommended;
        ck_assert_int_eq(kivi_backend_find(info.name, &found, NULL), KIVI_OK);
        ck_assert_str_eq(found.name, info.name);
    }
    ck_assert_uint_eq(n_recommended, 1);
    ck_assert_int_eq(kivi_backend_find("scalar", &found, NULL), KIVI_OK);
    ck_assert(found.available);
    REFUSED(ARGUMENT, kivi_backend_get(kivi_backend_count(), &info, error));
    REFUSED(ARGUMENT, kivi_backend_get(SIZE_MAX, &info, error));
    REFUSED(ARGUMENT, kivi_backend_get(0, NULL, error));
    REFUSED(ARGUMENT, kivi_backend_find(NULL, &info, error));
    REFUSED(ARGUMENT, kivi_backend_find("scalar", NULL, error));
    REFUSED(BACKEND, kivi_backend_find("", &info, error));
    REFUSED(BACKEND, kivi_backend_find("Scalar", &info, error));
    REFUSED(BACKEND, kivi_backend_find("scala", &info, error));
}
END_TEST

/* The backend that a cache describes itself to run on. */
static void check_backend(const kivi_config *config, const char *name)
{
    char text[4096], wanted[64];
    kivi_cache *cache;

    ck_assert_int_eq(kivi_cache_create(config, &cache, NULL), KIVI_OK);
    kivi_describe(cache, text, sizeof text);
    snprintf(wanted, sizeof wanted, "backend %s ", name);
    ck_assert_msg(strstr(text, wanted) != NULL, "not \"%s\": %s", wanted, text);
    kivi_cache_destroy(cache);
}

START_TEST(backends_are_chosen)
{
    kivi_config config = fixture.config;
    kivi_backend_info info;
    size_t i;

    for (i = 0; i < kivi_backend_count(); i++) {
        ck_assert_int_eq(kivi_backend_get(i, &info, NULL), KIVI_OK);
        ck_assert_int_eq(setenv("KIVI_BACKEND", info.name, 1), 0);
        config.backend = NULL;
        if (!info.available) {
            check_config(&config, info.name, KIVI_ERROR_BACKEND);
            config.backend = info.name;
            check_config(&config, info.name, KIVI_ERROR_BACKEND);
            continue;
        }
        check_backend(&config, info.name);
        config.backend = "scalar"; /* the configuration comes first */
        check_backend(&config, "scalar");
        ck_assert_int_eq(setenv("KIVI_BACKEND", "", 1), 0);
        config.backend = info.name;
        check_backend(&config, info.name);
        if (info.recommended) {
            config.backend = NULL;
            check_backend(&config, info.name);
        }
    }
    ck_assert_int_eq(setenv("KIVI_BACKEND", "abacus", 1), 0);
    config.backend = NULL;
    check_config(&config, "KIVI_BACKEND=abacus", KIVI_ERROR_BACKEND);
    unsetenv("KIVI_BACKEND");
    config.backend = "abacus";
    check_config(&config, "backend = abacus", KIVI_ERROR_BACKEND);
    config.backend = "";
    check_config(&config, "backend of no name", KIVI_ERROR_BACKEND);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("backends");
    TCase *names = tcase_create("names");

    tcase_add_checked_fixture(names, set_up, tear_down);
    tcase_add_test(names, texts);
    tcase_add_test(names, describe);
    tcase_add_test(names, backends_are_listed);
    tcase_add_test(names, backends_are_chosen);
    suite_add_tcase(suite, names);
    return test_main(suite);
}
