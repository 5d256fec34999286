/* The GGUF reader of kivi-lm, and the model on top of it, held against damaged files: whatever is
 * in a file, reading it ends in a model or in one line. Run it under ASan to see overruns. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "../examples/lm/gguf.h"
#include "../examples/lm/model.h"
#include "support/program.h"
#include "support/random.h"

enum { U32 = 4, F32 = 6, STRING = 8, ARRAY = 9 };

#define DIM 32u
#define N_FFN 64u
#define MAX_TENSORS 16

/* Where the fields are that tests damage. */
struct fields {
    size_t first_key_size, first_key_type, tokens_type, tokens_count;
    size_t name_size, n_dims, dims, type, offset; /* of the first tensor */
    size_t header_end;
};

/* How a file differs from a good one; all zero: a good one. */
struct plan {
    const char *omit;         /* this key or tensor is not there */
    const char *change;       /* this u32 key... */
    uint32_t value;           /* ...has this value */
    const char *architecture; /* instead of llama */
    const char *widen;        /* the first dimension of this tensor is twice as large */
    const char *extra;        /* this tensor is there, too */
    const char *poison;       /* the first element of this F32 tensor is a NaN */
    uint32_t n_tokens, n_merges;
    int scaled_rope, float_layers;
};

struct file {
    unsigned char *data;
    size_t size, capacity;
    struct fields at;
};

/* --------------------------------------------------------------- writing */

static void put(struct file *f, const void *data, size_t size)
{
    if (f->size + size > f->capacity) {
        f->capacity = 2 * (f->size + size);
        f->data = realloc(f->data, f->capacity);
        ck_assert_ptr_nonnull(f->data);
    }
    memcpy(f->data + f->size, data, size);
    f->size += size;
}

static void put_uint(struct file *f, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        const unsigned char byte = (unsigned char)(value >> 8 * i);

        put(f, &byte, 1);
    }
}

static void put_string(struct file *f, const char *text)
{
    put_uint(f, strlen(text), 8);
    put(f, text, strlen(text));
}

static void pad(struct file *f)
{
    while (f->size % 32)
        put_uint(f, 0, 1);
}

static int is(const char *name, const char *chosen)
{
    return chosen && strcmp(name, chosen) == 0;
}

/* Starts a key, unless the plan leaves it out. */
static int put_key(struct file *f, const struct plan *plan, const char *key, uint32_t type,
                   uint64_t *count)
{
    if (is(key, plan->omit))
        return 0;
    put_string(f, key);
    put_uint(f, type, 4);
    ++*count;
    return 1;
}

static void put_keys(struct file *f, const struct plan *plan, uint64_t *count)
{
    static const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {{"llama.context_length", 64},
                   {"llama.embedding_length", DIM},
                   {"llama.block_count", 1},
                   {"llama.feed_forward_length", N_FFN},
                   {"llama.attention.head_count", 4},
                   {"llama.attention.head_count_kv", 2},
                   {"llama.rope.dimension_count", 8},
                   {"llama.attention.key_length", 8},
                   {"llama.attention.value_length", 16},
                   {"general.alignment", 32}};
    const uint32_t n_tokens = plan->n_tokens ? plan->n_tokens : 256;

    f->at.first_key_size = f->size;
    f->at.first_key_type = f->size + 8 + strlen("general.architecture");
    if (put_key(f, plan, "general.architecture", STRING, count))
        put_string(f, plan->architecture ? plan->architecture : "llama");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const int as_float = plan->float_layers && is(numbers[i].key, "llama.block_count");

        if (put_key(f, plan, numbers[i].key, as_float ? F32 : U32, count))
            put_uint(f, is(numbers[i].key, plan->change) ? plan->value : numbers[i].value, 4);
    }
    if (put_key(f, plan, "llama.attention.layer_norm_rms_epsilon", F32, count))
        put_uint(f, 0x3727c5ac, 4); /* 1e-5 */
    if (put_key(f, plan, "llama.rope.freq_base", F32, count))
        put_uint(f, 0x461c4000, 4); /* 10000 */
    if (plan->scaled_rope && put_key(f, plan, "llama.rope.scaling.type", STRING, count))
        put_string(f, "yarn");
    if (put_key(f, plan, "tokenizer.ggml.model", STRING, count))
        put_string(f, "gpt2");
    if (put_key(f, plan, "tokenizer.ggml.tokens", ARRAY, count)) {
        f->at.tokens_type = f->size;
        f->at.tokens_count = f->size + 4;
        put_uint(f, STRING, 4);
        put_uint(f, n_tokens, 8);
        for (uint32_t i = 0; i < n_tokens; i++)
            put_string(f, i % 2 ? "x" : "yz");
    }
    if (put_key(f, plan, "tokenizer.ggml.merges", ARRAY, count)) {
        put_uint(f, STRING, 4);
        put_uint(f, plan->n_merges, 8);
        for (uint32_t i = 0; i < plan->n_merges; i++)
            put_string(f, "x y");
    }
}

