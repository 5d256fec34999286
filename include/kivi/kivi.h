/*
 * libkivi: a quantized key/value cache for transformer inference.
 *
 * The cache of KIVI (Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit
 * Quantization for KV Cache", arXiv 2402.02750): keys are quantized per channel
 * (a group is `group_size` consecutive tokens of one channel), values per token
 * (a group is `group_size` consecutive channels of one token), and the newest
 * tokens stay in full precision (f16).
 *
 * How an engine uses it:
 *
 *     kivi_config config;
 *     kivi_config_init(&config);              // the paper's defaults
 *     config.n_layers = 32;  config.n_q_heads = 32;  config.n_kv_heads = 8;
 *     config.k_dim = 128;    config.v_dim = 128;
 *     kivi_cache_create(&config, &cache, NULL);
 *     kivi_seq_create(cache, &seq, NULL);
 *     for each call of the model, for each layer:
 *         kivi_forward(cache, layer, seq, n, k, v, q, out, NULL, NULL);
 *
 * `kivi_forward` appends the keys and values of `n` tokens, attends with their
 * queries over the whole sequence, and only then quantizes what has left the
 * window of full precision. Batches, partial attention and the host's own
 * threads go through `kivi_run` and `kivi_work_*`: the same call, spelled out.
 *
 * Conventions that hold for every function unless it says otherwise:
 *
 * - It returns 0 (KIVI_OK) or a negative status; the last parameter `error` may
 *   be NULL, and receives the status and one line that names the culprit.
 * - A call that fails has changed nothing: the cache is as it was before, but for memory that is kept
 *   for reuse (kivi_cache_trim).
 * - Pointers must not be NULL unless "may be NULL" is said. Input and output
 *   arrays must not overlap. Nothing the caller passes is kept after the call
 *   returns, except the allocator in the configuration, what kivi_work_begin
 *   says, and arrays on a device, which its stream reads and writes later.
 * - The library never prints, never ends the process, and reads no environment
 *   variable but KIVI_BACKEND and KIVI_MODULE_PATH. What it cannot prevent:
 *   OpenMP's run-time may end the process if the system refuses it a thread (a
 *   limit of processes or of address space). With n_threads = 1, or on the host's
 *   own threads (kivi_work_begin), the library starts none.
 * - Callbacks return: no exception and no longjmp passes through the library.
 * - Different threads may use one cache at the same time on different sequences
 *   (or different layers of one sequence). A call that would touch a layer of a
 *   sequence while another call is changing it fails with KIVI_ERROR_BUSY.
 *   Creating and destroying the cache itself is for one thread.
 */
#ifndef KIVI_KIVI_H
#define KIVI_KIVI_H

#include <stddef.h>
#include <stdint.h>

#include <kivi/version.h>

#if defined(KIVI_STATIC)
#define KIVI_API
#elif defined(_WIN32)
#if defined(KIVI_BUILDING)
#define KIVI_API __declspec(dllexport)
#else
#define KIVI_API __declspec(dllimport)
#endif
#else
#define KIVI_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- errors */

/* Numbers are pinned: they never change meaning between versions. */
typedef enum kivi_status {
    KIVI_OK = 0,
    KIVI_ERROR_ARGUMENT = -1,    /* a NULL, an impossible value, an inconsistent combination */
    KIVI_ERROR_MEMORY = -2,      /* the allocator (or the device) returned nothing */
    KIVI_ERROR_CAPACITY = -3,    /* `capacity`, `memory_budget` or `max_sequences` would be exceeded */
    KIVI_ERROR_SEQUENCE = -4,    /* no such sequence: never created, or destroyed */
    KIVI_ERROR_NOT_FINITE = -5,  /* an input is infinite or NaN, a key or value is beyond the range of
                                    f16 (65504), or a scaled query beyond 1e30 */
    KIVI_ERROR_BACKEND = -6,     /* the named backend is unknown or not available on this machine */
    KIVI_ERROR_UNSUPPORTED = -7, /* valid, but this backend does not serve it */
    KIVI_ERROR_BUSY = -8,        /* another call is working on this layer of this sequence: the same call
                                    may succeed once that has ended */
    KIVI_ERROR_FORMAT = -9,      /* saved data is damaged, or of another version or geometry */
    KIVI_ERROR_IO = -10,         /* a read or write callback reported failure */
    KIVI_ERROR_DEVICE = -11      /* the device failed: launch, transfer, driver */
} kivi_status;

