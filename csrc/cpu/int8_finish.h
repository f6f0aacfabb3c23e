// What follows the product of a panel: scale and bias of each output, the activation, the output's dtype.
//
// Memory contract: 16 sums of a row are read and the outputs of the panel written, four bytes each, two, or
// one where they are quantized again; scales and biases are read once a panel.
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

// --- quantized again --------------------------------------------------------------------------------------
// The lowest byte of each, those of a panel side by side.
using PanelBytes = VectorOf<uint8_t, kPanel>;
ONEPASS_INLINE PanelBytes lowest_bytes(const Integers<float> (&v)[PanelOutputs::kVectors]) {
#if defined(__AVX2__)
  const __m256i lowest = _mm256_set1_epi32(0xff), order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
  const __m256i low = _mm256_and_si256(bits_as<__m256i>(v[0]), lowest);
  const __m256i high = _mm256_and_si256(bits_as<__m256i>(v[1]), lowest);
  const __m256i pairs = _mm256_packus_epi32(low, high), bytes = _mm256_packus_epi16(pairs, pairs);
  return bits_as<PanelBytes>(_mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
#else
  PanelBytes bytes;
  for (int k = 0; k < PanelOutputs::kVectors; ++k) {
    const auto some = __builtin_convertvector(v[k], VectorOf<uint8_t, kLanes<float>>);
    std::memcpy(reinterpret_cast<uint8_t*>(&bytes) + k * sizeof some, &some, sizeof some);
  }
  return bytes;
#endif
}

// What outputs are quantized by, where they are.
struct OutputGrid {
  float inverse = 0, lowest = 0, highest = 0;
  int32_t zero_point = 0;

  explicit OutputGrid(const Int8Call& call) {
    if (!call.y_scale) return;
    const Grid grid = call.y_grid();
    inverse = grid.inverse;
    zero_point = grid.zero_point;
    lowest = call.y_levels().lowest(zero_point);
    highest = call.y_levels().highest(zero_point);
  }
};

// The outputs of a row, as store_outputs has them. A whole panel goes to memory at once.
template <class Made>
ONEPASS_INLINE void store_quantized(const Int8Call& call, const OutputGrid& grid, int64_t row, int64_t from,
                                    int64_t n, const Made& made) {
  Integers<float> whole[PanelOutputs::kVectors];
  for (int k = 0; k < PanelOutputs::kVectors; ++k) {
    const Vector<float> v = on_grid(made(k), grid.inverse, grid.lowest, grid.highest) + kRounds;
    whole[k] = bits_as<Integers<float>>(v) + grid.zero_point;
  }
  const PanelBytes bytes = lowest_bytes(whole);
  uint8_t* y = static_cast<uint8_t*>(call.y) + row * call.shape.n + from;
  if (n == kPanel)
    std::memcpy(y, &bytes, kPanel);
  else
    std::memcpy(y, &bytes, static_cast<size_t>(n));
}

// --- kinds of outputs -------------------------------------------------------------------------------------
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
