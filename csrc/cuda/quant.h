// What the CUDA kernels of quantization are given, and what starts them. Plain data and plain C++.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>

#include "../common/quant.h"
#include "group.h"

namespace onepass::cuda {

constexpr int kQuantThreads = 256;    // of a block
constexpr int64_t kLanesGroup = 128;  // elements of a group that eight lanes of a warp take on, at most
constexpr int64_t kWarpGroup = 1024;  // elements of a group that a warp takes on, at most; a block takes more
constexpr int64_t kBlockWhole = 16384;  // the same of a block, where the group is all there is
constexpr int64_t kMostParts = 1024;    // into so many a whole tensor is parted, at most

// More than a block should go through on its own.
inline bool is_whole(const Groups& groups) { return groups.count() == 1 && groups.numel() > kBlockWhole; }

// A thread of a part has four turns, but where there would be too many parts.
inline int64_t parts_of(int64_t elements) {
  constexpr int64_t kPart = 4 * kGroup * kQuantThreads;
  return std::min((elements + kPart - 1) / kPart, kMostParts);
}

// Everything that a kernel reads. Pointers are to device memory.
struct QuantWork {
  QuantCall call;
  Levels levels;
  bool given;       // the grid is; else it is made, and kept
  bool aligned;     // real and whole numbers start at a 16-byte boundary
  int64_t parts;    // of a whole tensor: blocks
  Extent* extents;  // a part each
};

// Each is one launch.
void start_quantize_groups(const QuantWork& work, cudaStream_t stream);
void start_extents(const QuantWork& work, cudaStream_t stream);
void start_quantize_whole(const QuantWork& work, cudaStream_t stream);
void start_dequantize(const QuantWork& work, cudaStream_t stream);

}  // namespace onepass::cuda
