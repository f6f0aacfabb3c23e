// What follows the product of a panel: scale and bias of each output, the activation, the output's dtype.
//
// Memory contract: 16 sums of a row are read and the outputs of the panel written; scales and biases are read
// once a panel.
#pragma once
#include <algorithm>
#include <cstring>

#include "../common/int8.h"
#include "vector_exp.h"

namespace onepass::ONEPASS_ISA {

// What is the same for all rows: of the outputs [from, from + n) of a panel.
struct PanelOutputs {
  static constexpr int kVectors = kPanel / kLanes<float>;
  Vector<float> scale[kVectors], bias[kVectors];

  PanelOutputs(const Int8Call& call, int64_t from, int64_t n) {
    float scales[kPanel], biases[kPanel] = {};
    std::fill_n(scales, kPanel, 1.0f);
    const size_t bytes = static_cast<size_t>(n) * sizeof(float);
    if (call.w_scale) std::memcpy(scales, call.w_scale + from, bytes);
    if (call.bias) std::memcpy(biases, call.bias + from, bytes);
    std::memcpy(scale, scales, sizeof scale);
    std::memcpy(bias, biases, sizeof bias);
  }
};

// The outputs of a row: made(k) gives vector k of them. A whole panel of floats goes straight to memory.
template <class S, class Made>
ONEPASS_INLINE void store_outputs(const Int8Call& call, int64_t row, int64_t from, int64_t n,
                                  const Made& made) {
  S* y = static_cast<S*>(call.y) + row * call.shape.n + from;
  if constexpr (std::is_same_v<S, float>) {
    if (n == kPanel) {
      for (int k = 0; k < PanelOutputs::kVectors; ++k) store_wide<float>(y + k * kLanes<float>, made(k));
      return;
    }
  }
  float real[kPanel];
  for (int k = 0; k < PanelOutputs::kVectors; ++k) store_wide<float>(real + k * kLanes<float>, made(k));
  if (n == kPanel)
    store_run(y, real, 1, kPanel);  // a loop of its own, so that it vectorises
  else
    store_run(y, real, 1, n);
}

// body.operator()<S, gate>() for the storage type and the gate of the call.
template <class S, class Body>
void with_gate(Gate gate, const Body& body) {
  switch (gate) {
    case Gate::kNone:
      return body.template operator()<S, Gate::kNone>();
    case Gate::kRelu:
      return body.template operator()<S, Gate::kRelu>();
    case Gate::kGelu:
      return body.template operator()<S, Gate::kGelu>();
    case Gate::kSilu:
      return body.template operator()<S, Gate::kSilu>();
  }
}
template <class Body>
void with_output(const Int8Call& call, const Body& body) {
  switch (call.y_dtype) {
    case DType::kBFloat16:
      return with_gate<BFloat16>(call.gate, body);
    case DType::kFloat16:
      return with_gate<Float16>(call.gate, body);
    default:
      return with_gate<float>(call.gate, body);
  }
}

}  // namespace onepass::ONEPASS_ISA
