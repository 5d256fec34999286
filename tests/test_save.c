/* Saving and loading: docs/format.md makes the promises. KIVI_WRITE_VECTORS=1 writes the files of
 * tests/vectors/save anew instead of comparing with them. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc32c.h"
#include "core/format.h"
#include "core/registry.h"
#include "cpu/kernels.h"
#include "support/buffer.h"
#include "support/fixture.h"
#include "support/session.h"
#include "support/suite.h"

#define LENGTH(array) (sizeof(array) / sizeof(array)[0])

static struct buffer saved_sequence(const struct session *s, kivi_seq seq)
{
    struct buffer file;
    kivi_error error;
    uint64_t size;

    buffer_init(&file);
    session_ok(kivi_seq_save(s->cache, seq, buffer_write, &file, &error), &error);
    session_ok(kivi_seq_save_size(s->cache, seq, &size, &error), &error);
    ck_assert_uint_eq(file.size, size);
    return file;
}

static kivi_seq loaded(const struct session *s, struct buffer *file)
{
    kivi_error error;
    kivi_seq seq;

    file->at = 0;
    session_ok(kivi_seq_load(s->cache, buffer_read, file, &seq, &error), &error);
    ck_assert_uint_eq(file->at, file->size);
    return seq;
}

static void check_same_bytes(const struct buffer *a, const struct buffer *b, const char *what)
{
    size_t i = 0;

    ck_assert_msg(a->size == b->size, "%s: %zu bytes, not %zu", what, a->size, b->size);
    while (i < a->size && a->data[i] == b->data[i])
        i++;
    ck_assert_msg(i == a->size, "%s: byte %zu is 0x%02x, not 0x%02x", what, i, a->data[i],
                  b->data[i]);
}

/* ---------------------------------------------------------------- checksum */

static void check_checksum(uint32_t (*crc32c)(uint32_t, const void *, size_t))
{
    unsigned char data[2000];
    size_t i;
    uint32_t parts;

    ck_assert_uint_eq(crc32c(0, "123456789", 9), 0xe3069283u); /* its published check value */
    memset(data, 0, sizeof data);
    ck_assert_uint_eq(crc32c(0, data, 32), 0x8a9136aau); /* RFC 3720, B.4 */
    memset(data, 0xff, 32);
    ck_assert_uint_eq(crc32c(0, data, 32), 0x62a8ab43u);
    for (i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 7 + i / 256);
    for (i = 0; i <= sizeof data; i += 37) { /* in two parts, short and long */
        parts = crc32c(crc32c(0, data, i), data + i, sizeof data - i);
        ck_assert_uint_eq(parts, kivi_crc32c(0, data, sizeof data));
    }
}

START_TEST(checksum_is_castagnoli)
{
    const char *reason;
    size_t i;

    for (i = 0; i < kivi_n_cpu_backends; i++)
        if (kivi_cpu_backends[i]->available(kivi_cpu_backends[i], &reason))
            check_checksum(kivi_cpu_backends[i]->kernels->crc32c);
}
END_TEST

/* -------------------------------------------------------------- round trips */

static const uint64_t lengths[] = {0, 1, 31, 63, 64, 65, 128, 200, 300};

static void round_trip(const kivi_config *config, int backend, uint64_t n, uint64_t dropped)
{
    struct session s, t;
    struct buffer file, again;
    kivi_error error;
    kivi_seq a, b;

    session_open(&s, config, backend_name(backend));
    session_open(&t, config, "scalar");
    a = session_new(&s);
    session_append(&s, a, 1, n);
    if (dropped)
        session_ok(kivi_seq_truncate(s.cache, a, n - dropped, &error), &error);
    file = saved_sequence(&s, a);
    b = loaded(&t, &file);
    session_check_same(&s, a, &t, b, "loaded by the scalar backend");
    ck_assert_uint_eq(session_stats(&t).pages, session_stats(&s).pages);
    ck_assert_uint_eq(session_stats(&t).window_bytes, session_stats(&s).window_bytes);
    again = saved_sequence(&t, b);
    /* The handle, and its checksum, may be another. */
    memcpy(again.data + 56, file.data + 56, 12);
    check_same_bytes(&again, &file, "saved again");
    session_append(&s, a, 2, 70);
    session_append(&t, b, 2, 70);
    session_check_same(&s, a, &t, b, "both appended to");
    buffer_free(&file);
    buffer_free(&again);
    session_close(&s);
    session_close(&t);
}

