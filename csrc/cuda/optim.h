// The optimizers' CUDA kernels behind plain functions: what the host part calls.
#pragma once
#include <cuda_runtime_api.h>

#include "../common/optim_spec.h"
#include "table.h"

namespace onepass::cuda {

// Starts so many blocks of an optimizer's kernel for one storage type.
template <int kSlots>
using LaunchKernel = void (*)(const OptimArgs<kSlots>& args, unsigned blocks, cudaStream_t stream);

struct OptimKernel {
  LaunchKernel<kSmallSlots> small;
  LaunchKernel<kLargeSlots> large;
  cudaError_t (*occupancy)(int* blocks);  // how many blocks of `large` run on a multiprocessor at a time
};

const OptimKernel& optim_kernel(Optimizer which, bool variant, DType dtype);

}  // namespace onepass::cuda
