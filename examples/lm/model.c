#include "model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LAYERS 1024u
#define MAX_HEADS 1024u
#define MAX_HEAD_DIM 4096u
#define MAX_DIM 65536u
#define MAX_CONTEXT (1u << 24)

/* Where the next tensor goes. */
struct loader {
    const struct gguf *file;
    float *weights;
    size_t used;  /* floats */
    size_t count; /* tensors */
    struct lm_error *error;
};

/* ------------------------------------------------------------------ keys */

static int get_size(const struct gguf *file, const char *key, uint32_t most, uint32_t *out,
                    struct lm_error *error)
{
    uint64_t value;

    if (gguf_get_uint(file, key, &value, error))
        return -1;
    if (value == 0 || value > most)
        return lm_fail(error, "%s = %llu; 1 to %u is supported", key, (unsigned long long)value,
                       most);
    *out = (uint32_t)value;
    return 0;
}

static int require_text(const struct gguf *file, const char *key, const char *text,
                        struct lm_error *error)
{
    struct gguf_string value;

    if (gguf_get_string(file, key, &value, error))
        return -1;
    if (!gguf_string_is(value, text))
        return lm_fail(error, "%s is '%.*s'; '%s' is supported", key,
                       value.size > 60 ? 60 : (int)value.size, value.text, text);
    return 0;
}

/* Byte-level means: 256 tokens, and nothing that merges them. */
static int check_tokenizer(const struct gguf *file, struct lm_error *error)
{
    uint64_t tokens, merges = 0;

    if (require_text(file, "tokenizer.ggml.model", "gpt2", error)
        || gguf_get_count(file, "tokenizer.ggml.tokens", &tokens, error))
        return -1;
    if (gguf_has(file, "tokenizer.ggml.merges")
        && gguf_get_count(file, "tokenizer.ggml.merges", &merges, error))
        return -1;
    if (tokens != LM_VOCABULARY || merges != 0)
        return lm_fail(error,
                       "%llu tokens and %llu merges; only the byte-level vocabulary of 256 "
                       "tokens without merges is supported",
                       (unsigned long long)tokens, (unsigned long long)merges);
    return 0;
}

/* Keys that would change the arithmetic: ignoring them would be silently wrong. */
static int check_variants(const struct gguf *file, struct lm_error *error)
{
    uint64_t experts = 0;

    if (gguf_has(file, "llama.rope.scaling.type")
        && require_text(file, "llama.rope.scaling.type", "none", error))
        return -1;
    if (gguf_has(file, "llama.expert_count")
        && gguf_get_uint(file, "llama.expert_count", &experts, error))
        return -1;
    if (experts > 0)
        return lm_fail(error, "a mixture of experts is not supported");
    return 0;
}

static int read_head_dims(struct lm_model *m, const struct gguf *file, struct lm_error *error)
{
    m->k_dim = m->v_dim = m->dim / m->n_heads;
    if (gguf_has(file, "llama.attention.key_length")
        && get_size(file, "llama.attention.key_length", MAX_HEAD_DIM, &m->k_dim, error))
        return -1;
    if (gguf_has(file, "llama.attention.value_length")
        && get_size(file, "llama.attention.value_length", MAX_HEAD_DIM, &m->v_dim, error))
        return -1;
    m->n_rot = m->k_dim;
    if (gguf_has(file, "llama.rope.dimension_count")
        && get_size(file, "llama.rope.dimension_count", m->k_dim, &m->n_rot, error))
        return -1;
    if (m->k_dim == 0 || m->v_dim == 0 || m->n_rot % 2)
        return lm_fail(error, "head dimensions %u and %u, %u of them rotated, make no sense",
                       m->k_dim, m->v_dim, m->n_rot);
    if (m->n_heads % m->n_kv_heads)
        return lm_fail(error, "%u query heads cannot share %u kv heads", m->n_heads, m->n_kv_heads);
    return 0;
}

