/* The plot: speed against context, a panel for each shape and number of threads. */
#define _POSIX_C_SOURCE 200809L

#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../examples/tool.h"

#define PANELS_MAX 24
#define SERIES_MAX 32
#define POINTS_MAX 32

enum {
    MARGIN = 20,
    HEAD = 74, /* title, machine and legend */
    PANEL_W = 460,
    PANEL_H = 300,
    AXIS_X = 62, /* from the panel's edge to the plot area */
    AXIS_Y = 48,
    TITLE_H = 30,
    LABELS_W = 92 /* names of the lines, at their right ends */
};

struct point {
    double context, speed, floor; /* tokens, tokens a microsecond measured and at the bandwidth */
};

struct series {
    const struct row *row; /* any of its rows */
    size_t n;
    struct point points[POINTS_MAX];
    double label_y;
};

struct panel {
    const struct row *row;
    size_t n;
    struct series series[SERIES_MAX];
    double first, last, top; /* contexts, and the speed at the top of the axis */
    double x, y, w, h;       /* plot area */
};

struct plot {
    size_t n, columns;
    struct panel panels[PANELS_MAX];
};

/* ------------------------------------------------------------ rows to panels */

static int is_plotted(const struct row *row)
{
    return strcmp(row->command, "decode") == 0 && strcmp(row->cache, "read") != 0 && !row->in_cache
           && row->of_read > 0;
}

static int same_panel(const struct row *a, const struct row *b)
{
    return a->threads == b->threads && a->batch == b->batch && a->queries == b->queries
           && a->appends == b->appends && strcmp(a->backend, b->backend) == 0
           && memcmp(&a->shape, &b->shape, sizeof a->shape) == 0;
}

static struct panel *panel_of(struct plot *p, const struct row *row)
{
    size_t i;

    for (i = 0; i < p->n; i++) {
        if (same_panel(p->panels[i].row, row))
            return &p->panels[i];
    }
    if (p->n == PANELS_MAX)
        return NULL;
    p->panels[p->n] = (struct panel){.row = row, .first = (double)row->context};
    return &p->panels[p->n++];
}

static struct series *series_of(struct panel *p, const struct row *row)
{
    size_t i;

    for (i = 0; i < p->n; i++) {
        if (strcmp(p->series[i].row->cache, row->cache) == 0
            && strcmp(p->series[i].row->precision, row->precision) == 0)
            return &p->series[i];
    }
    if (p->n == SERIES_MAX)
        return NULL;
    p->series[p->n] = (struct series){.row = row};
    return &p->series[p->n++];
}

static void add_row(struct plot *plot, const struct row *row)
{
    struct panel *panel = panel_of(plot, row);
    struct series *series = panel ? series_of(panel, row) : NULL;
    struct point point;

    if (!series || series->n == POINTS_MAX)
        return;
    point.context = (double)row->context;
    point.speed = point.context * (row->batch > 0 ? row->batch : 1) / (row->median * 1e6);
    point.floor = point.speed / row->of_read;
    series->points[series->n++] = point;
    panel->first = fmin(panel->first, point.context);
    panel->last = fmax(panel->last, point.context);
    panel->top = fmax(panel->top, fmax(point.speed, point.floor));
}

/* A round number not below x: 1, 2 or 5 times a power of ten. */
static double round_step(double x)
{
    const double power = pow(10, floor(log10(x)));
    const double digit = x / power;

    return (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10) * power;
}

/* Drops panels with a single context, and places the others. */
static void lay_out(struct plot *p)
{
    size_t i, n = 0;

    for (i = 0; i < p->n; i++) {
        if (p->panels[i].last > p->panels[i].first)
            p->panels[n++] = p->panels[i];
    }
    p->n = n;
    p->columns = 1;
    while (p->columns < n && p->columns < 3
           && p->panels[p->columns].row->threads != p->panels[0].row->threads)
        p->columns++;
    for (i = 0; i < n; i++) {
        struct panel *panel = &p->panels[i];

        panel->x = MARGIN + (double)(i % p->columns) * PANEL_W + AXIS_X;
        panel->y = HEAD + (double)(i / p->columns) * PANEL_H + TITLE_H;
        panel->w = PANEL_W - AXIS_X - LABELS_W;
        panel->h = PANEL_H - TITLE_H - AXIS_Y;
        panel->top *= 1.05;
    }
}

/* ------------------------------------------------------------------ drawing */

