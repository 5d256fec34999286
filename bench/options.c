#include "options.h"

#include <kivi/kivi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ATTENTION (COMMAND_DECODE | COMMAND_PREFILL)
#define CACHES (ATTENTION | COMMAND_APPEND | COMMAND_SAVE)
#define THREADED (ATTENTION | COMMAND_APPEND | COMMAND_BANDWIDTH | COMMAND_ALL)
#define EVERY (THREADED | COMMAND_SAVE)
#define CPU_ONLY (1u << 16) /* beside the commands: the option means nothing on a GPU, */
#define GPU_ONLY (1u << 17) /* or on a CPU */

static const struct {
    const char *name, *summary, *help;
    enum command command;
} commands[] = {
    {"decode", "attention of one decode step over a long context",
     "A row is one call of kivi_run for one layer: the queries of one decode step attend over\n"
     "the whole context. Many sequences take turns, as the layers of a model do, so that no step\n"
     "finds its data in the CPU's caches. Bytes are those of the packed layout: codes, scales,\n"
     "minima and f16 rows of every token, once. All rows of one context are measured in turns\n"
     "with a reader of plain memory; its bandwidth is what \"of read\" refers to, turn by turn.\n"
     "With --backend cuda a table of its own: the standard shapes of a GPU, unless heads, context "
     "or\n"
     "batch are given.\n",
     COMMAND_DECODE},
    {"append", "quantization of new tokens",
     "A row is one call of kivi_run for one layer that appends only, with f16 input that lies in\n"
     "the CPU's caches, as it does when a projection has just written it. Bytes are those of the\n"
     "input. With --backend cuda a call is a whole prompt, of --context tokens, from memory.\n",
     COMMAND_APPEND},
    {"prefill", "append and attention of a prompt, in one call",
     "A row is one call of kivi_run for one layer of an empty sequence: append the prompt, attend\n"
     "causally with all its queries, quantize. Operations are two per multiply-add of the causal\n"
     "triangle, in both products.\n",
     COMMAND_PREFILL},
    {"save", "saving a sequence to memory, and loading it",
     "A row is one kivi_seq_save or kivi_seq_load of one layer, on one thread, in turns with a "
     "memcpy\n"
     "of the same bytes.\n",
     COMMAND_SAVE},
    {"bandwidth", "what reading memory can reach",
     "A row is one pass of the reader: a sum over a part of a buffer far larger than the caches.\n"
     "Several forms of it (streams, prefetch distance) are tried first; the best is kept.\n",
     COMMAND_BANDWIDTH},
    {"all", "the standard table: bandwidth, decode, append and prefill",
     "Bandwidth, decode with 32 query heads and 32, 8 and 4 kv heads, one long sequence with one\n"
     "kv head, data in cache, dimension 64, groups of 64 and 128, append, and prefill.\n",
     COMMAND_ALL},
};

enum id {
    Q_HEADS,
    KV_HEADS,
    DIM,
    K_DIM,
    V_DIM,
    BITS,
    GROUP,
    THREADS,
    BACKEND,
    CONTEXT,
    PRECISION,
    QUERIES,
    BATCH,
    SHORTEST,
    TOKENS,
    WITH_APPEND,
    IN_CACHE,
    HOST,
    DATA,
    TIME,
    FOOTPRINT,
    QUICK,
    JSON,
    PLOT,
    HELP,
    VERSION
};

#define LIST "LIST" /* the value of an option that takes several, with commas between */
#define DIMENSION "a multiple of 8 from 8 to 512"

