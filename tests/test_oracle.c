/*
 * Every backend against the oracle: codes with ==, attention by the bounds of docs/numerics.md, over
 * combinations of parameters drawn from a seed. KIVI_TEST_SEED repeats a run, KIVI_TEST_LONG=1 makes
 * it longer.
 */
#include <check.h>
#include <float.h>
#include <kivi/kivi.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/model.h"
#include "support/suite.h"

/* The largest share of its bound that a row took in a test, by backend and precision. */
static double worst[MODEL_BACKENDS][2];

static void reset_worst(void)
{
    memset(worst, 0, sizeof worst);
}

static void print_worst(const char *what)
{
    int i;

    for (i = 0; i < backend_count(); i++)
        printf("%s, %s: worst row at %.2g of its bound (precise), %.2g (standard)\n", what,
               backend_name(i), worst[i][KIVI_PRECISE], worst[i][KIVI_STANDARD]);
}

/* ---------------------------------------------------------- the sweep */

/* How many tokens the next call brings to a sequence that is to get `left` more. */
static uint64_t next_chunk(struct rng *rng, uint64_t left)
{
    const uint64_t sizes[] = {1, 1, 2, 7, 32, 100, left};
    const uint64_t n = RNG_PICK(rng, sizes);

    return n < left ? n : left;
}

/* Multiply-adds of the oracle for one query. */
static double query_cost(const kivi_config *config, uint64_t n_tokens)
{
    return 2.0 * (double)n_tokens * config->n_q_heads * (config->k_dim + config->v_dim);
}

/* Draws one item; n is the length before the call. */
static struct model_item draw_item(struct model *m, size_t seq, uint64_t n, uint64_t n_new,
                                   double *budget)
{
    struct model_item item = {seq, n_new, rng_below(&m->rng, 6), 0};
    const uint64_t after = n + n_new;

    if (rng_one_in(&m->rng, 6))
        item.n_q = n_new;
    while (item.n_q > 0 && (double)item.n_q * query_cost(&m->config, after) > *budget)
        item.n_q /= 2;
    *budget -= (double)item.n_q * query_cost(&m->config, after);
    if (item.n_q > after || rng_one_in(&m->rng, 8))
        item.q_end = item.n_q
                     + (rng_one_in(&m->rng, 4) ? after + rng_below(&m->rng, 1000)
                                               : rng_below(&m->rng, after + 1));
    return item;
}

/* One call on some of the sequences. `left`: tokens that are still to come, by sequence and layer. */
static void random_call(struct model *m, uint64_t left[MODEL_SEQS][MODEL_LAYERS], double *budget)
{
    const uint32_t layer = (uint32_t)rng_below(&m->rng, m->config.n_layers);
    float sinks[64];
    kivi_attention attention;
    struct model_item items[MODEL_ITEMS];
    size_t n_items = 0, i;

    random_attention(&m->rng, &m->config, sinks, &attention);
    for (i = 0; i < m->n_seqs && n_items < MODEL_ITEMS - 1; i++) {
        const uint64_t n = m->oracles[i][layer].contents.n;
        uint64_t n_new;

        if (rng_one_in(&m->rng, 3) && i + 1 < m->n_seqs)
            continue;
        n_new = rng_one_in(&m->rng, 6) ? 0 : next_chunk(&m->rng, left[i][layer]);
        items[n_items++] = draw_item(m, i, n, n_new, budget);
        left[i][layer] -= n_new;
        if (n_new == 0) /* a sequence that is only read may stand in several items */
            items[n_items++] = draw_item(m, i, n, 0, budget);
    }
    model_call(m, layer, items, n_items, &attention,
               rng_one_in(&m->rng, 2) ? 0 : (uint32_t)rng_between(&m->rng, 1, 7));
}

