// What the CUDA kernels of the 8-bit matrix product are given, of whole numbers and of real ones by 8-bit
// weights, and what starts them. Plain data and plain C++.
#pragma once
#include <cuda_runtime_api.h>

#include <initializer_list>

#include "../common/int8.h"

namespace onepass::cuda {

// How a product is cut up. Sums of whole numbers are the same whatever the cut.
enum class Int8Cut {
  kRows,    // up to eight rows of x: a warp takes some outputs of all of them, without tensor cores
  kSmall,   // tiles of 16 x 32, whose four warps share out k
  kMiddle,  // of 64 x 64
  kLarge,   // of 128 x 128
};
constexpr int kMostInRows = 8;  // rows of x that Int8Cut::kRows takes

// Everything that a kernel reads. call.x is whole; pointers are to device memory, null where there is none.
struct Int8Work {
  Int8Call call;
  bool aligned;  // rows of x and of the weight consist of 16-byte pieces at 16-byte boundaries
  bool wide;     // rows of y, scales and biases of outputs, of eight of them at 16-byte boundaries
};

// One launch each. int8_weight: of real x, which stays so.
void start_int8(const Int8Work& work, Int8Cut cut, cudaStream_t stream);
void start_int8_weight(const Int8Work& work, Int8Cut cut, cudaStream_t stream);

// Outputs a block: of how many rows of x, and how many of each.
struct Int8Tile {
  int rows, outputs;
};
constexpr Int8Tile tile_of(Int8Cut cut) {
  switch (cut) {
    case Int8Cut::kLarge:
      return {128, 128};
    case Int8Cut::kMiddle:
      return {64, 64};
    default:
      return {16, 32};
  }
}

// The largest tiles that still give every multiprocessor one. Not measured yet.
inline Int8Cut largest_tiles(int64_t rows, int64_t outputs, int64_t multiprocessors) {
  for (const Int8Cut cut : {Int8Cut::kLarge, Int8Cut::kMiddle}) {
    const auto [of_rows, of_outputs] = tile_of(cut);
    if ((rows + of_rows - 1) / of_rows * ((outputs + of_outputs - 1) / of_outputs) >= multiprocessors)
      return cut;
  }
  return Int8Cut::kSmall;
}

}  // namespace onepass::cuda
