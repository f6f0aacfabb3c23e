// Tiles of the 8-bit matrix product, on CUDA: a block each, by tensor cores.
//
// Memory contract. A block reads its rows of x and of the weight once, 128 k at a stage, and writes its tile
// of y once. Stages are fetched ahead as int8_stage.cuh says. Tiles of the same outputs lie side by side in
// the grid, so that these rows of the weight are read from memory once and from the L2 cache then.
//
// A row of a stage is 128 bytes: the eight rows that one ldmatrix reads a piece of lie in different banks.
#pragma once
#include "int8_finish.cuh"
#include "int8_stage.cuh"
#include "mma.cuh"

namespace onepass::cuda {

constexpr int kStageDepth = 128, kPieces = kStageDepth / kPiece;
constexpr int kStepDepth = 32;  // k of one mma
constexpr int kOutputs = 8;     // that a thread finishes at a time

template <Int8Cut cut, int kRowWarps, int kOutputWarps, int kDepthWarps, int kStagesAhead, int kBlocks>
struct Tiling {
  static constexpr int kM = tile_of(cut).rows, kN = tile_of(cut).outputs, kStages = kStagesAhead;
  static constexpr int kWarpsM = kRowWarps, kWarpsN = kOutputWarps, kWarpsK = kDepthWarps;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK, kMinBlocks = kBlocks;
  static constexpr int kMmasM = kM / kWarpsM / 16, kMmasN = kN / kWarpsN / 8;  // of a warp, each step of k
  static constexpr int kStageBytes = (kM + kN) * kStageDepth;
  // Sums lie where stages were: of each share of k, kM rows and one with the sums of the weight. Rows are
  // 8 words more apart, so that those which a warp writes at a time begin in different banks.
  static constexpr int kSumStride = kN + 8, kSums = (kM + 1) * kSumStride;
  static constexpr int kSumBytes = kWarpsK * kSums * static_cast<int>(sizeof(int));
  static constexpr int kBytes =
      kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;  // of shared memory
  static_assert(kMmasN % 2 == 0 && kM * kPieces % kThreads == 0 && kN * kPieces % kThreads == 0);
};
using LargeTiling = Tiling<Int8Cut::kLarge, 2, 4, 1, 3, 2>;
using MiddleTiling = Tiling<Int8Cut::kMiddle, 2, 2, 1, 3, 4>;
using SmallTiling = Tiling<Int8Cut::kSmall, 1, 1, 4, 4, 6>;

// --- a warp's part of a tile ------------------------------------------------------------------------------
template <class T, bool kZeros>
struct WarpTile {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int depth_warp = warp % T::kWarpsK;
  int row = warp / T::kWarpsK / T::kWarpsN * T::kMmasM * 16;
  int output = warp / T::kWarpsK % T::kWarpsN * T::kMmasN * 8;
  // Where in a stage this lane's rows begin for ldmatrix, and where in them its piece is of the first step.
  int a_rows = (row + lane % 16) * kStageDepth, a_place = (lane / 16 ^ lane % kPieces) * kPiece;
  int b_rows = (T::kM + output + lane / 16 * 8 + lane % 8) * kStageDepth;
  int b_place = (lane / 8 % 2 ^ lane % kPieces) * kPiece;
  int sums[T::kMmasM][T::kMmasN][4] = {};
  int w_sums[T::kMmasN] = {};  // of the weight, where kZeros; of this lane's k

  // turn: what turns over the highest bits of x, where it is unsigned.
  __device__ __forceinline__ void multiply(uint8_t* stage, uint32_t turn) {
#pragma unroll
    for (int step = 0; step < kStageDepth / kStepDepth; step += T::kWarpsK) {
      const int turned = (step + depth_warp) * kStepDepth;  // two pieces further, of eight that are swapped
      uint32_t a[T::kMmasM][4], b[T::kMmasN / 2][4];        // b: of two mma each
#pragma unroll
      for (int i = 0; i < T::kMmasM; ++i) {
        ldmatrix_x4(a[i], stage + a_rows + 16 * i * kStageDepth + (a_place ^ turned));
        if constexpr (kZeros) turn_over(a[i], turn);
      }
#pragma unroll
      for (int j = 0; j < T::kMmasN / 2; ++j)
        ldmatrix_x4(b[j], stage + b_rows + 16 * j * kStageDepth + (b_place ^ turned));
#pragma unroll
      for (int j = 0; j < T::kMmasN; ++j) {
        const uint32_t b0 = b[j / 2][j % 2 * 2], b1 = b[j / 2][j % 2 * 2 + 1];
        if constexpr (kZeros)
          w_sums[j] = __dp4a(static_cast<int>(b0), kOnes, __dp4a(static_cast<int>(b1), kOnes, w_sums[j]));
#pragma unroll
        for (int i = 0; i < T::kMmasM; ++i) mma_m16n8k32(sums[i][j], a[i], b0, b1);
      }
    }
  }
  static __device__ __forceinline__ void turn_over(uint32_t (&a)[4], uint32_t turn) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] ^= turn;
  }

  // body(place, first, second) of sums side by side, and where they belong in shared memory: mma.cuh says
  // which lane has which.
  template <class Body>
  __device__ __forceinline__ void each_pair(const Body& body) {
    const int mine = depth_warp * T::kSums + (row + lane / 4) * T::kSumStride + output + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < T::kMmasN; ++j)