/* Where a call failed and why. Owned by the caller. */
typedef struct kivi_error {
    kivi_status status;
    size_t item;       /* of several kivi_item, or sequences, the one at fault, or the first for which there
                          was no room: without it the others may do. SIZE_MAX if it is none of them */
    char message[240]; /* always NUL-terminated */
} kivi_error;

/* A short English phrase for a status; never NULL, also for unknown numbers. */
KIVI_API const char *kivi_status_string(kivi_status status);

/* The version of the library at run time, "major.minor.patch". */
KIVI_API const char *kivi_version(void);

/* -------------------------------------------------------------- backends */

/*
 * An implementation of the cache's arithmetic: "scalar", "avx2", "avx2-vnni",
 * "avx512", "avx512-vnni", "neon", "neon-dotprod", "neon-i8mm", "cuda".
 * All are listed that this build contains, whether or not the machine can run them.
 */
typedef struct kivi_backend_info {
    const char *name;        /* what `config.backend` and KIVI_BACKEND take */
    const char *description; /* one line */
    int available;           /* 1 if this machine can run it */
    int recommended;         /* 1 for the one that is used when none is named */
    const char *reason;      /* why it is not available, or "" */
} kivi_backend_info;

/* The number of backends in this build, the slowest first. */
KIVI_API size_t kivi_backend_count(void);

/* Describes backend `index`, below kivi_backend_count(). The strings are static. */
KIVI_API kivi_status kivi_backend_get(size_t index, kivi_backend_info *info, kivi_error *error);

/* Looks a backend up by exact name; KIVI_ERROR_BACKEND if this build has none of that name. */
KIVI_API kivi_status kivi_backend_find(const char *name, kivi_backend_info *info,
                                       kivi_error *error);

/* --------------------------------------------------------- configuration */

/*
 * Memory for the cache. `alloc` returns `bytes` bytes aligned to `alignment` (a
 * power of two) or NULL; `release` gets the same size back. Both may be called by
 * several threads at once. Both NULL: the C library's, with transparent huge pages
 * advised for large blocks where the system has them. Every byte that the library
 * allocates for a cache goes through here.
 */
typedef struct kivi_allocator {
    void *(*alloc)(void *context, size_t bytes, size_t alignment);
    void (*release)(void *context, void *memory, size_t bytes);
    void *context;
} kivi_allocator;

/* Where the arrays passed to kivi_run live. */
typedef enum kivi_memory {
    KIVI_MEMORY_HOST = 0,
    KIVI_MEMORY_DEVICE = 1 /* the device of the cache's backend; CPU backends refuse it */
} kivi_memory;

/*
 * Fill with kivi_config_init, then set at least the first five fields of the model.
 * Later versions may append fields; `size` tells them which ones the caller knows (docs/building.md).
 */
typedef struct kivi_config {
    size_t size; /* sizeof(kivi_config); set by kivi_config_init */

    /* The model. */
    uint32_t n_layers;   /* layers that have a cache, 1 to 4096 */
    uint32_t n_q_heads;  /* query heads; a multiple of n_kv_heads */
    uint32_t n_kv_heads; /* kv heads: equal for MHA, fewer for GQA, 1 for MQA */
    uint32_t k_dim;      /* head dimension of queries and keys: a multiple of 8, 8 to 512 */
    uint32_t v_dim;      /* head dimension of values and outputs: a multiple of 8, 8 to 512 */

    /* The quantization (paper, section 3). */
    uint32_t k_bits;             /* 2 (default), 4, 8, or 16: f16, not quantized */
    uint32_t v_bits;             /* likewise */
    const uint8_t *layer_k_bits; /* n_layers entries that replace k_bits; may be NULL. Copied. */
    const uint8_t *layer_v_bits; /* likewise for v_bits */
    uint32_t group_size;         /* 32 (default), 64 or 128: tokens of a key group, channels of a
                                    value group. A last group of channels may be shorter. */
    uint32_t residual_length;    /* 128 (default): keys are quantized this many at a time, and this
                                    many newest values stay f16. A multiple of group_size, at most
                                    4096. */
    uint32_t n_sink;             /* 0 (default): this many first tokens are kept in f16 for ever, and
                                    do not take part in their groups' ranges; at most 4096 */
    uint32_t rollback;           /* 0 (default): this many of the newest tokens can be taken back exactly
                                    at any moment, not only inside the residual window: see
                                    kivi_seq_truncate; at most 4096 */

    /* Room. */
    uint32_t max_sequences;  /* 64 (default): sequences alive at one time, at most 2^20 */
    uint32_t page_tokens;    /* 256 (default): tokens of a page of the widest layer, a multiple of 128 */
    uint64_t capacity;       /* sum over sequences of the tokens of a layer; 0 (default): no limit */
    uint64_t memory_budget;  /* bytes of pages and windows, at most; 0 (default): no limit. They come in
                                slabs, of a 64th of the budget (a small one: up to a 16th) or one block.
                                What is kept free counts too until kivi_cache_trim, or a call that needs
                                the room, gives it back; a slab that is used in part cannot be. */
    kivi_allocator allocator;

    /* The machine. */
    const char *backend; /* a name from kivi_backend_get; NULL (default): the environment's
                            KIVI_BACKEND if set, else the best available. Precedence in that order. */
    int32_t device;      /* CUDA device ordinal; 0 (default). CPU backends ignore it. */
    kivi_memory memory;  /* where the arrays of kivi_run live; host (default) */
    uint32_t n_threads;  /* threads of kivi_run: 0 (default) asks OpenMP (OMP_NUM_THREADS) */
} kivi_config;

