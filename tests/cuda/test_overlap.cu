/*
 * What kernels may read before the one ahead of them is done, and which run beside one another: the host's part of
 * overlap.cuh, which needs no GPU.
 */
#include <check.h>
#include <vector>

#include "cuda/overlap.cuh"
#include "support/program.h"

namespace {

constexpr int SEQUENCES = 5;

uint64_t random_state = 1;

uint64_t below(uint64_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % n;
}

/* What a sequence has as codes, and had before the last call. */
struct sequence {
    uint64_t k, v, k_before, v_before;
};

/* One item of a call: a sequence, and how many of its tokens become codes. */
struct item {
    int sequence;
    uint64_t k, v;
};

/* A call as the backend gets it. */
struct call {
    std::vector<kivi_step_item> from;
    std::vector<kivi_cuda_item> items;
    kivi_step step;

    call(const std::vector<sequence> &sequences, const std::vector<item> &what)
        : from(what.size()), items(what.size()), step()
    {
        for (size_t i = 0; i < what.size(); i++) {
            const sequence &s = sequences[(size_t)what[i].sequence];

            from[i].before = {s.k + 128, s.k, s.v};
            from[i].after = {s.k + 128, s.k + what[i].k, s.v + what[i].v};
            items[i].n_tiles = 1;
            items[i].few.settled = 12345;
        }
        step.items = from.data();
        step.n_items = what.size();
    }
};

/* The call's codes become the sequences'. */
void apply(std::vector<sequence> &sequences, const std::vector<item> &what)
{
    for (sequence &s : sequences)
        s.k_before = s.k, s.v_before = s.v;
    for (const item &i : what) {
        sequences[(size_t)i.sequence].k += i.k;
        sequences[(size_t)i.sequence].v += i.v;
    }
}

uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Sequences at random, some of them in a call: no unit is settled of which a token became a code in the call before. */
START_TEST(nothing_that_is_being_written)
{
    std::vector<sequence> sequences(SEQUENCES, {0, 0, 0, 0});
    kivi_cuda_news last = {0, 0};
    for (int n = 0; n < 20000; n++) {
        std::vector<item> what;

        for (int i = 0; i < SEQUENCES; i++)
            if (below(2))
                what.push_back({i, below(4) ? 0 : 128 * below(3), below(3) ? below(9) : below(300)});

        call c(sequences, what);
        const kivi_cuda_news before = last;

        last = kivi_cuda_settle(before, &c.step, c.items.data());
        for (size_t i = 0; i < what.size(); i++) {
            const sequence &s = sequences[(size_t)what[i].sequence];
            const uint64_t codes = least(s.k_before, s.v_before), most = before.k > before.v ? before.k : before.v;

            ck_assert_uint_le(c.items[i].few.settled, codes / KIVI_CUDA_UNIT);
            /* No fewer than if this sequence were the one of which most became codes. */
            ck_assert_uint_ge(c.items[i].few.settled, codes > most ? (codes - most) / KIVI_CUDA_UNIT : 0);
        }
        apply(sequences, what);
    }
}
END_TEST

/* Alone in its calls, a sequence has all settled that was codes before the last one. */
START_TEST(all_that_was_there)
{
    static const uint64_t calls[][2] = {{0, 0}, {0, 5}, {0, 27}, {128, 128}, {0, 1},
                                        {0, 1}, {256, 0}, {0, 300}, {0, 0}};
    std::vector<sequence> sequences(1, {0, 0, 0, 0});
    kivi_cuda_news last = {0, 0};

    for (const uint64_t *n : calls) {
        const std::vector<item> what = {{0, n[0], n[1]}};
        call c(sequences, what);

        last = kivi_cuda_settle(last, &c.step, c.items.data());
        ck_assert_uint_eq(last.k, n[0]);
        ck_assert_uint_eq(last.v, n[1]);
        ck_assert_uint_eq(c.items[0].few.settled,
                          least(sequences[0].k_before, sequences[0].v_before) / KIVI_CUDA_UNIT);
        apply(sequences, what);
    }
}
END_TEST

/* Where it is not known what came before, nothing is; and items of many queries, which wait, keep what they have. */
START_TEST(nothing_if_it_is_not_known)
{
    const std::vector<sequence> sequences(2, {4096, 4096, 4096, 4096});
    const std::vector<item> what = {{0, 0, 1}, {1, 0, 7}};
    call c(sequences, what);
    kivi_cuda_news now;

    c.items[1].n_tiles = 0;
    now = kivi_cuda_settle({UINT64_MAX, UINT64_MAX}, &c.step, c.items.data());
    ck_assert_uint_eq(c.items[0].few.settled, 0);
    ck_assert_uint_eq(c.items[1].few.settled, 12345);
    ck_assert_uint_eq(now.k, 0);
    ck_assert_uint_eq(now.v, 7);
}
END_TEST

/* One reason is enough. */
START_TEST(what_runs_beside_attention)
{
    static const unsigned long long gate = KIVI_CUDA_NOT_BAD;

    for (int i = 0; i < 32; i++) {
        kivi_cuda_step step = {};

        step.overlap = !(i & 1);
        step.tables = i & 2 ? &step : NULL;
        step.gate = i & 4 ? &gate : NULL;
        ck_assert_int_eq(kivi_cuda_runs_beside(&step, (i & 8) != 0, !(i & 16)), i == 0);
    }
}
END_TEST

} // namespace

int main()
{
    Suite *suite = suite_create("overlap");
    TCase *tests = tcase_create("host");

    tcase_add_test(tests, nothing_that_is_being_written);
    tcase_add_test(tests, all_that_was_there);
    tcase_add_test(tests, nothing_if_it_is_not_known);
    tcase_add_test(tests, what_runs_beside_attention);
    suite_add_tcase(suite, tests);
    return run_suite(suite, CK_FORK_GETENV);
}
