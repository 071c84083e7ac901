// What the CPU must have for this library, and what the callers of others must know.
#include "panels.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

// Called once, before any other function. 0: this process may run the library. 1: the CPU lacks an instruction set. 2:
// the kernel grants no AMX tiles.
extern "C" int start() {
#if defined(__AVX512F__)
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl"))
        return 1;
#endif
#if defined(__AVX512BF16__)
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return 1;
#endif
#if defined(__AMX_BF16__)
    unsigned eax, ebx, ecx, edx;
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (BF16 | TILE | INT8)) != (BF16 | TILE | INT8))
        return 1;
    constexpr long REQUEST_PERMISSION = 0x1023,
                   TILE_DATA = 18;  // Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) return 2;
#endif
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") ? 0 : 1;
}

// Bytes of the values that products of bf16 are computed from: 2, or 4 where they are widened first.
extern "C" int bf16_operand_size() { return sizeof(native::Narrow); }