/* Fills in the defaults above; the model's fields are zero and must be set. NULL is ignored. */
KIVI_API void kivi_config_init(kivi_config *config);

/* ----------------------------------------------------------------- cache */

/* The cache of one model: layers x sequences. */
typedef struct kivi_cache kivi_cache;

/* A sequence of tokens in a cache. Numbers are never used again after kivi_seq_destroy; 0 is none. */
typedef uint64_t kivi_seq;

/* Creates an empty cache. On failure *cache is NULL. */
KIVI_API kivi_status kivi_cache_create(const kivi_config *config, kivi_cache **cache,
                                       kivi_error *error);

/* Frees the cache and every sequence in it. No other call may be running on it. NULL is ignored. */
KIVI_API void kivi_cache_destroy(kivi_cache *cache);

/*
 * One paragraph, for logs: the backend and why it was chosen, the geometry, bytes a token,
 * and every combination in this configuration that takes a slower path than its neighbours.
 * Writes at most `capacity` bytes with the final NUL to `text` (which may be NULL if capacity is
 * 0) and returns the length of the whole text without NUL, as snprintf does.
 */
KIVI_API size_t kivi_describe(const kivi_cache *cache, char *text, size_t capacity);

/* Exact sizes in bytes; "shared" is counted once in the cache, and in each sequence that sees it. */
typedef struct kivi_stats {
    size_t size;               /* sizeof(kivi_stats), set by the caller */
    uint64_t sequences;        /* sequences counted: 1 for kivi_seq_stats */
    uint64_t tokens;           /* sum over sequences of the longest layer */
    uint64_t pages;            /* pages in use */
    uint64_t shared_pages;     /* of these, pages that more than one sequence refers to */
    uint64_t code_bytes;       /* quantized codes of the tokens held (f16 rows for 16 bits) */
    uint64_t scale_bytes;      /* their scales and minima */
    uint64_t window_bytes;     /* f16 windows: residual, rollback and sink tokens */
    uint64_t unused_bytes;     /* room in pages in use that holds no token yet; pages and windows of
                                  sequences that are being loaded, truncated or shortened */
    uint64_t bookkeeping_bytes;/* page tables, sequence table, scratch, the cache object */
    uint64_t total_bytes;      /* the sum of the five above: memory in use */
    uint64_t free_bytes;       /* blocks kept for reuse, allocated but not in use */
    uint64_t shared_bytes;     /* bytes of pages and windows that more than one sequence refers to */
    uint64_t f16_bytes;        /* what an f16 cache of the same tokens would hold, for comparison */
    uint64_t next_append_bytes;/* pages and windows one more token for every counted sequence takes */
} kivi_stats;

/* Memory use of the whole cache. `stats->size` must be set. */
KIVI_API kivi_status kivi_cache_stats(const kivi_cache *cache, kivi_stats *stats, kivi_error *error);

/*
 * Gives blocks kept for reuse back to the allocator: whole slabs, so that one block in use keeps the free
 * ones beside it. Returns the bytes given back; NULL gives 0.
 */
KIVI_API uint64_t kivi_cache_trim(kivi_cache *cache);

