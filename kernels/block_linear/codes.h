// The codes of a format's packed blocks. What a format is, and how its codes lie: format.h.
#pragma once

#include "codec.h"

#include <type_traits>

namespace native {

template <typename F, typename = void>
struct HasTable : std::false_type {};
template <typename F>
struct HasTable<F, std::void_t<decltype(F::TABLE)>> : std::true_type {};

template <typename F, typename = void>
struct IsFloat : std::false_type {};
template <typename F>
struct IsFloat<F, std::void_t<decltype(&F::values)>> : std::true_type {};

template <typename F>
constexpr int INPUT_GROUP = F::GROUP < 32 ? 32 : F::GROUP;
template <typename F>
constexpr int NUM_GROUPS = F::VALUES / F::GROUP;
template <typename F>
constexpr int UNIT = 64 * F::BITS;  // bytes of 32 inputs of 16 columns

template <typename F>
constexpr int most_of() {
    if constexpr (HasTable<F>::value)
        return F::MOST;
    else
        return (1 << F::BITS) - 1;
}

// The codes of inputs 4 * step to 4 * step + 3 of 16 columns: bytes [column][input].
template <typename F>
__attribute__((always_inline)) inline u16x codes_at(const uint8_t* unit, int step) {
    if constexpr (F::BITS == 8) return dwords(unit + 64 * step);
    const u16x pair = dwords(unit + step / 2 * 64);
    u16x codes = (step % 2 ? pair >> 4 : pair) & 0x0f0f0f0fu;
    if constexpr (F::BITS == 5) {
        const u16x high = dwords(unit + 256);
        codes |= (step < 4 ? high << (4 - step) : high >> (step - 4)) & 0x10101010u;
    }
    if constexpr (F::BITS == 6) {
        const u16x high = dwords(unit + 256 + step / 4 * 64);
        const int at = 2 * (step % 4);
        codes |= (at < 4 ? high << (4 - at) : high >> (at - 4)) & 0x30303030u;
    }
    if constexpr (HasTable<F>::value) {
#if defined(__AVX512BW__)
        const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(F::TABLE)));
        codes = (u16x)_mm512_shuffle_epi8(table, (__m512i)codes);
#else
        const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(F::TABLE)));
        __m256i half[2];
        std::memcpy(half, &codes, sizeof half);
        for (auto& own : half) own = _mm256_shuffle_epi8(table, own);
        std::memcpy(&codes, half, sizeof codes);
#endif
    }
    return codes;
}

}  // namespace native
