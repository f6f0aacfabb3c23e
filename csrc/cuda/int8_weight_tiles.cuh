// Tiles of the product of real numbers and 8-bit weights, on CUDA: a block each.
//
// Memory contract. A block reads its rows of x and of the weight once, as they are, 64 k at a stage for each
// warp that shares k, and writes its tile of y once, 16 bytes at a time. Stages are fetched ahead as
// int8_stage.cuh says. No widened weight is ever in memory, shared memory included, and sums go to memory as
// outputs alone. Tiles of the same outputs lie side by side in the grid, so that these rows of the weight are
// read from memory once and from the L2 cache then.
#pragma once
#include "int8_weight_finish.cuh"
#include "int8_weight_warps.cuh"

namespace onepass::cuda {

constexpr int kOutputs = 8;  // that a thread finishes at a time

template <class S, Int8Cut cut, int kRowWarps, int kOutputWarps, int kDepthWarps, int kStagesAhead,
          int kBlocks>
struct WeightTiling {
  using Element = S;
  static constexpr int kM = tile_of(cut).rows, kN = tile_of(cut).outputs, kStages = kStagesAhead;
  static constexpr int kWarpsM = kRowWarps, kWarpsN = kOutputWarps, kWarpsK = kDepthWarps;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK, kMinBlocks = kBlocks;
  static constexpr int kRowsOfWarp = kM / kWarpsM, kOutputsOfWarp = kN / kWarpsN;
  // A stage is a slab for each warp that shares k: rows of x, then rows of the weight.
  static constexpr int kStageDepth = kWarpsK * kSlabDepth;
  static constexpr int kXBytes = kM * kXPieces<S> * kPiece;
  static constexpr int kSlabBytes = kXBytes + kN * kWeightPieces * kPiece;
  static constexpr int kStageBytes = kWarpsK * kSlabBytes;
  // Sums lie where stages were, kM rows of each share of k. Rows are 8 words more apart, so that those which
  // a warp writes at a time begin in different banks.
  static constexpr int kSumStride = kN + 8;
  static constexpr int kSumBytes = kWarpsK * kM * kSumStride * static_cast<int>(sizeof(float));
  static constexpr int kBytes =
      kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;  // of shared memory

  static __device__ __forceinline__ float* sum_at(float* all, int share, int row, int column) {
    return all + (share * kM + row) * kSumStride + column;
  }
};
// float32 takes twice the shared memory: in its large tiles a stage less is ahead.
template <class S>
using LargeWeightTiling = WeightTiling<S, Int8Cut::kLarge, 2, 4, 1, sizeof(S) == 4 ? 2 : 3, 2>;
template <class S>
using MiddleWeightTiling = WeightTiling<S, Int8Cut::kMiddle, 2, 2, 1, 3, 4>;
template <class S>
using SmallWeightTiling = WeightTiling<S, Int8Cut::kSmall, 1, 1, 4, 3, 4>;

// Eight sums, of all shares of k together, in their order.
template <class T>
__device__ __forceinline__ void take_sums(float (&to)[kOutputs], float* all, int row, int column) {
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) to[i] = 0;
#pragma unroll
  for (int share = 0; share < T::kWarpsK; ++share)
#pragma unroll
    for (int i = 0; i < kOutputs; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(T::sum_at(all, share, row, column + i));
      to[i] += four.x, to[i + 1] += four.y, to[i + 2] += four.z, to[i + 3] += four.w;
    }
}

// The whole of a tile's k: stages come in one after the other, and warps multiply what is there.
template <class T, class Warp>
__device__ __forceinline__ void multiply_tile(Warp& mine, uint8_t* stages,
                                              const RowsOf<typename T::Element>& x, const Rows8& weight,
                                              bool aligned) {
  const int count = (x.depth + T::kStageDepth - 1) / T::kStageDepth;
  const auto begin = [&](int stage) {
    uint8_t* to = stages + stage % T::kStages * T::kStageBytes;
    if (stage < count) {
#pragma unroll
      for (int share = 0; share < T::kWarpsK; ++share, to += T::kSlabBytes) {
        const int k = (stage * T::kWarpsK + share) * kSlabDepth;
        fetch<T::kM, kXPieces<typename T::Element>, T::kThreads>(to, x, k, aligned);
        fetch<T::kN, kWeightPieces, T::kThreads>(to + T::kXBytes, weight, k, aligned);
      }
    }
    __pipeline_commit();
  };

  for (int stage = 0; stage < T::kStages - 1; ++stage) begin(stage);
#pragma unroll 1
  for (int stage = 0; stage < count; ++stage) {
    __pipeline_wait_prior(T::kStages - 2);
    __syncthreads();  // the stage is there for all, and the one before it is done with
    begin(stage + T::kStages - 1);
    uint8_t* const slab = stages + stage % T::kStages * T::kStageBytes + mine.share * T::kSlabBytes;
    mine.multiply(slab, slab + T::kXBytes);
  }
  __pipeline_wait_prior(0);
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kMinBlocks)
    int8_weight_tiles(const __grid_constant__ Int8Work w) {
  extern __shared__ uint4 memory[];
  using S = typename T::Element;
  const Int8Call& call = w.call;
  const int depth = static_cast<int>(call.shape.k);
  const unsigned tiles = static_cast<unsigned>((call.m + T::kM - 1) / T::kM);
  const int64_t row = static_cast<int64_t>(blockIdx.x % tiles) * T::kM;
  const int64_t output = static_cast<int64_t>(blockIdx.x / tiles) * T::kN;
  const RowsOf<S> x(call.x, call.m, depth, row, T::kM);
  const Rows8 weight(call.weight, call.shape.n, depth, output, T::kN);

  std::conditional_t<std::is_same_v<S, float>, FmaWarp<T>, MmaWarp<T>> mine;
  multiply_tile<T>(mine, reinterpret_cast<uint8_t*>(memory), x, weight, w.aligned);

  float* const sums = reinterpret_cast<float*>(memory);
  mine.leave(sums);
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < T::kM * T::kN / kOutputs; i += T::kThreads) {
    const int r = i / (T::kN / kOutputs), c = i % (T::kN / kOutputs) * kOutputs;
    const int64_t left = call.shape.n - (output + c);
    if (r >= x.rows || left <= 0) continue;
    float own[kOutputs];
    take_sums<T>(own, sums, r, c);
    finish_real<S>(w, row + r, output + c, left < kOutputs ? static_cast<int>(left) : kOutputs, own);
  }
}

}  // namespace onepass::cuda
