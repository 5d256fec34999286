/* The machine that a measurement belongs to. */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

#include <stddef.h>
#include <stdint.h>

struct machine {
    char cpu[128];
    unsigned cores; /* that this process may use */
    struct {
        unsigned level;
        char type[16];
        uint64_t bytes;
        unsigned sharers; /* cores that share one of it */
    } caches[8];
    size_t n_caches;
    uint64_t last_level_bytes; /* 0: not known */
    uint64_t memory_bytes;     /* 0: not known */
    char huge_pages[64];       /* of transparent huge pages: the system's setting */
    char openmp[160];          /* the settings that a run depends on */
    char compiler[64];
};

void machine_read(struct machine *machine);

/* Bytes that can be allocated without swapping; 0 if not known. */
uint64_t machine_available_bytes(void);

/* Threads that "all" means: OMP_NUM_THREADS if set, else the cores. Without OpenMP, 1. */
unsigned machine_threads(void);

/* Sets the size of the teams to come: of the library, and of the reader. */
void machine_set_threads(unsigned n);

/* Seconds since some moment in the past. */
double machine_now(void);

#endif