START_TEST(round_trips)
{
    static const uint8_t bits[][2] = {{2, 2}, {4, 2}, {2, 8}, {8, 4}, {16, 16}, {16, 2}};
    kivi_config config;
    size_t i, j;

    session_config(&config);
    for (i = 0; i < LENGTH(bits); i++) {
        const uint8_t k_bits[] = {bits[i][0], 2}, v_bits[] = {bits[i][1], 4};

        config.layer_k_bits = k_bits;
        config.layer_v_bits = v_bits;
        config.n_sink = i % 2 ? 5 : 0;
        config.rollback = i % 3 ? 0 : 40;
        for (j = 0; j < LENGTH(lengths); j++) {
            round_trip(&config, _i, lengths[j], 0);
            if (lengths[j] > 20)
                round_trip(&config, _i, lengths[j], 17);
        }
    }
}
END_TEST

/* Longer than what is written and read at a time, so that blocks and rows lie across the ends of buffers. */
START_TEST(a_long_sequence)
{
    kivi_config config;

    session_config(&config);
    round_trip(&config, _i, 6000, 0);
}
END_TEST

/* A reader that keeps fewer rows takes what it needs. */
START_TEST(windows_may_differ)
{
    struct session s, t;
    struct buffer file;
    kivi_config config;
    kivi_error error;
    kivi_seq a, b, c;

    session_config(&config);
    config.rollback = 96;
    session_open(&s, &config, backend_name(_i));
    config.rollback = 0;
    session_open(&t, &config, backend_name(_i));
    a = session_new(&s);
    session_append(&s, a, 1, 250);
    file = saved_sequence(&s, a);
    b = loaded(&t, &file);
    c = session_new(&t);
    session_append(&t, c, 1, 250);
    session_check_same(&t, c, &t, b, "loaded without the rollback's rows");
    /* What the file has beyond this cache's rings is not in them: to go back further takes codes. */
    session_ok(kivi_seq_truncate(t.cache, b, 130, &error), &error);
    session_ok(kivi_seq_truncate(t.cache, c, 130, &error), &error);
    session_check_same(&t, c, &t, b, "loaded without the rollback's rows, then cut");
    buffer_free(&file);
    file = saved_sequence(&t, b);
    b = loaded(&s, &file);
    session_check_same(&t, c, &s, b, "loaded where there is room for more");
    buffer_free(&file);
    session_close(&s);
    session_close(&t);
}
END_TEST

/* Nothing of what memory held before gets into a file, nor the backend, nor tokens that are gone. */
START_TEST(bytes_depend_on_tokens_alone)
{
    struct buffer files[2];
    kivi_config config;
    int i, gone;

    session_config(&config);
    for (gone = 0; gone < 2; gone++) {
        for (i = 0; i < 2; i++) {
            struct session s;
            kivi_error error;
            kivi_seq seq;

            session_open(&s, &config, i ? backend_name(_i) : "scalar");
            atomic_store(&s.memory.fill, i ? 0x11 : 0xee);
            seq = session_new(&s);
            session_append(&s, seq, 1, 203);
            if (gone) { /* other tokens are left behind in the blocks */
                session_append(&s, seq, i ? 2 : 3, 40);
                session_ok(kivi_seq_truncate(s.cache, seq, 203, &error), &error);
            }
            files[i] = saved_sequence(&s, seq);
            session_close(&s);
        }
        check_same_bytes(&files[1], &files[0], gone ? "after a truncation" : "the same tokens");
        buffer_free(&files[0]);
        buffer_free(&files[1]);
    }
}
END_TEST

/* Codes of tokens that are packed no longer stay behind in a value block: the file is that of a sequence that was
 * never longer, as far as both have the same rows to go back by. */
