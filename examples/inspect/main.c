/* kivi-inspect: what is in a saved cache. */
#define _POSIX_C_SOURCE 200809L

#include <kivi/kivi.h>
#include <stdio.h>
#include <string.h>

#include "../tool.h"
#include "saved.h"
#include "svg.h"

static const char help[] =
    "usage: kivi-inspect FILE [--svg OUT.svg] [--json]\n"
    "\n"
    "Checks a saved cache (kivi_seq_save, kivi_cache_save, kivi-lm generate --save) and\n"
    "prints its header, its sequences, and for each layer what the quantization costs:\n"
    "  scale     least, mean and largest scale of a group\n"
    "  error     root mean square of a number's rounding error, scale / sqrt(12)\n"
    "  outlier   the channel (keys) or group (values) whose mean scale is largest, as head:\n"
    "            index, and how many times the median that is\n"
    "\n"
    "  --svg F      draws the scales of all key channels, and histograms\n"
    "  --json       the same numbers as JSON\n"
    "  --help, -h   this text\n"
    "  --version    the version of the library\n";

static void print_scales(const char *name, const struct scales *s, uint32_t per_head)
{
    const uint32_t c = largest_channel(s);
    const double median = median_channel(s);
    char outlier[32];

    if (s->n == 0) {
        printf("  %-6s %4u  %s\n", name, s->bits,
               s->bits == 16 ? "f16, not quantized" : "nothing packed yet");
        return;
    }
    snprintf(outlier, sizeof outlier, "%u:%u", c / per_head, c % per_head);
    printf("  %-6s %4u  %9.3g %9.3g %9.3g  %9.3g  %8s %6.1fx\n", name, s->bits,
           s->most > 0 ? s->least : 0, s->sum / (double)s->n, s->most, rms_error(s), outlier,
           median > 0 ? s->channel[c] / median : 0);
}

/* The histogram of all layers, for the keys or for the values. */
static void print_histogram(const struct saved *s, int values)
{
    uint64_t bin[BINS] = {0}, most = 1, n = 0;
    uint32_t l;
    int i, first = BINS, last = -1;

    for (l = 0; l < s->n_layers; l++) {
        const struct scales *scales = values ? &s->layers[l].values : &s->layers[l].keys;

        for (i = 0; i < BINS; i++)
            bin[i] += scales->bin[i];
    }
    for (i = 0; i < BINS; i++) {
        n += bin[i];
        most = bin[i] > most ? bin[i] : most;
        first = bin[i] && i < first ? i : first;
        last = bin[i] ? i : last;
    }
    if (last < 0)
        return;
    printf("\n%s, scales of all layers\n", values ? "values" : "keys");
    for (i = first; i <= last; i++) {
        const int width = (int)(50 * bin[i] / most);

        printf("  2^%-6.1f %5.1f%% %.*s\n", LOWEST_BIN + i / 2.0, 100 * (double)bin[i] / (double)n,
               width, "##################################################");
    }
}

static void print_text(const char *path, const struct saved *s)
{
    const uint32_t groups = (s->v_dim + s->group_size - 1) / s->group_size;
    uint64_t i;
    uint32_t l;

    printf("%s: %llu bytes, version 1, sound\n"
           "%u layers, %u kv heads, dimension %u of keys and %u of values; groups of %u, residual "
           "%u, %u sink tokens\n\n",
           path, (unsigned long long)s->bytes, s->n_layers, s->n_kv_heads, s->k_dim, s->v_dim,
           s->group_size, s->residual_length, s->n_sink);
    printf("sequence                tokens         bytes   against f16\n");
    for (i = 0; i < s->n_sequences; i++) {
        const struct sequence_report *q = &s->sequences[i];
        const double f16 =
            2.0 * (double)q->tokens * s->n_layers * s->n_kv_heads * (s->k_dim + s->v_dim);

        printf("%-20llu %9llu%s %13llu", (unsigned long long)q->handle,
               (unsigned long long)q->tokens, q->layers_differ ? "*" : " ",
               (unsigned long long)q->bytes);
        if (q->tokens > 0 && !q->layers_differ)
            printf("        %5.2fx", f16 / (double)q->bytes);
        printf("%s\n", q->layers_differ ? "  * in the first layer; others differ" : "");
    }
    printf("\nlayer    bits      least      mean   largest      error   outlier\n");
    for (l = 0; l < s->n_layers; l++) {
        printf("%u: %llu bytes packed, %llu in f16 rows\n", l,
               (unsigned long long)s->layers[l].packed_bytes,
               (unsigned long long)s->layers[l].row_bytes);
        print_scales("keys", &s->layers[l].keys, s->k_dim);
        print_scales("values", &s->layers[l].values, groups);
    }
    print_histogram(s, 0);
    print_histogram(s, 1);
}

