// What the CUDA kernels of normalizations are given, and what starts them. Plain data and plain C++.
#pragma once
#include <cuda_runtime_api.h>

#include "../common/norm.h"
#include "group.h"

namespace onepass::cuda {

constexpr int kNormThreads = 256;  // of a block
constexpr int kSliceGroups = 8;    // of a pixel, side by side in a block: 128 bytes of half elements
constexpr int kSlice = kSliceGroups * kGroup;

// How a call is cut up: norm_plan.h. The bits of what is summed depend on it alone.
//
// A unit is what is summed together: a channel, or, where channels are innermost, a slice of them. Its
// elements are cut into parts, a block each.
struct NormPlan {
  int64_t units = 0, parts = 1;
  int64_t at_once = 0;  // units that are worked on at a time: all, but where the device has no room for them
  int64_t width = 1;    // channels of a unit, but for the last one
  int64_t kept = 0;     // groups of a tensor that a block keeps from one pass to the next; 0: two launches
  int64_t stride = 0;   // groups from one that a thread of the second pass takes to its next
  bool fixed = false;   // these then are of the same channels

  int64_t blocks() const { return at_once * parts; }
};

// Groups that a channel's pixels in one image may touch.
__host__ __device__ inline int64_t plane_slots(int64_t pixels) {
  return pixels % kGroup ? (pixels + 2 * kGroup - 2) / kGroup : pixels / kGroup;
}

// What is made of the sums once they are known, or of what came in their place.
enum class Settle {
  kForward,   // statistics of the batch, the running ones, what the second pass needs
  kMoments,   // `out`: mean, what its rounding cut off, m2; the count behind all channels
  kBackward,  // gradients of weight and bias, what the second pass needs
  kGradSums,  // `out`: the sums themselves, the count behind all channels; gradients of weight and bias
};

// Everything that a kernel reads. Pointers are to device memory, null where there is none.
struct NormWork {
  NormCall call;
  NormPlan plan;
  bool aligned;  // all tensors of elements start at a 16-byte boundary
  Settle settle;
  double* sums;        // [2, parts, channels]: what blocks leave for the last of their unit
  unsigned* counters;  // one a unit, zero between launches
  void* table;         // [5, channels] of the arithmetic type: mean, scale, shift, slope, constant
  RunningStats running;
  double eps;
  ChannelVector dweight, dbias;
  void* out;
  ChannelVector mean, variance;  // given statistics
  const void* came;              // moments, or sums, of `processes` processes
  int64_t processes;
};

// The kernels of one storage type. Each is one launch.
struct NormKernels {
  using Start = void (*)(const NormWork& work, cudaStream_t stream);
  Start moments, grad_sums;  // first passes, which settle
  Start given;               // settles by given statistics, moments or sums: forward's part of the table
  Start grad_given;          // and backward's
  Start apply, grad_apply;   // second passes
  Start whole, grad_whole;   // both passes, for a plan that keeps what is read
};

extern const NormKernels norm_kernels_f32, norm_kernels_f64, norm_kernels_bf16, norm_kernels_f16;

inline const NormKernels& norm_kernels(DType dtype) {
  static const NormKernels* const kernels[] = {&norm_kernels_f32, &norm_kernels_f64, &norm_kernels_bf16,
                                               &norm_kernels_f16};
  return *kernels[static_cast<int>(dtype)];
}

}  // namespace onepass::cuda
