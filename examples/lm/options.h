/* The command line. */
#ifndef LM_OPTIONS_H
#define LM_OPTIONS_H

#include "store.h"

#define LM_MAX_TYPES 16u
#define LM_MAX_OFFSETS 256u

enum lm_command { LM_HELP, LM_VERSION, LM_EVAL, LM_GENERATE };

struct lm_options {
    enum lm_command command;
    const char *model, *text, *prompt, *save;
    struct lm_cache_type types[LM_MAX_TYPES]; /* eval: the first is f16 */
    size_t n_types;
    struct lm_cache_options cache;
    uint32_t context, stride, windows; /* 0: not given */
    uint64_t offsets[LM_MAX_OFFSETS];
    size_t n_offsets;
    int json;
    uint32_t n_bytes; /* to generate */
    double temperature;
    uint64_t seed;
};

int lm_options_parse(int argc, char **argv, struct lm_options *options, struct lm_error *error);

extern const char lm_help[];

#endif
