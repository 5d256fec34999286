#include "memory.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Stands before each block, in the last bytes of its padding. */
struct header {
    void *start;
    size_t bytes;
    uint64_t magic;
};

#define MAGIC 0x6b69766974657374u

/* Any thread may be here, and a test can only fail in its own. */
static void require(int condition, const char *otherwise)
{
    if (condition)
        return;
    fprintf(stderr, "allocator: %s\n", otherwise);
    abort();
}

static void *take(void *context, size_t bytes, size_t alignment)
{
    struct memory *memory = context;
    const size_t call = atomic_fetch_add(&memory->calls, 1) + 1;
    const size_t fail_at = atomic_load(&memory->fail_at);
    const size_t padding = sizeof(struct header) + alignment;
    struct header header;
    uintptr_t at;

    require(alignment > 0 && (alignment & (alignment - 1)) == 0,
            "the alignment is not a power of two");
    if (fail_at && (call == fail_at || (call > fail_at && atomic_load(&memory->fail_after))))
        return NULL;
    header.start = malloc(bytes + padding);
    if (!header.start)
        return NULL;
    header.bytes = bytes;
    header.magic = MAGIC;
    at = ((uintptr_t)header.start + padding) & ~(uintptr_t)(alignment - 1);
    memset((void *)at, atomic_load(&memory->fill), bytes);
    memcpy((void *)(at - sizeof header), &header, sizeof header);
    atomic_fetch_add(&memory->blocks, 1);
    atomic_fetch_add(&memory->bytes, bytes);
    return (void *)at;
}

static void give_back(void *context, void *block, size_t bytes)
{
    struct memory *memory = context;
    struct header header;

    memcpy(&header, (char *)block - sizeof header, sizeof header);
    require(header.magic == MAGIC, "a block came back that was not given, or twice");
    require(header.bytes == bytes, "a block came back with another size");
    memset((char *)block - sizeof header, 0, sizeof header);
    atomic_fetch_sub(&memory->blocks, 1);
    atomic_fetch_sub(&memory->bytes, bytes);
    free(header.start);
}

void memory_init(struct memory *memory)
{
    atomic_init(&memory->calls, 0);
    atomic_init(&memory->blocks, 0);
    atomic_init(&memory->bytes, 0);
    atomic_init(&memory->fail_at, 0);
    atomic_init(&memory->fail_after, 0);
    atomic_init(&memory->fill, 0xa5);
}

kivi_allocator memory_allocator(struct memory *memory)
{
    const kivi_allocator allocator = {take, give_back, memory};

    return allocator;
}

void memory_fail(struct memory *memory, size_t n, int and_after)
{
    atomic_store(&memory->fail_after, and_after);
    atomic_store(&memory->fail_at, n ? atomic_load(&memory->calls) + n : 0);
}

int memory_has_failed(const struct memory *memory)
{
    const size_t fail_at = atomic_load(&memory->fail_at);

    return fail_at && atomic_load(&memory->calls) >= fail_at;
}
