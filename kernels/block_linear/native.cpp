// A linear layer with a weight in blocks, and embeddings from rows of blocks. Contracts:
// kernels/block_linear/__init__.py, kernels/embedding/__init__.py.
#include "../native/packed.h"
#include "packed_blocks.h"

#include <nanobind/stl/vector.h>

#include <vector>

const native::Codec* native::find_codec(const char* name) {
    for (const Codec* codec : CODECS)
        if (!std::strcmp(codec->name, name)) return codec;
    return nullptr;
}

namespace {

using namespace native;

// Weights that are multiplied with the same inputs, in several formats: the columns of one behind those of another.
struct BlockLinear {
    struct Part {
        PackedBlocks weight;
        std::shared_ptr<float> bias;  // with memory for whole panels, or null
        int64_t column, pair;         // its first of the layer's columns, and of the group's pairs of panels
    };
    // Parts whose products take the same rows, so that these are made once.
    struct Group {
        std::vector<Part> parts;
        int64_t num_pairs = 0;

        const Part& part_of(int64_t pair) const {
            size_t p = parts.size() - 1;
            while (parts[p].pair > pair) --p;
            return parts[p];
        }
    };
    std::vector<Group> groups;
    Element out;
    int64_t in_size, out_size = 0;

    BlockLinear(const std::vector<PackedBlocks>& weights, std::optional<Tensor> bias_O, DType out_dtype)
        : out(out_dtype.element()) {
        check_value(!weights.empty(), "there must be a weight");
        in_size = weights[0].in_size;
        for (const PackedBlocks& weight : weights) {
            check_value(weight.in_size == in_size, "weights must have one in_size");
            Group& group = group_for(weight);
            group.parts.push_back({weight, nullptr, out_size, group.num_pairs});
            group.num_pairs += weight.num_pairs();
            out_size += weight.out_size;
        }
        if (!bias_O) return;
        const float* const bias = bias_O->packed<const float>("bias_O", {out_size}).data;
        for (Group& group : groups)
            for (Part& part : group.parts) part.bias = whole_panels({bias + part.column, {part.weight.out_size}, {1}});
    }

