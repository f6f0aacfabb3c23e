// The row of kernels that one rule has.
#pragma once
#include "multi_tensor.cuh"
#include "optim.h"

namespace onepass::cuda {

template <class Rule, class S, class M, int kSlots>
void start(const OptimArgs<kSlots>& args, unsigned blocks, cudaStream_t stream) {
  multi_tensor<Rule, S, M, kSlots><<<blocks, kThreads, 0, stream>>>(args);
}

template <class Rule, class S, class M>
cudaError_t occupancy(int* blocks) {
  const auto kernel = multi_tensor<Rule, S, M, kLargeSlots>;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, kThreads, 0);
}

template <template <class> class Rule, class S>
constexpr OptimKernel own_states() {
  using T = typename Arithmetic<S>::Type;
  return {start<Rule<T>, S, T, kSmallSlots>, start<Rule<T>, S, T, kLargeSlots>, occupancy<Rule<T>, S, T>};
}

// Built once for all lengths of a list: who keeps states in bfloat16 has large ones.
template <template <class> class Rule, class S>
constexpr OptimKernel bf16_states() {
  if constexpr (Rule<float>::kStates == 0) {
    return {};
  } else {
    using M = __nv_bfloat16;
    return {nullptr, start<Rule<float>, S, M, kLargeSlots>, occupancy<Rule<float>, S, M>};
  }
}

template <template <class> class Rule>
constexpr RuleKernels kernels_of() {
  return {{own_states<Rule, float>(), own_states<Rule, double>(), own_states<Rule, __nv_bfloat16>(),
           own_states<Rule, __half>()},
          {bf16_states<Rule, float>(), {}, bf16_states<Rule, __nv_bfloat16>(), bf16_states<Rule, __half>()}};
}

}  // namespace onepass::cuda
