// The activation that silu_mul and grouped_mlp share.
#pragma once

#include "../native/common.h"

namespace native {

// x / (1 + e^-x), through e^-|x| so that nothing overflows.
inline v16 silu(v16 x) {
    const v16 e = exp2<true>((x > 0.0f ? -x : x) * 1.44269504089f);
    return x * (x > 0.0f ? splat(1.0f) : e) / (1.0f + e);
}

}  // namespace native
