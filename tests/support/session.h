/* A cache and its sequences for tests that know which token is where: the token at position p of
 * stream s is the same numbers, whenever and in whatever call it is appended. */
#ifndef KIVI_TESTS_SESSION_H
#define KIVI_TESTS_SESSION_H

#include <kivi/kivi.h>

#include "contents.h"
#include "memory.h"
#include "model.h"

struct session {
    kivi_config config;
    kivi_cache *cache;
    struct memory memory; /* of the cache */
};

/* Two layers of different bits, two kv heads with two query heads each, residual 64. */
void session_config(kivi_config *config);

/* A cache of the configuration on a backend, over `memory`. */
void session_open(struct session *s, const kivi_config *config, const char *backend);

/* Destroys the cache, and fails the test if memory of it is left. */
void session_close(struct session *s);

kivi_seq session_new(struct session *s);
kivi_seq session_fork(struct session *s, kivi_seq source);
uint64_t session_length(const struct session *s, kivi_seq seq);

/* Tokens [first, first + n) of a stream, dense [token][head][dim]; the caller frees them. */
float *session_rows(const struct session *s, enum role role, uint64_t stream, uint64_t first,
                    uint64_t n);

/* Appends the stream's next n tokens to every layer: from the position at which the sequence ends. */
void session_append(struct session *s, kivi_seq seq, uint64_t stream, uint64_t n);
void session_append_layer(struct session *s, kivi_seq seq, uint32_t layer, uint64_t stream,
                          uint64_t n);

/* Attends with n_q queries; the caller frees the rows. */
float *session_attend(const struct session *s, kivi_seq seq, uint32_t layer, uint64_t n_q,
                      kivi_precision precision);

kivi_stats session_stats(const struct session *s);

/* Fails the test unless the sequences hold the same, bit for bit, and attend the same where backend and
 * windows are the same. The second may be of another session. */
void session_check_same(const struct session *s, kivi_seq a, const struct session *t, kivi_seq b,
                        const char *what);

/* Succeeds, or fails the test with the library's message. */
#define session_ok(call, error) ck_assert_msg((call) == KIVI_OK, "%s: %s", #call, (error)->message)

#endif
