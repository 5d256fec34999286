/* The CPU backend: host memory, and the driver over one of the kernel tables. */
#include "../core/backend.h"

#include <stdio.h>
#include <string.h>

#include "../core/error.h"
#include "../core/registry.h"
#include "driver.h"
#include "features.h"

struct context {
    const struct kivi_kernels *kernels;
    uint32_t features; /* of the CPU: asking is slow in virtual machines */
    const struct kivi_geometry *geometry;
    kivi_allocator allocator;
};

static int available(const struct kivi_backend *self, const char **reason)
{
    const uint32_t missing = self->kernels->required & ~kivi_cpu_features();

    *reason = missing ? "the CPU, or the operating system, does not offer these instructions" : "";
    return missing == 0;
}

static kivi_status open_context(const struct kivi_backend *self,
                                const struct kivi_geometry *geometry, const kivi_config *config,
                                void **context, kivi_error *error)
{
    struct context *c;

    if (config->memory != KIVI_MEMORY_HOST)
        return kivi_fail(error, KIVI_ERROR_UNSUPPORTED,
                         "backend \"%s\" works on host memory, not on a device's", self->name);
    c = config->allocator.alloc(config->allocator.context, sizeof *c, 64);
    if (!c)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no memory for the backend");
    c->kernels = self->kernels;
    c->features = kivi_cpu_features();
    c->geometry = geometry;
    c->allocator = config->allocator;
    *context = c;
    return KIVI_OK;
}

static void close_context(void *context)
{
    struct context *c = context;

    c->allocator.release(c->allocator.context, c, sizeof *c);
}

static void *block_alloc(void *context, size_t bytes)
{
    struct context *c = context;

    return c->allocator.alloc(c->allocator.context, bytes, 64);
}

static void block_free(void *context, void *block, size_t bytes)
{
    struct context *c = context;

    c->allocator.release(c->allocator.context, block, bytes);
}

static kivi_status block_copy(void *context, void *to, const void *from, size_t bytes,
                              kivi_error *error)
{
    (void)context;
    (void)error;
    memcpy(to, from, bytes);
    return KIVI_OK;
}

static kivi_status block_read(void *context, void *host, const void *block, size_t offset,
                              size_t bytes, kivi_error *error)
{
    return block_copy(context, host, (const char *)block + offset, bytes, error);
}

static kivi_status block_write(void *context, void *block, size_t offset, const void *host,
                               size_t bytes, kivi_error *error)
{
    return block_copy(context, (char *)block + offset, host, bytes, error);
}

static void for_all_parts(struct kivi_plan *plan, void (*work)(struct kivi_plan *, uint32_t))
{
    uint32_t part;

    for (part = 0; part < plan->step->n_parts; part++)
        work(plan, part);
}

static kivi_status begin(void *context, struct kivi_step *step, kivi_error *error)
{
    const struct context *c = context;
    struct kivi_plan *plan = kivi_plan_make(c->kernels, c->features, step, &c->allocator);

    if (!plan)
        return kivi_fail(error, KIVI_ERROR_MEMORY, "no scratch memory for this call");
    step->scratch = plan;
    if (plan->stage_phase == UINT32_MAX)
        for_all_parts(plan, kivi_stage_part);
    return KIVI_OK;
}

/* The part that found an input not finite, or NULL. */
static const struct kivi_part *find_bad(const struct kivi_plan *plan)
{
    const struct kivi_part *bad = NULL;
    uint32_t p;

    for (p = 0; p < plan->step->n_parts; p++) {
        const struct kivi_part *part = &plan->parts[p];

        if (part->bad_name
            && (!bad || part->bad_item < bad->bad_item
                || (part->bad_item == bad->bad_item && part->bad_token < bad->bad_token)))
            bad = part;
    }
    return bad;
}

static void part(void *context, struct kivi_step *step, uint32_t phase, uint32_t index)
{
    struct kivi_plan *plan = step->scratch;

    (void)context;
    if (phase == plan->stage_phase) {
        kivi_stage_part(plan, index);
    } else if (phase == plan->attend_phase) {
        kivi_attend_part(plan, index);
    } else if (!find_bad(plan)) {
        kivi_finish_part(plan, index);
    }
}

