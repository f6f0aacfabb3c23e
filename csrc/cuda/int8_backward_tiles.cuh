// The products of the 8-bit product's gradients, on CUDA, by tensor cores: tiles of lines x outputs.
//
//   y[line, output] = float(sum of q[line, d] * turned[output, d] + start[line]) * scale[line]
//
// Memory contract: as int8_tiles.cuh, and a start and a scale of each line. All is exact up to the float. An
// int32 has room for a sum of kMaxDepth products; of a long depth such sums are added up in 64 bits, in
// shared memory behind the stages, where registers have no room for them.
#pragma once
#include "int8_backward.h"
#include "int8_tiles.cuh"

namespace onepass::cuda {

constexpr int kPieceStages = kMaxDepth / kStageDepth;  // of a sum that an int32 holds

template <class T, bool kLong>
constexpr int kGradientBytes =
    kLong ? T::kStages * T::kStageBytes + T::kWarpsK * T::kSums * static_cast<int>(sizeof(int64_t))
          : T::kBytes;

// Sums side by side in 64 bits, where each thread alone adds its own.
template <class T>
struct LongSums {
  WarpTile<T, false>& mine;
  int64_t* all;

  __device__ __forceinline__ void clear() {
    mine.each_pair([&](int at, int&, int&) { *reinterpret_cast<longlong2*>(all + at) = longlong2{0, 0}; });
  }
  __device__ __forceinline__ void add() {
    mine.each_pair([&](int at, int& a, int& b) {
      longlong2 two = *reinterpret_cast<longlong2*>(all + at);
      two.x += a, two.y += b, a = 0, b = 0;
      *reinterpret_cast<longlong2*>(all + at) = two;
    });
  }
};

// Eight sums, of all shares of the depth together.
template <class T>
__device__ __forceinline__ void take(int64_t (&to)[kOutputs], const int64_t* all, int row, int column) {
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) to[i] = 0;
#pragma unroll
  for (int share = 0; share < T::kWarpsK; ++share) {
    const int64_t* const from = all + share * T::kSums + row * T::kSumStride + column;
#pragma unroll
    for (int i = 0; i < kOutputs; i += 2) {
      const longlong2 two = *reinterpret_cast<const longlong2*>(from + i);
      to[i] += two.x, to[i + 1] += two.y;
    }
  }
}

template <class T, class Sum>
__device__ __forceinline__ void leave_gradient(const GradientInt8Work& w, const Sum* all, int rows,
                                               TilePlace place) {
  const Int8Call& call = w.product.call;
  each_eight<T>(rows, call.shape.n - place.output, [&](int r, int c, int n) {
    const int64_t line = place.row + r, start = w.starts ? w.starts[line] : 0;
    const float scale = call.x_scale[line];
    Sum sums[kOutputs];
    take<T>(sums, all, r, c);
    float v[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) v[i] = static_cast<float>(sums[i] + start) * scale;
    store_real(w.product, line * call.shape.n + place.output + c, v, n);
  });
}

template <class T, bool kLong>
__global__ void __launch_bounds__(T::kThreads, T::kMinBlocks)
    gradient_tiles(const __grid_constant__ GradientInt8Work w) {
  extern __shared__ uint4 memory[];
  uint8_t* const stages = reinterpret_cast<uint8_t*>(memory);
  const Int8Call& call = w.product.call;
  const int depth = static_cast<int>(call.shape.k);
  const TilePlace place = place_of<T>(call.m);
  using Rows = std::conditional_t<kLong, LongRows8, Rows8>;
  const Rows q(call.x, call.m, depth, place.row, T::kM);
  const Rows right(call.weight, call.shape.n, depth, place.output, T::kN);

  WarpTile<T, false> mine;
  if constexpr (kLong) {
    int64_t* const all = reinterpret_cast<int64_t*>(stages + T::kStages * T::kStageBytes);
    LongSums<T> sums{mine, all};
    sums.clear();
    multiply_tile<T>(mine, stages, q, right, 0, true, [&](int stage) {
      if ((stage + 1) % kPieceStages == 0) sums.add();
    });
    sums.add();
    __syncthreads();
    leave_gradient<T>(w, all, q.rows, place);
  } else {
    int* const all = reinterpret_cast<int*>(memory);
    multiply_tile<T>(mine, stages, q, right, 0, true, [](int) {});
    mine.leave(all);
    __syncthreads();
    leave_gradient<T>(w, all, q.rows, place);
  }
}

}  // namespace onepass::cuda
