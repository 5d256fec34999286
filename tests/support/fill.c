/* Data for caches and their oracles: what models have, and what is hard. */
#include <math.h>

#include "model.h"

/* +1 or -1: a pattern over channels that keys and queries can share. */
static double sign_of(uint32_t channel)
{
    return channel * 2654435761u >> 16 & 1 ? 1 : -1;
}

static double ordinary(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                       uint32_t channel)
{
    const double x = rng_normal(rng);

    (void)token;
    if (role == ROLE_K && (channel + 5 * head) % 19 == 3)
        return 10 * x + 20 * sign_of(channel + head);
    return x;
}

/* Tokens are of two kinds, of keys and of values: what is off for one of a kind is off for all, and does not average out
 * as quantization does. */
static double two_kinds(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                        uint32_t channel)
{
    const double x = rng_normal(rng), kind = sign_of((uint32_t)token);

    if (role == ROLE_K)
        return x + kind * sign_of(channel + 977 * head);
    if (role == ROLE_V)
        return x + kind * sign_of(channel + 1999 * head + 503);
    return x;
}

/* One token in 128 has most of the weight, and every 32nd so little that it is rounded by what it is dithered with; the
 * others have none. For dimension 64: a score is the key's first channel. */
static double repeating(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                        uint32_t channel)
{
    const double x = rng_normal(rng), pattern = sign_of(channel);
    const int is_heavy = token % 128 == 37, repeats = token % 32 == 4;

    (void)head;
    if (role == ROLE_Q)
        return channel == 0 ? 8 : 0;
    if (role == ROLE_K)
        return channel > 0 || is_heavy ? 0 : repeats ? log(0.6 / 254) : -30;
    return x + (is_heavy ? pattern : repeats ? -pattern : 0);
}

/* One channel of keys and one of values is a thousand times the rest. */
static double huge_channel(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                           uint32_t channel)
{
    const double x = rng_normal(rng);

    (void)token;
    (void)head;
    return role != ROLE_Q && channel == 5 ? 1000 * x : x;
}

/* One token in 128 matches every query: it has all the weight. */
static double one_token(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                        uint32_t channel)
{
    const double x = rng_normal(rng);

    (void)head;
    if (role == ROLE_Q)
        return 3 * sign_of(channel) + 0.1 * x;
    return role == ROLE_K && token % 128 == 37 ? 4 * sign_of(channel) + 0.1 * x : x;
}

/* The same token has most of the weight, and the others the rest, all as much. Values share a pattern over channels:
 * what rounding does to one weight it does to all, and adds up. */
static double alike_tokens(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                           uint32_t channel)
{
    const double x = rng_normal(rng), pattern = (1 + channel * 7 % 5 / 4.0) * sign_of(channel);

    if (role == ROLE_V)
        return pattern + 0.3 * x;
    if (role == ROLE_Q)
        return channel < 64 ? (0.6 + (double)((token + head) % 6) / 10) * sign_of(channel) : 0;
    return channel < 64 && token % 128 == 37 ? sign_of(channel) : 0;
}

/* Queries of two sizes, of which the smaller is nearly one and a half steps of the larger in 127; and that token. */
static double alike_queries(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                            uint32_t channel)
{
    const double x = rng_normal(rng);

    (void)head;
    if (role == ROLE_Q)
        return (channel % 16 == 3 || channel % 16 == 7 ? 3 : 0.0351) * sign_of(channel);
    if (role == ROLE_K)
        return (token % 128 == 37 ? 2 * sign_of(channel) : 0) + 0.15 * x;
    return x * (token % 128 == 37 ? 4 : 1);
}

/* Scores in the hundreds and thousands: the softmax picks one of a few. */
static double huge_scores(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                          uint32_t channel)
{
    const double x = rng_normal(rng);

    (void)token;
    (void)head;
    (void)channel;
    return role == ROLE_V ? x : 30 * x;
}

/* Keys that do not change over 64 tokens, values that do not over 32 channels. */
static double constant_groups(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                              uint32_t channel)
{
    if (role == ROLE_K)
        return sign_of((uint32_t)(token / 64) * 31 + channel + head);
    if (role == ROLE_V)
        return sign_of((uint32_t)token + channel / 32);
    return rng_normal(rng);
}

/* Around the smallest numbers of f16. */
static double subnormal(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                        uint32_t channel)
{
    const double x = rng_normal(rng);

    (void)token;
    (void)head;
    (void)channel;
    return role == ROLE_Q ? x : ldexp(x, -(int)rng_between(rng, 16, 24));
}

/* Up to the largest number of f16 and down to its negative: ranges overflow. */
static double f16_max(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                      uint32_t channel)
{
    (void)token;
    (void)head;
    (void)channel;
    if (role == ROLE_Q)
        return 1e-4 * rng_normal(rng);
    return rng_one_in(rng, 3) ? (rng_one_in(rng, 2) ? 65504 : -65504)
                              : 65504 * (2 * rng_uniform(rng) - 1);
}

/* Zeros of both signs, and a few other numbers. */
static double zeros(struct rng *rng, enum role role, uint64_t token, uint32_t head,
                    uint32_t channel)
{
    (void)role;
    (void)token;
    (void)head;
    (void)channel;
    return rng_one_in(rng, 50) ? rng_normal(rng) : rng_one_in(rng, 2) ? 0.0 : -0.0;
}

const struct fill fill_ordinary = {"ordinary", RULE_RANDOM, ordinary};

const struct fill fill_kinds = {"two kinds of tokens", RULE_RANDOM, two_kinds};
const struct fill fill_repeating = {"weights that repeat", RULE_RANDOM, repeating};

const struct fill fill_adversarial[] = {
    {"one channel a thousand times the rest", RULE_ADVERSARIAL, huge_channel},
    {"one token with all the weight", RULE_ADVERSARIAL, one_token},
    {"tokens alike beside one with most of the weight", RULE_ADVERSARIAL, alike_tokens},
    {"queries of two sizes", RULE_ADVERSARIAL, alike_queries},
    {"huge scores", RULE_ADVERSARIAL, huge_scores},
    {"constant groups", RULE_ADVERSARIAL, constant_groups},
    {"subnormal numbers", RULE_ADVERSARIAL, subnormal},
    {"the largest numbers of f16", RULE_ADVERSARIAL, f16_max},
    {"zeros", RULE_ADVERSARIAL, zeros},
};
const size_t n_fill_adversarial = sizeof fill_adversarial / sizeof fill_adversarial[0];