static void print_scales_json(const char *name, const struct scales *s, uint32_t per_head)
{
    const uint32_t c = largest_channel(s);

    printf(
        "\"%s\": {\"bits\": %u, \"scales\": %llu, \"zero\": %llu, \"least\": %.6g, \"mean\": %.6g, "
        "\"largest\": %.6g, \"rms_error\": %.6g, \"median_channel\": %.6g, "
        "\"largest_channel\": {\"head\": %u, \"index\": %u, \"mean\": %.6g}}",
        name, s->bits, (unsigned long long)s->n, (unsigned long long)s->zero,
        s->most > 0 ? s->least : 0, s->n ? s->sum / (double)s->n : 0, s->most, rms_error(s),
        median_channel(s), c / per_head, c % per_head, s->channel[c]);
}

static void print_json(const struct saved *s)
{
    const uint32_t groups = (s->v_dim + s->group_size - 1) / s->group_size;
    uint64_t i;
    uint32_t l;

    printf("{\"version\": 1, \"bytes\": %llu, \"layers\": %u, \"kv_heads\": %u, \"k_dim\": %u, "
           "\"v_dim\": %u, \"group_size\": %u, \"residual_length\": %u, \"n_sink\": %u,\n"
           " \"sequences\": [",
           (unsigned long long)s->bytes, s->n_layers, s->n_kv_heads, s->k_dim, s->v_dim,
           s->group_size, s->residual_length, s->n_sink);
    for (i = 0; i < s->n_sequences; i++)
        printf("%s{\"handle\": %llu, \"tokens\": %llu, \"bytes\": %llu}", i ? ", " : "",
               (unsigned long long)s->sequences[i].handle,
               (unsigned long long)s->sequences[i].tokens,
               (unsigned long long)s->sequences[i].bytes);
    printf("],\n \"per_layer\": [");
    for (l = 0; l < s->n_layers; l++) {
        printf("%s\n  {", l ? "," : "");
        print_scales_json("keys", &s->layers[l].keys, s->k_dim);
        printf(", ");
        print_scales_json("values", &s->layers[l].values, groups);
        printf("}");
    }
    printf("\n ]}\n");
}

struct options {
    const char *path, *svg;
    int json;
};

/* Returns 1 to go on, 0 if the answer was help, -1 after an error. */
static int parse(struct options *o, int argc, char **argv)
{
    int i;

    *o = (struct options){0};
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(help, stdout);
            return 0;
        }
        if (strcmp(argv[i], "--version") == 0) {
            printf("kivi-inspect, libkivi %s\n", kivi_version());
            return 0;
        }
        if (strcmp(argv[i], "--json") == 0) {
            o->json = 1;
        } else if (strcmp(argv[i], "--svg") == 0) {
            if (++i == argc) {
                fputs("kivi-inspect: --svg needs a value\n", stderr);
                return -1;
            }
            o->svg = argv[i];
        } else if (strncmp(argv[i], "--svg=", 6) == 0) {
            o->svg = argv[i] + 6;
        } else if (argv[i][0] == '-') {
            fprintf(stderr, "kivi-inspect: unknown option '%s'; see kivi-inspect --help\n",
                    argv[i]);
            return -1;
        } else if (o->path) {
            fprintf(stderr, "kivi-inspect: one file at a time, not '%s' as well\n", argv[i]);
            return -1;
        } else {
            o->path = argv[i];
        }
    }
    if (!o->path) {
        fputs("kivi-inspect: which file? See kivi-inspect --help\n", stderr);
        return -1;
    }
    return 1;
}

int main(int argc, char **argv)
{
    struct options options;
    struct saved saved;
    struct fault fault = {""};
    int result = parse(&options, argc, argv);

    if (result <= 0)
        return result < 0 ? 2 : tool_end("kivi-inspect", 0);
    result = saved_read(options.path, &saved, &fault);
    if (result == 0 && options.svg)
        result = svg_write(&saved, options.svg, &fault);
    if (result)
        fprintf(stderr, "kivi-inspect: %s: %s\n", options.path, fault.text);
    else if (options.json)
        print_json(&saved);
    else
        print_text(options.path, &saved);
    saved_free(&saved);
    return tool_end("kivi-inspect", result ? 1 : 0);
}
