/*
 * The CUDA backend is a module that is opened at run time, so that the library never links CUDA.
 * It is looked for in the directories of KIVI_MODULE_PATH, else in the one it was installed to;
 * never in the working directory. A program with more rights than its user ignores the variable.
 */
#define _GNU_SOURCE /* secure_getenv */
#include "registry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)

const struct kivi_backend *kivi_module_load(const char **reason)
{
    *reason = "modules are not supported on this system";
    return NULL;
}

#else

#include <dlfcn.h>
#include <pthread.h>

#ifndef KIVI_MODULE_DIR
#define KIVI_MODULE_DIR ""
#endif
#define MODULE_FILE "kivi-cuda.so"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const struct kivi_backend *module;
static char why_not[512] = "the module " MODULE_FILE " is not installed";

/* Opens <directory>/kivi-cuda.so; 0 if there is none. */
static int open_in(const char *directory, size_t length)
{
    char path[4096];
    void *handle;
    kivi_module_entry entry;
    const struct kivi_backend *backend;
    const int n = snprintf(path, sizeof path, "%.*s/%s", (int)length, directory, MODULE_FILE);
    FILE *file;

    if (length == 0 || directory[0] != '/' || n < 0 || (size_t)n >= sizeof path)
        return 0;
    file = fopen(path, "rb");
    if (!file)
        return 0;
    fclose(file);
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *message = dlerror();

        snprintf(why_not, sizeof why_not, "%.500s", message ? message : path);
        return 1;
    }
    *(void **)&entry = dlsym(handle, KIVI_MODULE_ENTRY);
    backend = entry ? entry() : NULL;
    if (!backend || backend->abi != KIVI_BACKEND_ABI || backend->size != sizeof *backend) {
        snprintf(why_not, sizeof why_not, "%.400s was built for another version of the library",
                 path);
        dlclose(handle);
        return 1;
    }
    module = backend; /* stays open until the process ends */
    return 1;
}

static const char *module_path(void)
{
#if defined(KIVI_HAVE_SECURE_GETENV)
    return secure_getenv("KIVI_MODULE_PATH");
#else
    return getenv("KIVI_MODULE_PATH");
#endif
}

static void load(void)
{
    const char *path = module_path();

    while (path && *path) {
        const size_t length = strcspn(path, ":");

        if (open_in(path, length))
            return;
        path += length + (path[length] == ':');
    }
    open_in(KIVI_MODULE_DIR, strlen(KIVI_MODULE_DIR));
}

const struct kivi_backend *kivi_module_load(const char **reason)
{
    pthread_once(&once, load);
    *reason = module ? "" : why_not;
    return module;
}

#endif
