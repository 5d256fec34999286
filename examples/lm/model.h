/* A byte-level model of the Llama architecture: shapes and weights, as f32. */
#ifndef LM_MODEL_H
#define LM_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "gguf.h"

#define LM_VOCABULARY 256u /* a token is a byte */

/* Rows of weights: data[n_out][n_in]. */
struct lm_matrix {
    const float *data;
    size_t n_in, n_out;
};

struct lm_layer {
    const float *attention_norm, *ffn_norm; /* [dim] */
    struct lm_matrix qkv;                   /* query heads, then key heads, then value heads */
    struct lm_matrix attention_out;
    struct lm_matrix gate_up; /* n_ffn rows of the gate, then n_ffn of the other half */
    struct lm_matrix ffn_down;
};

struct lm_model {
    char name[80];
    uint32_t n_layers, dim, n_ffn;
    uint32_t n_heads, n_kv_heads, k_dim, v_dim;
    uint32_t n_rot;   /* channels that the rotary embedding turns */
    uint32_t context; /* positions it was trained for */
    float norm_epsilon;
    double rope_base;
    size_t n_weights;

    struct lm_matrix embedding, output; /* [LM_VOCABULARY][dim] */
    const float *output_norm;
    struct lm_layer *layers;
    float *weights; /* what all of the above point into */
};

/* Loads the model of a GGUF file; the file is closed again. On failure the model is empty. */
int lm_model_load(struct lm_model *model, const char *path, struct lm_error *error);

/* The same from an open file. */
int lm_model_read(struct lm_model *model, const struct gguf *file, struct lm_error *error);

/* Frees what the model holds; may be called on a zeroed or empty one. */
void lm_model_free(struct lm_model *model);

#endif