 private:
    Group& group_for(const PackedBlocks& weight) {
        for (Group& group : groups)
            if (group.parts[0].weight.shares_rows(weight)) return group;
        return groups.emplace_back();
    }
};

// A group's columns of y, which has `width` of them; pair_of(weight, i) is a pair of rows and panels.
template <typename Y, typename PairOf>
void multiply_group(const BlockLinear::Group& group, int64_t width, Y* y, const PairOf& pair_of) {
    const auto pair_at = [&](int64_t i) {
        const auto& part = group.part_of(i);
        return pair_of(part.weight, i - part.pair);
    };
    multiply_pairs(group.num_pairs, pair_at, [&](int64_t i, int64_t row, int64_t M, const float* sums) {
        const auto& part = group.part_of(i);
        const int64_t begin = (i - part.pair) * BLOCK, size = part.weight.out_size;
        const auto value = [bias = part.bias.get()](const float* own, int64_t, int64_t column) {
            return bias ? load(own) + load(bias + column) : load(own);
        };
        for (int64_t column = begin; column < std::min(begin + BLOCK, size); column += PANEL)
            store_panel(sums + column - begin, row, M, column, size, Matrix<Y>{y + part.column, width}, value);
    });
}

template <typename X, typename Y>
void multiply(const BlockLinear& layer, const View<const X, 2>& x, int64_t num_rows, Y* y) {
    static thread_local GroupedRows own_rows;
    GroupedRows& rows = own_rows;  // this thread's, in the others too
    const Span all{0, num_rows};
    for (const BlockLinear::Group& group : layer.groups) {
        const PackedBlocks& first = group.parts[0].weight;
        if (first.is_dynamic) {
            rows.make_room(round_up(num_rows, TILE_ROWS), layer.in_size);
            parallel_rows(num_rows, 4,
                          [&](int64_t row) { rows.put(all, row, x.row(row), layer.in_size, first.codec->rows); });
            multiply_group(group, layer.out_size, y,
                           [&](const PackedBlocks& weight, int64_t i) { return pair_of(rows, all, weight, i); });
        } else {
            const Matrix<const X> floats = whole_rows<X>(x.data, x.stride[0], num_rows, layer.in_size);
            multiply_group(group, layer.out_size, y,
                           [&](const PackedBlocks& weight, int64_t i) { return pair_of(floats, num_rows, weight, i); });
        }
    }
}

template <typename X, typename Y>
Tensor forward(const std::shared_ptr<BlockLinear>& layer, const Tensor& x_TI) {
    const auto x = x_TI.view<const X>("x_TI", {ANY, layer->in_size});
    const auto y = x_TI.make<Y>({x.shape[0], layer->out_size});
    launch(x.shape[0], [=, y = y.view.data](int64_t rows) { multiply(*layer, x, rows, y); });
    return y.tensor;
}

// Rows of a weight in fp32; `rounds`: to bf16, as a weight in bf16 has them.
Tensor embed_blocks(const Tensor& rows_VB, const char* format, int64_t size, const Tensor& token_ids_T, bool rounds) {
    const Codec* const codec = find_codec(format);
    check_value(codec, "there is no such format of blocks");
    check_value(size > 0, "size must be positive");
    const int64_t num_blocks = (size + codec->values - 1) / codec->values;
    const auto weight = rows_VB.view<const uint8_t>("rows_VB", {ANY, num_blocks * codec->bytes});
    const auto token_ids = token_ids_T.packed<const int64_t>("token_ids_T", {ANY});
    const auto x = rows_VB.make<float>({token_ids.shape[0], size});
    launch(token_ids.shape[0], [=, x = x.view](int64_t rows) {
        check_indices(token_ids.data, rows, weight.shape[0], "token_ids_T");
        parallel_rows(rows, 1, [&](int64_t row) {
            const uint8_t* const blocks = weight.row(token_ids.data[row]);
            for (int64_t b = 0; b < num_blocks; ++b) {
                float values[256];
                codec->decode(blocks + b * codec->bytes, values);
                for (int64_t i = 0; rounds && i < codec->values; i += LANES) {
                    bf16 narrow[LANES];
                    store(narrow, load(values + i));
                    store(values + i, load(narrow));
                }
                const int64_t first = b * codec->values;
                std::memcpy(x.row(row) + first, values, std::min(codec->values, size - first) * sizeof(float));
            }
        });
    });
    return x.tensor;
}

}  // namespace

void native::bind_block_linear(nb::module_& m) {
    nb::class_<PackedBlocks>(m, "PackedBlocks")
        .def(nb::init<Tensor, const char*, int64_t, bool>(), "rows_OB"_a, "format"_a, "in_size"_a, "is_dynamic"_a);
    nb::class_<BlockLinear>(m, "BlockLinear")
        .def(nb::init<const std::vector<PackedBlocks>&, std::optional<Tensor>, DType>(), "weights"_a, "bias_O"_a.none(),
             "out_dtype"_a)
        .def(
            "forward",
            [](std::shared_ptr<BlockLinear> self, Tensor x_TI) {
                return with_dtype(x_TI, "x_TI", [&](auto number) {
                    using X = decltype(number);
                    return self->out == Element::FLOAT32 ? forward<X, float>(self, x_TI) : forward<X, bf16>(self, x_TI);
                });
            },
            "x_TI"_a);
    m.def("has_blocks", [](const char* format) { return find_codec(format) != nullptr; }, "format"_a);
    m.def(
        "share_rows",
        [](const char* format, const char* other) {
            const Codec *const codec = find_codec(format), *const other_codec = find_codec(other);
            check_value(codec && other_codec, "there is no such format of blocks");
            return codec->rows == other_codec->rows;
        },
        "format"_a, "other"_a);
    m.def("embed_blocks", &embed_blocks, "rows_VB"_a, "format"_a, "size"_a, "token_ids_T"_a, "rounds"_a);
}
