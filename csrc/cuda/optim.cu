// The optimizers' CUDA kernels: a rule each, one driver.
#include "optim.h"

#include "../rules/adam.h"
#include "multi_tensor.cuh"

namespace onepass::cuda {

template <class Rule, class S, int kSlots>
static void start(const OptimArgs<kSlots>& args, unsigned blocks, cudaStream_t stream) {
  multi_tensor<Rule, S, kSlots><<<blocks, kThreads, 0, stream>>>(args);
}

template <class Rule, class S>
static cudaError_t occupancy(int* blocks) {
  const auto kernel = multi_tensor<Rule, S, kLargeSlots>;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, kThreads, 0);
}

template <template <class> class Rule, class S>
static constexpr OptimKernel kernel_of() {
  using R = Rule<typename Arithmetic<S>::Type>;
  return {start<R, S, kSmallSlots>, start<R, S, kLargeSlots>, occupancy<R, S>};
}

// A rule for every storage type, in the order of DType.
#define ALL_TYPES(Rule)                                                                   \
  {kernel_of<Rule, float>(), kernel_of<Rule, double>(), kernel_of<Rule, __nv_bfloat16>(), \
   kernel_of<Rule, __half>()}

const OptimKernel& optim_kernel(Optimizer which, bool variant, DType dtype) {
  static constexpr OptimKernel kernels[kOptimizers][2][4] = {
      {ALL_TYPES(AdamRule), ALL_TYPES(AdamAmsgrad)},    // kAdam
      {ALL_TYPES(AdamWRule), ALL_TYPES(AdamWAmsgrad)},  // kAdamW
  };
  return kernels[which][variant][static_cast<int>(dtype)];
}

}  // namespace onepass::cuda
