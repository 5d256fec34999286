#include "overlap.cuh"

kivi_cuda_news kivi_cuda_settle(const kivi_cuda_news &last, const kivi_step *step, kivi_cuda_item *items)
{
    kivi_cuda_news now = {0, 0};

    for (size_t i = 0; i < step->n_items; i++) {
        const kivi_span *before = &step->items[i].before, *after = &step->items[i].after;
        const uint64_t k = before->k_packed > last.k ? before->k_packed - last.k : 0;
        const uint64_t v = before->v_packed > last.v ? before->v_packed - last.v : 0;

        if (items[i].n_tiles) /* others wait */
            items[i].few.settled = (uint32_t)((k < v ? k : v) / KIVI_CUDA_UNIT);
        if (after->k_packed - before->k_packed > now.k)
            now.k = after->k_packed - before->k_packed;
        if (after->v_packed - before->v_packed > now.v)
            now.v = after->v_packed - before->v_packed;
    }
    return now;
}

bool kivi_cuda_runs_beside(const kivi_cuda_step *step, bool replaces_rows, bool attended)
{
    return attended && step->overlap && !step->tables && !step->gate && !replaces_rows;
}