/* ------------------------------------------------------------- sequences */

/* Creates an empty sequence. On failure *seq is 0. */
KIVI_API kivi_status kivi_seq_create(kivi_cache *cache, kivi_seq *seq, kivi_error *error);

/* Removes a sequence; pages that no other sequence shares become free. */
KIVI_API kivi_status kivi_seq_destroy(kivi_cache *cache, kivi_seq seq, kivi_error *error);

/* The number of tokens that `layer` of the sequence holds. */
KIVI_API kivi_status kivi_seq_length(const kivi_cache *cache, kivi_seq seq, uint32_t layer,
                                     uint64_t *n_tokens, kivi_error *error);

/* As kivi_cache_stats, for one sequence. */
KIVI_API kivi_status kivi_seq_stats(const kivi_cache *cache, kivi_seq seq, kivi_stats *stats,
                                    kivi_error *error);

/* A new sequence equal to `source`. Pages are shared and copied when written: O(pages). */
KIVI_API kivi_status kivi_seq_fork(kivi_cache *cache, kivi_seq source, kivi_seq *seq,
                                   kivi_error *error);

/*
 * Beam search: sequence seqs[i] becomes equal to what seqs[parents[i]] was before the call,
 * for all i < n at once. All distinct; parents[i] < n. The handles stay valid.
 */
KIVI_API kivi_status kivi_seq_reorder(kivi_cache *cache, const kivi_seq *seqs,
                                      const uint32_t *parents, size_t n, kivi_error *error);

/*
 * Finds out before the first layer of a step whether all of its tokens have room: n_new[i] more, below 2^32,
 * in every layer of the distinct sequences seqs[i], i < n. The pages and windows that they take are free in the cache
 * afterwards, and appending these tokens finds them, unless other calls have taken them meanwhile, or
 * kivi_cache_trim has given them back. KIVI_ERROR_CAPACITY or KIVI_ERROR_MEMORY if there is no room,
 * KIVI_ERROR_BUSY if a call is appending to one of them; kivi_error.item is the first such sequence.
 */
KIVI_API kivi_status kivi_seq_reserve(kivi_cache *cache, const kivi_seq *seqs,
                                      const uint64_t *n_new, size_t n, kivi_error *error);

/*
 * Keeps the first `n_tokens` of every layer (a shorter layer stays as it is). Exact if the cut is
 * inside the residual of the keys, those that are not quantized yet, or no more than `rollback` tokens
 * below the greatest length that the layer has had: attention, and the codes of later tokens, are bit
 * for bit what they would be if the tokens that go had never come. (A file of kivi_seq_save may hold
 * fewer rows to go back by than it would.) Further back, tokens that return to full precision come
 * back dequantized; docs/numerics.md has the bound. After such a cut, and after kivi_seq_drop, the
 * greatest length is counted anew, and only tokens appended since are taken back exactly.
 *
 * Memory: none where nothing comes back dequantized, so that an exact cut, or one to 0 tokens, cannot
 * fail for want of it. Else at most a window for every layer, which stands beside the old one until all
 * are done. Other sequences can be used meanwhile.
 */
KIVI_API kivi_status kivi_seq_truncate(kivi_cache *cache, kivi_seq seq, uint64_t n_tokens,
                                       kivi_error *error);

/*
 * The least length from which on kivi_seq_truncate is exact: to *n_tokens tokens and to every number above.
 * It moves on as tokens come. 0 tokens are always exact, and a few lengths in between may be.
 */
KIVI_API kivi_status kivi_seq_exact_from(const kivi_cache *cache, kivi_seq seq, uint64_t *n_tokens,
                                         kivi_error *error);

/* Rotary embedding of the keys, for kivi_seq_drop. Zero-initialize, then set what is needed. */
typedef struct kivi_rope {
    size_t size;              /* sizeof(kivi_rope) */
    uint32_t n_rot;           /* channels that are rotated, even, at most k_dim */
    uint32_t interleaved;     /* 1: pairs (2i, 2i+1); 0: pairs (i, i + n_rot/2) */
    const float *frequencies; /* n_rot/2 angles per position, in radians */
    uint32_t turn_first;      /* 0: tokens from `end` on turn back by end - begin. 1: the first `begin`
                                 tokens turn forward instead, and later ones keep their positions */
} kivi_rope;

