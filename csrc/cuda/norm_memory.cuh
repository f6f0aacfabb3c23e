// Room 3, memory on CUDA: the elements of a normalization, eight at a time, and its values of a channel.
//
// They are groups, as groups.cuh has them; the bits of one in a mask are a byte.
#pragma once
#include "groups.cuh"
#include "norm.h"

namespace onepass::cuda {

// On a multiprocessor, at least: a bound on registers, so that nothing is spilled.
template <class S>
constexpr int kNormBlocks = sizeof(S) == 8 ? 1 : 2;

// Elements of a group that starts there: eight, but at the end of memory.
__device__ __forceinline__ int in_group(const NormShape& s, int64_t start) {
  const int64_t rest = s.numel() - start;
  return rest < kGroup ? static_cast<int>(rest) : kGroup;
}

// Bits of the elements i ... i + 7, of which there are `numel` in all.
__device__ __forceinline__ unsigned mask_bits(const uint8_t* mask, int64_t i, int64_t numel) {
  const unsigned off = static_cast<unsigned>(i % 8);
  unsigned bits = mask[i / 8];
  if (off && (i / 8 + 1) * 8 < numel) bits |= mask[i / 8 + 1] << 8;
  return bits >> off;
}

// --- one value a channel ----------------------------------------------------------------------------------
__device__ __forceinline__ double get(const ChannelVector& v, int64_t c) {
  const int64_t at = c * v.stride;
  switch (v.dtype) {
    case DType::kFloat64:
      return global<double>(v.data)[at];
    case DType::kBFloat16:
      return load(global<__nv_bfloat16>(v.data)[at]);
    case DType::kFloat16:
      return load(global<__half>(v.data)[at]);
    default:
      return global<float>(v.data)[at];
  }
}
__device__ __forceinline__ double get_or(const ChannelVector& v, int64_t c, double other) {
  return v.data ? get(v, c) : other;
}

__device__ __forceinline__ void set(const ChannelVector& v, int64_t c, double value) {
  if (!v.data) return;
  const int64_t at = c * v.stride;
  const float single = static_cast<float>(value);
  switch (v.dtype) {
    case DType::kFloat64:
      global<double>(v.data)[at] = value;
      break;
    case DType::kBFloat16:
      store(global<__nv_bfloat16>(v.data)[at], single);
      break;
    case DType::kFloat16:
      store(global<__half>(v.data)[at], single);
      break;
    default:
      global<float>(v.data)[at] = single;
  }
}

// --- activations ------------------------------------------------------------------------------------------
// Calls body with the activation as a type. One copy of the body for each.
template <class Body>
__device__ __forceinline__ void with_activation(Activation act, const Body& body) {
  switch (act) {
    case Activation::kRelu:
      return body(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kLeakyRelu:
      return body(std::integral_constant<Activation, Activation::kLeakyRelu>{});
    case Activation::kSilu:
      return body(std::integral_constant<Activation, Activation::kSilu>{});
    default:
      return body(std::integral_constant<Activation, Activation::kNone>{});
  }
}

// The gradient of the pre-activation of an element: by its bit where there is a mask, else by the very
// formula of forward. z: the residual, zero where there is none.
template <Activation act, class T>
__device__ __forceinline__ T gated(const NormCall& call, T dy, T x, T z, bool passed,
                                   const Normalise<T>& channel) {
  const T slope = static_cast<T>(call.negative_slope);
  if (call.mask) return gate<act>(dy, passed, slope);
  return activation_grad<act>(dy, normalise(x, channel.mean, channel.scale, channel.shift) + z, slope);
}

// What gradients are told from: dy, x and, where they are needed, the residual or the mask.
template <class S>
struct GradGroup {
  Group<S> dy, x, z;
  unsigned bits = 0;

  __device__ __forceinline__ void load(const NormWork& w, int64_t i, int n, bool aligned) {
    load_group(dy, w.call.dy, i, n, aligned);
    load_group(x, w.call.x, i, n, aligned);
    load_rest(w, i, n, aligned);
  }
  __device__ __forceinline__ void load_rest(const NormWork& w, int64_t i, int n, bool aligned) {
    if (w.call.mask)
      bits = mask_bits(w.call.mask, i, w.call.shape.numel());
    else if (w.call.residual)
      load_group(z, w.call.residual, i, n, aligned);
  }
  template <Activation act, class T>
  __device__ __forceinline__ T gradient(const NormCall& call, int k, const Normalise<T>& channel) const {
    const bool residual = !call.mask && call.residual;
    return gated<act>(call, cuda::load(dy.v[k]), cuda::load(x.v[k]), residual ? cuda::load(z.v[k]) : T(0),
                      bits >> k & 1, channel);
  }
};

}  // namespace onepass::cuda