START_TEST(a_cut_sequence_saves_what_is_left)
{
    static const uint8_t bits[][2] = {{2, 4}, {8, 16}};
    kivi_config config;
    size_t i;

    session_config(&config);
    config.rollback = 64;
    for (i = 0; i < LENGTH(bits); i++) {
        struct buffer files[2];
        int is_cut;

        config.layer_k_bits = config.layer_v_bits = bits[i];
        for (is_cut = 0; is_cut < 2; is_cut++) {
            struct session s;
            kivi_error error;
            kivi_seq seq;

            session_open(&s, &config, backend_name(_i));
            seq = session_new(&s);
            session_append(&s, seq, 1, is_cut ? 120 : 100);
            session_ok(kivi_seq_truncate(s.cache, seq, 100, &error), &error);
            files[is_cut] = saved_sequence(&s, seq);
            session_close(&s);
        }
        check_same_bytes(&files[1], &files[0], "cut from 120 to 100 tokens");
        buffer_free(&files[0]);
        buffer_free(&files[1]);
    }
}
END_TEST

START_TEST(whole_caches)
{
    struct session s, t;
    struct buffer file;
    kivi_config config;
    kivi_error error;
    kivi_seq seqs[4], olds[4], news[4];
    size_t n = 0, i, j, found = 0;

    session_config(&config);
    session_open(&s, &config, backend_name(_i));
    session_open(&t, &config, backend_name(_i));
    seqs[0] = session_new(&s);
    session_append(&s, seqs[0], 1, 150);
    seqs[1] = session_fork(&s, seqs[0]);
    session_append(&s, seqs[1], 2, 33);
    seqs[2] = session_new(&s);
    seqs[3] = session_new(&s);
    session_append(&s, seqs[3], 3, 7);
    buffer_init(&file);
    session_ok(kivi_cache_save(s.cache, buffer_write, &file, &error), &error);

    ck_assert_int_eq(kivi_cache_load(t.cache, buffer_read, &file, olds, news, 3, &n, &error),
                     KIVI_ERROR_CAPACITY);
    ck_assert_uint_eq(n, 4);
    ck_assert_uint_eq(session_stats(&t).sequences, 0);
    file.at = 0;
    ck_assert_int_eq(kivi_seq_load(t.cache, buffer_read, &file, &news[0], &error),
                     KIVI_ERROR_FORMAT); /* no room would make it possible */
    file.at = 0;
    session_ok(kivi_cache_load(t.cache, buffer_read, &file, olds, news, 4, &n, &error), &error);
    ck_assert_uint_eq(n, 4);
    for (i = 0; i < 4; i++) {
        for (j = 0; j < 4; j++) {
            if (olds[i] != seqs[j])
                continue;
            session_check_same(&s, seqs[j], &t, news[i], "sequence of a whole cache");
            found++;
        }
    }
    ck_assert_uint_eq(found, 4);
    buffer_free(&file);
    session_close(&s);
    session_close(&t);
}
END_TEST

/* ------------------------------------------------------------------ damage */

static struct fixture fixture;

static struct buffer saved_fixture(void)
{
    struct buffer file;

    fixture_open(&fixture, NULL);
    buffer_init(&file);
    ck_assert_int_eq(kivi_seq_save(fixture.cache, fixture.other, buffer_write, &file, NULL),
                     KIVI_OK);
    return file;
}

static void check_refused(struct buffer *file, const char *what, size_t at)
{
    kivi_seq seq = 1, old;
    kivi_error error;
    kivi_status status;
    size_t n;

    file->at = 0;
    status = kivi_seq_load(fixture.cache, buffer_read, file, &seq, &error);
    ck_assert_msg(status == KIVI_ERROR_FORMAT || status == KIVI_ERROR_IO
                      || status == KIVI_ERROR_CAPACITY,
                  "%s at %zu: status %d", what, at, status);
    ck_assert_msg(error.message[0] && seq == 0, "%s at %zu: no message, or a sequence", what, at);
    file->at = 0;
    status = kivi_cache_load(fixture.cache, buffer_read, file, &old, &seq, 1, &n, &error);
    ck_assert_msg(status != KIVI_OK, "%s at %zu: loaded", what, at);
}

