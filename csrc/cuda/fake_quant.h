// What the CUDA kernels of fake quantization are given, and what starts them. Plain data and plain C++.
#pragma once
#include "quant.h"

namespace onepass::cuda {

// Everything that a kernel reads. Pointers are to device memory.
struct FakeQuantWork {
  FakeQuantCall call;
  bool on_bytes;    // each group begins with a byte of the mask
  bool given;       // of a whole tensor: the grid is; else it is made of extents, and kept
  bool aligned;     // all real numbers start at a 16-byte boundary
  int64_t parts;    // of a whole tensor, or of the sum over a group: blocks
  Extent* extents;  // of a whole tensor, a part each
  double* sums;     // a part of a group each; null where there is one, which goes to call.grad_scale
};

// Each is one launch.
void start_grids_of_groups(const FakeQuantWork& work, cudaStream_t stream);
void start_put_whole(const FakeQuantWork& work, cudaStream_t stream);
void start_put_all(const FakeQuantWork& work, cudaStream_t stream);
void start_pass_all(const FakeQuantWork& work, cudaStream_t stream);
void start_grads_of_groups(const FakeQuantWork& work, cudaStream_t stream);
void start_sums_of_parts(const FakeQuantWork& work, cudaStream_t stream);

}  // namespace onepass::cuda