#pragma unroll
      for (int i = 0; i < T::kMmasM; ++i) {
        const int upper = mine + 16 * i * T::kSumStride + 8 * j;
        body(upper, sums[i][j][0], sums[i][j][1]);
        body(upper + 8 * T::kSumStride, sums[i][j][2], sums[i][j][3]);
      }
  }
  __device__ __forceinline__ void leave(int* all) {
    each_pair([&](int at, int a, int b) { *reinterpret_cast<int2*>(all + at) = int2{a, b}; });
    if constexpr (kZeros) {
#pragma unroll
      for (int j = 0; j < T::kMmasN; ++j) {
        int sum = w_sums[j];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int column = output + 8 * j + lane / 4;
        if (row == 0 && lane % 4 == 0) all[depth_warp * T::kSums + T::kM * T::kSumStride + column] = sum;
      }
    }
  }
};

// Eight sums, of all shares of k together.
template <class T>
__device__ __forceinline__ void take(int (&to)[kOutputs], const int* all, int row, int column) {
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) to[i] = 0;
#pragma unroll
  for (int share = 0; share < T::kWarpsK; ++share) {
    const int* const from = all + share * T::kSums + row * T::kSumStride + column;
#pragma unroll
    for (int i = 0; i < kOutputs; i += 4) {
      const int4 four = *reinterpret_cast<const int4*>(from + i);
      to[i] += four.x, to[i + 1] += four.y, to[i + 2] += four.z, to[i + 3] += four.w;
    }
  }
}

// --- a tile -----------------------------------------------------------------------------------------------
// Where this block's begins, of so many rows. Tiles of the same outputs lie side by side.
struct TilePlace {
  int64_t row, output;
};
template <class T>
__device__ __forceinline__ TilePlace place_of(int64_t rows) {
  const unsigned tiles = static_cast<unsigned>((rows + T::kM - 1) / T::kM);
  return {static_cast<int64_t>(blockIdx.x % tiles) * T::kM, static_cast<int64_t>(blockIdx.x / tiles) * T::kN};
}

// The whole of its k: stages come in one after the other, and warps multiply what is there. behind(stage) is
// called behind each.
template <class T, class Warp, class Rows, class Behind>
__device__ __forceinline__ void multiply_tile(Warp& mine, uint8_t* stages, const Rows& x, const Rows& weight,
                                              uint32_t turn, bool aligned, const Behind& behind) {
  const int count = (x.depth + kStageDepth - 1) / kStageDepth;
  const auto begin = [&](int stage) {
    uint8_t* const to = stages + stage % T::kStages * T::kStageBytes;
    if (stage < count) {
      fetch<T::kM, kPieces, T::kThreads>(to, x, stage * kStageDepth, aligned);
      fetch<T::kN, kPieces, T::kThreads>(to + T::kM * kStageDepth, weight, stage * kStageDepth, aligned);
    }
    __pipeline_commit();
  };

  for (int stage = 0; stage < T::kStages - 1; ++stage) begin(stage);
#pragma unroll 1
  for (int stage = 0; stage < count; ++stage) {
    __pipeline_wait_prior(T::kStages - 2);
    __syncthreads();  // the stage is there for all, and the one before it is done with
    begin(stage + T::kStages - 1);
    mine.multiply(stages + stage % T::kStages * T::kStageBytes, turn);
    behind(stage);
  }
  __pipeline_wait_prior(0);
  __syncthreads();
}

// body(row, column, n) for this thread's outputs, n of them side by side, kOutputs at most. Of so many rows
// of the tile, and of so many outputs from its first on.
template <class T, class Body>
__device__ __forceinline__ void each_eight(int rows, int64_t outputs_left, const Body& body) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < T::kM * T::kN / kOutputs; i += T::kThreads) {
    const int r = i / (T::kN / kOutputs), c = i % (T::kN / kOutputs) * kOutputs;
    const int64_t left = outputs_left - c;
    if (r < rows && left > 0) body(r, c, left < kOutputs ? static_cast<int>(left) : kOutputs);
  }
}

template <class T, bool kZeros>
__global__ void __launch_bounds__(T::kThreads, T::kMinBlocks) int8_tiles(const __grid_constant__ Int8Work w) {
  extern __shared__ uint4 memory[];
  const Int8Call& call = w.call;
  const int depth = static_cast<int>(call.shape.k);
  const auto [row, output] = place_of<T>(call.m);
  const Rows8 x(call.x, call.m, depth, row, T::kM), weight(call.weight, call.shape.n, depth, output, T::kN);

  WarpTile<T, kZeros> mine;
  multiply_tile<T>(mine, reinterpret_cast<uint8_t*>(memory), x, weight, call.x_is_signed ? 0 : kHighestBits,
                   w.aligned, [](int) {});

  int* const sums = reinterpret_cast<int*>(memory);
  mine.leave(sums);
  __syncthreads();
  each_eight<T>(x.rows, call.shape.n - output, [&](int r, int c, int n) {
    int own[kOutputs], of_weight[kOutputs] = {};
    take<T>(own, sums, r, c);
    if constexpr (kZeros) take<T>(of_weight, sums, T::kM, c);
    finish<kZeros>(w, row + r, output + c, n, own, of_weight);
  });
}

}  // namespace onepass::cuda