/* From byte to byte; for emulators and sanitizers, every seventh. */
static size_t stride(void)
{
    return test_rounds(8, 8) < 8 ? 7 : 1;
}

START_TEST(every_damaged_byte_is_found)
{
    struct buffer file = saved_fixture();
    struct snapshot before = snapshot_take(&fixture, (kivi_seq[]){fixture.seq, fixture.other}, 2);
    size_t i;

    for (i = 0; i < file.size; i += stride()) {
        const unsigned char flip = (unsigned char)(1u << i % 8);

        file.data[i] ^= flip;
        check_refused(&file, "a flipped bit", i);
        file.data[i] ^= flip;
    }
    snapshot_check(&before, &fixture, "damaged files");
    buffer_free(&file);
    fixture_close(&fixture);
}
END_TEST

START_TEST(every_truncation_is_found)
{
    struct buffer file = saved_fixture();
    struct snapshot before = snapshot_take(&fixture, (kivi_seq[]){fixture.seq, fixture.other}, 2);

    for (file.limit = 0; file.limit < file.size; file.limit += stride())
        check_refused(&file, "an end", file.limit);
    snapshot_check(&before, &fixture, "truncated files");
    buffer_free(&file);
    fixture_close(&fixture);
}
END_TEST

/* Lies with correct checksums. */
enum { RECORD = KIVI_HEADER_BYTES + KIVI_SEQUENCE_BYTES, PAYLOAD = RECORD + KIVI_LAYER_BYTES };

static void put_checksum(struct buffer *file, size_t from, size_t to)
{
    kivi_put32(file->data + to, kivi_crc32c(0, file->data + from, to - from));
}

START_TEST(headers_that_lie_are_found)
{
    struct buffer file = saved_fixture();
    struct snapshot before = snapshot_take(&fixture, (kivi_seq[]){fixture.seq, fixture.other}, 2);
    size_t i;

    for (i = 0; i < KIVI_HEADER_BYTES - 4; i++) {
        file.data[i]++;
        put_checksum(&file, 0, KIVI_HEADER_BYTES - 4);
        check_refused(&file, "a wrong header", i);
        file.data[i]--;
    }
    kivi_put64(file.data + 40,
               0); /* kivi_seq_load wants one; to kivi_cache_load it is an empty cache */
    put_checksum(&file, 0, KIVI_HEADER_BYTES - 4);
    {
        kivi_seq seq = 1;
        size_t n = 1;

        file.at = 0;
        ck_assert_int_eq(kivi_seq_load(fixture.cache, buffer_read, &file, &seq, NULL),
                         KIVI_ERROR_FORMAT);
        ck_assert_uint_eq(seq, 0);
        file.at = 0;
        ck_assert_int_eq(
            kivi_cache_load(fixture.cache, buffer_read, &file, NULL, NULL, 0, &n, NULL), KIVI_OK);
        ck_assert_uint_eq(n, 0);
    }
    snapshot_check(&before, &fixture, "headers that lie");
    buffer_free(&file);
    fixture_close(&fixture);
}
END_TEST

START_TEST(lengths_that_lie_are_found)
{
    static const size_t fields[] = {0, 4, 8, 16, 24, 32, 40, 48, 56, 64};
    struct buffer file = saved_fixture();
    struct snapshot before = snapshot_take(&fixture, (kivi_seq[]){fixture.seq, fixture.other}, 2);
    unsigned char *record = file.data + RECORD;
    size_t i, j;

    for (i = 0; i < LENGTH(fields); i++) {
        for (j = 0; j < (i < 2 || i == 9 ? 4u : 8u); j++) {
            unsigned char copy[KIVI_LAYER_BYTES];

            memcpy(copy, record, sizeof copy);
            record[fields[i] + j] += (unsigned char)(j == 0 ? 32 : 1);
            put_checksum(&file, RECORD, PAYLOAD - 4);
            check_refused(&file, "a wrong length in field", i);
            memcpy(record, copy, sizeof copy);
        }
    }
    snapshot_check(&before, &fixture, "lengths that lie");
    buffer_free(&file);
    fixture_close(&fixture);
}
END_TEST