struct tensor {
    const char *name;
    uint32_t n_in, n_out, type;
};

static uint64_t tensor_size(const struct tensor *t)
{
    const uint64_t n = (uint64_t)t->n_in * t->n_out;

    return t->type == GGUF_F32 ? n * 4 : t->type == GGUF_F16 ? n * 2 : n / 32 * 34;
}

/* Element i of every tensor is a whole number from -4 to 3. */
static int element(uint64_t i)
{
    return (int)(i * 5 % 8) - 4;
}

static void put_element(struct file *f, uint32_t type, uint64_t i)
{
    static const uint16_t halves[] = {0xc400, 0xc200, 0xc000, 0xbc00, 0, 0x3c00, 0x4000, 0x4200};
    static const uint32_t floats[] = {0xc0800000, 0xc0400000, 0xc0000000, 0xbf800000,
                                      0,          0x3f800000, 0x40000000, 0x40400000};

    if (type == GGUF_F32) {
        put_uint(f, floats[element(i) + 4], 4);
    } else if (type == GGUF_F16) {
        put_uint(f, halves[element(i) + 4], 2);
    } else {
        if (i % 32 == 0)
            put_uint(f, 0x3800, 2); /* 0.5, so the codes are doubled */
        put_uint(f, (uint64_t)(2 * element(i)), 1);
    }
}

static size_t plan_tensors(const struct plan *plan, struct tensor *tensors)
{
    const struct tensor all[] = {{"token_embd.weight", DIM, 256, GGUF_Q8_0},
                                 {"output_norm.weight", DIM, 1, GGUF_F32},
                                 {"output.weight", DIM, 256, GGUF_Q8_0},
                                 {"blk.0.attn_norm.weight", DIM, 1, GGUF_F32},
                                 {"blk.0.ffn_norm.weight", DIM, 1, GGUF_F32},
                                 {"blk.0.attn_q.weight", DIM, 32, GGUF_F16},
                                 {"blk.0.attn_k.weight", DIM, 16, GGUF_F16},
                                 {"blk.0.attn_v.weight", DIM, 32, GGUF_F16},
                                 {"blk.0.attn_output.weight", 64, DIM, GGUF_F32},
                                 {"blk.0.ffn_gate.weight", DIM, N_FFN, GGUF_Q8_0},
                                 {"blk.0.ffn_up.weight", DIM, N_FFN, GGUF_Q8_0},
                                 {"blk.0.ffn_down.weight", N_FFN, DIM, GGUF_Q8_0}};
    size_t n = 0;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (is(all[i].name, plan->omit))
            continue;
        tensors[n] = all[i];
        if (is(all[i].name, plan->widen))
            tensors[n].n_in *= 2;
        n++;
    }
    if (plan->extra)
        tensors[n++] = (struct tensor){plan->extra, DIM, 1, GGUF_F32};
    return n;
}

static void put_tensors(struct file *f, const struct plan *plan, const struct tensor *tensors,
                        size_t n)
{
    uint64_t offset = 0;

    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = &tensors[i];

        if (i == 0) {
            f->at.name_size = f->size;
            f->at.n_dims = f->size + 8 + strlen(t->name);
            f->at.dims = f->at.n_dims + 4;
            f->at.type = f->at.dims + 16;
            f->at.offset = f->at.type + 4;
        }
        put_string(f, t->name);
        put_uint(f, t->n_out == 1 ? 1 : 2, 4);
        put_uint(f, t->n_in, 8);
        if (t->n_out != 1)
            put_uint(f, t->n_out, 8);
        put_uint(f, t->type, 4);
        put_uint(f, offset, 8);
        offset += (tensor_size(t) + 31) / 32 * 32;
    }
    f->at.header_end = f->size;
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = &tensors[i];

        pad(f);
        for (uint64_t e = 0; e < (uint64_t)t->n_in * t->n_out; e++) {
            if (e == 0 && is(t->name, plan->poison))
                put_uint(f, 0x7fc00000, 4);
            else
                put_element(f, t->type, e);
        }
    }
}

