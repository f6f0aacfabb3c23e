// What follows an 8-bit product: y = act(sum * w_scale * x_scale + bias), where sum = (x - zero) * w over k.
// gelu is the exact one, 0.5 * v * (1 + erf(v / sqrt(2))), of Hendrycks and Gimpel, arXiv:1606.08415; silu is
// v * sigmoid(v).
#pragma once
#include <cstdint>

#include "norm.h"

namespace onepass {

enum class Gate : int32_t { kNone, kRelu, kGelu, kSilu };

// T may be a vector of gcc's, here and below.

// Sum of (x - zero) * w, given those of x * w and of w. As U, unsigned: what overflows on the way comes back.
template <class U = uint32_t, class T>
ONEPASS_HD T without_zero(T sum, T w_sum, int32_t zero) {
  return (T)((U)sum - (U)w_sum * static_cast<uint32_t>(zero));
}

template <class T, class S>
ONEPASS_HD T scaled(T sum, T w_scale, S x_scale, T bias) {
  return sum * w_scale * x_scale + bias;
}

template <class T>
ONEPASS_HD T gelu(T v) {
  if constexpr (std::is_floating_point_v<T>) {
    return v * (T(0.5) * (1 + std::erf(v * T(0.70710678118654752))));
  } else {
    for (unsigned k = 0; k < sizeof(T) / sizeof(v[0]); ++k) v[k] = gelu(v[k]);
    return v;
  }
}

template <Gate gate, class T>
ONEPASS_HD T gated(T v) {
  if constexpr (gate == Gate::kRelu) return activate<Activation::kRelu>(v, 0.0f);
  if constexpr (gate == Gate::kGelu) return gelu(v);
  if constexpr (gate == Gate::kSilu) return activate<Activation::kSilu>(v, 0.0f);
  return v;
}

}  // namespace onepass
