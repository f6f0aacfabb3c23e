// Lines of g in 8 bits, on CUDA: what rows and columns have in common.
//
// Eight numbers of a line are a thread's turn, and eight bytes of q, which are stored at a time. To be
// compiled without contraction of a * b + c: see rules/quant.h.
#pragma once
#include "int8_backward.h"
#include "quant_groups.cuh"

namespace onepass::cuda {

// How far numbers are from zero, as bits of floats without a sign: they are ordered as their numbers are,
// with inf and NaN behind all others.
struct Reach {
  unsigned bits = 0;

  __device__ __forceinline__ void merge(Reach other) { bits = other.bits > bits ? other.bits : bits; }
  __device__ __forceinline__ void merge(float v) { merge(Reach{__float_as_uint(v) & 0x7fffffffu}); }
  __device__ __forceinline__ Grid grid() const {
    const float most = __uint_as_float(bits);
    return Grid::make({-most, most, most - most == 0}, Levels::make(true, 8), true);
  }
};

// --- random numbers ---------------------------------------------------------------------------------------
// Of element `first` and the seven behind it. Where it is not the first of Philox's four, words move up in
// registers, by two and by one: an index that is not known would send them to memory.
__device__ __forceinline__ void draw(uint32_t (&to)[kGroup], const Philox& philox, uint64_t first) {
  constexpr int kDrawn = kGroup + 4;
  const uint64_t block = first / 4;
  RandomWords drawn[kDrawn / 4] = {philox(block), philox(block + 1), {}};
  if (first % 4 != 0) drawn[2] = philox(block + 2);
  uint32_t words[kDrawn];
  memcpy(words, drawn, sizeof words);
#pragma unroll
  for (int i = 0; i < kDrawn - 2; ++i) words[i] = first & 2 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) to[i] = first & 1 ? words[i + 1] : words[i];
}

// --- a turn -----------------------------------------------------------------------------------------------
// first: the index of v[0] among Philox's elements.
__device__ __forceinline__ void on_bytes(int (&q)[kGroup], const ReadyInt8Work& w, const float (&v)[kGroup],
                                         float inverse, int64_t first) {
  constexpr float kMost = 127;
  float steps[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) steps[k] = on_grid(v[k], inverse, -kMost, kMost);
  if (w.by_chance) {
    uint32_t words[kGroup];
    draw(words, w.philox, static_cast<uint64_t>(first));
#pragma unroll
    for (int k = 0; k < kGroup; ++k) q[k] = rounded_by_chance(steps[k], words[k]);
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) q[k] = __float2int_rn(steps[k]);
  }
}

// d is a multiple of eight.
__device__ __forceinline__ void store_turn(const ReadyInt8Work& w, int64_t line, int64_t d,
                                           const int (&q)[kGroup]) {
  int8_t bytes[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) bytes[k] = static_cast<int8_t>(q[k]);
  uint2 raw;
  memcpy(&raw, bytes, sizeof raw);
  __stcg(reinterpret_cast<uint2*>(w.q + line * w.width + d), raw);
}

// How many of the eight numbers from d on a line has.
__device__ __forceinline__ int held(const ReadyInt8Work& w, int64_t d) {
  const int64_t left = w.depth - d;
  return left < 0 ? 0 : left < kGroup ? static_cast<int>(left) : kGroup;
}

}  // namespace onepass::cuda
