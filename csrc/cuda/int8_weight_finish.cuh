// What becomes of sums of real numbers and 8-bit weights, on CUDA: as int8_finish.cuh, where each output has
// a scale and rows have none, in the dtype of x.
#pragma once
#include "int8_finish.cuh"

namespace onepass::cuda {

// The outputs column, column + 1 ... of a row, of which there are n.
template <class S, int kWidth>
__device__ __forceinline__ void finish_real(const Int8Work& w, int64_t row, int64_t column, int n,
                                            float (&v)[kWidth]) {
  float scale[kWidth], bias[kWidth];
  load_outputs(scale, w.call.w_scale, column, n, w.wide, 1);
  load_outputs(bias, w.call.bias, column, n, w.wide, 0);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) v[i] = scaled(v[i], scale[i], 1.0f, bias[i]);
  gate_all(w.call.gate, v);
  store_as<S>(w, row * w.call.shape.n + column, v, n);
}

}  // namespace onepass::cuda
