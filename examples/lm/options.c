#define _POSIX_C_SOURCE 200809L

#include "options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../tool.h"

enum kind { TEXT, COUNT, NUMBER, SEED, FLAG, CACHES, OFFSETS };

/* Where an option goes, and what may have it: bits of 1 << command. */
struct option {
    const char *name;
    enum kind kind;
    unsigned commands;
    void *target;
    uint32_t least, most; /* of COUNT */
};

enum { EVAL = 1 << LM_EVAL, GENERATE = 1 << LM_GENERATE, BOTH = EVAL | GENERATE };

static int parse_u64(const char *text, const char **end, uint64_t *value)
{
    char *stop;

    if (*text < '0' || *text > '9')
        return -1;
    errno = 0;
    *value = strtoull(text, &stop, 10);
    *end = stop;
    return errno ? -1 : 0;
}

static int parse_offsets(struct lm_options *options, const char *text, struct lm_error *error)
{
    const char *rest = text;

    options->n_offsets = 0;
    do {
        uint64_t offset;

        if (options->n_offsets == LM_MAX_OFFSETS)
            return lm_fail(error, "--offsets: more than %u", LM_MAX_OFFSETS);
        if (parse_u64(rest, &rest, &offset) || (*rest != '\0' && *rest != ','))
            return lm_fail(error, "--offsets takes numbers with commas between, not '%s'", text);
        options->offsets[options->n_offsets++] = offset;
    } while (*rest++ == ',');
    return 0;
}

/* Adds a type, once. */
static int add_type(struct lm_options *options, const char *name, size_t size,
                    struct lm_error *error)
{
    struct lm_cache_type type;

    if (lm_cache_type_parse(name, size, &type, error))
        return -1;
    for (size_t i = 0; i < options->n_types; i++) {
        if (strcmp(options->types[i].name, type.name) == 0)
            return 0;
    }
    if (options->n_types == LM_MAX_TYPES)
        return lm_fail(error, "--cache: more than %u types", LM_MAX_TYPES);
    options->types[options->n_types++] = type;
    return 0;
}

static int parse_types(struct lm_options *options, const char *text, struct lm_error *error)
{
    options->n_types = 0;
    if (options->command == LM_EVAL && add_type(options, "f16", 3, error))
        return -1;
    for (;;) {
        const size_t size = strcspn(text, ",");

        if (add_type(options, text, size, error))
            return -1;
        if (text[size] == '\0')
            return 0;
        text += size + 1;
    }
}

static int store_value(struct lm_options *options, const struct option *option, const char *value,
                       struct lm_error *error)
{
    const char *end;
    char *stop;
    uint64_t number = 0;
    double x;

    switch (option->kind) {
    case FLAG:
        *(int *)option->target = 1;
        return 0;
    case TEXT:
        *(const char **)option->target = value;
        return 0;
    case COUNT:
        if (parse_u64(value, &end, &number) || *end || number < option->least
            || number > option->most)
            return lm_fail(error, "%s takes a number from %u to %u, not '%s'", option->name,
                           option->least, option->most, value);
        *(uint32_t *)option->target = (uint32_t)number;
        return 0;
    case SEED:
        if (parse_u64(value, &end, &number) || *end)
            return lm_fail(error, "%s takes a number, not '%s'", option->name, value);
        *(uint64_t *)option->target = number;
        return 0;
    case NUMBER:
        x = strtod(value, &stop);
        if (stop == value || *stop || !(x >= 0 && x <= 100))
            return lm_fail(error, "%s takes a number from 0 to 100, not '%s'", option->name, value);
        *(double *)option->target = x;
        return 0;
    case CACHES:
        return parse_types(options, value, error);
    case OFFSETS:
        return parse_offsets(options, value, error);
    }
    return 0;
}

/* argv[*i], and its value if it has one, which may follow or stand behind a '='. */
static int parse_option(struct lm_options *options, const struct option *table, size_t n, int argc,
                        char **argv, int *i, struct lm_error *error)
{
    const char *argument = argv[*i];
    const size_t size = strcspn(argument, "=");
    const struct option *option = NULL;
    const char *value = NULL;

    for (size_t k = 0; k < n && !option; k++) {
        if (strlen(table[k].name) == size && strncmp(table[k].name, argument, size) == 0
            && (table[k].commands & 1u << options->command))
            option = &table[k];
    }
    if (!option)
        return lm_fail(error, "unknown option '%s'; see kivi-lm --help", argument);
    if (argument[size] == '=')
        value = argument + size + 1;
    else if (option->kind != FLAG && *i + 1 < argc)
        value = argv[++*i];
    if ((value == NULL) != (option->kind == FLAG))
        return lm_fail(error, value ? "%s takes no value" : "%s needs a value", option->name);
    return store_value(options, option, value, error);
}

