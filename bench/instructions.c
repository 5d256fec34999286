/*
 * Runs one operation of a kernel table, so that its instructions can be counted where there is no
 * machine to time it on: bench/instructions.sh makes a table of the counts.
 *
 *   instructions <table> keys|values <bits> <query heads> <times>
 *   instructions --step <arguments as above>
 *
 * --step counts instructions of this machine, one by one under ptrace, and prints their number. An
 * emulator that runs the first form counts them itself: the difference between two runs and one.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include <signal.h>

#include "cpu/kernels.h"

#define TOKENS 512u /* what bench/instructions.sh divides by */
#define DIM 128u
#define GROUP 32u
#define MAX_HEADS 16u

struct work {
    const struct kivi_kernels *table;
    int values;
    uint32_t bits, heads, times;
    struct kivi_layout layout;
    char *blocks;
    float *rows;    /* queries, or weights */
    float *results; /* scores, or sums */
};

static const struct kivi_kernels *find_table(const char *name)
{
    static const struct kivi_kernels *const tables[] = {
        &kivi_kernels_scalar,
#if defined(__x86_64__)
        &kivi_kernels_avx2,
        &kivi_kernels_avx512,
        &kivi_kernels_avx512_vnni,
#elif defined(__aarch64__)
        &kivi_kernels_neon,
        &kivi_kernels_neon_dotprod,
        &kivi_kernels_neon_i8mm,
#endif
    };
    size_t i;

    for (i = 0; i < sizeof tables / sizeof *tables; i++)
        if (strcmp(tables[i]->name, name) == 0)
            return (tables[i]->required & ~kivi_cpu_features()) == 0 ? tables[i] : NULL;
    return NULL;
}

/* Numbers whose distribution is near enough to a normal one: the number of digits depends on it. */
static float next_number(uint64_t *state)
{
    float sum = -6;
    int i;

    for (i = 0; i < 12; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) * 0x1p-24f;
    }
    return sum;
}

static void *get(size_t bytes)
{
    void *memory = calloc(1, bytes);

    if (!memory) {
        fputs("no memory\n", stderr);
        exit(EXIT_FAILURE);
    }
    return memory;
}

/* Blocks of random codes, with scales and minima of a width of one around 0. */
static void prepare(struct work *w)
{
    const struct kivi_layout l =
        w->values ? kivi_layout_values(w->bits, DIM, GROUP) : kivi_layout_keys(w->bits, DIM, GROUP);
    uint64_t state = 1;
    uint32_t b, i;

    w->layout = l;
    w->blocks = get((size_t)TOKENS / l.tokens * l.block_bytes);
    w->rows = get(sizeof(float) * MAX_HEADS * (TOKENS + DIM));
    w->results = get(sizeof(float) * MAX_HEADS * (TOKENS + DIM));
    for (b = 0; b < TOKENS / l.tokens; b++) {
        char *block = w->blocks + (size_t)b * l.block_bytes;

        for (i = 0; i < l.code_bytes; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            block[i] = (char)(state >> 56);
        }
        for (i = 0; i < l.scale_bytes / 2; i++) {
            kivi_scales(&l, block)[i] = (uint16_t)(0x3800 - w->bits * 0x400 + (i * 37 & 0x3ff));
            /* minus scale times half of the levels */
            kivi_minima(&l, block)[i] =
                (uint16_t)(0x8000 + kivi_scales(&l, block)[i] + (w->bits - 1) * 0x400);
        }
    }
    for (i = 0; i < MAX_HEADS * (w->values ? TOKENS : DIM); i++) {
        const float x = next_number(&state);

        w->rows[i] = w->values ? x * x / TOKENS : x * 0.088f; /* the softmax scale */
    }
}

static void work(const struct work *w)
{
    const uint32_t n_blocks = TOKENS / w->layout.tokens;
    const struct kivi_next next = {.data = w->blocks};
    uint32_t i;

    for (i = 0; i < w->times; i++) {
        if (w->values)
            w->table->v_accumulate(&w->layout, w->rows, TOKENS, w->heads, w->blocks, TOKENS, next,
                                   w->results, KIVI_STANDARD);
        else
            w->table->k_scores(&w->layout, w->rows, w->heads, w->blocks, n_blocks, next, w->results,
                               TOKENS, 0, KIVI_STANDARD);
    }
}

/* The instructions of a child between the two times that it stops itself; -1 for an error. */
static long count_steps(const struct work *w)
{
    const pid_t child = fork();
    int status;
    long n = 0;

    if (child < 0)
        return -1;
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        work(w);
        raise(SIGSTOP);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP)
        return -1;
    do {
        if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) || waitpid(child, &status, 0) != child)
            return -1;
        n++;
    } while (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return n;
}

int main(int argc, char **argv)
{
    const int step = argc > 1 && strcmp(argv[1], "--step") == 0;
    struct work w = {0};

    argc -= step;
    argv += step;
    if (argc == 6) {
        w.table = find_table(argv[1]);
        w.values = strcmp(argv[2], "values") == 0;
        w.bits = (uint32_t)strtoul(argv[3], NULL, 10);
        w.heads = (uint32_t)strtoul(argv[4], NULL, 10);
        w.times = (uint32_t)strtoul(argv[5], NULL, 10);
    }
    if ((w.bits != 2 && w.bits != 4 && w.bits != 8) || w.heads < 1 || w.heads > MAX_HEADS) {
        fputs("instructions [--step] <table> keys|values <bits> <query heads> <times>\n", stderr);
        return 2;
    }
    if (!w.table) {
        fprintf(stderr, "%s does not run here\n", argv[1]);
        return 77;
    }
    prepare(&w);
    if (step) {
        const long n = count_steps(&w);

        if (n < 0)
            return EXIT_FAILURE;
        printf("%ld\n", n);
    } else {
        work(&w);
    }
    return 0;
}
