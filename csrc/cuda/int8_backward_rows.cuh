// Rows of g in 8 bits, on CUDA: a warp or a block each.
//
// Memory contract. A row of g is read twice, the second time from a cache, eight numbers at a time, and its
// factors with it; a byte an element is written, and a scale a row.
#pragma once
#include "int8_backward_lines.cuh"
#include "int8_finish.cuh"

namespace onepass::cuda {

// Eight numbers of a row, times their factors; zero where there are none.
template <class S>
__device__ __forceinline__ void values_of_row(float (&v)[kGroup], const ReadyInt8Work& w, int64_t row,
                                              int64_t d) {
  const int n = held(w, d);
  Group<S> x{};
  load_group(x, w.g, row * w.depth + d, n, w.g_aligned);
  load_outputs(v, w.factors, d, n, w.factors_aligned && n == kGroup, 1);
#pragma unroll
  for (int k = 0; k < kGroup; ++k) v[k] = load(x.v[k]) * v[k];
}

template <int kTeam>
__device__ __forceinline__ Reach reach_of_team(Reach mine) {
  mine.bits = __reduce_max_sync(kAllLanes, mine.bits);
  if constexpr (kTeam > 32) {
    __shared__ Reach of_warps[kTeam / 32];
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTeam / 32; ++i) mine.merge(of_warps[i]);
  }
  return mine;
}

// Rows block * (rows of a block) and behind.
template <class S, int kTeam>
__device__ __forceinline__ void quantize_rows(const ReadyInt8Work& w, unsigned block) {
  const int64_t row =
      static_cast<int64_t>(block) * (kQuantThreads / kTeam) + static_cast<int>(threadIdx.x) / kTeam;
  if (row >= w.lines) return;  // the whole team
  const int64_t begin = static_cast<int>(threadIdx.x) % kTeam * kGroup;
  float v[kGroup];
  Reach mine;
  for (int64_t d = begin; d < w.depth; d += kTeam * kGroup) {
    values_of_row<S>(v, w, row, d);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) mine.merge(v[k]);
  }
  const Grid grid = reach_of_team<kTeam>(mine).grid();
  if (begin == 0) w.scales[row] = grid.scale;
#pragma unroll 1
  for (int64_t d = begin; d < w.width; d += kTeam * kGroup) {
    int q[kGroup];
    values_of_row<S>(v, w, row, d);
    on_bytes(q, w, v, grid.inverse, row * w.depth + d);
    store_turn(w, row, d, q);
  }
}

}  // namespace onepass::cuda
