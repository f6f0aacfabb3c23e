// Rows of a stage in shared memory, on CUDA: pieces of 16 bytes, which cp.async fetches past L1. Where rows
// do not consist of such pieces in memory, they come number by number.
//
// A row of kPieces pieces begins where the one before it ends. Piece p of row r lies at place p ^ (l % 8) of
// its row, where l counts 128 bytes, all banks, in front of it; of four pieces at p ^ (l % 4). So a piece of
// each of eight rows that follow one another lies in banks of its own, and so do a few pieces of fewer rows.
#pragma once
#include <cuda_pipeline_primitives.h>

#include "int8_pieces.cuh"

namespace onepass::cuda {

template <int kPieces>
__device__ __forceinline__ uint8_t* piece_at(uint8_t* rows, int row, int piece) {
  const int turn = row * kPieces / 8 % (kPieces < 8 ? kPieces : 8);
  return rows + (row * kPieces + (piece ^ turn)) * kPiece;
}
template <int kPieces>
__device__ __forceinline__ uint4 piece_of(uint8_t* rows, int row, int piece) {
  return *reinterpret_cast<const uint4*>(piece_at<kPieces>(rows, row, piece));
}

// kPieces from k on of kRows rows, by all threads of a block.
template <int kRows, int kPieces, int kThreads, class Rows>
__device__ __forceinline__ void fetch(uint8_t* to, const Rows& from, int k, bool aligned) {
  static_assert(kRows * kPieces % kThreads == 0);
  const int p = static_cast<int>(threadIdx.x) % kPieces, first = static_cast<int>(threadIdx.x) / kPieces;
  k += p * Rows::kPerPiece;
  if (aligned) {
#pragma unroll
    for (int r = first; r < first + kRows; r += kThreads / kPieces) {
      if (from.has(r, k))
        __pipeline_memcpy_async(piece_at<kPieces>(to, r, p), from.at(r, k), kPiece);
      else
        *reinterpret_cast<uint4*>(piece_at<kPieces>(to, r, p)) = uint4{0, 0, 0, 0};
    }
  } else {
#pragma unroll 1
    for (int r = first; r < kRows; r += kThreads / kPieces)
      *reinterpret_cast<uint4*>(piece_at<kPieces>(to, r, p)) = from.gather(r, k);
  }
}

}  // namespace onepass::cuda