static const struct option {
    enum id id;
    const char *name, *value, *help;
    unsigned commands;
    uint32_t least, most; /* of a number */
    const char *takes;    /* NULL: any number in between */
} table[] = {
    {Q_HEADS, "--q-heads", "N", "query heads (32)", CACHES, 1, 65536, NULL},
    {KV_HEADS, "--kv-heads", LIST, "kv heads (32); each divides the query heads", CACHES, 1, 65536,
     NULL},
    {DIM, "--dim", "N", "head dimension (128)", CACHES, 8, 512, DIMENSION},
    {K_DIM, "--k-dim", "N", "head dimension of keys and queries alone", CACHES, 8, 512, DIMENSION},
    {V_DIM, "--v-dim", "N", "head dimension of values and outputs alone", CACHES, 8, 512,
     DIMENSION},
    {BITS, "--bits", LIST, "cache types: 2, 4, 8, 16, or kXvY (16,8,4,2)", CACHES, 0, 0,
     "2, 4, 8, 16 or kXvY with X and Y of these, up to 16 with commas between"},
    {GROUP, "--group", "N", "group size: 32, 64 or 128 (32)", CACHES, 32, 128, "32, 64 or 128"},
    {THREADS, "--threads", LIST, "threads (1 and all)", THREADED | CPU_ONLY, 1, 1024, NULL},
    {BACKEND, "--backend", LIST, "backends by name (the library's choice)", CACHES | COMMAND_ALL, 0,
     0, "up to 16 names with commas between"},
    {CONTEXT, "--context", LIST,
     "tokens of the sequence (4096,16384,65536; append 4096, save 65536)",
     COMMAND_DECODE | COMMAND_APPEND | COMMAND_SAVE, 16, 1u << 26, NULL},
    {PRECISION, "--precision", "P", "standard, precise or both (standard)", ATTENTION, 0, 0,
     "standard, precise or both"},
    {QUERIES, "--queries", "N", "queries of a step, 1 to 16: speculative decoding (1)",
     COMMAND_DECODE, 1, 16, NULL},
    {BATCH, "--batch", "N", "GPU: sequences of a step, 1 to 256 (1)", COMMAND_DECODE | GPU_ONLY, 1,
     256, NULL},
    {SHORTEST, "--shortest", "N",
     "GPU: tokens of the batch's first sequence; even steps to the last", COMMAND_DECODE | GPU_ONLY,
     1, 1u << 26, NULL},
    {TOKENS, "--tokens", "N", "tokens of one call (append 512, prefill 2048)",
     COMMAND_APPEND | COMMAND_PREFILL, 1, 1u << 20, NULL},
    {WITH_APPEND, "--with-append", NULL, "a step appends the tokens of its queries first",
     COMMAND_DECODE | CPU_ONLY, 0, 0, NULL},
    {IN_CACHE, "--in-cache", NULL, "one sequence over and over: data in the CPU's caches",
     COMMAND_DECODE | CPU_ONLY, 0, 0, NULL},
    {HOST, "--host-threads", NULL, "drive kivi_work_* from the bench's own threads",
     ATTENTION | COMMAND_APPEND | COMMAND_ALL | CPU_ONLY, 0, 0, NULL},
    {DATA, "--data", "D", "keys: gauss, or outlier (a few channels ten times the rest; default)",
     CACHES | COMMAND_ALL, 0, 0, "gauss or outlier"},
    {TIME, "--time", "S", "seconds of measurement for each row (0.4; quick 0.2)", EVERY | CPU_ONLY,
     0, 0, "seconds above 0, up to 3600"},
    {FOOTPRINT, "--footprint", "MB", "data to rotate (4 times the last-level cache, at least 1024)",
     EVERY | CPU_ONLY, 1, 1u << 24, NULL},
    {QUICK, "--quick", NULL, "three contexts, and half the time", COMMAND_ALL, 0, 0, NULL},
    {JSON, "--json", NULL, "print JSON instead of tables", EVERY, 0, 0, NULL},
    {PLOT, "--plot", "FILE", "draw speed against context beside the bandwidth floor (SVG)",
     COMMAND_DECODE | COMMAND_ALL, 0, 0, NULL},
    {HELP, "--help", NULL, "this text; -h for short", EVERY, 0, 0, NULL},
    {VERSION, "--version", NULL, "the version of the library", EVERY, 0, 0, NULL},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void print_usage(FILE *file)
{
    size_t i;

    fprintf(file, "Usage: kivi-bench COMMAND [OPTION...]\n\nCommands:\n");
    for (i = 0; i < COUNT(commands); i++)
        fprintf(file, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(file, "\nkivi-bench COMMAND --help lists the options of a command.\n"
                  "kivi-bench --version says which library it measures.\n");
}

static void print_command_help(size_t command)
{
    size_t i;

    printf("Usage: kivi-bench %s [OPTION...]\n\n%s\nOptions:\n", commands[command].name,
           commands[command].help);
    for (i = 0; i < COUNT(table); i++) {
        if (table[i].commands & commands[command].command)
            printf("  %-14s %-4s  %s\n", table[i].name, table[i].value ? table[i].value : "",
                   table[i].help);
    }
    printf("A LIST is separated by commas.\n");
}

static void print_version(void)
{
    printf("kivi-bench, libkivi %s\n", kivi_version());
}

/* What the option takes, where it does not take `value`. */
static int fail(const struct option *option, const char *value)
{
    fprintf(stderr, "kivi-bench: %s takes ", option->name);
    if (option->takes)
        fputs(option->takes, stderr);
    else if (strcmp(option->value, LIST) == 0)
        fprintf(stderr, "up to %d numbers from %u to %u with commas between", LIST_MAX,
                option->least, option->most);
    else
        fprintf(stderr, "a number from %u to %u", option->least, option->most);
    fprintf(stderr, ", not \"%s\"\n", value);
    return -1;
}

/* A number from `low` to `high` at *text, which moves behind it. */
static int read_number(const char **text, uint64_t low, uint64_t high, uint64_t *number)
{
    char *end;

    if (**text < '0' || **text > '9')
        return 0;
    *number = strtoull(*text, &end, 10);
    *text = end;
    return *number >= low && *number <= high;
}

static int parse_number(const char *text, const struct option *option, uint32_t *number)
{
    uint64_t n;

    if (!read_number(&text, option->least, option->most, &n) || *text)
        return 0;
    *number = (uint32_t)n;
    return 1;
}

static int parse_dim(const char *text, const struct option *option, uint32_t *dim)
{
    return parse_number(text, option, dim) && *dim % 8 == 0;
}

static int parse_numbers(const char *text, const struct option *option, struct number_list *list)
{
    uint64_t n;

    for (list->n = 0; list->n < LIST_MAX; text++) {
        if (!read_number(&text, option->least, option->most, &n))
            return 0;
        list->at[list->n++] = (uint32_t)n;
        if (*text != ',')
            return *text == 0;
    }
    return 0;
}

static int read_bits(const char **text, uint32_t *bits)
{
    uint64_t n;

    if (!read_number(text, 2, 16, &n))
        return 0;
    *bits = (uint32_t)n;
    return n == 2 || n == 4 || n == 8 || n == 16;
}

static int parse_types(const char *text, struct type_list *list)
{
    for (list->n = 0; list->n < LIST_MAX; text++) {
        struct cache_type *type = &list->at[list->n++];

        if (*text == 'k') {
            text++;
            if (!read_bits(&text, &type->k_bits) || *text++ != 'v'
                || !read_bits(&text, &type->v_bits))
                return 0;
        } else {
            if (!read_bits(&text, &type->k_bits))
                return 0;
            type->v_bits = type->k_bits;
        }
        if (*text != ',')
            return *text == 0;
    }
    return 0;
}

/* Splits `text` in place. */
static int parse_names(char *text, struct name_list *list)
{
    char *name;

    list->n = 0;
    for (name = strtok(text, ","); name; name = strtok(NULL, ",")) {
        if (list->n == LIST_MAX)
            return 0;
        list->at[list->n++] = name;
    }
    return list->n > 0;
}

static int parse_precision(const char *text, unsigned *precisions)
{
    *precisions = strcmp(text, "standard") == 0  ? PRECISION_STANDARD
                  : strcmp(text, "precise") == 0 ? PRECISION_PRECISE
                  : strcmp(text, "both") == 0    ? PRECISION_STANDARD | PRECISION_PRECISE
                                                 : 0;
    return *precisions != 0;
}

static int set(struct options *o, const struct option *option, char *value)
{
    struct scenario *s = &o->scenario;
    struct settings *settings = &o->settings;
    const enum id id = option->id;
    uint32_t n;
    char *end;

    s->has_shape |=
        id == Q_HEADS || id == KV_HEADS || id == CONTEXT || id == BATCH || id == SHORTEST;
    switch (id) {
    case Q_HEADS:
        return parse_number(value, option, &s->q_heads);
    case KV_HEADS:
        return parse_numbers(value, option, &s->kv_heads);
    case DIM:
        return parse_dim(value, option, &s->k_dim) && parse_dim(value, option, &s->v_dim);
    case K_DIM:
        return parse_dim(value, option, &s->k_dim);
    case V_DIM:
        return parse_dim(value, option, &s->v_dim);
    case BITS:
        return parse_types(value, &s->types);
    case GROUP:
        return parse_number(value, option, &s->group)
               && (s->group == 32 || s->group == 64 || s->group == 128);
    case THREADS:
        return parse_numbers(value, option, &s->threads);
    case BACKEND:
        return parse_names(value, &o->backends);
    case CONTEXT:
        return parse_numbers(value, option, &s->contexts);
    case PRECISION:
        return parse_precision(value, &s->precisions);
    case QUERIES:
        return parse_number(value, option, &s->queries);
    case BATCH:
        return parse_number(value, option, &s->batch);
    case SHORTEST:
        return parse_number(value, option, &s->shortest);
    case TOKENS:
        return parse_number(value, option, &s->tokens);
    case WITH_APPEND:
        return s->appends = 1;
    case IN_CACHE:
        return s->in_cache = 1;
    case HOST:
        return settings->host_threads = 1;
    case DATA:
        settings->gauss = strcmp(value, "gauss") == 0;
        return settings->gauss || strcmp(value, "outlier") == 0;
    case TIME:
        settings->seconds = strtod(value, &end);
        return settings->seconds > 0 && settings->seconds <= 3600 && *end == 0;
    case FOOTPRINT:
        if (!parse_number(value, option, &n))
            return 0;
        settings->footprint = (uint64_t)n << 20;
        return 1;
    case QUICK:
        return settings->quick = 1;
    case JSON:
        return settings->json = 1;
    case PLOT:
        settings->plot = value;
        return 1;
    case HELP:
    case VERSION:
        break;
    }
    return 0;
}

static void set_defaults(struct options *o, enum command command)
{
    static const struct options defaults = {
        .scenario = {.q_heads = 32,
                     .k_dim = 128,
                     .v_dim = 128,
                     .group = 32,
                     .kv_heads = {1, {32}},
                     .contexts = {3, {4096, 16384, 65536}},
                     .types = {4, {{16, 16}, {8, 8}, {4, 4}, {2, 2}}},
                     .precisions = PRECISION_STANDARD,
                     .queries = 1,
                     .batch = 1},
        .backends = {1, {NULL}},
    };

    *o = defaults;
    o->command = command;
    o->scenario.tokens = command == COMMAND_APPEND ? 512 : 2048;
    if (command == COMMAND_APPEND)
        o->scenario.contexts = (struct number_list){1, {4096}};
    if (command == COMMAND_SAVE)
        o->scenario.contexts = (struct number_list){1, {65536}};
}

static int has_several(const struct number_list *list)
{
    size_t i = 1;

    while (i < list->n && list->at[i] == list->at[0])
        i++;
    return i < list->n;
}

/* What the options say together. */
static int check(struct options *o)
{
    const struct scenario *s = &o->scenario;
    size_t i;

    if (o->settings.seconds == 0)
        o->settings.seconds = o->settings.quick ? 0.2 : 0.4;
    for (i = 0; i < s->kv_heads.n; i++) {
        if (s->q_heads % s->kv_heads.at[i]) {
            fprintf(stderr, "kivi-bench: %u kv heads do not divide %u query heads\n",
                    s->kv_heads.at[i], s->q_heads);
            return -1;
        }
    }
    for (i = 0; i < s->contexts.n; i++) {
        if (s->contexts.at[i] < s->shortest) {
            fprintf(stderr, "kivi-bench: --shortest %u is more than --context %u\n", s->shortest,
                    s->contexts.at[i]);
            return -1;
        }
    }
    for (i = 0; o->command == COMMAND_APPEND && i < s->contexts.n; i++) {
        if (s->contexts.at[i] < s->tokens) {
            fprintf(stderr, "kivi-bench: --tokens %u is more than --context %u\n", s->tokens,
                    s->contexts.at[i]);
            return -1;
        }
    }
    if (o->settings.plot && o->command == COMMAND_DECODE
        && (s->in_cache || !has_several(&s->contexts))) {
        fprintf(stderr, "kivi-bench: --plot needs two contexts or more, without --in-cache\n");
        return -1;
    }
    return 1;
}

static const struct option *find_option(const char *name, size_t size, enum command command)
{
    size_t i;

    if (size == 2 && strncmp(name, "-h", 2) == 0)
        return find_option("--help", 6, command);
    for (i = 0; i < COUNT(table); i++) {
        if ((table[i].commands & command) && strlen(table[i].name) == size
            && strncmp(name, table[i].name, size) == 0)
            return &table[i];
    }
    return NULL;
}

/* argv[*arg] and its value, which may follow or stand behind a '='. Returns what options_parse does. */
static int parse_option(struct options *o, size_t command, int argc, char **argv, int *arg)
{
    char *text = argv[*arg], *value = NULL;
    const size_t size = strcspn(text, "=");
    const struct option *option = find_option(text, size, o->command);

    if (!option) {
        fprintf(stderr, "kivi-bench: %s has no option \"%s\"; try --help\n", argv[1], text);
        return -1;
    }
    if (text[size] == '=')
        value = text + size + 1;
    else if (option->value && *arg + 1 < argc)
        value = argv[++*arg];
    if (!value != !option->value) {
        fprintf(stderr, "kivi-bench: %s %s value\n", option->name, value ? "takes no" : "needs a");
        return -1;
    }
    if (option->id == HELP)
        print_command_help(command);
    else if (option->id == VERSION)
        print_version();
    if (option->id == HELP || option->id == VERSION)
        return 0;
    if (!set(o, option, value))
        return fail(option, value);
    if (option->commands & CPU_ONLY || (option->id == TOKENS && o->command == COMMAND_APPEND))
        o->cpu_only = option->name;
    if (option->commands & GPU_ONLY)
        o->gpu_only = option->name;
    return 1;
}

int options_parse(struct options *options, int argc, char **argv)
{
    size_t command;
    int arg, status = 1;

    if (argc < 2) {
        print_usage(stderr);
        return -1;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        print_version();
        return 0;
    }
    for (command = 0; command < COUNT(commands); command++) {
        if (strcmp(argv[1], commands[command].name) == 0)
            break;
    }
    if (command == COUNT(commands)) {
        fprintf(stderr, "kivi-bench: no command \"%s\"; try --help\n", argv[1]);
        return -1;
    }
    set_defaults(options, commands[command].command);
    for (arg = 2; arg < argc && status == 1; arg++)
        status = parse_option(options, command, argc, argv, &arg);
    return status == 1 ? check(options) : status;
}
