// The 8-bit matrix product of up to eight rows of x, on CUDA, without tensor cores: bound by reading weights.
//
// Memory contract. A warp reads four rows of the weight once, 16 bytes a lane at a time, and all rows of x,
// which others read too, from the caches. Rows that do not consist of 16-byte pieces are read byte by byte.
#pragma once
#include "int8_finish.cuh"
#include "int8_pieces.cuh"

namespace onepass::cuda {

constexpr int kRowsThreads = 64, kWarpOutputs = 4;
constexpr int kBlockOutputs = kRowsThreads / 32 * kWarpOutputs;

__device__ __forceinline__ int dot(const uint4& a, const uint4& b, int sum) {
  sum = __dp4a(static_cast<int>(a.x), static_cast<int>(b.x), sum);
  sum = __dp4a(static_cast<int>(a.y), static_cast<int>(b.y), sum);
  sum = __dp4a(static_cast<int>(a.z), static_cast<int>(b.z), sum);
  return __dp4a(static_cast<int>(a.w), static_cast<int>(b.w), sum);
}

template <int kRows, bool kZeros>
struct LaneSums {
  int of_x[kRows][kWarpOutputs] = {}, of_weight[kWarpOutputs] = {};

  // k ... k + 15
  __device__ __forceinline__ void add(const Rows8& x, const Rows8& weight, int k, uint32_t turn,
                                      bool aligned) {
    uint4 w[kWarpOutputs];
#pragma unroll
    for (int o = 0; o < kWarpOutputs; ++o) w[o] = weight.nearest(o, k, aligned);
#pragma unroll
    for (int o = 0; o < kWarpOutputs && kZeros; ++o)
      of_weight[o] = dot(w[o], uint4{kOnes, kOnes, kOnes, kOnes}, of_weight[o]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      uint4 a = x.nearest(r, k, aligned);
      if constexpr (kZeros) a = {a.x ^ turn, a.y ^ turn, a.z ^ turn, a.w ^ turn};
#pragma unroll
      for (int o = 0; o < kWarpOutputs; ++o) of_x[r][o] = dot(a, w[o], of_x[r][o]);
    }
  }
};

template <int kRows, bool kZeros>
__global__ void __launch_bounds__(kRowsThreads) int8_rows(const __grid_constant__ Int8Work w) {
  const Int8Call& call = w.call;
  const int lane = threadIdx.x % 32, depth = static_cast<int>(call.shape.k);
  const int64_t output =
      static_cast<int64_t>(blockIdx.x) * kBlockOutputs + static_cast<int>(threadIdx.x) / 32 * kWarpOutputs;
  if (output >= call.shape.n) return;  // the whole warp
  const Rows8 x(call.x, call.m, depth, 0, kRows),
      weight(call.weight, call.shape.n, depth, output, kWarpOutputs);

  LaneSums<kRows, kZeros> sums;
  for (int k = lane * kPiece; k < depth; k += 32 * kPiece)
    sums.add(x, weight, k, call.x_is_signed ? 0 : kHighestBits, w.aligned);

  // Lane 4r + o is left with row r of output o.
  int own[1] = {}, of_weight[1] = {};
#pragma unroll
  for (int o = 0; o < kWarpOutputs; ++o) {
    if constexpr (kZeros) {
      const int all = __reduce_add_sync(0xffffffffu, sums.of_weight[o]);
      if (lane % kWarpOutputs == o) of_weight[0] = all;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int all = __reduce_add_sync(0xffffffffu, sums.of_x[r][o]);
      if (lane == kWarpOutputs * r + o) own[0] = all;
    }
  }
  const int row = lane / kWarpOutputs, its = lane % kWarpOutputs;
  if (row < call.m && row < kRows && its < weight.rows)
    finish<kZeros>(w, row, output + its, 1, own, of_weight);
}

}  // namespace onepass::cuda
