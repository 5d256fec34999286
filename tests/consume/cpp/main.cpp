// A C++ program of someone who has installed libkivi: one token through the cache comes back.
#include <kivi/kivi.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void must(kivi_status status, const kivi_error &error)
{
    if (status != KIVI_OK)
        throw std::runtime_error(std::string(kivi_status_string(status)) + ": " + error.message);
}

struct Destroy {
    void operator()(kivi_cache *cache) const { kivi_cache_destroy(cache); }
};

bool round_trip()
{
    const uint32_t dim = 64;
    kivi_error error{};
    kivi_config config;
    kivi_config_init(&config);
    config.n_layers = config.n_q_heads = config.n_kv_heads = 1;
    config.k_dim = config.v_dim = dim;

    kivi_cache *raw = nullptr;
    must(kivi_cache_create(&config, &raw, &error), error);
    const std::unique_ptr<kivi_cache, Destroy> cache(raw);
    kivi_seq seq = 0;
    must(kivi_seq_create(raw, &seq, &error), error);

    const std::vector<float> k(dim, 0.5f), v(dim, 0.25f), q(dim, 1.0f);
    std::vector<float> out(dim);
    must(kivi_forward(raw, 0, seq, 1, k.data(), v.data(), q.data(), out.data(), nullptr, &error),
         error);
    return out == v; // attention over one token is its value
}

} // namespace

int main()
{
    try {
        const bool ok = round_trip();
        std::puts(ok ? "ok" : "wrong result");
        return ok ? 0 : 1;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