static void random_case(uint64_t seed)
{
    uint64_t left[MODEL_SEQS][MODEL_LAYERS], total = 0;
    double budget = 2e7;
    uint8_t bits[2][MODEL_LAYERS];
    kivi_config config;
    struct model m;
    struct rng rng = {seed};
    char name[64];
    size_t n_seqs, i, j;

    random_config(&rng, &config, bits);
    snprintf(name, sizeof name, "KIVI_TEST_SEED=0x%llx", (unsigned long long)seed);
    n_seqs = (size_t)rng_between(&rng, 1, MODEL_SEQS);
    model_open(&m, name, &config, n_seqs, &fill_ordinary, rng_next(&rng));
    for (i = 0; i < m.n_seqs; i++) {
        for (j = 0; j < config.n_layers; j++) {
            left[i][j] = rng_below(&rng, 3 * config.residual_length + 70);
            total += left[i][j];
        }
    }
    for (i = 0; total > 0 && i < 200; i++) {
        random_call(&m, left, &budget);
        total = 0;
        for (j = 0; j < m.n_seqs * config.n_layers; j++)
            total += left[j / config.n_layers][j % config.n_layers];
    }
    model_check(&m, worst);
    model_close(&m);
}

START_TEST(any_combination)
{
    const uint64_t first = test_seed(0x6b697669);
    const int n = getenv("KIVI_TEST_SEED") ? 1 : test_rounds(80, 5000);
    int i;

    reset_worst();
    for (i = 0; i < n; i++)
        random_case(first + (uint64_t)i);
    print_worst("random data");
}
END_TEST

/* ---------------------------------------------- adversarial and long */

/* A prompt, then steps of a few tokens, with both precisions. */
static void prompt_and_steps(struct model *m, uint64_t prompt, int n_steps, uint32_t n_parts)
{
    const struct model_item first = {0, prompt, prompt < 3 ? prompt : 3, 0};
    kivi_attention attention;
    int i;

    kivi_attention_init(&attention);
    model_call(m, 0, &first, 1, &attention, n_parts);
    for (i = 0; i < n_steps; i++) {
        const struct model_item item = {0, rng_below(&m->rng, 14), 2, 0};

        attention.precision = i % 2 ? KIVI_PRECISE : KIVI_STANDARD;
        model_call(m, 0, &item, 1, &attention, n_parts);
    }
}

/* Such a prompt and steps of a sequence of its own, within their bounds. */
static void check_data(const kivi_config *config, const struct fill *fill, uint64_t seed,
                       uint64_t prompt, int n_steps)
{
    struct model m;

    model_open(&m, fill->name, config, 1, fill, seed);
    prompt_and_steps(&m, prompt, n_steps, 0);
    model_check(&m, worst);
    model_close(&m);
}

static void check_adversarial(const struct fill *fill, uint64_t seed)
{
    static const uint32_t dims[] = {40, 64, 80, 128, 256}, bits[] = {2, 4, 8, 16};
    const int n = test_rounds(10, 400);
    struct rng rng = {seed};
    int i;

    reset_worst();
    for (i = 0; i < n; i++) {
        kivi_config config = model_plain_config(4, 2, RNG_PICK(&rng, dims), 2);
        const int is_long = i % 2; /* 256 tokens go together, at 2 bits in one digit */

        config.k_bits = config.v_bits = is_long ? 2 : RNG_PICK(&rng, bits);
        if (rng_one_in(&rng, 3))
            config.v_bits = RNG_PICK(&rng, bits);
        if (rng_one_in(&rng, 3))
            config.group_size = config.residual_length = 64;
        check_data(&config, fill, rng_next(&rng), is_long ? 700 : 200, 12);
    }
    print_worst(fill->name);
}

START_TEST(adversarial_data)
{
    check_adversarial(&fill_adversarial[_i], test_seed(0xbad) + (uint64_t)_i);
}
END_TEST

/* Where rounding alike queries alike took rows beyond their bound, 1.2 to 1.5 times. */
static const uint64_t seeds_of_alike[] = {6, 8, 15};

