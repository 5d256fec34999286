/* The GGUF reader of kivi-lm on any bytes: a model or one line, no crash. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gguf.h"
#include "model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct lm_error error = {""};
    struct lm_model model;
    struct gguf *file = NULL;
    uint64_t *aligned = malloc(size + 8); /* as a mapping would be */

    if (!aligned)
        abort();
    memcpy(aligned, data, size);
    if (gguf_open_memory(aligned, size, &file, &error) != 0) {
        if (file || error.text[0] == '\0' || strchr(error.text, '\n'))
            abort();
    } else {
        memset(&model, 0, sizeof model);
        if (lm_model_read(&model, file, &error) != 0
            && (error.text[0] == '\0' || strchr(error.text, '\n')))
            abort();
        lm_model_free(&model);
    }
    gguf_close(file);
    free(aligned);
    return 0;
}
