// Elements eight at a time, on CUDA.
//
// A group is eight elements, one behind the other in memory, and a thread's turn. Where memory starts at a
// 16-byte boundary, a whole group moves in 128-bit accesses; one of bytes in one of 64. Reads go through L1:
// of four bytes an element, a group is two accesses to one sector.
#pragma once
#include "group.h"
#include "vector.cuh"

namespace onepass::cuda {

template <class S>
struct Group {
  S v[kGroup];
};

// What moves at a time, and how many of these a group is.
template <class S>
using GroupWord = std::conditional_t<sizeof(S) == 1, uint2, uint4>;
template <class S>
constexpr int kGroupWords = kGroup * static_cast<int>(sizeof(S)) / static_cast<int>(sizeof(GroupWord<S>));

// Which of a group's eight elements are meant.
struct Lanes {
  int begin, end;
  __device__ __forceinline__ bool has(int k) const { return k >= begin && k < end; }
  __device__ __forceinline__ bool any() const { return begin < end; }
  __device__ __forceinline__ bool all() const { return begin == 0 && end == kGroup; }
};

// Elements i ... i + n - 1, n at most eight; the others are left as they are. aligned: i is a multiple of
// eight, and memory starts at a 16-byte boundary.
template <class S>
__device__ __forceinline__ void load_group(Group<S>& to, const void* from, int64_t i, int n, bool aligned) {
  const S* const at = global<const S>(const_cast<void*>(from)) + i;
  if (aligned && n == kGroup) {
#pragma unroll
    for (int k = 0; k < kGroup; k += kGroup / kGroupWords<S>) {
      const GroupWord<S> raw = __ldg(reinterpret_cast<const GroupWord<S>*>(at + k));
      memcpy(to.v + k, &raw, sizeof raw);
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
#pragma unroll
    for (int k = 0; k < kGroup; k += kGroup / kGroupWords<S>) {
      GroupWord<S> raw;
      memcpy(&raw, from.v + k, sizeof raw);
      __stcg(reinterpret_cast<GroupWord<S>*>(at + k), raw);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k)
      if (lanes.has(k)) at[k] = from.v[k];
  }
}

}  // namespace onepass::cuda