static double x_of(const struct panel *p, double context)
{
    return p->x + p->w * log2(context / p->first) / log2(p->last / p->first);
}

static double y_of(const struct panel *p, double speed)
{
    return p->y + p->h * (1 - speed / p->top);
}

static const char *color_of(const struct row *row)
{
    static const struct {
        const char *cache, *color;
    } colors[] = {{"f16", "#555555"}, {"8", "#1f6fb4"}, {"4", "#2a8f3c"}, {"2", "#c8441b"}};
    static const char *const others[] = {"#7a4fb0", "#a5781d", "#0e8d95", "#b0347f"};
    size_t i, hash = 0;

    for (i = 0; i < sizeof colors / sizeof *colors; i++) {
        if (strcmp(colors[i].cache, row->cache) == 0)
            return colors[i].color;
    }
    for (i = 0; row->cache[i]; i++)
        hash += (unsigned char)row->cache[i];
    return others[hash % (sizeof others / sizeof *others)];
}

static void draw_text(FILE *f, double x, double y, const char *anchor, int size, const char *color,
                      const char *text)
{
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\" fill=\"%s\">", x, y,
            anchor, size, color);
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", f);
        else if (*text == '&')
            fputs("&amp;", f);
        else
            fputc(*text, f);
    }
    fputs("</text>\n", f);
}

static void draw_rule(FILE *f, double x1, double y1, double x2, double y2, const char *color)
{
    fprintf(f, "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"%s\" fill=\"none\"/>\n", x1, y1, x2, y2,
            color);
}

static void draw_axes(FILE *f, const struct panel *p)
{
    const double step = round_step(p->top / 6);
    const int decimals = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);
    char text[32];
    double at;

    for (at = 0; at <= p->top; at += step) {
        draw_rule(f, p->x, y_of(p, at), p->x + p->w, y_of(p, at), "#e4e4e4");
        snprintf(text, sizeof text, "%.*f", decimals, at);
        draw_text(f, p->x - 6, y_of(p, at) + 4, "end", 11, "#333", text);
    }
    for (at = p->first; at <= p->last * 1.001; at *= 2) {
        draw_rule(f, x_of(p, at), p->y + p->h, x_of(p, at), p->y + p->h + 4, "#333");
        if (at >= 1024)
            snprintf(text, sizeof text, "%.4gK", at / 1024);
        else
            snprintf(text, sizeof text, "%.0f", at);
        draw_text(f, x_of(p, at), p->y + p->h + 17, "middle", 11, "#333", text);
    }
    draw_rule(f, p->x, p->y, p->x, p->y + p->h, "#333");
    draw_rule(f, p->x, p->y + p->h, p->x + p->w, p->y + p->h, "#333");
    draw_text(f, p->x + p->w / 2, p->y + p->h + 34, "middle", 12, "#333",
              "context, tokens (logarithmic)");
    fprintf(f, "<g transform=\"translate(%.1f %.1f) rotate(-90)\">", p->x - 44, p->y + p->h / 2);
    draw_text(f, 0, 0, "middle", 12, "#333", "context tokens per microsecond");
    fputs("</g>\n", f);
}

static void draw_title(FILE *f, const struct panel *p)
{
    const struct row *r = p->row;
    char text[160];
    int at = snprintf(text, sizeof text, "%u query heads, %u kv heads, ", r->shape.q_heads,
                      r->shape.kv_heads);

    if (r->batch > 0)
        at += snprintf(text + at, sizeof text - (size_t)at, "batch %u", r->batch);
    else
        at += snprintf(text + at, sizeof text - (size_t)at, "%u thread%s", r->threads,
                       r->threads == 1 ? "" : "s");
    if (r->shape.k_dim != 128 || r->shape.v_dim != 128 || r->shape.group != 32)
        at += snprintf(text + at, sizeof text - (size_t)at, ", dimension %u/%u, group %u",
                       r->shape.k_dim, r->shape.v_dim, r->shape.group);
    snprintf(text + at, sizeof text - (size_t)at, " (%s)", r->backend);
    draw_text(f, p->x, p->y - 10, "start", 13, "#111", text);
}

