/* The backends of this build, and the choice among them: docs/implementation-selection.md. */
#ifndef KIVI_REGISTRY_H
#define KIVI_REGISTRY_H

#include "backend.h"

/* The backend that `name` (may be NULL) stands for on this machine: name, else KIVI_BACKEND, else the
 * best that is available. *why says which of the three, for kivi_describe. NULL with *error if the
 * named one is unknown or not available. */
const struct kivi_backend *kivi_backend_choose(const char *name, const char **why,
                                               kivi_error *error);

/* The kernels for work on host memory beside a backend: its own, or where it has none the best of the CPU. */
const struct kivi_kernels *kivi_host_kernels(const struct kivi_backend *backend);

/* The CUDA module's backend, loaded once; NULL and *reason if there is none. Implemented by module.c. */
const struct kivi_backend *kivi_module_load(const char **reason);

/* The CPU backends of this build, slowest first. Implemented by src/cpu/backend.c. */
extern const struct kivi_backend *const kivi_cpu_backends[];
extern const size_t kivi_n_cpu_backends;

#endif