static struct file make(const struct plan *plan)
{
    struct tensor tensors[MAX_TENSORS];
    const size_t n_tensors = plan_tensors(plan, tensors);
    struct file f;
    uint64_t n_keys = 0;

    memset(&f, 0, sizeof f);
    put(&f, "GGUF", 4);
    put_uint(&f, 3, 4);
    put_uint(&f, n_tensors, 8);
    put_uint(&f, 0, 8);
    put_keys(&f, plan, &n_keys);
    f.data[16] = (unsigned char)n_keys;
    put_tensors(&f, plan, tensors, n_tensors);
    return f;
}

static void set(struct file *f, size_t at, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        f->data[at + i] = (unsigned char)(value >> 8 * i);
}

/* --------------------------------------------------------------- reading */

static void check_line(const struct lm_error *error)
{
    const size_t size = strlen(error->text);

    ck_assert_uint_gt(size, 5);
    for (size_t i = 0; i < size; i++)
        ck_assert_msg(error->text[i] >= ' ' && error->text[i] <= '~', "not one line of text");
}

/* Reads `size` bytes as a file and as a model, from memory with nothing behind it. 0 if both are
 * fine. */
static int read_copy(const unsigned char *data, size_t size, struct lm_error *error)
{
    unsigned char *copy = malloc(size ? size : 1);
    struct lm_model model;
    struct gguf *file;
    int result;

    ck_assert_ptr_nonnull(copy);
    memcpy(copy, data, size);
    memset(error, 0, sizeof *error);
    result = gguf_open_memory(copy, size, &file, error);
    if (result) {
        ck_assert_ptr_null(file);
    } else {
        result = lm_model_read(&model, file, error);
        if (result)
            ck_assert_ptr_null(model.weights);
        lm_model_free(&model);
        gguf_close(file);
    }
    if (result)
        check_line(error);
    free(copy);
    return result;
}

static void expect(const unsigned char *data, size_t size, const char *message)
{
    struct lm_error error;

    ck_assert_msg(read_copy(data, size, &error) != 0, "read without '%s'", message);
    ck_assert_msg(strstr(error.text, message) != NULL, "'%s' instead of '%s'", error.text, message);
}

/* ----------------------------------------------------------------- tests */

