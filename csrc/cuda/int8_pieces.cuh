// Sixteen 8-bit numbers of a row at a time, on CUDA: as signed ones, zero where there is nothing.
#pragma once
#include <cstdint>
#include <cstring>

namespace onepass::cuda {

constexpr int kPiece = 16;
constexpr int kOnes = 0x01010101;              // what dp4a sums up four numbers with
constexpr uint32_t kHighestBits = 0x80808080;  // x ^ this, of unsigned x, is x - 128 as signed

// The rows of a tensor that a block reads: from `first` on, as many as there are, `most` of them at most.
struct Rows8 {
  const uint8_t* data;
  int rows, depth;  // depth: numbers of a row

  __device__ __forceinline__ Rows8(const void* all, int64_t rows_of_all, int depth, int64_t first, int most)
      : data(static_cast<const uint8_t*>(all) + first * depth),
        rows(rows_of_all - first < most ? static_cast<int>(rows_of_all - first) : most),
        depth(depth) {}

  __device__ __forceinline__ const uint8_t* at(int row, int k) const { return data + row * depth + k; }
  __device__ __forceinline__ bool has(int row, int k) const { return row < rows && k < depth; }

  // One by one: a row may begin anywhere, and end within the piece.
  __device__ __forceinline__ uint4 gather(int row, int k) const {
    uint8_t bytes[kPiece];
#pragma unroll
    for (int i = 0; i < kPiece; ++i) bytes[i] = has(row, k + i) ? *at(row, k + i) : 0;
    uint4 piece;
    memcpy(&piece, bytes, kPiece);
    return piece;
  }
};

}  // namespace onepass::cuda
