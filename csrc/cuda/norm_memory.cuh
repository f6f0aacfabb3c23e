// Room 3, memory on CUDA: the elements of a normalization, eight at a time, and its values of a channel.
//
// A group is eight elements, one behind the other in memory, and a thread's turn: their bits in a mask are a
// byte. Where all tensors start at a 16-byte boundary, a whole group moves in 128-bit accesses. Reads go
// through L1: of four bytes an element, a group is two accesses to one sector.
#pragma once
#include "norm.h"
#include "vector.cuh"

namespace onepass::cuda {

// On a multiprocessor, at least: a bound on registers, so that nothing is spilled.
template <class S>
constexpr int kNormBlocks = sizeof(S) == 8 ? 1 : 2;

template <class S>
struct Group {
  S v[kGroup];
};

// Which of a group's eight elements are meant.
struct Lanes {
  int begin, end;
  __device__ __forceinline__ bool has(int k) const { return k >= begin && k < end; }
  __device__ __forceinline__ bool any() const { return begin < end; }
  __device__ __forceinline__ bool all() const { return begin == 0 && end == kGroup; }
};

// Elements of a group that starts there: eight, but at the end of memory.
__device__ __forceinline__ int in_group(const NormShape& s, int64_t start) {
  const int64_t rest = s.numel() - start;
  return rest < kGroup ? static_cast<int>(rest) : kGroup;
}

// Elements i ... i + n - 1, n at most eight; the others are left as they are. aligned: i is a multiple of
// eight, and memory starts at a 16-byte boundary.
template <class S>
__device__ __forceinline__ void load_group(Group<S>& to, const void* from, int64_t i, int n, bool aligned) {
  const S* const at = global<const S>(const_cast<void*>(from)) + i;
  if (aligned && n == kGroup) {
#pragma unroll
    for (int k = 0; k < kGroup; k += kPerVector<S>) {
      const uint4 raw = __ldg(reinterpret_cast<const uint4*>(at + k));
      memcpy(to.v + k, &raw, kVectorBytes);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k)
      if (k < n) to.v[k] = at[k];
  }
}

template <class S>
__device__ __forceinline__ void store_group(void* to, int64_t i, Lanes lanes, bool aligned,
                                            const Group<S>& from) {
  S* const at = global<S>(to) + i;
  if (aligned && lanes.all()) {
    store_vectors(at, from.v);
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k)
      if (lanes.has(k)) at[k] = from.v[k];
  }
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