/* What is asked of the program itself, in place of work. */
static int is_question(const char *argument, enum lm_command *command)
{
    if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0)
        *command = LM_HELP;
    else if (strcmp(argument, "--version") == 0)
        *command = LM_VERSION;
    else
        return 0;
    return 1;
}

static int parse_command(int argc, char **argv, struct lm_options *options, struct lm_error *error)
{
    if (argc > 1 && is_question(argv[1], &options->command))
        return 0;
    if (argc > 1 && strcmp(argv[1], "eval") == 0)
        options->command = LM_EVAL;
    else if (argc > 1 && strcmp(argv[1], "generate") == 0)
        options->command = LM_GENERATE;
    else
        return lm_fail(error, "'eval' or 'generate' is missing; see kivi-lm --help");
    return 0;
}

/* The library would refuse these as well, but not in words of the command line. */
static int check_cache(const struct lm_cache_options *c, struct lm_error *error)
{
    kivi_backend_info info;
    char names[128];

    if (c->group_size != 32 && c->group_size != 64 && c->group_size != 128)
        return lm_fail(error, "--group takes 32, 64 or 128, not '%u'", c->group_size);
    if (c->residual_length % c->group_size)
        return lm_fail(error, "--residual takes a multiple of the group, %u, not '%u'",
                       c->group_size, c->residual_length);
    if (c->backend && kivi_backend_find(c->backend, &info, NULL) != KIVI_OK) {
        tool_backends(names, sizeof names);
        return lm_fail(error, "--backend takes one of %s, not '%.40s'", names, c->backend);
    }
    return 0;
}

int lm_options_parse(int argc, char **argv, struct lm_options *o, struct lm_error *error)
{
    int precise = 0;
    const struct option table[] = {
        {"--model", TEXT, BOTH, &o->model, 0, 0},
        {"--text", TEXT, EVAL, &o->text, 0, 0},
        {"--prompt", TEXT, GENERATE, &o->prompt, 0, 0},
        {"--cache", CACHES, BOTH, NULL, 0, 0},
        {"--ctx", COUNT, EVAL, &o->context, 2, 1u << 24},
        {"--stride", COUNT, EVAL, &o->stride, 1, 1u << 30},
        {"--offsets", OFFSETS, EVAL, NULL, 0, 0},
        {"--windows", COUNT, EVAL, &o->windows, 1, 1u << 30},
        {"--json", FLAG, EVAL, &o->json, 0, 0},
        {"--save", TEXT, GENERATE, &o->save, 0, 0},
        {"--n", COUNT, GENERATE, &o->n_bytes, 1, 1u << 24},
        {"--temp", NUMBER, GENERATE, &o->temperature, 0, 0},
        {"--seed", SEED, GENERATE, &o->seed, 0, 0},
        {"--group", COUNT, BOTH, &o->cache.group_size, 1, 4096},
        {"--residual", COUNT, BOTH, &o->cache.residual_length, 1, 4096},
        {"--sink", COUNT, BOTH, &o->cache.n_sink, 0, 4096},
        {"--precise", FLAG, BOTH, &precise, 0, 0},
        {"--backend", TEXT, BOTH, &o->cache.backend, 0, 0},
        {"--threads", COUNT, BOTH, &o->cache.n_threads, 1, 1024},
    };

    memset(o, 0, sizeof *o);
    o->cache.group_size = 32;
    o->cache.residual_length = 128;
    o->n_bytes = 400;
    o->temperature = 0.8;
    o->seed = 1;
    if (parse_command(argc, argv, o, error))
        return -1;
    if (o->command != LM_EVAL && o->command != LM_GENERATE)
        return 0;
    for (int i = 2; i < argc; i++) {
        if (is_question(argv[i], &o->command))
            return 0;
        if (parse_option(o, table, sizeof table / sizeof *table, argc, argv, &i, error))
            return -1;
    }
    o->cache.precision = precise ? KIVI_PRECISE : KIVI_STANDARD;
    if (o->n_types == 0
        && parse_types(o, o->command == LM_EVAL ? "kivi4,kivi2,k2t" : "kivi2", error))
        return -1;
    if (check_cache(&o->cache, error))
        return -1;
    if (!o->model)
        return lm_fail(error, "--model is missing; see kivi-lm --help");
    if (o->command == LM_EVAL && !o->text)
        return lm_fail(error, "--text is missing; see kivi-lm --help");
    if (o->command == LM_GENERATE && (!o->prompt || !*o->prompt))
        return lm_fail(error, "--prompt is missing or empty; see kivi-lm --help");
    if (o->command == LM_GENERATE && (o->n_types != 1 || o->types[0].keys_per_token))
        return lm_fail(error, "generate takes one cache type, without t");
    return 0;
}
