#include "svg.h"

#include <math.h>
#include <stdio.h>

#define LEFT 70
#define STRIP 720 /* width of the channels' bars */
#define HISTOGRAM 240
#define ROW 76 /* height of a layer */
#define BAR 56

/* One bar to a channel, as high as its mean scale against the layer's largest. */
static void draw_channels(FILE *f, const struct scales *s, uint32_t per_head, double top)
{
    const double width = (double)STRIP / s->n_channels;
    const double most = s->channel[largest_channel(s)];
    uint32_t c;

    for (c = 0; most > 0 && c < s->n_channels; c++) {
        const double height = BAR * s->channel[c] / most;

        fprintf(f, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"/>\n",
                LEFT + c * width, top + BAR - height, fmax(width * 0.9, 0.3), height,
                c / per_head % 2 ? "#7a9cc6" : "#34567d");
    }
}

static void draw_histogram(FILE *f, const struct scales *s, double top, const char *colour)
{
    const double width = (double)HISTOGRAM / BINS;
    uint64_t most = 1;
    int i;

    for (i = 0; i < BINS; i++)
        most = s->bin[i] > most ? s->bin[i] : most;
    for (i = 0; i < BINS; i++) {
        const double height = BAR * (double)s->bin[i] / (double)most;

        fprintf(f,
                "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\" "
                "fill-opacity=\"0.6\"/>\n",
                LEFT + STRIP + 30 + i * width, top + BAR - height, width, height, colour);
    }
}

int svg_write(const struct saved *s, const char *path, struct fault *fault)
{
    const int width = LEFT + STRIP + 30 + HISTOGRAM + 20, height = 60 + ROW * (int)s->n_layers;
    FILE *f = fopen(path, "w");
    uint32_t l;
    int failed;

    if (!f) {
        snprintf(fault->text, sizeof fault->text, "%s cannot be written", path);
        return -1;
    }
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"11\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
            "<text x=\"%d\" y=\"20\">mean scale of each key channel, kv heads in turn, against the "
            "layer's largest</text>\n"
            "<text x=\"%d\" y=\"20\">log2 of scales, %d to %d: </text>\n"
            "<text x=\"%d\" y=\"34\" fill=\"#34567d\">keys</text>"
            "<text x=\"%d\" y=\"34\" fill=\"#b5651d\">values</text>\n",
            width, height, width, height, LEFT, LEFT + STRIP + 30, LOWEST_BIN,
            LOWEST_BIN + BINS / 2, LEFT + STRIP + 30, LEFT + STRIP + 65);
    for (l = 0; l < s->n_layers; l++) {
        const double top = 44 + (double)ROW * l;

        fprintf(f, "<text x=\"10\" y=\"%.1f\">layer %u</text>\n", top + BAR / 2, l);
        fprintf(f, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#ccc\"/>\n", LEFT,
                top + BAR, width - 20, top + BAR);
        draw_channels(f, &s->layers[l].keys, s->k_dim, top);
        draw_histogram(f, &s->layers[l].keys, top, "#34567d");
        draw_histogram(f, &s->layers[l].values, top, "#b5651d");
    }
    fprintf(f, "</svg>\n");
    failed = ferror(f);
    failed |= fclose(f);
    if (failed)
        snprintf(fault->text, sizeof fault->text, "%s cannot be written", path);
    return failed ? -1 : 0;
}
