#define _POSIX_C_SOURCE 200809L

#include "report.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

#define BAR 40

/* ------------------------------------------------------------------- bar */

void lm_progress_begin(struct lm_progress *progress)
{
    progress->on = isatty(STDERR_FILENO);
    progress->start = lm_seconds();
    progress->drawn = 0;
}

void lm_progress_show(struct lm_progress *progress, uint64_t done, uint64_t all)
{
    const double now = progress->on ? lm_seconds() : 0;
    const double elapsed = now - progress->start;
    const double part = (double)done / (double)all;
    char bar[BAR + 1];

    if (!progress->on || done == 0 || now - progress->drawn < 0.1)
        return;
    progress->drawn = now;
    for (int i = 0; i < BAR; i++)
        bar[i] = i < (int)(part * BAR) ? '#' : '.';
    bar[BAR] = '\0';
    fprintf(stderr, "\r[%s] %3.0f%%, %.0f s left ", bar, 100 * part, elapsed / part - elapsed);
}

void lm_progress_end(struct lm_progress *progress)
{
    if (progress->on)
        fprintf(stderr, "\r%*s\r", BAR + 24, "");
}

/* ------------------------------------------------------- derived numbers */

static double bytes_per_token(const struct lm_usage *u)
{
    return (double)(u->code_bytes + u->scale_bytes + u->window_bytes) / (double)u->tokens;
}

static double compression(const struct lm_usage *u)
{
    return (double)u->f16_bytes / (double)(u->code_bytes + u->scale_bytes + u->window_bytes);
}

static double tokens_per_second(const struct lm_evaluation *e, size_t type)
{
    return (double)e->positions / e->results[type].seconds;
}

/* ----------------------------------------------------------------- table */

static void print_head(const struct lm_evaluation *e)
{
    const struct lm_model *m = e->model;
    const struct lm_cache_options *c = &e->options->cache;

    printf("model  %s: %s, %.2f million weights, %u layers, %u query and %u kv heads of %u\n",
           e->options->model, m->name, (double)m->n_weights / 1e6, m->n_layers, m->n_heads,
           m->n_kv_heads, m->k_dim);
    printf("text   %s: %zu %s of %u bytes\n", e->options->text, e->n_windows,
           e->n_windows == 1 ? "window" : "windows", e->context);
    printf("cache  groups of %u, the newest %u tokens in full precision", c->group_size,
           c->residual_length);
    if (c->n_sink)
        printf(", and the first %u", c->n_sink);
    printf("\nby     %s\n\n", e->backend);
}

void lm_print_table(const struct lm_evaluation *e)
{
    int footnote = 0;

    print_head(e);
    printf("%-10s %9s %9s %10s %12s %12s %10s\n", "cache", "bits/byte", "change", "KL, nats",
           "bytes/token", "compression", "tokens/s");
    for (size_t i = 0; i < e->options->n_types; i++) {
        const struct lm_result *r = &e->results[i];
        const int per_token = e->options->types[i].keys_per_token;

        printf("%-10s %9.4f", e->options->types[i].name, r->bits_per_byte);
        if (i == 0)
            printf(" %9s %10s", "-", "-");
        else
            printf(" %+9.4f %10.5f", r->bits_per_byte - e->results[0].bits_per_byte, r->kl);
        printf(" %12.1f %11.2fx %10.0f%s\n", bytes_per_token(&r->usage), compression(&r->usage),
               tokens_per_second(e, i), per_token ? "*" : "");
        footnote = footnote || per_token;
    }
    if (footnote)
        printf(
            "* keys quantized per token; attention is plain C in this program, not the library\n");
    printf("\n%llu positions for each type, in %.1f s\n", (unsigned long long)e->positions,
           e->seconds);
}

/* ------------------------------------------------------------------ JSON */

static void print_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < ' ' || c > '~') /* a path need not be UTF-8 */
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void print_field(const char *name, const char *text)
{
    printf("  \"%s\": ", name);
    print_string(text);
    printf(",\n");
}

void lm_print_json(const struct lm_evaluation *e)
{
    const struct lm_cache_options *c = &e->options->cache;

    printf("{\n");
    print_field("model", e->options->model);
    print_field("model_name", e->model->name);
    print_field("text", e->options->text);
    print_field("backend", e->backend);
    printf("  \"context\": %u,\n  \"windows\": %zu,\n  \"positions\": %llu,\n", e->context,
           e->n_windows, (unsigned long long)e->positions);
    printf("  \"group\": %u,\n  \"residual\": %u,\n  \"sink\": %u,\n  \"precise\": %s,\n",
           c->group_size, c->residual_length, c->n_sink,
           c->precision == KIVI_PRECISE ? "true" : "false");
    printf("  \"seconds\": %.3f,\n  \"caches\": [", e->seconds);
    for (size_t i = 0; i < e->options->n_types; i++) {
        const struct lm_result *r = &e->results[i];

        printf("%s\n    {\"cache\": \"%s\", \"bits_per_byte\": %.6f, \"change\": %.6f, "
               "\"kl\": %.8f,\n",
               i ? "," : "", e->options->types[i].name, r->bits_per_byte,
               r->bits_per_byte - e->results[0].bits_per_byte, r->kl);
        printf("     \"bytes_per_token\": %.3f, \"compression\": %.4f, \"tokens_per_second\": "
               "%.1f,\n",
               bytes_per_token(&r->usage), compression(&r->usage), tokens_per_second(e, i));
        printf("     \"tokens_held\": %llu, \"code_bytes\": %llu, \"scale_bytes\": %llu, "
               "\"window_bytes\": %llu, \"f16_bytes\": %llu}",
               (unsigned long long)r->usage.tokens, (unsigned long long)r->usage.code_bytes,
               (unsigned long long)r->usage.scale_bytes, (unsigned long long)r->usage.window_bytes,
               (unsigned long long)r->usage.f16_bytes);
    }
    printf("\n  ]\n}\n");
}
