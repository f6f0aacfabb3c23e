// The other factor of a gradient turned, [depth, outputs] to [outputs, depth], on CUDA: a block for a square.
//
// Memory contract. A square of 64 x 64 bytes is read and written once, 16 bytes at a time; in shared memory
// it is turned by fours. Rows that do not consist of 16-byte pieces are read byte by byte. Rows of what is
// written are filled up to their width: with what is nobody's business, since q is zero there.
#pragma once
#include "int8_backward.h"
#include "int8_pieces.cuh"
#include "quant_groups.cuh"

namespace onepass::cuda {

constexpr int kSide = 64, kSidePieces = kSide / kPiece, kSideWords = kSide / 4;
// Words from a row to the next: what comes in begins at 16-byte boundaries; each in banks of its own.
constexpr int kInStride = kSideWords + 4, kOutStride = kSideWords + 1;
static_assert(kSide * kSidePieces == kQuantThreads && kSideWords * kSideWords == kQuantThreads);

// Byte i of word j to byte j of word i.
__device__ __forceinline__ void turn_four(uint32_t (&words)[4]) {
  constexpr unsigned kLowBytes = 0x5140, kHighBytes = 0x7362, kLowHalves = 0x5410, kHighHalves = 0x7632;
  const uint32_t low_ab = __byte_perm(words[0], words[1], kLowBytes);
  const uint32_t high_ab = __byte_perm(words[0], words[1], kHighBytes);
  const uint32_t low_cd = __byte_perm(words[2], words[3], kLowBytes);
  const uint32_t high_cd = __byte_perm(words[2], words[3], kHighBytes);
  words[0] = __byte_perm(low_ab, low_cd, kLowHalves);
  words[1] = __byte_perm(low_ab, low_cd, kHighHalves);
  words[2] = __byte_perm(high_ab, high_cd, kLowHalves);
  words[3] = __byte_perm(high_ab, high_cd, kHighHalves);
}

__device__ __forceinline__ uint4 piece_of_right(const ReadyInt8Work& w, int64_t deep, int output, int row) {
  const Rows8 rows(w.right, w.depth, static_cast<int>(w.outputs), deep, kSide);
  uint4 piece{0, 0, 0, 0};
  if (rows.has(row, output))
    piece = w.right_aligned ? __ldg(reinterpret_cast<const uint4*>(rows.at(row, output)))
                            : rows.gather(row, output);
  const uint32_t flip = w.right_is_signed ? 0 : kHighestBits;
  return {piece.x ^ flip, piece.y ^ flip, piece.z ^ flip, piece.w ^ flip};
}

__device__ __forceinline__ void turn_square(const ReadyInt8Work& w, unsigned square) {
  __shared__ __align__(16) uint32_t in[kSide * kInStride];
  __shared__ uint32_t out[kSide * kOutStride];
  const unsigned across = static_cast<unsigned>((w.outputs + kSide - 1) / kSide);
  const int64_t deep = static_cast<int64_t>(square / across) * kSide;
  const int output = static_cast<int>(square % across) * kSide, thread = static_cast<int>(threadIdx.x);
  const int row = thread / kSidePieces, piece = thread % kSidePieces;
  *reinterpret_cast<uint4*>(in + row * kInStride + 4 * piece) =
      piece_of_right(w, deep, output + piece * kPiece, row);
  __syncthreads();

  const int left = thread % kSideWords, down = thread / kSideWords;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = in[(4 * down + i) * kInStride + left];
  turn_four(words);
#pragma unroll
  for (int i = 0; i < 4; ++i) out[(4 * left + i) * kOutStride + down] = words[i];
  __syncthreads();

  if (output + row >= w.outputs || deep + piece * kPiece >= w.width) return;
  const uint32_t* const from = out + row * kOutStride + 4 * piece;
  __stcg(reinterpret_cast<uint4*>(w.turned + (output + row) * w.width + deep + piece * kPiece),
         uint4{from[0], from[1], from[2], from[3]});
}

}  // namespace onepass::cuda