/*
 * Drops tokens [begin, end) of every layer; later tokens move down by end - begin (StreamingLLM:
 * keep the sinks and a recent window). begin and end are multiples of group_size, begin >= n_sink,
 * end <= length - residual_length of every layer; begin == end drops nothing. NULL: keys stay as they
 * are and positions are the host's business. With `rope` the keys on one side of the gap are rotated,
 * which closes it: f16 rows stay f16, quantized keys are dequantized, rotated and quantized again.
 * docs/sequences.md has the measured error, which grows with every rotation: `turn_first` with
 * begin == n_sink has next to none (n_sink is then a multiple of group_size).
 *
 * Memory: for every layer at most a window and as many pages as it will have, which stand beside the
 * old ones until all are done. Pages before the gap stay where they are, and those behind it if a whole
 * number of pages goes, unless their keys turn. Other sequences can be used meanwhile.
 */
KIVI_API kivi_status kivi_seq_drop(kivi_cache *cache, kivi_seq seq, uint64_t begin, uint64_t end,
                                   const kivi_rope *rope, kivi_error *error);

/* --------------------------------------------------- append and attention */

typedef enum kivi_dtype { KIVI_F32 = 0, KIVI_F16 = 1, KIVI_BF16 = 2 } kivi_dtype;

/*
 * A read-only array [tokens][heads][dim]: channel c of head h of token t is element
 * t * token_stride + h * head_stride + c of `data`. Strides count elements. A stride of 0
 * means dense: head_stride = dim, token_stride = heads * dim. `data` is aligned to its elements: to
 * 4 bytes for f32, to 2 for f16 and bf16.
 */
typedef struct kivi_in {
    const void *data;
    kivi_dtype dtype;
    ptrdiff_t token_stride, head_stride;
} kivi_in;

/* The same for an output: KIVI_F32 or KIVI_F16. */
typedef struct kivi_out {
    void *data;
    kivi_dtype dtype;
    ptrdiff_t token_stride, head_stride;
} kivi_out;

/*
 * What one call does with one sequence: append, then attend, then quantize what has
 * left the window. Zero-initialize, then set what is needed.
 */
typedef struct kivi_item {
    kivi_seq seq;
    uint64_t n_new;  /* tokens to append: 0 to attend only; below 2^32 */
    kivi_in k, v;    /* [n_new][n_kv_heads][k_dim], [n_new][n_kv_heads][v_dim]; unused if n_new is 0 */
    uint64_t n_q;    /* queries: 0 to append only. At most 2^30 / (n_q_heads / n_kv_heads) */
    kivi_in q;       /* [n_q][n_q_heads][k_dim] */
    kivi_out out;    /* [n_q][n_q_heads][v_dim] */
    float *lse;      /* [n_q][n_q_heads], natural logarithm of the softmax denominator (sink logit
                        included, -inf for a row that saw nothing); may be NULL */
    uint64_t q_end;  /* one past the position of the last query; a query sees the tokens up to and
                        including its own position. 0, for prompts and decoding: the length after the
                        append. Else at least n_q: queries at or above the length see every token
                        (another machine holds the rest). Above 2^62 it counts as 2^62 */
} kivi_item;

/*
 * KIVI_STANDARD: the error against exact arithmetic on the quantized cache is at most 5% of
 * the quantization error itself, but for few rows: where that happens to be next to nothing, or
 * where tokens come in kinds, at 2 bits up to 1.6 times that.
 * KIVI_PRECISE: 1e-5 relative. docs/numerics.md.
 */
typedef enum kivi_precision { KIVI_STANDARD = 0, KIVI_PRECISE = 1 } kivi_precision;

/* How scores become weights. NULL in a call stands for the values of kivi_attention_init. */
typedef struct kivi_attention {
    size_t size;              /* sizeof(kivi_attention); set by kivi_attention_init */
    float scale;              /* of the scores; 0 (default): 1 / sqrt(k_dim) */
    float softcap;            /* c: scores become c * tanh(score / c); 0 (default): none */
    uint64_t window;          /* a query sees this many newest tokens, itself included; 0: all */
    const float *sink_logits; /* n_q_heads learned logits that join the softmax denominator without
                                 a value; may be NULL. Give them to one of several partial calls. */
    kivi_precision precision; /* KIVI_STANDARD (default); below a softcap of 8 always KIVI_PRECISE */
    void *stream;             /* cudaStream_t of the cache's device, in its primary context (others are an
                                 error); NULL (default): its default stream. CPU backends ignore it. */
} kivi_attention;

