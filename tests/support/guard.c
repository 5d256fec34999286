#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */

#include "guard.h"

#include <check.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_ARRAYS 256
#define FILL 0xff

/* Mappings are kept for later arrays: system calls are what this costs. */
struct array {
    unsigned char *room, *data; /* data is NULL while the mapping waits */
    size_t room_bytes, bytes;
    int read_only;
};

static struct array arrays[MAX_ARRAYS];
static size_t n_arrays;

static void protect(void *memory, size_t bytes, int protection)
{
    ck_assert_int_eq(mprotect(memory, bytes, protection), 0);
}

static void map(struct array *array, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *memory =
        mmap(NULL, bytes + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    ck_assert_ptr_ne(memory, MAP_FAILED);
    protect(memory, page, PROT_NONE);
    protect(memory + page + bytes, page, PROT_NONE);
    array->room = memory + page;
    array->room_bytes = bytes;
}

static struct array *find_room(size_t bytes)
{
    size_t i, room = (size_t)sysconf(_SC_PAGESIZE);

    while (room < bytes)
        room *= 2;
    for (i = 0; i < n_arrays; i++)
        if (!arrays[i].data && arrays[i].room_bytes == room)
            return &arrays[i];
    ck_assert_uint_lt(n_arrays, MAX_ARRAYS);
    map(&arrays[n_arrays], room);
    return &arrays[n_arrays++];
}

void *guard_new(struct rng *rng, size_t bytes, size_t alignment)
{
    struct array *array = find_room(bytes + 64);

    memset(array->room, FILL, array->room_bytes);
    array->bytes = bytes;
    array->data = array->room;
    if (rng_one_in(rng, 3))
        array->data += rng_below(rng, 64 / alignment) * alignment;
    else
        array->data += (array->room_bytes - bytes) / alignment * alignment;
    return array->data;
}

void guard_read_only(const void *data)
{
    size_t i;

    for (i = 0; i < n_arrays && arrays[i].data != data; i++)
        ;
    ck_assert_uint_lt(i, n_arrays);
    protect(arrays[i].room, arrays[i].room_bytes, PROT_READ);
    arrays[i].read_only = 1;
}

static void check_filled(const unsigned char *from, const unsigned char *to)
{
    while (from < to && *from == FILL)
        from++;
    if (from < to)
        ck_abort_msg("something was written beside an array");
}

void guard_release(void)
{
    size_t i;

    for (i = 0; i < n_arrays; i++) {
        struct array *array = &arrays[i];

        if (!array->data)
            continue;
        check_filled(array->room, array->data);
        check_filled(array->data + array->bytes, array->room + array->room_bytes);
        if (array->read_only)
            protect(array->room, array->room_bytes, PROT_READ | PROT_WRITE);
        array->read_only = 0;
        array->data = NULL;
    }
}
