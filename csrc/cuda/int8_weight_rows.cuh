// Up to eight rows of real numbers by 8-bit weights, on CUDA, without tensor cores: bound by reading weights.
//
// Memory contract. A warp reads four rows of the weight once, 16 bytes a lane at a time, and all rows of x,
// which others read too, from the caches. Both have to consist of 16-byte pieces. y is written once.
//
// A lane adds up its products in the order of k, in float32; then come those of other lanes, always in the
// same order: a row has the same bits however many rows there are.
#pragma once
#include "int8_weight_finish.cuh"
#include "int8_widen.cuh"

namespace onepass::cuda {

constexpr int kRowsThreads = 64, kWarpOutputs = 4;
constexpr int kBlockOutputs = kRowsThreads / 32 * kWarpOutputs;
// Of a multiprocessor, at least: nvcc would load so much ahead that fewer find room.
template <int kRows>
constexpr int kRowsBlocks = kRows == kMostInRows ? 8 : 10;

// x[k] ... x[k + 3] of a row.
template <class S>
__device__ __forceinline__ void load_four(float (&to)[4], const RowsOf<S>& x, int row, int k) {
  using Raw = std::conditional_t<sizeof(S) == 4, uint4, uint2>;
  // As unsigned: an address a row, kept from one k to the next, would take too many registers.
  const unsigned at = static_cast<unsigned>(x.there(row)) * x.depth + static_cast<unsigned>(k);
  const Raw raw = __ldg(reinterpret_cast<const Raw*>(x.data + at));
  S stored[4];
  memcpy(stored, &raw, sizeof raw);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = load(stored[i]);
}

template <class S, int kRows>
struct LaneSums {
  float of[kRows * kWarpOutputs] = {};  // row by row

  // k ... k + 15, four at a time; of eight rows no more at once would fit the registers.
  static constexpr int kFoursAtOnce = kRows == kMostInRows ? 1 : 4;
  __device__ __forceinline__ void add(const RowsOf<S>& x, const Rows8& weight, int k) {
    uint4 w[kWarpOutputs];
#pragma unroll
    for (int o = 0; o < kWarpOutputs; ++o) w[o] = weight.nearest(o, k, true);
#pragma unroll kFoursAtOnce
    for (int end = k + kPiece; k < end; k += 4) {
      float wide[kWarpOutputs][4], of_x[4];
#pragma unroll
      for (int o = 0; o < kWarpOutputs; ++o) {
        widen(w[o].x, wide[o]);
        w[o] = {w[o].y, w[o].z, w[o].w};
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        load_four(of_x, x, r, k);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int o = 0; o < kWarpOutputs; ++o) add(r, o, of_x[i], wide[o][i]);
      }
    }
  }
  __device__ __forceinline__ void add(int row, int output, float x, float weight) {
    float& sum = of[row * kWarpOutputs + output];
    sum = multiply_add(x, weight, sum);
  }
};

// The sum over all lanes of the n values that each has: lane L is left with that of value L * n / 32. Half of
// the values go to the other half of the lanes at a time, so that each step has half as many to send.
template <int n, int apart = 16>
__device__ __forceinline__ float sum_over_lanes(const float (&v)[n]) {
  constexpr int kKept = n > 1 ? n / 2 : 1;  // one is kept by both
  const bool upper = threadIdx.x & apart;
  float sums[kKept];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const float low = v[i], high = v[i + n - kKept];
    sums[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, apart);
  }
  if constexpr (apart > 1)
    return sum_over_lanes<kKept, apart / 2>(sums);
  else
    return sums[0];
}

template <class S, int kRows>
__global__ void __launch_bounds__(kRowsThreads, kRowsBlocks<kRows>)
    int8_weight_rows(const __grid_constant__ Int8Work w) {
  const Int8Call& call = w.call;
  const int lane = threadIdx.x % 32, depth = static_cast<int>(call.shape.k);
  const int64_t output =
      static_cast<int64_t>(blockIdx.x) * kBlockOutputs + static_cast<int>(threadIdx.x) / 32 * kWarpOutputs;
  if (output >= call.shape.n) return;  // the whole warp
  const RowsOf<S> x(call.x, call.m, depth, 0, kRows);
  const Rows8 weight(call.weight, call.shape.n, depth, output, kWarpOutputs);

  LaneSums<S, kRows> sums;
  for (int k = lane * kPiece; k < depth; k += 32 * kPiece) sums.add(x, weight, k);

  constexpr int kLanes = 32 / (kRows * kWarpOutputs);  // that have the same sum
  float own[1] = {sum_over_lanes(sums.of)};
  const int row = lane / kLanes / kWarpOutputs, its = lane / kLanes % kWarpOutputs;
  if (lane % kLanes == 0 && row < x.rows && its < weight.rows) finish_real<S>(w, row, output + its, 1, own);
}

}  // namespace onepass::cuda
