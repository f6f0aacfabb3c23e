// Gradients of the 8-bit product y = (x - zero) @ w' * x_scale * w_scale, with respect to what x and w stand
// for: grad_input = g @ (w * w_scale), grad_weight = g' @ ((x - zero) * x_scale), both in 8 bits.
//
// The scales lie along what is summed over. So they are multiplied into g before it is quantized: with a
// scale for each row m of g * w_scale, and for each column n of g * x_scale. Both products are then exact, as
// x @ w' is, up to kMaxDepth numbers. On the CPU longer sums, and shorter ones where zero points are beyond
// the range of a byte, are added up in float32, piece by piece; elsewhere these are exact as well.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace onepass {

// A call in plain numbers and memory.
struct Int8Backward {
  int64_t m = 0, n = 0, k = 0;
  const void* g = nullptr;  // [m, n], real
  DType g_dtype = DType::kFloat32;

  const void* x = nullptr;  // [m, k], whole
  bool x_is_signed = true;
  const float* x_scale = nullptr;   // a row each; null: 1
  const int32_t* x_zero = nullptr;  // a row each; null: 0
  const int8_t* weight = nullptr;   // [n, k], or:
  const uint8_t* packed = nullptr;  // as int8_pack makes it
  const float* w_scale = nullptr;   // an output each; null: 1

  bool by_chance = false;  // g is rounded by Philox's numbers of this seed, else to nearest
  uint64_t seed = 0;

  void* grad_input = nullptr;   // [m, k]; null: not wanted
  void* grad_weight = nullptr;  // [n, k]; null: not wanted
  DType dtype = DType::kFloat32;

  int32_t device = 0;       // index among those of its kind
  void* scratch = nullptr;  // what the driver wants besides: int8_driver.h
};

}  // namespace onepass
