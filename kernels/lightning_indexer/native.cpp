// The lightning indexer of decoding queries on a CPU. Contract: kernels/lightning_indexer/__init__.py.
//
// Positions are scored in tiles: keys are brought into panels as attention brings them, one product has the scores of
// all heads. Then each sequence selects among its own.
#include "../paged_attention/rows.h"

#include "../native/matmul.h"

#include <algorithm>
#include <limits>

namespace {

using namespace native;

template <typename T>
struct Indexer {
    View<const T, 3> q;  // [tokens, heads, dim]
    View<const float, 2> weights;
    Cache<T> keys;
    const Plan& plan;
};

// The scores of up to TILE positions of a sequence from `start` on.
template <typename T>
void score_tile(const Indexer<T>& indexer, int64_t sequence, int64_t start, float* scores) {
    typedef typename Operand<T>::type O;
    const int64_t num_heads = indexer.q.shape[1], dim = indexer.q.shape[2], size = padded<O>(dim), row = TILE + PADDING;
    const int64_t held = round_up(num_heads, ROWS), end = indexer.plan.context(sequence);
    const int64_t count = std::min(TILE, end - start), columns = round_up(count, 32);
    char* const memory = scratch((held + TILE) * size * sizeof(O) + held * row * sizeof(float));
    const Matrix<float> products{reinterpret_cast<float*>(memory), row};
    O* const q = reinterpret_cast<O*>(products.row(held));
    O* const panels = q + held * size;
    std::memset(q, 0, held * size * sizeof(O));
    for (int64_t head = 0; head < num_heads; ++head)
        for (int64_t d = 0; d < dim; d += LANES)
            store_to(q + head * size, d, dim, load_from(indexer.q.row(sequence, head), d, dim));
    const T* rows[TILE + AHEAD];
    locate(indexer.keys, indexer.plan.table(sequence), indexer.plan.block_size, 0, start, 0,
           std::min(TILE + AHEAD, end - start), rows);
    pack_keys(rows, columns, 0, dim, nullptr, panels, 0, size);
    const Tiles tiles;
    product<false, O>({q, size}, num_heads, {panels, PANEL * size}, columns, products, size);
    for (int64_t j = 0; j < columns; j += LANES) {
        v16 sum{};
        for (int64_t head = 0; head < num_heads; ++head)
            sum += max(load(products.row(head) + j), v16{}) * indexer.weights.row(sequence)[head];
        store_to(scores, j, count, sum);
    }
}

// The best positions, ascending; of equal scores the first. Fewer positions than wanted are followed by `count`.
void select_best(const float* scores, int64_t count, int64_t wanted, int64_t* positions) {
    static thread_local Scratch<uint64_t> memory;
    uint64_t* const order = memory.room(count);  // the best score first, then the first position
    for (int64_t i = 0; i < count; ++i) {
        const float score = scores[i] + 0.0f;  // no negative zero
        uint32_t bits;
        std::memcpy(&bits, &score, sizeof bits);
        bits = bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
        order[i] = uint64_t(bits) << 32 | uint64_t(i);
    }
    const int64_t num = std::min(count, wanted);
    if (num < count) std::nth_element(order, order + num, order + count);
    for (int64_t i = 0; i < num; ++i) positions[i] = order[i] & 0xffffffffu;
    std::sort(positions, positions + num);
    std::fill(positions + num, positions + wanted, count);
}

template <typename T>
void select(const Indexer<T>& indexer, int64_t topk, int64_t* positions) {
    const int64_t num_sequences = indexer.plan.num_sequences();
    std::vector<int64_t> first_tile(num_sequences + 1), sequence_of;
    for (int64_t i = 0; i < num_sequences; ++i) {
        sequence_of.resize(sequence_of.size() + (indexer.plan.context(i) + TILE - 1) / TILE, i);
        first_tile[i + 1] = sequence_of.size();
    }
    static thread_local Scratch<float> memory;
    float* const scores = memory.room(sequence_of.size() * TILE);
    parallel(sequence_of.size(), [&](int64_t tile) {
        const int64_t sequence = sequence_of[tile];
        score_tile(indexer, sequence, (tile - first_tile[sequence]) * TILE, scores + tile * TILE);
    });
    parallel(num_sequences, [&](int64_t i) {
        select_best(scores + first_tile[i] * TILE, indexer.plan.context(i), topk, positions + i * topk);
    });
}

}  // namespace

void native::bind_lightning_indexer(nb::module_& m) {
    m.def(
        "lightning_indexer",
        [](Tensor q_THI, Tensor weights_TH, Tensor cache, std::shared_ptr<AttentionPlan> plan, int64_t topk) {
            return with_dtype(q_THI, "q_THI", [&](auto number) {
                using T = decltype(number);
                const auto q = q_THI.view<const T>("q_THI", {ANY, ANY, ANY});
                const auto weights = weights_TH.view<const float>("weights_TH", {q.shape[0], q.shape[1]});
                const auto keys = cache.packed<const T>("cache", {ANY, 1, ANY, q.shape[2]});
                check_value(topk > 0, "topk must be positive");
                const auto positions = q_THI.make<int64_t>({q.shape[0], topk});
                launch_uncaptured("lightning_indexer", [=, positions = positions.view] {
                    const auto whole = plan->plan;
                    whole->check(q.shape[0], keys.shape[0], keys.shape[2]);
                    check_value(whole->num_sequences() == whole->num_tokens,
                                "positions are selected for decoding sequences only");
                    const int64_t size = keys.shape[3];
                    const Cache<T> own{keys.data, keys.stride[0], 0, size, size};
                    select(Indexer<T>{q, weights, own, *whole}, topk, positions.data);
                });
                return positions.tensor;
            });
        },
        "q_THI"_a, "weights_TH"_a, "cache"_a, "plan"_a, "topk"_a);
}