static void draw_line(FILE *f, const struct panel *p, const struct series *s, int floor_line)
{
    const int precise = strcmp(s->row->precision, "precise") == 0;
    const char *color = color_of(s->row);
    size_t i;

    fprintf(f, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"%s\"%s d=\"", color,
            floor_line ? "1.2" : "2",
            floor_line ? " stroke-dasharray=\"5 4\""
            : precise  ? " stroke-dasharray=\"1.5 2.5\""
                       : "");
    for (i = 0; i < s->n; i++)
        fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', x_of(p, s->points[i].context),
                y_of(p, floor_line ? s->points[i].floor : s->points[i].speed));
    fputs("\"/>\n", f);
    for (i = 0; i < s->n && !floor_line; i++)
        fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\" stroke=\"%s\"/>\n",
                x_of(p, s->points[i].context), y_of(p, s->points[i].speed),
                precise ? "#fff" : color, color);
}

/* Names beside the right ends of the lines, moved apart where they would overlap. */
static void draw_labels(FILE *f, struct panel *p)
{
    struct series *order[SERIES_MAX];
    size_t i, j;

    for (i = 0; i < p->n; i++) {
        struct series *s = &p->series[i];

        s->label_y = y_of(p, s->points[s->n - 1].speed);
        for (j = i; j > 0 && order[j - 1]->label_y < s->label_y; j--)
            order[j] = order[j - 1];
        order[j] = s;
    }
    for (i = 1; i < p->n; i++) { /* from the lowest on the page upwards */
        if (order[i]->label_y > order[i - 1]->label_y - 13)
            order[i]->label_y = order[i - 1]->label_y - 13;
    }
    for (i = 0; i < p->n; i++) {
        const struct row *row = order[i]->row;
        char text[48];

        snprintf(text, sizeof text, "%s%s%s", row->cache,
                 row->cache[1] == 0 ? " bits" : "", /* a single digit */
                 strcmp(row->precision, "precise") == 0 ? " precise" : "");
        draw_text(f, p->x + p->w + 8, order[i]->label_y + 4, "start", 12, color_of(row), text);
    }
}

static void draw_panel(FILE *f, struct panel *p)
{
    size_t i;

    draw_title(f, p);
    draw_axes(f, p);
    for (i = 0; i < p->n; i++) {
        if (strcmp(p->series[i].row->precision, "precise") != 0) /* both have the same floor */
            draw_line(f, p, &p->series[i], 1);
    }
    for (i = 0; i < p->n; i++)
        draw_line(f, p, &p->series[i], 0);
    draw_labels(f, p);
}

static void draw_head(FILE *f, const struct report *report)
{
    char text[256];

    draw_text(f, MARGIN, 28, "start", 17, "#111",
              "Attention of one decode step: speed against context");
    snprintf(text, sizeof text, "%s, %u cores", report->machine->cpu, report->machine->cores);
    draw_text(f, MARGIN, 46, "start", 12, "#555", report->gpu[0] != '\0' ? report->gpu : text);
    draw_rule(f, MARGIN, 61, MARGIN + 28, 61, "#333");
    draw_text(f, MARGIN + 34, 65, "start", 12, "#333", "measured, median");
    fprintf(f, "<path d=\"M%d 61h28\" stroke=\"#333\" stroke-dasharray=\"5 4\"/>\n", MARGIN + 180);
    draw_text(f, MARGIN + 214, 65, "start", 12, "#333",
              "limit of memory: bytes of the cache / read bandwidth of the same run");
}

int plot_write(FILE *f, const char *path, const struct report *report)
{
    static struct plot plot;
    size_t i, lines;
    int failed;

    plot.n = 0;
    for (i = 0; i < report->n_rows; i++) {
        if (is_plotted(&report->rows[i]))
            add_row(&plot, &report->rows[i]);
    }
    lay_out(&plot);
    if (plot.n == 0) {
        fprintf(stderr, "kivi-bench: a plot needs a shape that was measured with two contexts\n");
        fclose(f);
        return 0;
    }
    failed = !tool_begin(f);
    lines = (plot.n + plot.columns - 1) / plot.columns;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %zu %zu\" "
            "font-family=\"sans-serif\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            2 * MARGIN + plot.columns * PANEL_W, HEAD + MARGIN + lines * PANEL_H);
    draw_head(f, report);
    for (i = 0; i < plot.n; i++)
        draw_panel(f, &plot.panels[i]);
    fputs("</svg>\n", f);
    failed |= ferror(f);
    failed |= fclose(f);
    if (failed)
        fprintf(stderr, "kivi-bench: %s could not be written\n", path);
    return !failed;
}