static int read_keys(struct lm_model *m, const struct gguf *file, struct lm_error *error)
{
    struct gguf_string name = {"a model without a name", 22};
    double epsilon, base = 10000.0;

    if (require_text(file, "general.architecture", "llama", error) || check_tokenizer(file, error)
        || check_variants(file, error)
        || get_size(file, "llama.block_count", MAX_LAYERS, &m->n_layers, error)
        || get_size(file, "llama.embedding_length", MAX_DIM, &m->dim, error)
        || get_size(file, "llama.feed_forward_length", MAX_DIM, &m->n_ffn, error)
        || get_size(file, "llama.context_length", MAX_CONTEXT, &m->context, error)
        || get_size(file, "llama.attention.head_count", MAX_HEADS, &m->n_heads, error))
        return -1;
    m->n_kv_heads = m->n_heads;
    if (gguf_has(file, "llama.attention.head_count_kv")
        && get_size(file, "llama.attention.head_count_kv", m->n_heads, &m->n_kv_heads, error))
        return -1;
    if (read_head_dims(m, file, error)
        || gguf_get_float(file, "llama.attention.layer_norm_rms_epsilon", &epsilon, error))
        return -1;
    if (gguf_has(file, "llama.rope.freq_base")
        && gguf_get_float(file, "llama.rope.freq_base", &base, error))
        return -1;
    if (!(epsilon >= 0 && epsilon < 1) || !(base >= 1 && base < 1e12))
        return lm_fail(error, "norm epsilon %g or rotary base %g makes no sense", epsilon, base);
    m->norm_epsilon = (float)epsilon;
    m->rope_base = base;
    if (gguf_has(file, "general.name") && gguf_get_string(file, "general.name", &name, error))
        return -1;
    for (size_t i = 0; i < name.size && i + 1 < sizeof m->name; i++)
        m->name[i] = (char)(name.text[i] < ' ' || name.text[i] > '~' ? '?' : name.text[i]);
    return 0;
}

/* --------------------------------------------------------------- weights */

/* Reads a tensor of n_out rows; n_out 0 stands for a vector. */
static const float *load(struct loader *loader, const char *name, size_t n_in, size_t n_out)
{
    const struct gguf_tensor *tensor = gguf_find_tensor(loader->file, name);
    float *out = loader->weights + loader->used;

    if (!tensor) {
        lm_fail(loader->error, "the tensor '%s' is missing", name);
        return NULL;
    }
    if (tensor->dims[0] != n_in || tensor->dims[1] != (n_out ? n_out : 1) || tensor->dims[2] != 1
        || tensor->dims[3] != 1) {
        lm_fail(loader->error, "the tensor '%s' is %llu x %llu x %llu, not %zu x %zu", name,
                (unsigned long long)tensor->dims[0], (unsigned long long)tensor->dims[1],
                (unsigned long long)tensor->dims[2], n_in, n_out ? n_out : 1);
        return NULL;
    }
    gguf_read_tensor(tensor, out);
    loader->used += (size_t)tensor->n_elements;
    loader->count++;
    return out;
}

/* One of the `n` tensors of a layer that are stacked, in order, into one matrix. */
struct part {
    const char *name;
    size_t n_out;
};

static int load_stack(struct loader *loader, uint32_t layer, const struct part *parts, size_t n,
                      size_t n_in, struct lm_matrix *matrix)
{
    char name[64];

    matrix->data = loader->weights + loader->used;
    matrix->n_in = n_in;
    matrix->n_out = 0;
    for (size_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "blk.%u.%s.weight", layer, parts[i].name);
        if (!load(loader, name, n_in, parts[i].n_out))
            return -1;
        matrix->n_out += parts[i].n_out;
    }
    return 0;
}

static const float *load_norm(struct loader *loader, uint32_t layer, const char *part, size_t dim)
{
    char name[64];

    snprintf(name, sizeof name, "blk.%u.%s.weight", layer, part);
    return load(loader, name, dim, 0);
}

