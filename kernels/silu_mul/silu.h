// The activation that silu_mul and grouped_mlp share.
#pragma once

#include "../native/common.h"

namespace native {

// x / (1 + e^-x); below -87, -inf included, as there, where it is almost 0. NaN stays.
inline v16 silu(v16 x) {
    x = max(splat(-87.0f), x);
#if defined(__AVX512F__)
    const v16 d = 1.0f + exp2<true>(x * -1.44269504089f);
    const v16 near = (v16)_mm512_rcp14_ps((__m512)d);
    return x * (near * (2.0f - d * near));  // 1 / d to fp32's precision, by a step of Newton's
#else
    const v16 e = exp2<true>((x > 0.0f ? -x : x) * 1.44269504089f);
    return x * (x > 0.0f ? splat(1.0f) : e) / (1.0f + e);
#endif
}

}  // namespace native