/* A layer of 100 tokens as the fixture with residual 64 has it, but for the fields of one case. */
static const struct kivi_saved_layer lies[] = {
    {.n = 100, .k_packed = 0, .v_packed = 36},  /* a multiple of the residual is packed */
    {.n = 100, .k_packed = 64, .v_packed = 32}, /* all but the residual is */
    {.n = 100, .k_packed = 80, .v_packed = 36, .k_base = 16}, /* keys are packed in groups */
    {.n = 100, .k_packed = 64, .v_packed = 36, .k_base = 64}, /* below the residual */
    {.n = 20, .k_base = 32},                                  /* nothing was dropped to there */
    {.n = 100, .k_packed = 64, .v_packed = 36, .k_low = 65},  /* rows that are nowhere */
    {.n = 100, .k_packed = 64, .v_packed = 36, .v_low = 37},
    {.n = 16448, .k_packed = 16448, .v_packed = 16384, .v_low = 64}, /* k_low is 16448 rows back */
    {.n = 16448, .k_packed = 16448, .v_packed = 16384, .k_low = 64}, /* and so is v_low */
    {.n = (uint64_t)1 << 52,
     .k_packed = (uint64_t)1 << 52,
     .v_packed = ((uint64_t)1 << 52) - 64,
     .k_low = ((uint64_t)1 << 52) - 64,
     .v_low = ((uint64_t)1 << 52) - 64},
};

static kivi_status load_record(const struct buffer *file, const kivi_cache *cache,
                               struct kivi_saved_layer saved, uint64_t extra)
{
    struct buffer lie;
    unsigned char record[KIVI_LAYER_BYTES];
    kivi_seq seq = 1;
    kivi_status status;

    saved.k_bits = saved.v_bits = 2;
    saved.payload = kivi_payload_bytes(&cache->geometry, 0, &saved) + extra;
    kivi_format_layer(&saved, record);
    buffer_init(&lie);
    buffer_write(&lie, file->data, RECORD);
    buffer_write(&lie, record, sizeof record);
    status = kivi_seq_load((kivi_cache *)cache, buffer_read, &lie, &seq, NULL);
    ck_assert_uint_eq(seq, 0);
    buffer_free(&lie);
    return status;
}

/* Lengths that fit the payload, but cannot be: refused before the payload is looked at, of which there is none. */
START_TEST(lengths_that_cannot_be_are_found)
{
    const struct kivi_saved_layer true_one = {.n = 100, .k_packed = 64, .v_packed = 36};
    const struct kivi_saved_layer dropped = {
        .n = 100, .k_packed = 96, .v_packed = 36, .k_base = 32};
    struct buffer file;
    kivi_cache *cache;
    kivi_seq seq;
    size_t i;

    fixture_init(&fixture, NULL);
    fixture.config.residual_length = 64;
    ck_assert_int_eq(kivi_cache_create(&fixture.config, &cache, NULL), KIVI_OK);
    ck_assert_int_eq(kivi_seq_create(cache, &seq, NULL), KIVI_OK);
    buffer_init(&file);
    ck_assert_int_eq(kivi_seq_save(cache, seq, buffer_write, &file, NULL), KIVI_OK);
    ck_assert_int_eq(load_record(&file, cache, true_one, 0), KIVI_ERROR_IO);
    ck_assert_int_eq(load_record(&file, cache, dropped, 0), KIVI_ERROR_IO);
    ck_assert_int_eq(load_record(&file, cache, true_one, 64), KIVI_ERROR_FORMAT);
    for (i = 0; i < LENGTH(lies); i++)
        ck_assert_msg(load_record(&file, cache, lies[i], 0) == KIVI_ERROR_FORMAT, "lie %zu", i);
    buffer_free(&file);
    kivi_cache_destroy(cache);
}
END_TEST

/* Bytes of a payload, from its end, that are f16 rows. */
static uint64_t row_bytes(const unsigned char *record)
{
    const kivi_config *c = &fixture.config;
    const uint64_t n = kivi_get64(record + 8), sinks = n < c->n_sink ? n : c->n_sink;

    return 2 * c->n_kv_heads
           * (sinks * (c->k_dim + c->v_dim) + (n - kivi_get64(record + 40)) * c->k_dim
              + (n - kivi_get64(record + 48)) * c->v_dim);
}