static int load_layer(struct loader *loader, const struct lm_model *m, uint32_t i,
                      struct lm_layer *layer)
{
    const size_t n_q = (size_t)m->n_heads * m->k_dim;
    const size_t n_v = (size_t)m->n_heads * m->v_dim;
    const struct part qkv[] = {{"attn_q", n_q},
                               {"attn_k", (size_t)m->n_kv_heads * m->k_dim},
                               {"attn_v", (size_t)m->n_kv_heads * m->v_dim}};
    const struct part attention_out = {"attn_output", m->dim};
    const struct part gate_up[] = {{"ffn_gate", m->n_ffn}, {"ffn_up", m->n_ffn}};
    const struct part ffn_down = {"ffn_down", m->dim};

    layer->attention_norm = load_norm(loader, i, "attn_norm", m->dim);
    if (!layer->attention_norm)
        return -1;
    layer->ffn_norm = load_norm(loader, i, "ffn_norm", m->dim);
    if (!layer->ffn_norm)
        return -1;
    if (load_stack(loader, i, qkv, 3, m->dim, &layer->qkv)
        || load_stack(loader, i, &attention_out, 1, n_v, &layer->attention_out)
        || load_stack(loader, i, gate_up, 2, m->dim, &layer->gate_up))
        return -1;
    return load_stack(loader, i, &ffn_down, 1, m->n_ffn, &layer->ffn_down);
}

static int load_ends(struct loader *loader, struct lm_model *m)
{
    const struct lm_matrix shape = {NULL, m->dim, LM_VOCABULARY};

    m->embedding = m->output = shape;
    m->embedding.data = load(loader, "token_embd.weight", m->dim, LM_VOCABULARY);
    if (!m->embedding.data)
        return -1;
    m->output_norm = load(loader, "output_norm.weight", m->dim, 0);
    if (!m->output_norm)
        return -1;
    m->output.data = m->embedding.data; /* tied, unless there is one of its own */
    if (gguf_find_tensor(loader->file, "output.weight"))
        m->output.data = load(loader, "output.weight", m->dim, LM_VOCABULARY);
    return m->output.data ? 0 : -1;
}

static int read_weights(struct lm_model *m, const struct gguf *file, struct lm_error *error)
{
    struct loader loader = {file, NULL, 0, 0, error};

    for (size_t i = 0; i < gguf_tensor_count(file); i++)
        m->n_weights += (size_t)gguf_tensor_at(file, i)->n_elements;
    m->weights = m->n_weights > SIZE_MAX / sizeof *m->weights
                     ? NULL
                     : malloc(m->n_weights * sizeof *m->weights + 1);
    m->layers = calloc(m->n_layers, sizeof *m->layers);
    if (!m->weights || !m->layers)
        return lm_fail(error, "out of memory for %zu weights", m->n_weights);
    loader.weights = m->weights;
    if (load_ends(&loader, m))
        return -1;
    for (uint32_t i = 0; i < m->n_layers; i++) {
        if (load_layer(&loader, m, i, &m->layers[i]))
            return -1;
    }
    if (loader.count != gguf_tensor_count(file))
        return lm_fail(error,
                       "%zu tensors, of which this architecture has %zu: what the others "
                       "would do is not supported",
                       gguf_tensor_count(file), loader.count);
    for (size_t i = 0; i < m->n_weights; i++) {
        if (!isfinite(m->weights[i]))
            return lm_fail(error, "a weight is not finite");
    }
    return 0;
}

int lm_model_read(struct lm_model *model, const struct gguf *file, struct lm_error *error)
{
    memset(model, 0, sizeof *model);
    if (read_keys(model, file, error) || read_weights(model, file, error)) {
        lm_model_free(model);
        return -1;
    }
    return 0;
}

int lm_model_load(struct lm_model *model, const char *path, struct lm_error *error)
{
    struct gguf *file;
    int result;

    memset(model, 0, sizeof *model);
    if (gguf_open(path, &file, error))
        return -1;
    result = lm_model_read(model, file, error);
    gguf_close(file);
    return result;
}

void lm_model_free(struct lm_model *model)
{
    free(model->layers);
    free(model->weights);
    memset(model, 0, sizeof *model);
}
