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
  LaunchKernel<kSmallSlots> small;  // null where only `large` is built
  LaunchKernel<kLargeSlots> large;
  cudaError_t (*occupancy)(int* blocks);  // how many blocks of `large` run on a multiprocessor at a time
};

// One rule: a kernel for each storage type of parameters, in the order of DType, states being in the
// arithmetic type, and one for each with bfloat16 states, which float64 parameters do not have.
struct RuleKernels {
  OptimKernel own[static_cast<int>(DType::kOther)];
  OptimKernel bf16[static_cast<int>(DType::kOther)];
};

// Each family's variants stand in a file of their own, so that they are compiled side by side.
extern const RuleKernels adam_kernels[2], adamw_kernels[2], sgd_kernels[2], rmsprop_kernels[4],
    adagrad_kernels[1], lion_kernels[1];

inline const OptimKernel& optim_kernel(Optimizer which, int variant, DType param, DType state) {
  static const RuleKernels* const kernels[kOnEveryDevice] = {adam_kernels,    adamw_kernels,   sgd_kernels,
                                                             rmsprop_kernels, adagrad_kernels, lion_kernels};
  const RuleKernels& rule = kernels[which][variant];
  return (state == DType::kBFloat16 ? rule.bf16 : rule.own)[static_cast<int>(param)];
}

}  // namespace onepass::cuda
