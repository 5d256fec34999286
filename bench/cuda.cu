/*
 * Decode, append and prefill on a GPU, through the same interface. Arrays lie in device memory, calls do not wait,
 * and time is that of events on the stream. A decode row is the layers of one step in a CUDA
 * graph, as many layers as it takes for their data to exceed the L2 cache several times; beside it stand
 * the same calls without a graph, and a kernel that only reads as many bytes.
 */
#include <cuda_runtime.h>
#include <kivi/kivi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "bench.h"
}

#define OK(call)                                                                                   \
    do {                                                                                           \
        const cudaError_t code_ = (call);                                                          \
        if (code_ != cudaSuccess) {                                                                \
            fprintf(stderr, "kivi-bench: %s: %s\n", #call, cudaGetErrorString(code_));             \
            return 0;                                                                              \
        }                                                                                          \
    } while (0)

namespace {

constexpr int ROUNDS = 41;
constexpr uint32_t MAX_LAYERS = 96, MAX_BATCH = 256;
constexpr uint64_t CHUNK = 4096; /* tokens that are appended in one call */

/* The shapes of attention that the table is about: batch, query heads, kv heads, tokens. */
const uint32_t shapes[][4] = {{1, 32, 8, 4096},  {1, 32, 8, 32768}, {1, 32, 8, 131072},
                              {8, 32, 8, 16384}, {32, 32, 8, 4096}, {1, 32, 32, 32768},
                              {16, 32, 32, 4096}};

__global__ void read_all(const uint4 *data, size_t n, uint32_t *result)
{
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint4 sum = make_uint4(0, 0, 0, 0);

    for (; i + 3 * stride < n; i += 4 * stride) {
        uint4 x[4];

        for (int j = 0; j < 4; j++)
            x[j] = __ldcs(data + i + j * stride);
        for (int j = 0; j < 4; j++) {
            sum.x ^= x[j].x;
            sum.y ^= x[j].y;
            sum.z ^= x[j].z;
            sum.w ^= x[j].w;
        }
    }
    for (; i < n; i += stride)
        sum.x ^= __ldcs(data + i).x;
    if ((sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x12345678u)
        *result = sum.x; /* so that nothing is left out */
}

/* What is timed: all layers of a step, on the stream. */
struct work {
    virtual int run(cudaStream_t stream) = 0;
    virtual ~work() {}
};

struct timer {
    cudaEvent_t begin, end;

    int open()
    {
        OK(cudaEventCreate(&begin));
        OK(cudaEventCreate(&end));
        return 1;
    }
    void close()
    {
        cudaEventDestroy(begin);
        cudaEventDestroy(end);
    }
};

/* The median over rounds, in seconds; with `in_graph`, of a replay. `least` may be NULL. */
int time_work(work *w, cudaStream_t stream, bool in_graph, double *seconds, double *least = NULL)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    double samples[ROUNDS];
    timer t;

    if (!t.open())
        return 0;
    if (in_graph) {
        OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
        if (!w->run(stream))
            return 0;
        OK(cudaStreamEndCapture(stream, &graph));
        OK(cudaGraphInstantiate(&exec, graph, 0));
    }
    for (int i = -3; i < ROUNDS; i++) {
        float ms;

        OK(cudaEventRecord(t.begin, stream));
        if (in_graph)
            OK(cudaGraphLaunch(exec, stream));
        else if (!w->run(stream))
            return 0;
        OK(cudaEventRecord(t.end, stream));
        OK(cudaEventSynchronize(t.end));
        OK(cudaEventElapsedTime(&ms, t.begin, t.end));
        if (i >= 0)
            samples[i] = ms * 1e-3;
    }
    *seconds = median(samples, ROUNDS);
    if (least)
        *least = minimum(samples, ROUNDS);
    if (in_graph) {
        OK(cudaGraphExecDestroy(exec));
        OK(cudaGraphDestroy(graph));
    }
    t.close();
    return 1;
}

/* --------------------------------------------------------------- bandwidth */

struct reading : work {
    const unsigned char *data;
    uint32_t *result;
    size_t bytes; /* of a launch */
    uint32_t n, blocks;

    int run(cudaStream_t stream) override
    {
        for (uint32_t i = 0; i < n; i++)
            read_all<<<blocks, 512, 0, stream>>>((const uint4 *)(data + i * bytes), bytes / 16,
                                                 result);
        OK(cudaGetLastError());
        return 1;
    }
};

/* Seconds of a launch that reads `bytes`, over a buffer of n times that. */
int time_reading(size_t bytes, uint32_t n, int multiprocessors, cudaStream_t stream, double *seconds)
{
    reading r;
    void *data, *result;

    bytes = (bytes + 15) / 16 * 16;
    OK(cudaMalloc(&data, bytes * n));
    OK(cudaMalloc(&result, 16));
    OK(cudaMemset(data, 0x5a, bytes * n));
    r.data = (const unsigned char *)data;
    r.result = (uint32_t *)result;
    r.bytes = bytes;
    r.n = n;
    r.blocks = 4 * (uint32_t)multiprocessors;
    if (!time_work(&r, stream, true, seconds))
        return 0;
    *seconds /= n;
    OK(cudaFree(data));
    OK(cudaFree(result));
    return 1;
}

struct copying : work {
    void *to, *from;
    size_t bytes;

    int run(cudaStream_t stream) override
    {
        OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
        return 1;
    }
};

/* Bytes read and written in a second. */
int copy_bandwidth(cudaStream_t stream, double *bandwidth)
{
    copying c;
    double seconds;

    c.bytes = (size_t)1 << 30;
    OK(cudaMalloc(&c.to, c.bytes));
    OK(cudaMalloc(&c.from, c.bytes));
    OK(cudaMemset(c.from, 0x5a, c.bytes));
    if (!time_work(&c, stream, false, &seconds))
        return 0;
    *bandwidth = 2.0 * (double)c.bytes / seconds;
    OK(cudaFree(c.to));
    OK(cudaFree(c.from));
    return 1;
}

/* ------------------------------------------------------------------- cache */

struct gpu {
    struct bench *bench;
    const struct scenario *scenario;
    int multiprocessors;
    size_t l2;
    cudaStream_t stream;
};

/* A batch of sequences in several layers. */
struct steps : work {
    kivi_cache *cache;
    kivi_item items[MAX_BATCH];
    uint64_t tokens[MAX_BATCH]; /* of each sequence */
    uint32_t batch, n_layers;
    kivi_attention attention;
    kivi_error error;

    int run(cudaStream_t stream) override
    {
        attention.stream = stream;
        for (uint32_t layer = 0; layer < n_layers; layer++)
            if (kivi_run(cache, layer, items, batch, &attention, &error) != KIVI_OK) {
                fprintf(stderr, "kivi-bench: %s\n", error.message);
                return 0;
            }
        return 1;
    }
};

struct device_arrays {
    void *k, *v, *q, *out; /* f16 */
};

int upload(void **device, const void *host, size_t bytes)
{
    OK(cudaMalloc(device, bytes));
    OK(cudaMemcpy(*device, host, bytes, cudaMemcpyHostToDevice));
    return 1;
}

/* f16 of normal numbers within f16's normal range, or 0. */
uint16_t half_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    if ((bits >> 23 & 255) < 113)
        return 0;
    return (uint16_t)(bits >> 16 & 0x8000)
           | (uint16_t)(((bits & 0x7fffffff) - (112u << 23)) >> 13);
}

/* For as many new tokens, and queries of all sequences. */
int make_arrays(const struct gpu *g, const struct shape *s, uint64_t tokens, uint32_t queries, device_arrays *a)
{
    const size_t n_q = (size_t)queries * s->q_heads * (s->k_dim > s->v_dim ? s->k_dim : s->v_dim);
    float *q = (float *)malloc(n_q * sizeof *q);
    uint16_t *halves = (uint16_t *)malloc(n_q * sizeof *halves);
    struct chunk chunk;
    int ok = q && halves
             && chunk_make(&chunk, tokens, s->kv_heads, s->k_dim, s->v_dim,
                           g->bench->settings->gauss);

    if (ok) {
        gaussian(q, n_q, 4);
        for (size_t i = 0; i < n_q; i++)
            halves[i] = half_of(q[i]);
        ok = upload(&a->k, chunk.k, tokens * s->kv_heads * s->k_dim * 2)
             && upload(&a->v, chunk.v, tokens * s->kv_heads * s->v_dim * 2)
             && upload(&a->q, halves, n_q * 2) && upload(&a->out, halves, n_q * 2);
        chunk_free(&chunk);
    } else {
        fprintf(stderr, "kivi-bench: out of memory\n");
    }
    free(q);
    free(halves);
    return ok;
}

void free_arrays(device_arrays *a)
{
    cudaFree(a->k);
    cudaFree(a->v);
    cudaFree(a->q);
    cudaFree(a->out);
}

/* The cache with each sequence's tokens in every layer, and items of so many queries. */
int fill(steps *w, const struct shape *s, struct cache_type type, uint32_t queries,
         const device_arrays *a)
{
    uint64_t most = 0;
    kivi_config config;

    kivi_config_init(&config);
    config.n_layers = w->n_layers;
    config.n_q_heads = s->q_heads;
    config.n_kv_heads = s->kv_heads;
    config.k_dim = s->k_dim;
    config.v_dim = s->v_dim;
    config.k_bits = type.k_bits;
    config.v_bits = type.v_bits;
    config.group_size = s->group;
    config.max_sequences = w->batch;
    config.backend = "cuda";
    config.memory = KIVI_MEMORY_DEVICE;
    if (kivi_cache_create(&config, &w->cache, &w->error) != KIVI_OK) {
        fprintf(stderr, "kivi-bench: %s\n", w->error.message);
        return 0;
    }
    memset(w->items, 0, sizeof w->items);
    for (uint32_t i = 0; i < w->batch; i++) {
        kivi_item *item = &w->items[i];

        if (kivi_seq_create(w->cache, &item->seq, &w->error) != KIVI_OK)
            return 0;
        item->k.data = a->k;
        item->v.data = a->v;
        item->k.dtype = item->v.dtype = KIVI_F16;
        most = w->tokens[i] > most ? w->tokens[i] : most;
    }
    kivi_attention_init(&w->attention);
    for (uint64_t at = 0; at < most; at += CHUNK) {
        for (uint32_t i = 0; i < w->batch; i++) {
            const uint64_t left = w->tokens[i] > at ? w->tokens[i] - at : 0;

            w->items[i].n_new = left < CHUNK ? left : CHUNK;
        }
        if (!w->run(NULL))
            return 0;
    }
    OK(cudaDeviceSynchronize());
    for (uint32_t i = 0; i < w->batch; i++) {
        kivi_item *item = &w->items[i];

        item->n_new = 0;
        item->n_q = queries;
        item->q.data = (uint16_t *)a->q + (size_t)i * queries * s->q_heads * s->k_dim;
        item->out.data = (uint16_t *)a->out + (size_t)i * queries * s->q_heads * s->v_dim;
        item->q.dtype = item->out.dtype = KIVI_F16;
    }
    return 1;
}

void set_new(steps *w, uint64_t n)
{
    for (uint32_t i = 0; i < w->batch; i++)
        w->items[i].n_new = n;
}

/* -------------------------------------------------------------------- rows */

/* Adds what all rows say, and reports the row. */
int report(const struct gpu *g, struct row *row, const struct shape &shape, struct cache_type type,
           uint32_t n_layers, uint64_t bytes, uint64_t footprint)
{
    row->shape = shape;
    type_name(type, row->cache, sizeof row->cache);
    row->layers = n_layers;
    row->rounds = ROUNDS;
    row->bytes = bytes;
    row->footprint = footprint;
    if (report_row(&g->bench->report, row))
        return 1;
    fprintf(stderr, "kivi-bench: out of memory\n");
    return 0;
}

int decode_row(const struct gpu *g, const uint32_t at[4], struct cache_type type,
               kivi_precision precision)
{
    const struct scenario *sc = g->scenario;
    const struct shape s = {at[1], at[2], sc->k_dim, sc->v_dim, sc->group};
    uint64_t bytes = 0, wanted;
    struct row row = {};
    device_arrays arrays;
    static steps w;

    w.batch = at[0];
    for (uint32_t i = 0; i < w.batch; i++) {
        w.tokens[i] = sc->shortest && w.batch > 1
                          ? sc->shortest + (uint64_t)(at[3] - sc->shortest) * i / (w.batch - 1)
                          : at[3];
        bytes += sequence_bytes(&s, type, w.tokens[i]);
    }
    wanted = (8 * (uint64_t)g->l2 + bytes - 1) / bytes;
    w.n_layers = wanted > MAX_LAYERS ? MAX_LAYERS : wanted < 2 ? 2 : (uint32_t)wanted;
    if (!make_arrays(g, &s, CHUNK, w.batch * sc->queries, &arrays)
        || !fill(&w, &s, type, sc->queries, &arrays))
        return 0;
    w.attention.precision = precision;
    if (!time_work(&w, g->stream, false, &row.queued)
        || !time_work(&w, g->stream, true, &row.median, &row.min))
        return 0;
    set_new(&w, sc->queries);
    if (!w.run(g->stream) /* first, pages are taken */
        || !time_work(&w, g->stream, true, &row.with_append))
        return 0;
    kivi_cache_destroy(w.cache);
    free_arrays(&arrays);
    if (!time_reading(bytes, w.n_layers, g->multiprocessors, g->stream, &row.reading))
        return 0;
    row.command = "decode";
    row.backend = "cuda";
    row.precision = precision == KIVI_STANDARD ? "standard" : "precise";
    row.batch = at[0];
    row.queries = sc->queries;
    row.context = at[3];
    row.shortest = w.batch > 1 ? sc->shortest : 0;
    row.median /= w.n_layers;
    row.min /= w.n_layers;
    row.queued /= w.n_layers;
    row.with_append /= w.n_layers;
    row.of_read = row.reading / row.median;
    return report(g, &row, s, type, w.n_layers, bytes, w.n_layers * bytes);
}

int decode_rows(const struct gpu *g, const uint32_t at[4])
{
    const struct scenario *s = g->scenario;

    for (size_t i = 0; i < s->types.n; i++) {
        if ((s->precisions & PRECISION_STANDARD) && !decode_row(g, at, s->types.at[i], KIVI_STANDARD))
            return 0;
        if ((s->precisions & PRECISION_PRECISE) && !decode_row(g, at, s->types.at[i], KIVI_PRECISE))
            return 0;
    }
    return 1;
}

int append_row(const struct gpu *g, uint32_t kv_heads, uint64_t tokens, struct cache_type type, double bandwidth)
{
    const struct scenario *sc = g->scenario;
    const struct shape s = {sc->q_heads, kv_heads, sc->k_dim, sc->v_dim, sc->group};
    const uint64_t input = tokens * kv_heads * (s.k_dim + s.v_dim) * 2;
    const uint64_t bytes = input + sequence_bytes(&s, type, tokens);
    device_arrays arrays;
    struct row row = {};
    static steps w;

    w.batch = 1;
    w.tokens[0] = 0;
    w.n_layers = (uint32_t)(8 * g->l2 / input + 1);
    if (!make_arrays(g, &s, tokens, 1, &arrays) || !fill(&w, &s, type, 0, &arrays))
        return 0;
    w.items[0].n_new = tokens;
    /* The layers' outputs differ; the input is read from a copy for each, so that it is not in L2. */
    {
        struct spread : work {
            steps *w;
            unsigned char *k, *v;
            size_t k_bytes, v_bytes;

            int run(cudaStream_t stream) override
            {
                w->attention.stream = stream;
                for (uint32_t layer = 0; layer < w->n_layers; layer++) {
                    w->items[0].k.data = k + layer * k_bytes;
                    w->items[0].v.data = v + layer * v_bytes;
                    if (kivi_run(w->cache, layer, w->items, 1, &w->attention, &w->error) != KIVI_OK) {
                        fprintf(stderr, "kivi-bench: %s\n", w->error.message);
                        return 0;
                    }
                }
                return 1;
            }
        } spread;

        spread.w = &w;
        spread.k_bytes = tokens * kv_heads * s.k_dim * 2;
        spread.v_bytes = tokens * kv_heads * s.v_dim * 2;
        OK(cudaMalloc((void **)&spread.k, spread.k_bytes * w.n_layers));
        OK(cudaMalloc((void **)&spread.v, spread.v_bytes * w.n_layers));
        for (uint32_t i = 0; i < w.n_layers; i++) {
            OK(cudaMemcpy(spread.k + i * spread.k_bytes, arrays.k, spread.k_bytes,
                          cudaMemcpyDeviceToDevice));
            OK(cudaMemcpy(spread.v + i * spread.v_bytes, arrays.v, spread.v_bytes,
                          cudaMemcpyDeviceToDevice));
        }
        if (!time_work(&spread, g->stream, true, &row.median, &row.min))
            return 0;
        OK(cudaFree(spread.k));
        OK(cudaFree(spread.v));
    }
    kivi_cache_destroy(w.cache);
    free_arrays(&arrays);
    row.command = "append";
    row.backend = "cuda";
    row.precision = "";
    row.batch = 1;
    row.tokens = (uint32_t)tokens;
    row.appends = 1;
    row.median /= w.n_layers;
    row.min /= w.n_layers;
    row.of_read = (double)bytes / row.median / bandwidth;
    return report(g, &row, s, type, w.n_layers, bytes, w.n_layers * input);
}

/* A prompt in one call to an empty sequence, appended and attended with all its queries. */
int prefill_row(const struct gpu *g, uint32_t kv_heads, struct cache_type type, kivi_precision precision)
{
    struct prompt : work {
        steps *w;

        int run(cudaStream_t stream) override
        {
            if (kivi_seq_truncate(w->cache, w->items[0].seq, 0, &w->error) == KIVI_OK)
                return w->run(stream);
            fprintf(stderr, "kivi-bench: %s\n", w->error.message);
            return 0;
        }
    } prompt;
    const struct scenario *sc = g->scenario;
    const struct shape s = {sc->q_heads, kv_heads, sc->k_dim, sc->v_dim, sc->group};
    device_arrays arrays;
    struct row row = {};
    static steps w;

    w.batch = 1;
    w.tokens[0] = 0;
    w.n_layers = 4;
    if (!make_arrays(g, &s, sc->tokens, sc->tokens, &arrays) || !fill(&w, &s, type, sc->tokens, &arrays))
        return 0;
    w.attention.precision = precision;
    set_new(&w, sc->tokens);
    prompt.w = &w;
    if (!time_work(&prompt, g->stream, false, &row.median, &row.min))
        return 0;
    kivi_cache_destroy(w.cache);
    free_arrays(&arrays);
    row.command = "prefill";
    row.backend = "cuda";
    row.precision = precision == KIVI_STANDARD ? "standard" : "precise";
    row.batch = 1;
    row.tokens = row.queries = sc->tokens;
    row.appends = 1;
    row.median /= w.n_layers;
    row.min /= w.n_layers;
    row.operations = 1.0 * sc->tokens * (sc->tokens + 1) * s.q_heads * (s.k_dim + s.v_dim);
    return report(g, &row, s, type, w.n_layers, 0, 0);
}

int open_gpu(struct gpu *g, struct bench *bench, const struct scenario *scenario)
{
    struct cudaDeviceProp properties;
    double seconds = 1;
    char text[320];

    g->bench = bench;
    g->scenario = scenario;
    OK(cudaGetDeviceProperties(&properties, 0));
    OK(cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking));
    g->multiprocessors = properties.multiProcessorCount;
    g->l2 = (size_t)properties.l2CacheSize;
    /* A third of a second of reading: until then the clocks are not what they are under load. */
    for (int i = 0; i < 12; i++)
        if (!time_reading((size_t)1 << 30, 2, g->multiprocessors, g->stream, &seconds))
            return 0;
    snprintf(text, sizeof text, "%s, %d multiprocessors, L2 %zu MB, reads %.0f GB/s",
             properties.name, g->multiprocessors, g->l2 >> 20,
             (double)((size_t)1 << 30) / seconds * 1e-9);
    report_gpu(&bench->report, text);
    return 1;
}

} // namespace

