/* The one lock of a cache. C11 threads are missing on some systems that have pthreads. */
#ifndef KIVI_LOCK_H
#define KIVI_LOCK_H

#if defined(_WIN32)
#include <windows.h>
typedef SRWLOCK kivi_lock;
static inline int kivi_lock_init(kivi_lock *l)
{
    InitializeSRWLock(l);
    return 0;
}
static inline void kivi_lock_destroy(kivi_lock *l)
{
    (void)l;
}
static inline void kivi_lock_take(kivi_lock *l)
{
    AcquireSRWLockExclusive(l);
}
static inline void kivi_lock_release(kivi_lock *l)
{
    ReleaseSRWLockExclusive(l);
}
#else
#include <pthread.h>
typedef pthread_mutex_t kivi_lock;
static inline int kivi_lock_init(kivi_lock *l)
{
    return pthread_mutex_init(l, NULL);
}
static inline void kivi_lock_destroy(kivi_lock *l)
{
    pthread_mutex_destroy(l);
}
static inline void kivi_lock_take(kivi_lock *l)
{
    pthread_mutex_lock(l);
}
static inline void kivi_lock_release(kivi_lock *l)
{
    pthread_mutex_unlock(l);
}
#endif

#endif