START_TEST(test_good_file)
{
    const struct plan plan = {0};
    struct file f = make(&plan);
    struct lm_error error;
    struct lm_model model;
    struct gguf *file;

    ck_assert_msg(gguf_open_memory(f.data, f.size, &file, &error) == 0, "%s", error.text);
    ck_assert_uint_eq(gguf_tensor_count(file), 12);
    for (size_t i = 0; i < gguf_tensor_count(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        float *x = malloc((size_t)t->n_elements * sizeof *x);

        ck_assert_ptr_nonnull(x);
        gguf_read_tensor(t, x);
        for (uint64_t e = 0; e < t->n_elements; e++)
            ck_assert(x[e] == (float)element(e));
        free(x);
    }
    ck_assert_msg(lm_model_read(&model, file, &error) == 0, "%s", error.text);
    gguf_close(file); /* the model keeps nothing of the file */
    free(f.data);
    ck_assert_uint_eq(model.n_heads, 4);
    ck_assert_uint_eq(model.n_kv_heads, 2);
    ck_assert_uint_eq(model.v_dim, 16);
    ck_assert_uint_eq(model.layers[0].qkv.n_out, 32 + 16 + 32);
    ck_assert(model.layers[0].qkv.data[DIM * 32] == (float)element(0));
    ck_assert(model.norm_epsilon == 1e-5f);
    lm_model_free(&model);
}
END_TEST

START_TEST(test_tied_output)
{
    const struct plan plan = {.omit = "output.weight"};
    struct file f = make(&plan);
    struct lm_error error;

    ck_assert_msg(read_copy(f.data, f.size, &error) == 0, "%s", error.text);
    free(f.data);
}
END_TEST

START_TEST(test_truncated_anywhere)
{
    const struct plan plan = {0};
    struct file f = make(&plan);
    struct lm_error error;

    for (size_t size = 0; size < f.size; size += size < f.at.header_end + 40 ? 1 : 97)
        ck_assert_msg(read_copy(f.data, size, &error) != 0, "%zu of %zu bytes", size, f.size);
    ck_assert(read_copy(f.data, f.size - 1, &error) != 0);
    free(f.data);
}
END_TEST

/* Any byte of the header, in turn, as several others; then several at a time. */
START_TEST(test_flipped_bytes)
{
    static const unsigned char masks[] = {0x01, 0x80, 0xff};
    const struct plan plan = {0};
    struct file f = make(&plan);
    struct rng rng = {42};
    struct lm_error error;
    size_t failed = 0;

    for (size_t at = 0; at < f.at.header_end; at++) {
        for (size_t m = 0; m < sizeof masks; m++) {
            f.data[at] ^= masks[m];
            failed += read_copy(f.data, f.size, &error) != 0;
            f.data[at] ^= masks[m];
        }
    }
    ck_assert_uint_gt(failed, f.at.header_end / 4);
    for (int round = 0; round < 4000; round++) {
        struct file g = f;

        g.data = malloc(f.size);
        ck_assert_ptr_nonnull(g.data);
        memcpy(g.data, f.data, f.size);
        for (uint64_t n = rng_between(&rng, 2, 12); n > 0; n--)
            g.data[rng_below(&rng, f.at.header_end)] = (unsigned char)rng_next(&rng);
        read_copy(g.data, g.size, &error);
        free(g.data);
    }
    free(f.data);
}
END_TEST

START_TEST(test_absurd_fields)
{
    const struct plan plan = {0};
    const struct file good = make(&plan);
    const struct fields at = good.at;
    const struct {
        size_t at, bytes;
        uint64_t value;
        const char *message;
    } cases[] = {
        {0, 4, 0x46554747 ^ 1, "not a GGUF file"},
        {4, 4, 2, "version 2"},
        {4, 4, 0x03000000, "version 50331648"},
        {8, 8, UINT64_MAX, "do not fit"},
        {8, 8, 13, "dimensions"},
        {16, 8, UINT64_MAX / 8, "do not fit"},
        {16, 8, 1000, "key"},
        {at.first_key_size, 8, UINT64_MAX, "truncated in key 0"},
        {at.first_key_type, 4, 13, "unknown type 13"},
        {at.tokens_type, 4, ARRAY, "unsupported type"},
        {at.tokens_type, 4, 10, "key"},
        {at.tokens_count, 8, UINT64_MAX, "tokens"},
        {at.tokens_count, 8, (uint64_t)1 << 61, "tokens"},
        {at.name_size, 8, UINT64_MAX - 7, "truncated in tensor 0"},
        {at.name_size, 8, 70000, "tensor 0"},
        {at.n_dims, 4, 0, "0 dimensions"},
        {at.n_dims, 4, 5, "5 dimensions"},
        {at.dims, 8, 0, "absurd dimension"},
        {at.dims, 8, (uint64_t)1 << 60, "absurd dimension"},
        {at.dims, 8, (uint64_t)1 << 55, "beyond the file"},
        {at.dims, 8, 33, "whole blocks"},
        {at.dims, 8, 64, "overlap"},
        {at.type, 4, 2, "type 2"},
        {at.type, 4, GGUF_F16, "overlap"},
        {at.offset, 8, 16, "not aligned"},
        {at.offset, 8, UINT64_MAX - 31, "beyond the file"},
        {at.offset, 8, 1 << 20, "beyond the file"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct file f = make(&plan);

        set(&f, cases[i].at, cases[i].value, cases[i].bytes);
        expect(f.data, f.size, cases[i].message);
        free(f.data);
    }
    free(good.data);
}
END_TEST

START_TEST(test_wrong_models)
{
    static const struct {
        struct plan plan;
        const char *message;
    } cases[] = {
        {{.architecture = "qwen2"}, "'qwen2'"},
        {{.architecture = "a\nb"}, "'a?b'"},
        {{.omit = "general.architecture"}, "'general.architecture' is missing"},
        {{.omit = "llama.block_count"}, "'llama.block_count' is missing"},
        {{.omit = "llama.embedding_length"}, "'llama.embedding_length' is missing"},
        {{.omit = "llama.attention.layer_norm_rms_epsilon"}, "rms_epsilon' is missing"},
        {{.omit = "tokenizer.ggml.tokens"}, "'tokenizer.ggml.tokens' is missing"},
        {{.omit = "token_embd.weight"}, "'token_embd.weight' is missing"},
        {{.omit = "blk.0.ffn_down.weight"}, "'blk.0.ffn_down.weight' is missing"},
        {{.change = "llama.block_count", .value = 0}, "llama.block_count = 0"},
        {{.change = "llama.block_count", .value = 2}, "'blk.1.attn_norm.weight' is missing"},
        {{.change = "llama.block_count", .value = UINT32_MAX}, "llama.block_count = 4294967295"},
        {{.change = "llama.embedding_length", .value = 64}, "'token_embd.weight' is 32 x 256"},
        {{.change = "llama.attention.head_count", .value = 3}, "3 query heads"},
        {{.change = "llama.attention.head_count_kv", .value = 0}, "head_count_kv = 0"},
        {{.change = "llama.attention.key_length", .value = 16}, "'blk.0.attn_q.weight'"},
        {{.change = "llama.rope.dimension_count", .value = 7}, "7 of them rotated"},
        {{.change = "llama.rope.dimension_count", .value = 16}, "dimension_count = 16"},
        {{.change = "general.alignment", .value = 48}, "alignment 48"},
        {{.change = "general.alignment", .value = 0}, "alignment 0"},
        {{.float_layers = 1}, "is not an integer"},
        {{.widen = "blk.0.attn_k.weight"}, "'blk.0.attn_k.weight' is 64 x 16"},
        {{.extra = "blk.0.attn_q.bias"}, "13 tensors, of which this architecture has 12"},
        {{.extra = "rope_freqs.weight"}, "13 tensors"},
        {{.poison = "output_norm.weight"}, "not finite"},
        {{.n_tokens = 255}, "255 tokens"},
        {{.n_merges = 1}, "1 merges"},
        {{.scaled_rope = 1}, "'yarn'"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct file f = make(&cases[i].plan);

        expect(f.data, f.size, cases[i].message);
        free(f.data);
    }
}
END_TEST

/* A length in the file must not become memory: a million tensors on the same bytes. */
START_TEST(test_stated_sizes_are_bounded)
{
    struct file f = {0};
    struct lm_error error;

    put(&f, "GGUF", 4);
    put_uint(&f, 3, 4);
    put_uint(&f, 2000, 8);
    put_uint(&f, 0, 8);
    for (int i = 0; i < 2000; i++) {
        put_uint(&f, 0, 8);
        put_uint(&f, 1, 4);
        put_uint(&f, 4096, 8);
        put_uint(&f, GGUF_F32, 4);
        put_uint(&f, 0, 8);
    }
    pad(&f);
    for (int i = 0; i < 4096; i++)
        put_uint(&f, 0, 4);
    ck_assert(read_copy(f.data, f.size, &error) != 0);
    ck_assert_str_eq(error.text, "the tensors overlap");
    free(f.data);
}
END_TEST

START_TEST(test_unreadable_paths)
{
    static const struct {
        const char *path, *message;
    } cases[] = {{"/nonexistent/model.gguf", "cannot be opened"},
                 {"/", "not a GGUF file"},
                 {"/dev/null", "not a GGUF file"}};
    struct lm_error error;
    struct lm_model model;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_assert(lm_model_load(&model, cases[i].path, &error) != 0);
        ck_assert_ptr_null(model.weights);
        ck_assert_str_eq(error.text, cases[i].message);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf");
    TCase *tests = tcase_create("files");

    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, test_good_file);
    tcase_add_test(tests, test_tied_output);
    tcase_add_test(tests, test_truncated_anywhere);
    tcase_add_test(tests, test_flipped_bytes);
    tcase_add_test(tests, test_absurd_fields);
    tcase_add_test(tests, test_wrong_models);
    tcase_add_test(tests, test_stated_sizes_are_bounded);
    tcase_add_test(tests, test_unreadable_paths);
    suite_add_tcase(suite, tests);
    return run_suite(suite, CK_FORK_GETENV);
}
