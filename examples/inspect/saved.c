#include "saved.h"

#include <kivi/kivi.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../lm/half.h"

enum { HEADER = 56, SEQUENCE = 12, RECORD = 72, SLAB = 128, TILE = 32 };

struct file {
    unsigned char *data;
    size_t size, at;
};

static int fail(struct fault *fault, const char *text)
{
    snprintf(fault->text, sizeof fault->text, "%s", text);
    return -1;
}

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(const unsigned char *p)
{
    return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32;
}

static double get_half(const unsigned char *p)
{
    return lm_float_of_half((uint16_t)(p[0] | p[1] << 8));
}

static int read_file(const char *path, struct file *f, struct fault *fault)
{
    FILE *from = fopen(path, "rb");
    int failed;

    if (!from)
        return fail(fault, "the file cannot be opened");
    for (failed = 0; !failed && !feof(from);) {
        unsigned char *more = realloc(f->data, f->size + (1u << 20));

        failed = !more;
        if (more) {
            f->data = more;
            f->size += fread(f->data + f->size, 1, 1u << 20, from);
            failed = ferror(from);
        }
    }
    fclose(from);
    return failed ? fail(fault, "the file cannot be read") : 0;
}

/* --------------------------------------------------------- the library's check */

static int read_callback(void *context, void *to, size_t bytes)
{
    struct file *f = context;

    if (bytes > f->size - f->at)
        return -1;
    memcpy(to, f->data + f->at, bytes);
    f->at += bytes;
    return 0;
}

