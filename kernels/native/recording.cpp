// Calls of this library's functions, one after another (recording.py).
//
// The functions have different parameters, all of them 64-bit words or floats. On x86-64 (System V ABI) the two kinds
// are passed apart, words in order in registers and then on the stack, floats in other registers, and who called
// removes what it put on the stack: so one call that passes the most of both serves every function, which reads as many
// as it has.
//
// A word is a number or an address, plus so much for each row that the functions are to compute.
#include <cstddef>
#include <cstdint>
#include <utility>

namespace {

constexpr int WORDS = 20, NUMBERS = 2;

struct Call {
    void* function;
    int64_t words[WORDS], words_per_row[WORDS];
    float numbers[NUMBERS];
};

template <std::size_t>
using Word = int64_t;

template <std::size_t... I>
void make(const Call& call, int64_t num_rows, std::index_sequence<I...>) {
    typedef void (*Function)(Word<I>..., float, float);
    reinterpret_cast<Function>(call.function)(call.words[I] + call.words_per_row[I] * num_rows..., call.numbers[0],
                                              call.numbers[1]);
}

}  // namespace

extern "C" int run_calls(const Call* calls, int64_t count, int64_t num_rows) {
    for (int64_t i = 0; i < count; ++i) make(calls[i], num_rows, std::make_index_sequence<WORDS>());
    return 0;
}