START_TEST(alike_queries)
{
    size_t i = 0;

    while (strcmp(fill_adversarial[i].name, "queries of two sizes") != 0)
        ck_assert_uint_lt(++i, n_fill_adversarial);
    check_adversarial(&fill_adversarial[i], seeds_of_alike[_i]);
}
END_TEST

/* Keys at 2 bits beside values that hide much of their errors, or little. The seeds are these: of a thousand rows with
 * others one is beyond the bound (docs/numerics.md). */
START_TEST(kinds_of_tokens)
{
    static const uint32_t v_bits[] = {2, 4, 8, 16};
    struct rng rng = {0x2d0 + (uint64_t)_i};
    kivi_config config = model_plain_config(8, 2, 128, 2);
    int i;

    config.v_bits = v_bits[_i];
    config.residual_length = 128;
    reset_worst();
    for (i = 0; i < 2; i++)
        check_data(&config, &fill_kinds, rng_next(&rng), 2100, 8);
    print_worst(fill_kinds.name);
}
END_TEST

/* A row sees little but tokens whose keys are packed and whose values are not yet, which hide no error of the scores. They
 * are not to be scored as the tokens before them are, with which they would go together. */
START_TEST(keys_whose_values_are_exact)
{
    const struct model_item prompt = {0, 512, 0, 0};
    const struct model_item reads[] = {{0, 0, 4, 0}, {0, 0, 1, 0}};
    kivi_config config = model_plain_config(8, 2, 128, 2);
    kivi_attention attention;
    int i, j;

    config.residual_length = 128;
    kivi_attention_init(&attention);
    attention.window = 128;
    reset_worst();
    for (i = 0; i < 6; i++) {
        struct model m;

        model_open(&m, fill_kinds.name, &config, 1, &fill_kinds, 100 + (uint64_t)i);
        model_call(&m, 0, &prompt, 1, &attention, 0);
        for (j = 0; j < 6; j++)
            model_call(&m, 0, reads, 2, &attention, 0);
        model_check(&m, worst);
        model_close(&m);
    }
    print_worst("keys whose values are exact");
}
END_TEST

/* More sinks than tokens go together: some such tokens are nothing but sinks, others end within. */
START_TEST(many_sinks)
{
    static const uint32_t sinks[] = {256, 300, 600}, bits[] = {2, 4, 16};
    struct rng rng = {test_seed(0x51c5) + (uint64_t)_i};
    kivi_config config = model_plain_config(8, 2, 64, bits[_i]);

    config.n_sink = sinks[_i];
    reset_worst();
    check_data(&config, &fill_ordinary, rng_next(&rng), 1000, 8);
    print_worst("many sinks");
}
END_TEST

/* Parameters at the ends of their ranges: any cap above 0 is one, however flat it makes the weights, and leaves scores
 * far below it as they are; a window may be longer than any sequence, and a scale next to nothing. */
START_TEST(extreme_parameters)
{
    static const struct {
        const char *name;
        float softcap, scale;
        uint64_t window;
    } extremes[] = {
        {"a small softcap", 0.3f, 0, 0},
        {"a smaller softcap", 0.03f, 0, 0},
        {"a softcap next to nothing", 1e-39f, 0, 0},
        {"a softcap far above scores", 1e9f, 0, 0},
        {"the largest softcap", FLT_MAX, 0, 0},
        {"the longest window", 0, 0, UINT64_MAX},
        {"a window of almost all positions", 0, 0, UINT64_MAX - 150},
        {"a scale next to nothing", 0, 1e-44f, 0},
        {"scores next to alike", 0, 1e-5f, 0},
        {"a scale that lets one token decide", 0, 1e20f, 0},
        {"a negative scale", 0, -0.2f, 0},
    };
    const struct model_item first = {0, 300, 3, 0}, step = {0, 1, 1, 0}, chunk = {0, 70, 70, 0};
    static const uint32_t bits[] = {2, 4, 8, 16};
    size_t i, j;

    for (i = 0; i < sizeof extremes / sizeof *extremes; i++) {
        reset_worst();
        for (j = 0; j < 4; j++) {
            const kivi_config config = model_plain_config(4, 2, 64, bits[j]);
            kivi_attention attention;
            struct model m;

            kivi_attention_init(&attention);
            attention.softcap = extremes[i].softcap;
            attention.scale = extremes[i].scale;
            attention.window = extremes[i].window;
            attention.precision = _i ? KIVI_PRECISE : KIVI_STANDARD;
            model_open(&m, extremes[i].name, &config, 1, &fill_ordinary, test_seed(0xca9));
            model_call(&m, 0, &first, 1, &attention, 0);
            model_call(&m, 0, &step, 1, &attention, 0);
            model_call(&m, 0, &chunk, 1, &attention, 0);
            model_check(&m, worst);
            model_close(&m);
        }
        print_worst(extremes[i].name);
    }
}
END_TEST

