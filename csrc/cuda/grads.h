// The CUDA kernels on gradients and on the loss scale behind plain functions: what the host part calls.
#pragma once
#include <cuda_runtime_api.h>

#include "table.h"

namespace onepass::cuda {

// Starts so many blocks of a kernel; `small` takes fewer gradients.
template <template <int> class Args>
struct GradsKernel {
  void (*small)(const Args<kSmallSlots>& args, unsigned blocks, cudaStream_t stream);
  void (*large)(const Args<kLargeSlots>& args, unsigned blocks, cudaStream_t stream);
};

extern const GradsKernel<StatsArgs> sum_kernel;
extern const GradsKernel<StatsArgs> unscale_kernel;
extern const GradsKernel<ClipArgs> clip_kernel;
extern const GradsKernel<SumArgs> accumulate_kernel;
void start_update_scale(const ScaleArgs& args, cudaStream_t stream);

}  // namespace onepass::cuda