/* Fills in the defaults above. NULL is ignored. */
KIVI_API void kivi_attention_init(kivi_attention *attention);

/*
 * The one way in: does `items` on `layer`, with the library's own threads. All items succeed or none
 * is applied. A sequence may stand in several items only if none of them appends to it
 * (KIVI_ERROR_ARGUMENT). Every query sees the new tokens exactly, as given (rounded to f16), and older
 * tokens as the cache holds them; tokens are quantized after the attention (paper, algorithm 1).
 * `attention` may be NULL.
 */
KIVI_API kivi_status kivi_run(kivi_cache *cache, uint32_t layer, const kivi_item *items,
                              size_t n_items, const kivi_attention *attention, kivi_error *error);

/* kivi_run for one sequence and dense f32 arrays: append n tokens and attend with their queries. */
KIVI_API kivi_status kivi_forward(kivi_cache *cache, uint32_t layer, kivi_seq seq, uint64_t n,
                                  const float *k, const float *v, const float *q, float *out,
                                  const kivi_attention *attention, kivi_error *error);

/* kivi_run for one sequence: append only. */
KIVI_API kivi_status kivi_append(kivi_cache *cache, uint32_t layer, kivi_seq seq, uint64_t n,
                                 kivi_in k, kivi_in v, kivi_error *error);

/* kivi_run for one sequence: attend only, with the queries of the newest n tokens. */
KIVI_API kivi_status kivi_attend(kivi_cache *cache, uint32_t layer, kivi_seq seq, uint64_t n,
                                 kivi_in q, kivi_out out, const kivi_attention *attention,
                                 kivi_error *error);

/*
 * kivi_run on the host's own threads. Between begin and end, for each phase in order, every part
 * 0 .. n_parts-1 is run once, by any thread; all parts of a phase must have returned before the
 * next phase starts (that barrier is the host's). Nothing is visible in the cache before kivi_work_end
 * returns KIVI_OK. The arrays of the items and `sink_logits` must stay valid until then, the inputs as
 * they are; `items` and `attention` themselves are copied. Arrays on a device: until the stream has done
 * the work that kivi_work_end put there.
 */
typedef struct kivi_work kivi_work;

/* Checks everything, and takes all memory that the call needs. n_parts is 1 to 1024. */
KIVI_API kivi_status kivi_work_begin(kivi_cache *cache, uint32_t layer, const kivi_item *items,
                                     size_t n_items, const kivi_attention *attention,
                                     uint32_t n_parts, kivi_work **work, kivi_error *error);

/* The number of phases, possibly 0. */
KIVI_API uint32_t kivi_work_phases(const kivi_work *work);

/*
 * The number of parts that have work, 1 to n_parts, since small calls gain nothing from many threads: parts
 * from this number on do nothing in any phase, and need not be run.
 */
KIVI_API uint32_t kivi_work_parts(const kivi_work *work);

/*
 * Runs one part of one phase. Failures (a non-finite input) are kept for kivi_work_end, and so is that a part
 * was not due: it has been run in this phase, or not all of the phase before have returned. Such a part does
 * nothing.
 */
KIVI_API void kivi_work_part(kivi_work *work, uint32_t phase, uint32_t part);

/* Applies the call, or reports why not (parts of a phase were not run, or not when they were due:
 * KIVI_ERROR_ARGUMENT), and frees `work` either way. */
KIVI_API kivi_status kivi_work_end(kivi_work *work, kivi_error *error);

/* Frees `work` without applying it: the cache stays as before kivi_work_begin. NULL is ignored. */
KIVI_API void kivi_work_cancel(kivi_work *work);

/*
 * Merges attention over disjoint tokens: for each of n_rows, (out, lse) becomes the attention
 * over both sets. out, other_out: [n_rows][dim]; lse, other_lse: [n_rows]. Exact up to rounding.
 */
KIVI_API kivi_status kivi_merge(size_t n_rows, uint32_t dim, float *out, float *lse,
                                const float *other_out, const float *other_lse, kivi_error *error);

/* --------------------------------------------------------- save and load */

/* Writes `bytes` bytes and returns 0, or non-zero to stop with KIVI_ERROR_IO. */
typedef int (*kivi_write_fn)(void *context, const void *data, size_t bytes);

