/*
 * Asking the memory for what is read next, at the pace of what is read now, for any vector length. In the order of
 * addresses: CPUs take such a stream up, and have more lines on their way than a core may, but not the order in which
 * kernels read, scales before codes and words from row to row.
 *
 * At 2 bits the first-level cache holds what is read now and what is read next. With more it does not, and the second
 * level does; but lines are asked for into the first all the same where CPUs are slow to take them from there.
 */
#ifndef KIVI_SIMD_AHEAD_H
#define KIVI_SIMD_AHEAD_H

struct ahead {
    uintptr_t at;    /* what to ask for next; the blocks themselves if nothing is left */
    uintptr_t other; /* where halves are asked for in turns: the same of the other half */
    int is_near;     /* into the first-level cache at any width */
};

KIVI_INLINE struct ahead ahead_of(struct kivi_next next, const void *blocks)
{
    const uintptr_t at = (uintptr_t)(next.data ? next.data : blocks);

    return (struct ahead){.at = at, .other = at, .is_near = AGAIN > 0 && next.is_amd};
}

/* Asks for a line into the first-level cache. Some CPUs lose requests for which they have no room: where memory is the
 * limit each line is asked for twice, the second time AGAIN bytes later. */
KIVI_INLINE void ask_line(uintptr_t line, uint32_t rows)
{
    kivi_prefetch((const void *)line);
    if (AGAIN > 0 && rows <= FEW_ROWS)
        kivi_prefetch((const void *)(line - AGAIN));
}

/* bytes and bits are constants. */
KIVI_INLINE void ask(struct ahead *ahead, uint32_t bytes, uint32_t rows, uint32_t bits)
{
    uint32_t i;

    KIVI_UNROLL
    for (i = 0; i < bytes; i += KIVI_LINE) {
        if (bits == 2 || ahead->is_near)
            ask_line(ahead->at + i, rows);
        else
            kivi_prefetch_for_later((const void *)(ahead->at + i));
    }
    ahead->at += bytes;
}

/*
 * At 8 bits memory is the limit of a single row, and most CPUs take up two streams faster than one: lines of the first
 * half of what is read next and of the second are asked for in turns.
 */
KIVI_INLINE struct ahead in_halves(struct ahead ahead, size_t bytes)
{
    ahead.other = ahead.at + bytes / 2 / KIVI_LINE * KIVI_LINE;
    return ahead;
}

/* bytes, rows and bits are constants. */
KIVI_INLINE void ask_halves(struct ahead *ahead, uint32_t bytes, uint32_t rows, uint32_t bits)
{
    uint32_t i;

    if (rows > 1 || bits < 8 || ahead->is_near) {
        ask(ahead, bytes, rows, bits);
        return;
    }
    KIVI_UNROLL
    for (i = 0; i < bytes; i += KIVI_LINE) {
        const uintptr_t other = ahead->other;

        kivi_prefetch_for_later((const void *)ahead->at);
        ahead->other = ahead->at + KIVI_LINE;
        ahead->at = other;
    }
}

#endif
