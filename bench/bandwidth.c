#define _DEFAULT_SOURCE /* madvise */
#include "bandwidth.h"

#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "machine.h"

#define PASS_BYTES ((size_t)64 << 20) /* of one thread */
#define HUGE_PAGE ((size_t)2 << 20)
#define STEP 256u /* bytes that one stream advances: a few lines, for as many accumulators */

typedef uint64_t vector __attribute__((vector_size(64)));
#define VECTORS (STEP / sizeof(vector))

/*
 * The sum over `bytes` bytes, read as `streams` interleaved streams with a prefetch `ahead` bytes
 * before each. The compiler turns the generic vectors into the widest of the function it is in.
 */
static inline __attribute__((always_inline)) uint64_t sum_streams(const char *data, size_t bytes,
                                                                  unsigned streams, unsigned ahead)
{
    const size_t length = bytes / streams / STEP * STEP;
    vector sums[VECTORS] = {{0}}, sum;
    size_t at;
    unsigned s, i;
    uint64_t total = 0;

    for (at = 0; at < length; at += STEP) {
        for (s = 0; s < streams; s++) {
            const char *from = data + s * length + at;

            for (i = 0; i < VECTORS; i++) {
                __builtin_prefetch(from + ahead + i * sizeof(vector));
                sums[i] += *(const vector *)(const void *)(from + i * sizeof(vector));
            }
        }
    }
    sum = sums[0] + sums[1] + sums[2] + sums[3];
    for (i = 0; i < sizeof(vector) / sizeof(uint64_t); i++)
        total += sum[i];
    return total;
}

static inline __attribute__((always_inline)) uint64_t sum_any(const char *data, size_t bytes,
                                                              unsigned streams, unsigned ahead)
{
    switch (streams) { /* constants, so that the loop over streams is unrolled */
    case 4:
        return sum_streams(data, bytes, 4, ahead);
    case 2:
        return sum_streams(data, bytes, 2, ahead);
    default:
        return sum_streams(data, bytes, 1, ahead);
    }
}

typedef uint64_t sum_function(const char *data, size_t bytes, unsigned streams, unsigned ahead);

static uint64_t sum_baseline(const char *data, size_t bytes, unsigned streams, unsigned ahead)
{
    return sum_any(data, bytes, streams, ahead);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t sum_avx2(const char *data, size_t bytes,
                                                         unsigned streams, unsigned ahead)
{
    return sum_any(data, bytes, streams, ahead);
}

__attribute__((target("avx512f"))) static uint64_t sum_avx512(const char *data, size_t bytes,
                                                              unsigned streams, unsigned ahead)
{
    return sum_any(data, bytes, streams, ahead);
}
#endif

static sum_function *pick(const char **name)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        *name = "AVX-512";
        return sum_avx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        *name = "AVX2";
        return sum_avx2;
    }
#endif
    *name = "baseline";
    return sum_baseline;
}

int reader_open(struct reader *r, size_t bytes)
{
    void *memory = NULL;
    long long i, blocks;

    memset(r, 0, sizeof *r);
    r->bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (posix_memalign(&memory, HUGE_PAGE, r->bytes) != 0)
        return 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    (void)madvise(memory, r->bytes, MADV_HUGEPAGE);
#endif
    r->buffer = memory;
    blocks = (long long)(r->bytes / HUGE_PAGE);
#if defined(_OPENMP)
#pragma omp parallel for schedule(static)
#endif
    for (i = 0; i < blocks; i++)
        memset(r->buffer + (size_t)i * HUGE_PAGE, (int)(i & 0x7f) + 1, HUGE_PAGE);
    return 1;
}

void reader_close(struct reader *r)
{
    free(r->buffer);
    r->buffer = NULL;
}

double reader_burst(void *context, uint64_t passes)
{
    struct reader *r = context;
    sum_function *sum = pick(&r->instructions);
    const int threads = (int)r->form.threads;
    const double start = machine_now();
    uint64_t pass;

    for (pass = 0; pass < passes; pass++) {
        const size_t share = r->pass_bytes / r->form.threads;
        uint64_t total = 0;
        int i;

        if (r->cursor + r->pass_bytes > r->bytes)
            r->cursor = 0;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : total)
#endif
        for (i = 0; i < threads; i++)
            total += sum(r->buffer + r->cursor + (size_t)i * share, share, r->form.streams,
                         r->form.ahead);
        r->cursor += r->pass_bytes;
        r->sum += total;
    }
    return (machine_now() - start) / (double)passes;
}

/* The fastest form of reading: the best of a few passes of each, in turns. */
static struct reader_form tune(struct reader *r, unsigned threads)
{
    static const unsigned streams[] = {1, 2, 4}, ahead[] = {0, 512, 1024, 2048, 4096, 8192};
    enum { AHEAD = sizeof ahead / sizeof *ahead, FORMS = AHEAD * sizeof streams / sizeof *streams };
    double best[FORMS];
    struct reader_form form = {threads, 1, 0};
    unsigned round, i, fastest = 0;

    for (round = 0; round < 4; round++) {
        for (i = 0; i < FORMS; i++) {
            double seconds;

            r->form = (struct reader_form){threads, streams[i / AHEAD], ahead[i % AHEAD]};
            seconds = reader_burst(r, 1);
            if (round == 0 || seconds < best[i])
                best[i] = seconds;
        }
    }
    for (i = 0; i < FORMS; i++) {
        if (best[i] <= best[fastest]) {
            fastest = i;
            form.streams = streams[i / AHEAD];
            form.ahead = ahead[i % AHEAD];
        }
    }
    return form;
}

void reader_set_threads(struct reader *r, unsigned threads)
{
    size_t i;

    r->pass_bytes = PASS_BYTES * threads;
    if (r->pass_bytes > r->bytes / 2)
        r->pass_bytes = r->bytes / 2 / threads / 4096 * 4096 * threads;
    for (i = 0; i < r->n_tuned; i++) {
        if (r->tuned[i].threads == threads) {
            r->form = r->tuned[i];
            return;
        }
    }
    r->form = tune(r, threads);
    if (r->n_tuned < READER_FORMS)
        r->tuned[r->n_tuned++] = r->form;
}
