/* Sizes and places at the limits: sixteen million tokens and more, the widest heads, without allocating them.
 * What 32 bits would overflow is compared with arithmetic in long double, exact up to 2^64. */
#include <check.h>
#include <stdint.h>
#include <string.h>

#include "core/cache.h"
#include "core/format.h"
#include "core/geometry.h"
#include "support/suite.h"

#define MANY ((uint64_t)1 << 24) /* tokens */
/* kv heads: a page is at most a quarter of the address space */
#define HEADS (SIZE_MAX > UINT32_MAX ? 128 : 4)

static kivi_config widest(uint32_t bits, uint32_t group)
{
    kivi_config config;

    kivi_config_init(&config);
    config.n_layers = 1;
    config.n_q_heads = config.n_kv_heads = HEADS;
    config.k_dim = config.v_dim = 512;
    config.k_bits = config.v_bits = bits;
    config.group_size = group;
    config.residual_length = 4096;
    config.rollback = 4096;
    config.n_sink = 4096;
    return config;
}

/* Bytes of a number in blocks, scales included: exact for dimensions that are multiples of all groups. */
static long double bytes_per_number(uint32_t bits, uint32_t group)
{
    return bits == 16 ? 2 : bits / 8.0L + 4.0L / group;
}

START_TEST(spans_of_many_tokens)
{
    static const uint64_t counts[] = {MANY - 1, MANY, MANY + 1, 3 * MANY + 4095, (uint64_t)1 << 40};
    struct kivi_layer_geometry layer;
    struct kivi_geometry g;
    kivi_config config = widest(2, 32);
    kivi_error error;
    size_t i;

    ck_assert_int_eq(kivi_geometry_check(&config, &error), KIVI_OK);
    ck_assert_int_eq(kivi_geometry_init(&g, &config, &layer, &error), KIVI_OK);
    for (i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const uint64_t n = counts[i];

        ck_assert_uint_eq(kivi_keys_packed(&g, n, 0), n / 4096 * 4096);
        ck_assert_uint_eq(kivi_values_packed(&g, n), n - 4096);
    }
}
END_TEST

START_TEST(pages_and_windows)
{
    static const uint32_t all_bits[] = {2, 4, 8, 16}, groups[] = {32, 64, 128};
    const uintptr_t page = 4096;
    struct kivi_layer_geometry layer;
    struct kivi_geometry g;
    kivi_error error;
    size_t b, i;

    for (b = 0; b < 4; b++) {
        for (i = 0; i < 3; i++) {
            kivi_config config = widest(all_bits[b], groups[i]);
            long double expected;

            config.page_tokens = 65536;
            ck_assert_int_eq(kivi_geometry_init(&g, &config, &layer, &error), KIVI_OK);
            expected = 65536.0L * HEADS * 1024 * bytes_per_number(all_bits[b], groups[i]);
            ck_assert_msg((long double)g.page_bytes == expected, "%u bits: a page of %zu bytes",
                          all_bits[b], g.page_bytes);
            /* sinks, and rings of residual + rollback keys and 2 * residual + rollback values */
            expected = HEADS * 2.0L * 512 * (4096.0L * 2 + 8192.0L + 12288.0L);
            ck_assert_msg((long double)g.window_bytes == expected, "a window of %zu bytes",
                          g.window_bytes);
            /* The last block of a page ends where the page ends; the address is not used. */
            ck_assert_uint_eq((uintptr_t)kivi_page_values(&layer, (void *)page, HEADS - 1, 65535)
                                  - page,
                              g.page_bytes - layer.v.block_bytes);
        }
    }
}
END_TEST

/* A page is as large for every layer: one of fewer bits has more tokens to it, as many as fit. */
START_TEST(pages_of_mixed_layers)
{
    static const uint8_t k_bits[] = {16, 2, 4, 8}, v_bits[] = {16, 2, 2, 16};
    struct kivi_layer_geometry layers[4];
    struct kivi_geometry g;
    kivi_config config = widest(2, 32);
    kivi_error error;
    uint32_t i;

    config.n_layers = 4;
    config.layer_k_bits = k_bits;
    config.layer_v_bits = v_bits;
    ck_assert_int_eq(kivi_geometry_init(&g, &config, layers, &error), KIVI_OK);
    for (i = 0; i < 4; i++) {
        const long double token =
            HEADS * 512.0L * (bytes_per_number(k_bits[i], 32) + bytes_per_number(v_bits[i], 32));
        const uint32_t tokens = layers[i].page_tokens;

        ck_assert(tokens >= config.page_tokens && tokens % 128 == 0);
        ck_assert_msg((long double)g.page_bytes >= token * tokens
                          && (long double)g.page_bytes < token * (tokens + 128),
                      "layer %u: %u tokens in a page of %zu bytes", i, tokens, g.page_bytes);
    }
}
END_TEST

START_TEST(files_of_many_tokens)
{
    static const uint32_t all_bits[] = {2, 4, 8, 16};
    struct kivi_layer_geometry layer;
    struct kivi_geometry g;
    kivi_error error;
    size_t b;

    for (b = 0; b < 4; b++) {
        const kivi_config config = widest(all_bits[b], 32);
        const uint64_t n = 4 * MANY;
        struct kivi_saved_layer saved = {.n = n, .k_packed = n, .v_packed = n - 4096};
        const long double a_number = bytes_per_number(all_bits[b], 32);
        long double expected = HEADS * 512.0L * a_number * ((long double)n + (long double)n - 4096);

        ck_assert_int_eq(kivi_geometry_init(&g, &config, &layer, &error), KIVI_OK);
        saved.k_low = n;
        saved.v_low = n - 4096;
        expected += HEADS * 2.0L * 4096 * (512 + 512 + 512); /* sinks, and rows of values */
        ck_assert_msg((long double)kivi_payload_bytes(&g, 0, &saved) == expected, "%u bits",
                      all_bits[b]);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("geometry");
    TCase *limits = tcase_create("limits");

    tcase_add_test(limits, spans_of_many_tokens);
    tcase_add_test(limits, pages_and_windows);
    tcase_add_test(limits, pages_of_mixed_layers);
    tcase_add_test(limits, files_of_many_tokens);
    suite_add_tcase(suite, limits);
    return test_main(suite);
}
