// Elements between their storage type and the arithmetic type, one at a time or 16 bytes at a time.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "table.h"

namespace onepass::cuda {

template <class S>
struct Arithmetic {
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ double load(double x) { return x; }
__device__ __forceinline__ float load(__half x) { return __half2float(x); }
__device__ __forceinline__ float load(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void store(float& to, float x) { to = x; }
__device__ __forceinline__ void store(double& to, double x) { to = x; }
__device__ __forceinline__ void store(__half& to, float x) { to = __float2half_rn(x); }
__device__ __forceinline__ void store(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

// A pointer that was read from memory, known to point to device memory: accesses then need not find out.
template <class T>
__device__ __forceinline__ T* global(void* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return static_cast<T*>(pointer);
}

template <class S>
constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(S));

// n elements, whole vectors, from or to 16-byte aligned memory: a 128-bit access each. By intrinsics, because
// nvcc takes a plain one apart into four (seen for sm_100); past L1, where nothing comes to be read again.
template <class S, int n>
__device__ __forceinline__ void load_vectors(S (&to)[n], const S* from) {
  static_assert(n % kPerVector<S> == 0);
#pragma unroll
  for (int i = 0; i < n; i += kPerVector<S>) {
    const uint4 raw = __ldcg(reinterpret_cast<const uint4*>(from + i));
    memcpy(to + i, &raw, kVectorBytes);
  }
}
template <class S, int n>
__device__ __forceinline__ void store_vectors(S* to, const S (&from)[n]) {
  static_assert(n % kPerVector<S> == 0);
#pragma unroll
  for (int i = 0; i < n; i += kPerVector<S>) {
    uint4 raw;
    memcpy(&raw, from + i, kVectorBytes);
    __stcg(reinterpret_cast<uint4*>(to + i), raw);
  }
}

}  // namespace onepass::cuda