static kivi_status end(void *context, struct kivi_step *step, int apply, kivi_error *error)
{
    const struct context *c = context;
    struct kivi_plan *plan = step->scratch;
    const struct kivi_part *bad = find_bad(plan);
    kivi_status status = KIVI_OK;

    if (apply && bad) {
        status = kivi_fail_item(error, KIVI_ERROR_NOT_FINITE, bad->bad_item,
                                ".%s: token %llu, head %u is not finite%s", bad->bad_name,
                                (unsigned long long)bad->bad_token, bad->bad_head,
                                bad->bad_name[0] == 'q' ? "" : " in f16");
    } else if (apply) {
        if (plan->finish_phase == UINT32_MAX)
            for_all_parts(plan, kivi_finish_part);
        kivi_store(plan);
    }
    c->allocator.release(c->allocator.context, plan, plan->bytes);
    step->scratch = NULL;
    return status;
}

/* Nothing in a CPU backend is slower than its neighbours by kind; only the table is. */
static int describe(void *context, char *text, size_t capacity)
{
    const struct context *c = context;

    if (c->kernels != &kivi_kernels_scalar)
        return 0;
    return snprintf(text, capacity, " Slow path: portable C without vector instructions.");
}

#define CPU_BACKEND(variable, table, title, about)                                                 \
    static const struct kivi_backend variable = {                                                  \
        .abi = KIVI_BACKEND_ABI,                                                                   \
        .size = sizeof(struct kivi_backend),                                                       \
        .name = title,                                                                             \
        .description = about,                                                                      \
        .kernels = &table,                                                                         \
        .available = available,                                                                    \
        .open = open_context,                                                                      \
        .close = close_context,                                                                    \
        .block_alloc = block_alloc,                                                                \
        .block_free = block_free,                                                                  \
        .block_copy = block_copy,                                                                  \
        .block_read = block_read,                                                                  \
        .block_write = block_write,                                                                \
        .begin = begin,                                                                            \
        .part = part,                                                                              \
        .end = end,                                                                                \
        .describe = describe,                                                                      \
    }

CPU_BACKEND(scalar, kivi_kernels_scalar, "scalar", "portable C, the reference");
#if defined(KIVI_HAVE_AVX2)
CPU_BACKEND(avx2, kivi_kernels_avx2, "avx2", "AVX2, FMA, F16C");
#endif
#if defined(KIVI_HAVE_AVX2_VNNI)
CPU_BACKEND(avx2_vnni, kivi_kernels_avx2_vnni, "avx2-vnni", "AVX2 with AVX-VNNI");
#endif
#if defined(KIVI_HAVE_AVX512)
CPU_BACKEND(avx512, kivi_kernels_avx512, "avx512", "AVX-512 F, BW, DQ, VL");
#endif
#if defined(KIVI_HAVE_AVX512_VNNI)
CPU_BACKEND(avx512_vnni, kivi_kernels_avx512_vnni, "avx512-vnni", "AVX-512 with VNNI");
#endif
#if defined(KIVI_HAVE_NEON)
CPU_BACKEND(neon, kivi_kernels_neon, "neon", "AArch64 NEON");
#endif
#if defined(KIVI_HAVE_NEON_DOTPROD)
CPU_BACKEND(neon_dotprod, kivi_kernels_neon_dotprod, "neon-dotprod", "NEON with dot product");
#endif
#if defined(KIVI_HAVE_NEON_I8MM)
CPU_BACKEND(neon_i8mm, kivi_kernels_neon_i8mm, "neon-i8mm", "NEON with int8 matrix product");
#endif

const struct kivi_backend *const kivi_cpu_backends[] = {
    &scalar,
#if defined(KIVI_HAVE_AVX2)
    &avx2,
#endif
#if defined(KIVI_HAVE_AVX2_VNNI)
    &avx2_vnni,
#endif
#if defined(KIVI_HAVE_AVX512)
    &avx512,
#endif
#if defined(KIVI_HAVE_AVX512_VNNI)
    &avx512_vnni,
#endif
#if defined(KIVI_HAVE_NEON)
    &neon,
#endif
#if defined(KIVI_HAVE_NEON_DOTPROD)
    &neon_dotprod,
#endif
#if defined(KIVI_HAVE_NEON_I8MM)
    &neon_i8mm,
#endif
};
const size_t kivi_n_cpu_backends = sizeof kivi_cpu_backends / sizeof kivi_cpu_backends[0];
