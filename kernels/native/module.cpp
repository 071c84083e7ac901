// The extension module kernels.native._kernels_<isa>.
//
// It is compiled for any x86-64, as it asks whether the CPU can run the rest, and once for each instruction set.
#include "binding.h"
#include "pool.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string_view>

namespace {

// Whether the CPU has what the libraries for an instruction set use (build.py), and grants AMX tiles to this process.
bool is_supported(std::string_view isa) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (isa == "avx2" || !avx2) return avx2;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (isa == "avx512" || !avx512) return avx512;
    const bool bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    if (isa == "avx512_bf16" || !bf16) return bf16;
    unsigned eax, ebx, ecx, edx;
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & (BF16 | TILE | INT8)) != (BF16 | TILE | INT8))
        return false;
    constexpr long REQUEST_PERMISSION = 0x1023,
                   TILE_DATA = 18;  // Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

}  // namespace

#define TEXT_OF(NAME) #NAME
#define TEXT(NAME) TEXT_OF(NAME)
#define JOIN_OF(A, B) A##B
#define JOIN(A, B) JOIN_OF(A, B)

NB_MODULE(JOIN(_kernels_, ISA), m) {
    const bool supported = is_supported(TEXT(ISA));
    m.attr("is_supported") = supported;
    if (!supported) return;
    using namespace native;
    nb::set_leak_warnings(false);  // at exit, modules may hold graphs and packed weights
    m.def("set_threads", &set_threads, "count"_a);
    for (auto bind : {bind_graph,
                      bind_plan,
                      bind_block_linear,
                      bind_causal_attention,
                      bind_compression,
                      bind_draw,
                      bind_embedding,
                      bind_gelu,
                      bind_linear,
                      bind_grouped_mlp,
                      bind_hadamard,
                      bind_head_linear,
                      bind_latent_attention,
                      bind_lightning_indexer,
                      bind_modality_embedding,
                      bind_paged_attention,
                      bind_rms_norm,
                      bind_rotary,
                      bind_round_to_blocks,
                      bind_rotate_and_store,
                      bind_routing,
                      bind_silu_mul,
                      bind_store_latents,
                      bind_take_rows})
        bind(m);
}