/* Scales and minima of a payload's blocks: of keys one to a channel, padded to 16, and block; of values one
 * to a group of channels and token, padded to 32. */
static uint64_t packed_scales(const unsigned char *record)
{
    const kivi_config *c = &fixture.config;
    const uint64_t k_blocks = kivi_get64(record + 16) / c->group_size;
    const uint64_t v_blocks = (kivi_get64(record + 24) + 31) / 32;

    return 2 * c->n_kv_heads
           * (k_blocks * ((c->k_dim + 15) / 16 * 16)
              + v_blocks * 32 * ((c->v_dim + c->group_size - 1) / c->group_size));
}

/* The high byte of every half: not finite, which a row, a scale or a minimum may not be, or large, which a scale may
 * not be, since its codes would stand for more than f16 has; a code may be anything. */
START_TEST(numbers_beyond_f16_are_found)
{
    const int is_large = _i;
    struct buffer file = saved_fixture();
    struct snapshot before = snapshot_take(&fixture, (kivi_seq[]){fixture.seq, fixture.other}, 2);
    const uint64_t payload = kivi_get64(file.data + RECORD + 56);
    const uint64_t rows = row_bytes(file.data + RECORD);
    uint64_t i, refused_blocks = 0;

    ck_assert(rows > 0 && rows < payload);
    for (i = 1; i < payload; i += 2) {
        unsigned char *byte = file.data + PAYLOAD + i;
        const unsigned char was = *byte;
        kivi_status status;
        kivi_seq seq;

        *byte = is_large ? 0x7b : 0xff;
        put_checksum(&file, PAYLOAD, PAYLOAD + (size_t)payload);
        file.at = 0;
        status = kivi_seq_load(fixture.cache, buffer_read, &file, &seq, NULL);
        if (status == KIVI_OK)
            ck_assert_int_eq(kivi_seq_destroy(fixture.cache, seq, NULL), KIVI_OK);
        else
            ck_assert(status == KIVI_ERROR_FORMAT && seq == 0);
        ck_assert_msg(i < payload - rows || (status == KIVI_OK) == is_large, "a row, byte %llu",
                      (unsigned long long)i);
        refused_blocks += i < payload - rows && status != KIVI_OK;
        *byte = was;
    }
    ck_assert_uint_eq(refused_blocks, packed_scales(file.data + RECORD) / (is_large ? 2 : 1));
    snapshot_check(&before, &fixture, "numbers beyond f16");
    buffer_free(&file);
    fixture_close(&fixture);
}
END_TEST

/* A scale is not negative, a minimum not infinite, and the largest code no more than a rounding beyond f16. */
START_TEST(scales_and_minima)
{
    static const struct {
        uint16_t scale, minimum;
        kivi_status expected;
    } cases[] = {
        {0x0000, 0x0000, KIVI_OK},           {0x7bff, 0xfbff, KIVI_ERROR_FORMAT},
        {0xbc00, 0x0000, KIVI_ERROR_FORMAT}, /* -1 */
        {0x7c00, 0x0000, KIVI_ERROR_FORMAT}, {0x7e00, 0x0000, KIVI_ERROR_FORMAT},
        {0x3c00, 0x7c00, KIVI_ERROR_FORMAT}, {0x3c00, 0xfc00, KIVI_ERROR_FORMAT},
        {0x3c00, 0x7e00, KIVI_ERROR_FORMAT}, {0x7955, 0xfbff, KIVI_OK}, /* 43680: 65536 */
        {0x5000, 0x7bff, KIVI_OK},                                      /* 32: 65600 */
        {0x5001, 0x7bff, KIVI_ERROR_FORMAT},
    };
    struct buffer file = saved_fixture();
    const uint64_t payload = kivi_get64(file.data + RECORD + 56);
    const struct kivi_layout *l = &fixture.cache->geometry.layers[0].k;
    unsigned char *scale = file.data + PAYLOAD + l->code_bytes; /* of a key block */
    unsigned char *minimum = scale + l->scale_bytes;
    size_t i;

    for (i = 0; i < LENGTH(cases); i++) {
        kivi_status status;
        kivi_seq seq;

        scale[0] = (unsigned char)cases[i].scale;
        scale[1] = (unsigned char)(cases[i].scale >> 8);
        minimum[0] = (unsigned char)cases[i].minimum;
        minimum[1] = (unsigned char)(cases[i].minimum >> 8);
        put_checksum(&file, PAYLOAD, PAYLOAD + (size_t)payload);
        file.at = 0;
        status = kivi_seq_load(fixture.cache, buffer_read, &file, &seq, NULL);
        ck_assert_msg(status == cases[i].expected, "scale 0x%04x, minimum 0x%04x: %s",
                      cases[i].scale, cases[i].minimum, kivi_status_string(status));
        if (status == KIVI_OK)
            ck_assert_int_eq(kivi_seq_destroy(fixture.cache, seq, NULL), KIVI_OK);
    }
    buffer_free(&file);
    fixture_close(&fixture);
}
END_TEST

