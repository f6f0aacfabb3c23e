// The optimizers' CUDA kernels behind plain functions: what the host part calls.
#pragma once
#include <cuda_runtime_api.h>

#include "../common/optim_spec.h"
#include "table.h"

namespace onepass::cuda {

// Starts the kernel of an optimizer for one storage type over a table. `blocks` on `stream`.
template <int kSlots>
using LaunchKernel = void (*)(const OptimArgs<kSlots>& args, unsigned blocks, cudaStream_t stream);

struct OptimKernel {
  LaunchKernel<kSmallSlots> small;
  LaunchKernel<kLargeSlots> large;
  int (*blocks_per_multiprocessor)();  // how many blocks of the larger one run at a time
};

const OptimKernel& optim_kernel(Optimizer which, bool variant, DType dtype);

}  // namespace onepass::cuda
