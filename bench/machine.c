#define _DEFAULT_SOURCE /* sched_getaffinity is not used: sysconf is enough */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

double machine_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

unsigned machine_threads(void)
{
#if defined(_OPENMP)
    return (unsigned)omp_get_max_threads();
#else
    return 1;
#endif
}

void machine_set_threads(unsigned n)
{
#if defined(_OPENMP)
    omp_set_num_threads((int)n);
#else
    (void)n;
#endif
}

/* The first line of a file, without its end. */
static int read_line(const char *path, char *line, size_t capacity)
{
    FILE *file = fopen(path, "r");
    int ok;

    if (!file)
        return 0;
    ok = fgets(line, (int)capacity, file) != NULL;
    fclose(file);
    if (ok)
        line[strcspn(line, "\n")] = 0;
    return ok;
}

/* What follows the colon of the first line of `path` that begins with one of the keys. */
static int read_field(const char *path, const char *const *keys, char *value, size_t capacity)
{
    FILE *file = fopen(path, "r");
    char line[512];
    int found = 0;

    while (file && !found && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        size_t i;

        for (i = 0; colon && keys[i] && !found; i++)
            found = strncmp(line, keys[i], strlen(keys[i])) == 0;
        if (found)
            snprintf(value, capacity, "%.*s", (int)strcspn(colon + 1, "\n") - 1, colon + 2);
    }
    if (file)
        fclose(file);
    return found;
}

static uint64_t memory_field(const char *key)
{
    const char *keys[] = {key, NULL};
    char value[64];

    return read_field("/proc/meminfo", keys, value, sizeof value) ? strtoull(value, NULL, 10) << 10
                                                                  : 0;
}

uint64_t machine_available_bytes(void)
{
    return memory_field("MemAvailable");
}

/* The number of cores in a list such as "0-3,8". */
static unsigned count_cores(const char *list)
{
    unsigned n = 0;

    while (*list) {
        char *end;
        unsigned long first = strtoul(list, &end, 10), last = first;

        if (end == list)
            break;
        if (*end == '-')
            last = strtoul(end + 1, &end, 10);
        n += (unsigned)(last - first + 1);
        list = *end == ',' ? end + 1 : end;
    }
    return n;
}

static void read_caches(struct machine *m)
{
    const size_t most = sizeof m->caches / sizeof *m->caches;
    unsigned i;

    for (i = 0; m->n_caches < most; i++) {
        char path[96], text[64];
        int at = snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%u/", i);

        snprintf(path + at, sizeof path - (size_t)at, "level");
        if (!read_line(path, text, sizeof text))
            break;
        m->caches[m->n_caches].level = (unsigned)strtoul(text, NULL, 10);
        snprintf(path + at, sizeof path - (size_t)at, "type");
        read_line(path, m->caches[m->n_caches].type, sizeof m->caches[0].type);
        snprintf(path + at, sizeof path - (size_t)at, "size");
        if (!read_line(path, text, sizeof text))
            continue;
        m->caches[m->n_caches].bytes = strtoull(text, NULL, 10) << 10;
        snprintf(path + at, sizeof path - (size_t)at, "shared_cpu_list");
        m->caches[m->n_caches].sharers = read_line(path, text, sizeof text) ? count_cores(text) : 1;
        if (m->caches[m->n_caches].bytes > m->last_level_bytes)
            m->last_level_bytes = m->caches[m->n_caches].bytes;
        m->n_caches++;
    }
}

static void describe_openmp(char *text, size_t capacity)
{
#if defined(_OPENMP)
    static const char *const names[] = {"OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES",
                                        "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"};
    int at = snprintf(text, capacity, "at most %d threads", omp_get_max_threads());
    size_t i;

    for (i = 0; i < sizeof names / sizeof *names && (size_t)at < capacity; i++) {
        const char *value = getenv(names[i]);

        if (value)
            at += snprintf(text + at, capacity - (size_t)at, ", %s=%s", names[i], value);
    }
    if (omp_get_proc_bind() == omp_proc_bind_false && (size_t)at < capacity)
        snprintf(text + at, capacity - (size_t)at, ", not bound to cores");
#else
    snprintf(text, capacity, "none: one thread");
#endif
}

void machine_read(struct machine *m)
{
    static const char *const keys[] = {"model name", "Model", "Hardware", "CPU part", NULL};

    memset(m, 0, sizeof *m);
    if (!read_field("/proc/cpuinfo", keys, m->cpu, sizeof m->cpu))
        snprintf(m->cpu, sizeof m->cpu, "unknown CPU");
    m->cores = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    m->memory_bytes = memory_field("MemTotal");
    read_caches(m);
    if (!read_line("/sys/kernel/mm/transparent_hugepage/enabled", m->huge_pages,
                   sizeof m->huge_pages))
        snprintf(m->huge_pages, sizeof m->huge_pages, "unknown");
    describe_openmp(m->openmp, sizeof m->openmp);
#if defined(__clang__)
    snprintf(m->compiler, sizeof m->compiler, "clang %d.%d", __clang_major__, __clang_minor__);
#elif defined(__GNUC__)
    snprintf(m->compiler, sizeof m->compiler, "gcc %d.%d", __GNUC__, __GNUC_MINOR__);
#else
    snprintf(m->compiler, sizeof m->compiler, "unknown");
#endif
}