/* Where scores hardly differ, as of a head that looks at nothing, or are cut off at a low cap, many weights are rounded
 * alike: over thousands of tokens quantization averages out, and that does not. */
START_TEST(alike_scores)
{
    static const struct {
        uint32_t bits;
        float softcap, scale;
    } cases[] = {{2, 0, 1e-5f}, {4, 0, 1e-5f}, {4, 0, 1e-4f}, {4, 0.3f, 0}};
    const struct model_item prompt = {0, 3000, 2, 0}, step = {0, 1, 1, 0}, few = {0, 5, 5, 0},
                            chunk = {0, 40, 40, 0};
    const kivi_config config = model_plain_config(4, 2, 64, cases[_i].bits);
    kivi_attention attention;
    struct model m;

    kivi_attention_init(&attention);
    attention.softcap = cases[_i].softcap;
    attention.scale = cases[_i].scale;
    reset_worst();
    model_open(&m, "scores that hardly differ", &config, 1, &fill_ordinary,
               test_seed(0xa11c) + (uint64_t)_i);
    model_call(&m, 0, &prompt, 1, &attention, 0);
    model_call(&m, 0, &step, 1, &attention, 0);
    model_call(&m, 0, &few, 1, &attention, 0);
    model_call(&m, 0, &chunk, 1, &attention, 0);
    model_check(&m, worst);
    model_close(&m);
    print_worst("scores that hardly differ");
}
END_TEST

/* What is done to a weight in every 32 must not be the same each time. */
START_TEST(repeating_weights)
{
    kivi_config config = model_plain_config(4, 1, 64, 2);

    config.k_bits = 16;
    config.residual_length = 128;
    reset_worst();
    check_data(&config, &fill_repeating, test_seed(0x32), 8200, 4);
    print_worst(fill_repeating.name);
}
END_TEST

/* Long enough that every part has a share of one head's tokens. */
START_TEST(split_over_tokens)
{
    static const uint32_t dims[][2] = {{64, 64}, {80, 80}, {256, 256}, {128, 192}};
    const int n = test_rounds(8, 40);
    struct rng rng = {test_seed(0x5917)};
    kivi_attention attention;
    int i, j;

    reset_worst();
    for (i = 0; i < n; i++) {
        const uint32_t bits[] = {2, 4, 8, 16};
        const uint32_t *dim = dims[(i + i / 4) % 4];
        kivi_config config = model_plain_config(8, 1, dim[0], bits[i % 4]);
        struct model m;

        config.v_dim = dim[1];
        model_open(&m, "split over tokens", &config, 1, &fill_ordinary, rng_next(&rng));
        prompt_and_steps(&m, 2500 + rng_below(&rng, 300), 12, 1 + (uint32_t)(i + 6) % 7);
        for (j = 0; j < 2; j++) {
            const struct model_item many = {0, 3, 8, 0};

            kivi_attention_init(&attention);
            attention.precision = j ? KIVI_PRECISE : KIVI_STANDARD;
            model_call(&m, 0, &many, 1, &attention, 0);
        }
        model_check(&m, worst);
        model_close(&m);
    }
    print_worst("split over tokens");
}
END_TEST