extern "C" int cuda_decode_run(struct bench *bench, const struct scenario *s)
{
    struct gpu g;
    char text[400];

    if (!open_gpu(&g, bench, s))
        return 0;
    snprintf(text, sizeof text,
             "decode: dimension %u/%u, group %u; attention of %u quer%s a sequence, f16; us of a "
             "call for one layer,\nin a graph of all layers (graph), queued one by one (queued), in "
             "a graph with %s append (append);\nreading: a kernel that reads as many bytes",
             s->k_dim, s->v_dim, s->group, s->queries, s->queries == 1 ? "y" : "ies",
             s->queries == 1 ? "the token's" : "as many tokens'");
    report_heading(&bench->report, text);
    if (!s->has_shape) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (!decode_rows(&g, shapes[i]))
                return 0;
        return 1;
    }
    for (size_t i = 0; i < s->kv_heads.n; i++)
        for (size_t j = 0; j < s->contexts.n; j++) {
            const uint32_t at[4] = {s->batch, s->q_heads, s->kv_heads.at[i], s->contexts.at[j]};

            if (!decode_rows(&g, at))
                return 0;
        }
    return 1;
}

extern "C" int cuda_append_run(struct bench *bench, const struct scenario *s)
{
    struct gpu g;
    double bandwidth;
    char text[200];

    if (!open_gpu(&g, bench, s) || !copy_bandwidth(g.stream, &bandwidth))
        return 0;
    snprintf(text, sizeof text,
             "append: f16 input; bytes are those of the input and of what is stored. Copying on the "
             "device: %.0f GB/s read and written",
             bandwidth * 1e-9);
    report_heading(&bench->report, text);
    for (size_t i = 0; i < s->kv_heads.n; i++)
        for (size_t k = 0; k < s->contexts.n; k++)
            for (size_t j = 0; j < s->types.n; j++)
                if (!append_row(&g, s->kv_heads.at[i], s->contexts.at[k], s->types.at[j], bandwidth))
                    return 0;
    return 1;
}

extern "C" int cuda_prefill_run(struct bench *bench, const struct scenario *s)
{
    struct gpu g;
    char text[200];

    if (!open_gpu(&g, bench, s))
        return 0;
    snprintf(text, sizeof text, "prefill: %u query heads, dimension %u/%u, group %u; f16 in and out",
             s->q_heads, s->k_dim, s->v_dim, s->group);
    report_heading(&bench->report, text);
    for (size_t i = 0; i < s->kv_heads.n; i++)
        for (size_t j = 0; j < s->types.n; j++) {
            if ((s->precisions & PRECISION_STANDARD)
                && !prefill_row(&g, s->kv_heads.at[i], s->types.at[j], KIVI_STANDARD))
                return 0;
            if ((s->precisions & PRECISION_PRECISE)
                && !prefill_row(&g, s->kv_heads.at[i], s->types.at[j], KIVI_PRECISE))
                return 0;
        }
    return 1;
}
