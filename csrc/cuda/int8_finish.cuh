// What becomes of sums of products, on CUDA. None of them reaches memory, but where they are asked for.
//
// Memory contract. For each output: its sum from registers or shared memory; x_scale and x_zero of its row,
// w_scale and bias of its column; y is written once. Eight outputs at a time move in 128-bit accesses, or in
// one of 64 where they are quantized again, by a scale that is read from memory: nothing waits for it.
#pragma once
#include "int8.h"
#include "vector.cuh"

namespace onepass::cuda {

// How many zero is off where x is read as signed: unsigned numbers have their highest bit turned over.
__device__ __forceinline__ int zero_of(const Int8Call& call, int64_t row) {
  return (call.x_zero ? call.x_zero[row] : 0) - (call.x_is_signed ? 0 : 128);
}

// --- values of outputs side by side -----------------------------------------------------------------------
// Eight, or one; of the n that there are. `other` where there is no such tensor.
template <int kWidth>
__device__ __forceinline__ void load_outputs(float (&to)[kWidth], const float* from, int64_t column, int n,
                                             bool wide, float other) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = other;
  if (!from) return;
  if constexpr (kWidth % kPerVector<float> == 0) {
    if (wide) return load_vectors(to, from + column);
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (i < n) to[i] = from[column + i];
}

template <class S, int kWidth>
__device__ __forceinline__ void store_outputs(S* to, const S (&from)[kWidth], int n, bool wide) {
  if constexpr (kWidth % kPerVector<S> == 0) {
    if (wide) return store_vectors(to, from);
  }
  if constexpr (kWidth * sizeof(S) == sizeof(uint2)) {
    if (wide) {
      uint2 raw;
      memcpy(&raw, from, sizeof raw);
      return __stcg(reinterpret_cast<uint2*>(to), raw);
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (i < n) to[i] = from[i];
}

template <class S, int kWidth>
__device__ __forceinline__ void store_as(const Int8Work& w, int64_t at, const float (&v)[kWidth], int n) {
  S y[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) store(y[i], v[i]);
  store_outputs(static_cast<S*>(w.call.y) + at, y, n, w.wide);
}

template <int kWidth>
__device__ __forceinline__ void store_real(const Int8Work& w, int64_t at, const float (&v)[kWidth], int n) {
  switch (w.call.y_dtype) {
    case DType::kBFloat16:
      return store_as<__nv_bfloat16>(w, at, v, n);
    case DType::kFloat16:
      return store_as<__half>(w, at, v, n);
    default:
      return store_as<float>(w, at, v, n);
  }
}

template <int kWidth>
__device__ __forceinline__ void store_quantized(const Int8Work& w, int64_t at, const float (&v)[kWidth],
                                                int n) {
  const Grid grid = w.call.y_grid();
  const float lowest = w.call.y_levels().lowest(grid.zero_point);
  const float highest = w.call.y_levels().highest(grid.zero_point);
  uint8_t q[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float steps = on_grid(v[i], grid.inverse, lowest, highest);
    q[i] = static_cast<uint8_t>(__float2int_rn(steps) + grid.zero_point);
  }
  store_outputs(static_cast<uint8_t*>(w.call.y) + at, q, n, w.wide);
}

// --- finish -----------------------------------------------------------------------------------------------
template <Gate gate, int kWidth>
__device__ __forceinline__ void gate_all(float (&v)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) v[i] = gated<gate>(v[i]);
}
template <int kWidth>
__device__ __forceinline__ void gate_all(Gate gate, float (&v)[kWidth]) {
  switch (gate) {
    case Gate::kRelu:
      return gate_all<Gate::kRelu>(v);
    case Gate::kGelu:
      return gate_all<Gate::kGelu>(v);
    case Gate::kSilu:
      return gate_all<Gate::kSilu>(v);
    case Gate::kNone:
      return;
  }
}

// The outputs column, column + 1 ... of a row, of which there are n: sums of x * w, and of w where zero
// points need them.
template <bool kZeros, int kWidth>
__device__ __forceinline__ void finish(const Int8Work& w, int64_t row, int64_t column, int n,
                                       int (&sums)[kWidth], const int (&w_sums)[kWidth]) {
  const Int8Call& call = w.call;
  const int64_t at = row * call.shape.n + column;
  if constexpr (kZeros) {
    const int zero = zero_of(call, row);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] = without_zero(sums[i], w_sums[i], zero);
  }
  if (call.raw) return store_outputs(static_cast<int*>(call.y) + at, sums, n, w.wide);

  float v[kWidth], w_scale[kWidth], bias[kWidth];
  load_outputs(w_scale, call.w_scale, column, n, w.wide, 1);
  load_outputs(bias, call.bias, column, n, w.wide, 0);
  const float x_scale = call.x_scale ? call.x_scale[row] : 1;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) v[i] = scaled(static_cast<float>(sums[i]), w_scale[i], x_scale, bias[i]);
  gate_all(call.gate, v);
  if (call.y_scale) return store_quantized(w, at, v, n);
  store_real(w, at, v, n);
}

}  // namespace onepass::cuda