/* Reads exactly `bytes` bytes and returns 0, or non-zero (end of data included). */
typedef int (*kivi_read_fn)(void *context, void *data, size_t bytes);

/* Saves one sequence in the format of docs/format.md, the same bytes from every backend. */
KIVI_API kivi_status kivi_seq_save(const kivi_cache *cache, kivi_seq seq, kivi_write_fn write,
                                   void *context, kivi_error *error);

/*
 * Loads a sequence saved by kivi_seq_save into a cache of the same model geometry and
 * quantization. Everything is checked before the sequence appears; on failure *seq is 0.
 */
KIVI_API kivi_status kivi_seq_load(kivi_cache *cache, kivi_read_fn read, void *context,
                                   kivi_seq *seq, kivi_error *error);

/* The exact number of bytes that kivi_seq_save would write. */
KIVI_API kivi_status kivi_seq_save_size(const kivi_cache *cache, kivi_seq seq, uint64_t *bytes,
                                        kivi_error *error);

/*
 * Saves all sequences. The handles are saved too: kivi_cache_load returns for each sequence the
 * handle it had (`old_seqs`) and has (`new_seqs`). Sharing between sequences is not preserved.
 */
KIVI_API kivi_status kivi_cache_save(const kivi_cache *cache, kivi_write_fn write, void *context,
                                     kivi_error *error);

/*
 * Adds all sequences of a saved cache to `cache`, or none. At most `capacity` handles are
 * written; *n receives how many sequences there are. Fails with KIVI_ERROR_CAPACITY if more: as many as
 * the cache's max_sequences always do.
 */
KIVI_API kivi_status kivi_cache_load(kivi_cache *cache, kivi_read_fn read, void *context,
                                     kivi_seq *old_seqs, kivi_seq *new_seqs, size_t capacity,
                                     size_t *n, kivi_error *error);

/* --------------------------------------------------- packing, stateless */

/*
 * Quantization without a cache, for engines that keep their own. A block is `n_tokens` tokens of
 * one head. "Keys" means grouped per channel, "values" grouped per token; either may be applied to
 * either. The packed order is that of docs/layout.md, whole: codes, scales, minima. A packed block is
 * aligned to 16 bytes.
 */
typedef enum kivi_axis {
    KIVI_PER_CHANNEL = 0, /* the paper's keys: n_tokens must be a multiple of group_size */
    KIVI_PER_TOKEN = 1    /* the paper's values: the block is padded to 32 tokens */
} kivi_axis;

typedef struct kivi_packing {
    size_t size; /* sizeof(kivi_packing) */
    kivi_axis axis;
    uint32_t bits;       /* 2, 4 or 8 */
    uint32_t group_size; /* 32, 64 or 128 */
    uint32_t dim;        /* a multiple of 8, 8 to 512 */
    uint64_t n_tokens;
} kivi_packing;

/* Bytes of a packed block; 0 if the description is not valid. */
KIVI_API uint64_t kivi_packed_size(const kivi_packing *packing);

/* Quantizes rows ([n_tokens][1][dim], head_stride unused) into `packed` (kivi_packed_size bytes). */
KIVI_API kivi_status kivi_pack(const kivi_packing *packing, kivi_in rows, void *packed,
                               kivi_error *error);

/* Dequantizes: rows[t * dim + c] = code * scale + min in f32. */
KIVI_API kivi_status kivi_unpack(const kivi_packing *packing, const void *packed, float *rows,
                                 kivi_error *error);

/*
 * Conversion from and to the arrays of the official KIVI code, for one head: 32 / bits codes to a
 * 32-bit word, element i at bit bits * (i % n) of word i / n.
 * Per channel: code [dim][n_tokens / n], scale and min (f16) [dim][n_tokens / group_size].
 * Per token: code [n_tokens][dim / n], scale and min [n_tokens][groups]; needs dim to be a multiple
 * of n, groups = ceil(dim / group_size). Bits 2 and 4 are what the official code knows; 8 follows the same rule.
 */
KIVI_API kivi_status kivi_pack_to_official(const kivi_packing *packing, const void *packed,
                                           uint32_t *code, uint16_t *scale, uint16_t *min,
                                           kivi_error *error);
KIVI_API kivi_status kivi_pack_from_official(const kivi_packing *packing, const uint32_t *code,
                                             const uint16_t *scale, const uint16_t *min,
                                             void *packed, kivi_error *error);

#ifdef __cplusplus
}
#endif
#endif
