// Sixteen bytes of a row at a time, on CUDA: 8-bit numbers, or as many real ones as that is. Zero where there
// is nothing.
#pragma once
#include <cstdint>
#include <cstring>

namespace onepass::cuda {

constexpr int kPiece = 16;
constexpr int kOnes = 0x01010101;              // what dp4a sums up four numbers with
constexpr uint32_t kHighestBits = 0x80808080;  // x ^ this, of unsigned x, is x - 128 as signed

// The rows of a tensor that a block reads: from `first` on, as many as there are, `most` of them at most.
// Offset holds the distance from the first of them to the last.
template <class S, class Offset = int>
struct RowsOf {
  static constexpr int kPerPiece = kPiece / static_cast<int>(sizeof(S));
  const S* data;
  int rows, depth;  // depth: numbers of a row

  __device__ __forceinline__ RowsOf(const void* all, int64_t rows_of_all, int depth, int64_t first, int most)
      : data(static_cast<const S*>(all) + first * depth),
        rows(rows_of_all - first < most ? static_cast<int>(rows_of_all - first) : most),
        depth(depth) {}

  __device__ __forceinline__ const S* at(int row, int k) const {
    return data + static_cast<Offset>(row) * depth + k;
  }
  __device__ __forceinline__ bool has(int row, int k) const { return row < rows && k < depth; }

  // One by one: a row may begin anywhere, and end within the piece.
  __device__ __forceinline__ uint4 gather(int row, int k) const {
    S numbers[kPerPiece];
#pragma unroll
    for (int i = 0; i < kPerPiece; ++i) numbers[i] = has(row, k + i) ? *at(row, k + i) : S{};
    uint4 piece;
    memcpy(&piece, numbers, kPiece);
    return piece;
  }
  // Past the last row that one again: what comes of it goes nowhere.
  __device__ __forceinline__ int there(int row) const { return row < rows ? row : rows - 1; }
  __device__ __forceinline__ uint4 nearest(int row, int k, bool aligned) const {
    row = there(row);
    return aligned ? __ldg(reinterpret_cast<const uint4*>(at(row, k))) : gather(row, k);
  }
};
using Rows8 = RowsOf<uint8_t>;
using LongRows8 = RowsOf<uint8_t, int64_t>;

}  // namespace onepass::cuda
