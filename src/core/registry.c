#include "registry.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

#define CUDA_NAME "cuda"

/* CUDA is listed last, present or not: a distribution may install the module later. */
size_t kivi_backend_count(void)
{
    return kivi_n_cpu_backends + 1;
}

static const struct kivi_backend *backend_at(size_t index, const char **reason)
{
    *reason = "";
    return index < kivi_n_cpu_backends ? kivi_cpu_backends[index] : kivi_module_load(reason);
}

static int is_available(size_t index, const char **reason)
{
    const struct kivi_backend *backend = backend_at(index, reason);

    return backend && backend->available(backend, reason);
}

/* The last CPU backend that the machine can run. A device holds another kind of memory and is taken
 * only by name: the arrays of existing callers would not be where it expects them. */
static size_t best_index(void)
{
    const char *reason;
    size_t i = kivi_n_cpu_backends;

    while (i-- > 1)
        if (is_available(i, &reason))
            return i;
    return 0;
}

const struct kivi_kernels *kivi_host_kernels(const struct kivi_backend *backend)
{
    return backend && backend->kernels ? backend->kernels
                                       : kivi_cpu_backends[best_index()]->kernels;
}

kivi_status kivi_backend_get(size_t index, kivi_backend_info *info, kivi_error *error)
{
    const struct kivi_backend *backend;
    const char *reason;

    if (!info)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "info is NULL");
    if (index >= kivi_backend_count())
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "index %zu: there are %zu backends", index,
                         kivi_backend_count());
    backend = backend_at(index, &reason);
    info->name = backend ? backend->name : CUDA_NAME;
    info->description = backend ? backend->description : "NVIDIA GPU, a loadable module";
    info->available = is_available(index, &reason);
    info->recommended = index == best_index();
    info->reason = info->available ? "" : reason;
    return kivi_succeed(error);
}

kivi_status kivi_backend_find(const char *name, kivi_backend_info *info, kivi_error *error)
{
    size_t i;

    if (!name || !info)
        return kivi_fail(error, KIVI_ERROR_ARGUMENT, "%s is NULL", name ? "info" : "name");
    for (i = 0; i < kivi_backend_count(); i++) {
        const kivi_status status = kivi_backend_get(i, info, error);

        if (status != KIVI_OK || strcmp(info->name, name) == 0)
            return status;
    }
    return kivi_fail(error, KIVI_ERROR_BACKEND, "this build has no backend \"%.40s\"", name);
}

const struct kivi_backend *kivi_backend_choose(const char *name, const char **why,
                                               kivi_error *error)
{
    const char *variable = getenv("KIVI_BACKEND");
    const char *reason;
    kivi_backend_info info;
    size_t i;

    *why = "named by the configuration";
    if (!name && variable && *variable) {
        name = variable;
        *why = "named by KIVI_BACKEND";
    }
    if (!name) {
        *why = "the best that this machine can run";
        return kivi_cpu_backends[best_index()];
    }
    if (kivi_backend_find(name, &info, error) != KIVI_OK)
        return NULL;
    if (!info.available) {
        kivi_fail(error, KIVI_ERROR_BACKEND, "backend \"%s\" is not available: %s", info.name,
                  info.reason);
        return NULL;
    }
    for (i = 0; strcmp(info.name, i < kivi_n_cpu_backends ? kivi_cpu_backends[i]->name : info.name);
         i++)
        ;
    return backend_at(i, &reason);
}