/* At 16 bits packed numbers are rows, of which each is looked at. */
START_TEST(packed_rows_are_finite)
{
    struct session s;
    struct buffer file;
    kivi_config config;
    kivi_seq seq;
    uint64_t payload, i;

    session_config(&config);
    config.n_layers = 1;
    config.layer_k_bits = config.layer_v_bits = NULL;
    config.k_bits = config.v_bits = 16;
    session_open(&s, &config, backend_name(0));
    seq = session_new(&s);
    session_append(&s, seq, 1, 100);
    file = saved_sequence(&s, seq);
    payload = kivi_get64(file.data + RECORD + 56);
    for (i = 0; i < payload; i += 2 * stride()) {
        unsigned char *half = file.data + PAYLOAD + i;
        const unsigned char was[] = {half[0], half[1]};

        half[0] = 0x00;
        half[1] = i % 4 ? 0x7c : 0xfc;
        put_checksum(&file, PAYLOAD, PAYLOAD + (size_t)payload);
        file.at = 0;
        ck_assert_msg(kivi_seq_load(s.cache, buffer_read, &file, &seq, NULL) == KIVI_ERROR_FORMAT,
                      "an infinity at byte %llu", (unsigned long long)i);
        memcpy(half, was, sizeof was);
    }
    buffer_free(&file);
    session_close(&s);
}
END_TEST

START_TEST(write_failures_are_reported)
{
    struct buffer whole = saved_fixture(), file;
    kivi_error error;

    buffer_init(&file);
    for (file.limit = 0; file.limit < whole.size; file.limit += 1 + whole.size / 50) {
        file.size = 0;
        ck_assert_int_eq(kivi_seq_save(fixture.cache, fixture.other, buffer_write, &file, &error),
                         KIVI_ERROR_IO);
    }
    buffer_free(&file);
    buffer_free(&whole);
    fixture_close(&fixture);
}
END_TEST

/* ----------------------------------------------------------------- vectors */

/* A cache whose numbers are the same on every machine, and a file that pins version 1. */
struct vector {
    const char *name;
    uint8_t k_bits[2], v_bits[2];
    uint32_t k_dim, v_dim, group, n_sink;
    uint64_t n;
};

static const struct vector vectors[] = {
    {"paper", {2, 2}, {2, 2}, 32, 32, 32, 0, 70},
    {"mixed", {4, 16}, {8, 2}, 24, 40, 32, 3, 50},
    {"wide", {8, 2}, {4, 16}, 8, 72, 64, 0, 70},
};

static struct buffer vector_of(const struct vector *v, kivi_cache **cache, const char *backend)
{
    const size_t n_k = (size_t)v->n * 2 * v->k_dim, n_v = (size_t)v->n * 2 * v->v_dim;
    float *k = malloc(n_k * sizeof *k), *values = malloc(n_v * sizeof *values);
    kivi_config config;
    kivi_error error;
    kivi_seq seq;
    struct buffer file;
    uint32_t layer;
    size_t i;