static uint32_t crc32c(const unsigned char *p, size_t n)
{
    uint32_t crc = ~0u;
    int bit;

    for (; n > 0; n--, p++)
        for (crc ^= *p, bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    return ~crc;
}

/* As much as is needed to make a cache that fits. */
static int read_header(const struct file *f, struct saved *s, struct fault *fault)
{
    static const char magic[] = "KIVICACH";
    const size_t size = f->size < 8 ? f->size : 8;

    if (f->size == 0)
        return fail(fault, "the file is empty");
    if (memcmp(f->data, magic, size) != 0)
        return fail(fault, "this is not a saved cache");
    if (f->size < HEADER)
        return fail(fault, "the file ends early: in its header");
    if (get32(f->data + 8) != 1)
        return fail(fault, "this is a saved cache of another version than 1");
    if (get32(f->data + 52) != crc32c(f->data, 52))
        return fail(fault, "the header is damaged");
    s->bytes = f->size;
    s->n_layers = get32(f->data + 12);
    s->n_kv_heads = get32(f->data + 16);
    s->k_dim = get32(f->data + 20);
    s->v_dim = get32(f->data + 24);
    s->group_size = get32(f->data + 28);
    s->residual_length = get32(f->data + 32);
    s->n_sink = get32(f->data + 36);
    s->n_sequences = get64(f->data + 40);
    if (s->n_layers == 0 || s->n_layers > 65536 || s->n_kv_heads == 0 || s->n_kv_heads > 65536
        || s->k_dim == 0 || s->k_dim > 512 || s->v_dim == 0 || s->v_dim > 512 || s->group_size == 0)
        return fail(fault, "the header makes no sense");
    if (s->n_sequences > f->size / (SEQUENCE + RECORD))
        return fail(fault, "the file ends early: the header promises more sequences");
    return 0;
}

/* What no record can have stands for 2: the library will say that the record is damaged. */
static uint8_t bits_of(uint32_t bits)
{
    return bits == 4 || bits == 8 || bits == 16 ? (uint8_t)bits : 2;
}

/* The bits of each layer: those of the first sequence's records, as far as they go. */
static void read_bits(const struct file *f, const struct saved *s, uint8_t *k_bits, uint8_t *v_bits)
{
    size_t at = HEADER + SEQUENCE;
    uint32_t i;

    memset(k_bits, 2, s->n_layers);
    memset(v_bits, 2, s->n_layers);
    for (i = 0; s->n_sequences && i < s->n_layers && f->size >= at + RECORD; i++) {
        const uint64_t payload = get64(f->data + at + 56);

        k_bits[i] = bits_of(get32(f->data + at));
        v_bits[i] = bits_of(get32(f->data + at + 4));
        if (payload > f->size - at - RECORD) /* which the library will say */
            return;
        at += RECORD + (size_t)payload + 4;
    }
}

/* Everything that a reader has to check, the library checks: loads it into a cache made to fit. */
static int load(struct file *f, const struct saved *s, const uint8_t *k_bits, const uint8_t *v_bits,
                struct fault *fault)
{
    const size_t room = (size_t)s->n_sequences;
    kivi_seq *seqs = malloc((2 * room + 1) * sizeof *seqs);
    kivi_cache *cache = NULL;
    kivi_config config;
    kivi_error error;
    size_t n;

    if (!seqs)
        return fail(fault, "out of memory");
    kivi_config_init(&config);
    config.n_layers = s->n_layers;
    config.n_q_heads = config.n_kv_heads = s->n_kv_heads;
    config.k_dim = s->k_dim;
    config.v_dim = s->v_dim;
    config.group_size = s->group_size;
    config.residual_length = s->residual_length;
    config.n_sink = s->n_sink;
    config.layer_k_bits = k_bits;
    config.layer_v_bits = v_bits;
    config.max_sequences = s->n_sequences > 0 ? (uint32_t)s->n_sequences : 1;
    f->at = 0;
    if (kivi_cache_create(&config, &cache, &error) != KIVI_OK
        || kivi_cache_load(cache, read_callback, f, seqs, seqs + room, room, &n, &error) != KIVI_OK)
        fail(fault, error.status == KIVI_ERROR_IO ? "the file ends early" : error.message);
    else if (f->at != f->size)
        error.status = fail(fault, "there is more after the last sequence");
    kivi_cache_destroy(cache);
    free(seqs);
    return error.status == KIVI_OK ? 0 : -1;
}

/* -------------------------------------------------------------- statistics */

static int scales_init(struct scales *s, uint32_t bits, uint32_t n_channels)
{
    s->bits = bits;
    s->n_channels = n_channels;
    s->least = INFINITY;
    s->channel = calloc(n_channels, sizeof *s->channel);
    s->count = calloc(n_channels, sizeof *s->count);
    return s->channel && s->count ? 0 : -1;
}

static void add_scale(struct scales *s, uint32_t channel, double scale)
{
    int bin;

    s->n++;
    s->sum += scale;
    s->squares += scale * scale;
    s->channel[channel] += scale;
    s->count[channel]++;
    if (scale <= 0) {
        s->zero++;
        return;
    }
    s->least = fmin(s->least, scale);
    s->most = fmax(s->most, scale);
    bin = (int)floor(2 * (log2(scale) - LOWEST_BIN));
    s->bin[bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin]++;
}

static uint64_t block_bytes(uint32_t bits, uint32_t dim, uint32_t tokens, uint32_t n_scales)
{
    if (bits == 16)
        return (uint64_t)tokens * dim * 2;
    return (uint64_t)tokens * ((dim + 15) / 16 * 16) * bits / 8 + 4ull * n_scales;
}

/* The scales of a layer's blocks, one after the other. */
static void walk_blocks(const struct saved *s, struct layer_report *r, const unsigned char *p,
                        uint64_t k_packed, uint64_t v_packed)
{
    const uint32_t pad = (s->k_dim + 15) / 16 * 16;
    const uint32_t groups = (s->v_dim + s->group_size - 1) / s->group_size;
    const uint64_t k_bytes = block_bytes(r->keys.bits, s->k_dim, s->group_size, pad);
    const uint64_t v_bytes = block_bytes(r->values.bits, s->v_dim, TILE, groups * TILE);
    uint64_t slab, t;
    uint32_t head, i;

    for (slab = 0; slab < k_packed; slab += SLAB) {
        for (head = 0; head < s->n_kv_heads; head++) {
            for (t = slab; t < slab + SLAB && t < k_packed; t += s->group_size, p += k_bytes)
                for (i = 0; r->keys.bits < 16 && i < s->k_dim; i++)
                    add_scale(&r->keys, head * s->k_dim + i,
                              get_half(p + k_bytes - 4 * pad + 2 * i));
            for (t = slab; t < slab + SLAB && t < v_packed; t += TILE, p += v_bytes)
                for (i = 0; r->values.bits < 16 && i < groups * TILE; i++)
                    if (t + i % TILE < v_packed)
                        add_scale(&r->values, head * groups + i / TILE,
                                  get_half(p + v_bytes - 4 * groups * TILE + 2 * i));
        }
    }
}

/* The file has been loaded: its lengths can be trusted. */
static void walk(const struct file *f, struct saved *s)
{
    const unsigned char *p = f->data + HEADER;
    uint64_t i;
    uint32_t l;

    for (i = 0; i < s->n_sequences; i++) {
        struct sequence_report *q = &s->sequences[i];

        q->handle = get64(p);
        p += SEQUENCE;
        for (l = 0; l < s->n_layers; l++) {
            const uint64_t n = get64(p + 8), payload = get64(p + 56);
            const uint64_t sinks = n < s->n_sink ? n : s->n_sink;
            const uint64_t rows = s->n_kv_heads * 2
                                  * (sinks * (s->k_dim + s->v_dim) + (n - get64(p + 40)) * s->k_dim
                                     + (n - get64(p + 48)) * s->v_dim);

            walk_blocks(s, &s->layers[l], p + RECORD, get64(p + 16), get64(p + 24));
            s->layers[l].row_bytes += rows;
            s->layers[l].packed_bytes += payload - rows;
            q->layers_differ |= l > 0 && n != q->tokens;
            q->tokens = l == 0 ? n : q->tokens;
            q->bytes += RECORD + payload + 4;
            p += RECORD + payload + 4;
        }
    }
    for (l = 0; l < s->n_layers; l++) {
        struct scales *both[] = {&s->layers[l].keys, &s->layers[l].values};
        uint32_t which, c;

        for (which = 0; which < 2; which++)
            for (c = 0; c < both[which]->n_channels; c++)
                if (both[which]->count[c])
                    both[which]->channel[c] /= (double)both[which]->count[c];
    }
}

int saved_read(const char *path, struct saved *s, struct fault *fault)
{
    struct file f = {NULL, 0, 0};
    uint8_t *bits = NULL;
    uint32_t groups, l;
    int result = -1;

    memset(s, 0, sizeof *s);
    if (read_file(path, &f, fault) || read_header(&f, s, fault))
        goto end;
    bits = malloc(2 * (size_t)s->n_layers);
    if (!bits) {
        fail(fault, "out of memory");
        goto end;
    }
    read_bits(&f, s, bits, bits + s->n_layers);
    if (load(&f, s, bits, bits + s->n_layers, fault))
        goto end;
    groups = (s->v_dim + s->group_size - 1) / s->group_size;
    s->sequences = calloc(s->n_sequences + 1, sizeof *s->sequences);
    s->layers = calloc(s->n_layers, sizeof *s->layers);
    fail(fault, "out of memory");
    for (l = 0; s->layers && l < s->n_layers; l++)
        if (scales_init(&s->layers[l].keys, bits[l], s->n_kv_heads * s->k_dim)
            || scales_init(&s->layers[l].values, bits[s->n_layers + l], s->n_kv_heads * groups))
            goto end;
    if (s->sequences && s->layers) {
        walk(&f, s);
        result = 0;
    }
end:
    free(bits);
    free(f.data);
    return result;
}

void saved_free(struct saved *s)
{
    uint32_t l;

    for (l = 0; s->layers && l < s->n_layers; l++) {
        free(s->layers[l].keys.channel);
        free(s->layers[l].keys.count);
        free(s->layers[l].values.channel);
        free(s->layers[l].values.count);
    }
    free(s->layers);
    free(s->sequences);
    memset(s, 0, sizeof *s);
}

double rms_error(const struct scales *s)
{
    return s->n ? sqrt(s->squares / (double)s->n / 12) : 0;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double median_channel(const struct scales *s)
{
    double *sorted = malloc(s->n_channels * sizeof *sorted), median = 0;

    if (sorted) {
        memcpy(sorted, s->channel, s->n_channels * sizeof *sorted);
        qsort(sorted, s->n_channels, sizeof *sorted, compare);
        median = sorted[s->n_channels / 2];
    }
    free(sorted);
    return median;
}

uint32_t largest_channel(const struct scales *s)
{
    uint32_t c, best = 0;

    for (c = 1; c < s->n_channels; c++)
        if (s->channel[c] > s->channel[best])
            best = c;
    return best;
}