/* Prompts, chunks of them, and readers of what is there: many queries at a time, beside a sequence with few. */
START_TEST(many_queries)
{
    static const uint32_t dims[][2] = {{64, 64},   {128, 128}, {80, 80},   {256, 256},
                                       {192, 128}, {40, 96},   {136, 248}, {8, 256}};
    static const uint32_t kv_heads[] = {1, 2, 4}, sinks[] = {0, 0, 5, 40};
    static const uint32_t bits[][2] = {{2, 2},   {4, 4}, {2, 4}, {4, 2}, {8, 8},
                                       {16, 16}, {8, 4}, {8, 2}, {4, 8}, {2, 8}};
    const struct fill *fill = _i ? &fill_adversarial[_i - 1] : &fill_ordinary;
    const int n = test_rounds(3, 200);
    struct rng rng = {test_seed(0x3a27) + (uint64_t)_i};
    char what[96];
    int i, j;

    reset_worst();
    for (i = 0; i < n; i++) {
        const uint32_t *dim = RNG_PICK(&rng, dims);
        kivi_config config = model_plain_config(8, RNG_PICK(&rng, kv_heads), dim[0], 2);
        float sink_logits[64];
        kivi_attention attention;
        struct model m;

        config.v_dim = dim[1];
        config.k_bits = bits[(3 * _i + i) % 10][0];
        config.v_bits = bits[(3 * _i + i) % 10][1];
        config.n_sink = RNG_PICK(&rng, sinks);
        if (rng_one_in(&rng, 2))
            config.residual_length = 128;
        if (rng_one_in(&rng, 3))
            config.group_size = config.residual_length = rng_one_in(&rng, 2) ? 64 : 128;
        model_open(&m, fill->name, &config, 2, fill, rng_next(&rng));
        for (j = 0; j < 4; j++) {
            const uint64_t n_new = j < 2 ? rng_between(&rng, 40, 130) : 0;
            struct model_item items[] = {
                {0, n_new, j < 2 ? n_new : rng_between(&rng, 9, 40), 0},
                {1, n_new, 1, 0},
            };

            if (j == 3)
                items[0].q_end = items[0].n_q + rng_below(&rng, 300);
            random_attention(&m.rng, &config, sink_logits, &attention);
            model_call(&m, 0, items, 2, &attention, 0);
        }
        model_check(&m, worst);
        model_close(&m);
    }
    snprintf(what, sizeof what, "many queries, %s", fill->name);
    print_worst(what);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("oracle");
    TCase *bounds = tcase_create("bounds"), *many = tcase_create("many");

    tcase_add_test(bounds, any_combination);
    tcase_add_loop_test(bounds, adversarial_data, 0, (int)n_fill_adversarial);
    tcase_add_loop_test(bounds, kinds_of_tokens, 0, 4);
    tcase_add_test(bounds, keys_whose_values_are_exact);
    tcase_add_loop_test(bounds, many_sinks, 0, 3);
    tcase_add_loop_test(bounds, extreme_parameters, 0, 2);
    tcase_add_loop_test(bounds, alike_scores, 0, 4);
    tcase_add_test(bounds, repeating_weights);
    tcase_add_loop_test(bounds, alike_queries, 0,
                        (int)(sizeof seeds_of_alike / sizeof *seeds_of_alike));
    tcase_add_test(bounds, split_over_tokens);
    tcase_add_loop_test(many, many_queries, 0, 1 + (int)n_fill_adversarial);
    tcase_set_timeout(bounds, 0);
    tcase_set_timeout(many, 0);
    suite_add_tcase(suite, bounds);
    suite_add_tcase(suite, many);
    return test_main(suite);
}
