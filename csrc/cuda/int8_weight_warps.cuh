// What a warp does with its part of a tile and a slab of k, on CUDA: x by weights, which become wide in
// registers.
//
// A slab is kSlabDepth of k: rows of x and behind them rows of the weight, as int8_stage.cuh lays them out.
// All its memory is read 16 bytes a lane at a time. float32 is multiplied and added as such: as TF32 it would
// lose thirteen bits.
#pragma once
#include "int8_stage.cuh"
#include "int8_widen.cuh"
#include "mma.cuh"

namespace onepass::cuda {

constexpr int kSlabDepth = 64;
constexpr int kWeightPieces = kSlabDepth / kPiece;
template <class S>
constexpr int kXPieces = kSlabDepth / RowsOf<S>::kPerPiece;

// Which part of a tile is the warp's. T: int8_weight_tiles.cuh.
template <class T>
struct WarpPlace {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int share = warp % T::kWarpsK;  // of k
  int row = warp / T::kWarpsK / T::kWarpsN * T::kRowsOfWarp;
  int output = warp / T::kWarpsK % T::kWarpsN * T::kOutputsOfWarp;
};

// --- tensor cores ----------------------------------------------------------------------------------------
// Sums may be made in any order of k, if only both operands have the same. A lane, of group g and place t in
// mma.cuh, takes k 16t ... 16t + 15: piece t of weights, pieces 2t and 2t + 1 of x. Step s, of four, takes of
// these 4s ... 4s + 3: the first two are what mma.cuh calls k 2t and 2t + 1, the others 2t + 8 and 2t + 9.
template <class T>
struct MmaWarp : WarpPlace<T> {
  using S = typename T::Element;
  static constexpr int kMmasM = T::kRowsOfWarp / 16, kMmasN = T::kOutputsOfWarp / 8;  // each step of k
  static constexpr int kHalvesAtOnce = kMmasM > 2 ? 1 : 2;  // of a slab: both would not fit the registers
  float sums[kMmasM][kMmasN][4] = {};

  __device__ __forceinline__ void multiply(uint8_t* x, uint8_t* weight) {
    const int g = this->lane / 4, t = this->lane % 4;
    uint4 w[kMmasN];
#pragma unroll
    for (int j = 0; j < kMmasN; ++j) w[j] = piece_of<kWeightPieces>(weight, this->output + 8 * j + g, t);
#pragma unroll kHalvesAtOnce
    for (int half = 0; half < 2; ++half) {
      uint32_t b[2][kMmasN][2];  // of two steps
#pragma unroll
      for (int j = 0; j < kMmasN; ++j) {
        widen<S>(w[j].x, b[0][j]);
        widen<S>(w[j].y, b[1][j]);
        w[j] = {w[j].z, w[j].w};
      }
#pragma unroll
      for (int i = 0; i < kMmasM; ++i) {
        const int row = this->row + 16 * i + g;
        const uint4 upper = piece_of<kXPieces<S>>(x, row, 2 * t + half);
        const uint4 lower = piece_of<kXPieces<S>>(x, row + 8, 2 * t + half);
        multiply_step(sums[i], {upper.x, lower.x, upper.y, lower.y}, b[0]);
        multiply_step(sums[i], {upper.z, lower.z, upper.w, lower.w}, b[1]);
      }
    }
  }
  static __device__ __forceinline__ void multiply_step(float (&c)[kMmasN][4], const uint32_t (&a)[4],
                                                       const uint32_t (&b)[kMmasN][2]) {
#pragma unroll
    for (int j = 0; j < kMmasN; ++j) mma_m16n8k16<S>(c[j], a, b[j][0], b[j][1]);
  }

  // To shared memory: mma.cuh says which lane has which.
  __device__ __forceinline__ void leave(float* all) const {
    const int g = this->lane / 4, t = this->lane % 4;
#pragma unroll
    for (int j = 0; j < kMmasN; ++j)
#pragma unroll
      for (int i = 0; i < kMmasM; ++i) {
        float* const upper =
            T::sum_at(all, this->share, this->row + 16 * i + g, this->output + 8 * j + 2 * t);
        *reinterpret_cast<float2*>(upper) = float2{sums[i][j][0], sums[i][j][1]};
        *reinterpret_cast<float2*>(upper + 8 * T::kSumStride) = float2{sums[i][j][2], sums[i][j][3]};
      }
  }
};

// --- float32 ---------------------------------------------------------------------------------------------
// A lane has every fourth row and every eighth output, so that what lanes read at a time lies in rows that
// follow one another.
template <class T>
struct FmaWarp : WarpPlace<T> {
  static constexpr int kOwnRows = T::kRowsOfWarp / 4, kOwnOutputs = T::kOutputsOfWarp / 8;
  float sums[kOwnRows][kOwnOutputs] = {};

  __device__ __forceinline__ int row_of(int i) const { return this->row + this->lane / 8 + 4 * i; }
  __device__ __forceinline__ int output_of(int j) const { return this->output + this->lane % 8 + 8 * j; }

  // Four k at a time. Weights come four at a time, too: more would not fit the registers.
  __device__ __forceinline__ void multiply(uint8_t* x, uint8_t* weight) {
#pragma unroll 1
    for (int four = 0; four < kSlabDepth / 4; ++four) {
      float w[kOwnOutputs][4];
#pragma unroll
      for (int j = 0; j < kOwnOutputs; ++j) {
        const uint8_t* const piece = piece_at<kWeightPieces>(weight, output_of(j), four / 4);
        widen(reinterpret_cast<const uint32_t*>(piece)[four % 4], w[j]);
      }
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) add_row(sums[i], piece_of<kXPieces<float>>(x, row_of(i), four), w);
    }
  }
  static __device__ __forceinline__ void add_row(float (&to)[kOwnOutputs], const uint4& x,
                                                 const float (&w)[kOwnOutputs][4]) {
    float four[4];
    memcpy(four, &x, kPiece);
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int j = 0; j < kOwnOutputs; ++j) to[j] = multiply_add(four[k], w[j][k], to[j]);
  }

  __device__ __forceinline__ void leave(float* all) const {
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
      for (int j = 0; j < kOwnOutputs; ++j)
        *T::sum_at(all, this->share, row_of(i), output_of(j)) = sums[i][j];
  }
};

}  // namespace onepass::cuda
