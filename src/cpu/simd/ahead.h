/*
 * Asking the memory for what is read next, at the pace of what is read now, for any vector length. In the order of
 * addresses: CPUs take such a stream up, and have more lines on their way than a core may, but not the order in which
 * kernels read, scales before codes and words from row to row. Many have only so many lines on their way for a stream,
 * and read several faster: what is read next is asked for in as many shares, a line of each in turn.
 *
 * At 2 bits the first-level cache holds what is read now and what is read next. With more it does not, and the second
 * level does; but CPUs that are asked in one stream may be slow to take lines from there, and those that are asked in
 * several are not.
 */
#ifndef KIVI_SIMD_AHEAD_H
#define KIVI_SIMD_AHEAD_H

#define MAX_STREAMS 4u

KIVI_INLINE uint32_t streams(uint32_t bits)
{
    (void)bits; /* some instruction sets have as many at any width */
    return STREAMS(bits);
}

struct ahead {
    uintptr_t at[MAX_STREAMS]; /* of each stream, what to ask for next; the first one's turn comes first */
    int in_one;                /* there is but one */
};

/* What to ask for while `bytes` bytes of blocks are read: if nothing is known the blocks themselves. What is more than
 * that, where keys and values differ, is asked for at once. */
KIVI_INLINE struct ahead ahead_of(struct kivi_next next, const void *blocks, size_t bytes,
                                  uint32_t n_rows, uint32_t bits)
{
    const size_t share = bytes / streams(bits) / KIVI_LINE * KIVI_LINE;
    struct ahead ahead = {
        .in_one = !next.data || (next.is_amd && (AGAIN > 0 || n_rows > 1 || bits < 8)),
    };
    size_t at;
    uint32_t i;

    for (at = bytes; next.data && at < next.bytes; at += KIVI_LINE)
        kivi_prefetch_for_later((const char *)next.data + at);
    for (i = 0; i < streams(bits); i++)
        ahead.at[i] = (uintptr_t)(next.data ? next.data : blocks) + i * share;
    return ahead;
}

/* Nothing is left to ask for but the blocks. */
KIVI_INLINE void end_ahead(struct ahead *ahead, const void *blocks)
{
    ahead->at[0] = (uintptr_t)blocks;
    ahead->in_one = 1;
}

/* Moves on by what is asked for while `bytes` bytes are read. */
KIVI_INLINE void move_ahead(struct ahead *ahead, size_t bytes, uint32_t bits)
{
    const size_t share = ahead->in_one ? bytes : bytes / streams(bits) / KIVI_LINE * KIVI_LINE;
    uint32_t i;

    for (i = 0; i < streams(bits); i++)
        ahead->at[i] += share;
}

/* Asks for a line into the first-level cache. Some CPUs lose requests for which they have no room: where memory is the
 * limit each line is asked for twice, the second time AGAIN bytes later. */
KIVI_INLINE void ask_line(uintptr_t line, uint32_t rows)
{
    kivi_prefetch((const void *)line);
    if (AGAIN > 0 && rows <= FEW_ROWS)
        kivi_prefetch((const void *)(line - AGAIN));
}

/* Asks for as many bytes more, of all streams together. These and bits are constants. */
KIVI_INLINE void ask(struct ahead *ahead, uint32_t bytes, uint32_t rows, uint32_t bits)
{
    uint32_t i, k;

    if (streams(bits) == 1 || ahead->in_one) {
        KIVI_UNROLL
        for (i = 0; i < bytes; i += KIVI_LINE) {
            if (bits == 2 || AGAIN > 0)
                ask_line(ahead->at[0] + i, rows);
            else
                kivi_prefetch_for_later((const void *)(ahead->at[0] + i));
        }
        ahead->at[0] += bytes;
        return;
    }
    KIVI_UNROLL
    for (i = 0; i < bytes; i += KIVI_LINE) {
        const uintptr_t line = ahead->at[0];

        kivi_prefetch_for_later((const void *)line);
        KIVI_UNROLL
        for (k = 1; k < streams(bits); k++)
            ahead->at[k - 1] = ahead->at[k];
        ahead->at[streams(bits) - 1] = line + KIVI_LINE;
    }
}

#endif