    ck_assert(k && values);
    kivi_config_init(&config);
    config.backend = backend;
    config.n_layers = 2;
    config.n_q_heads = config.n_kv_heads = 2;
    config.k_dim = v->k_dim;
    config.v_dim = v->v_dim;
    config.group_size = v->group;
    config.residual_length = v->group;
    config.n_sink = v->n_sink;
    config.layer_k_bits = v->k_bits;
    config.layer_v_bits = v->v_bits;
    session_ok(kivi_cache_create(&config, cache, &error), &error);
    session_ok(kivi_seq_create(*cache, &seq, &error), &error);
    for (layer = 0; layer < 2; layer++) {
        for (i = 0; i < n_k; i++)
            k[i] = (float)((i * 73 + layer * 11) % 509) / 128 - 2;
        for (i = 0; i < n_v; i++)
            values[i] = (float)((i * 41 + layer * 5) % 1021) / 512 - 1;
        {
            const ptrdiff_t ks = 2 * (ptrdiff_t)v->k_dim, vs = 2 * (ptrdiff_t)v->v_dim;
            const kivi_in k_in = {k, KIVI_F32, ks, (ptrdiff_t)v->k_dim};
            const kivi_in v_in = {values, KIVI_F32, vs, (ptrdiff_t)v->v_dim};

            session_ok(kivi_append(*cache, layer, seq, v->n, k_in, v_in, &error), &error);
        }
    }
    buffer_init(&file);
    session_ok(kivi_cache_save(*cache, buffer_write, &file, &error), &error);
    free(k);
    free(values);
    return file;
}

START_TEST(version_1_is_pinned)
{
    size_t i;

    for (i = 0; i < LENGTH(vectors); i++) {
        char path[512];
        kivi_cache *cache;
        struct buffer file = vector_of(&vectors[i], &cache, backend_name(_i)), golden;
        kivi_seq old, seq;
        kivi_error error;
        size_t n;

        snprintf(path, sizeof path, "%s/save/%s.kivi", KIVI_TEST_VECTORS, vectors[i].name);
        if (getenv("KIVI_WRITE_VECTORS")) {
            FILE *to = fopen(path, "wb");

            ck_assert_msg(to && fwrite(file.data, 1, file.size, to) == file.size, "%s", path);
            fclose(to);
        }
        buffer_load(&golden, path);
        check_same_bytes(&file, &golden, vectors[i].name);
        session_ok(kivi_cache_load(cache, buffer_read, &golden, &old, &seq, 1, &n, &error), &error);
        buffer_free(&file);
        buffer_free(&golden);
        kivi_cache_destroy(cache);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("save");
    TCase *trips = tcase_create("round trips"), *damage = tcase_create("damage");

    tcase_add_test(trips, checksum_is_castagnoli);
    tcase_add_loop_test(trips, round_trips, 0, backend_count());
    tcase_add_loop_test(trips, a_long_sequence, 0, backend_count());
    tcase_add_loop_test(trips, windows_may_differ, 0, backend_count());
    tcase_add_loop_test(trips, bytes_depend_on_tokens_alone, 0, backend_count());
    tcase_add_loop_test(trips, a_cut_sequence_saves_what_is_left, 0, backend_count());
    tcase_add_loop_test(trips, whole_caches, 0, backend_count());
    tcase_add_loop_test(trips, version_1_is_pinned, 0, backend_count());
    tcase_add_test(damage, every_damaged_byte_is_found);
    tcase_add_test(damage, every_truncation_is_found);
    tcase_add_test(damage, headers_that_lie_are_found);
    tcase_add_test(damage, lengths_that_lie_are_found);
    tcase_add_test(damage, lengths_that_cannot_be_are_found);
    tcase_add_loop_test(damage, numbers_beyond_f16_are_found, 0, 2);
    tcase_add_test(damage, scales_and_minima);
    tcase_add_test(damage, packed_rows_are_finite);
    tcase_add_test(damage, write_failures_are_reported);
    tcase_set_timeout(trips, 0);
    tcase_set_timeout(damage, 0);
    suite_add_tcase(suite, trips);
    suite_add_tcase(suite, damage);
    return test_main(suite);
}
