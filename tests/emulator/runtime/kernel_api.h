// Calls of the runtime API that take a kernel, and so are templates.
#pragma once
#include <cuda_runtime_api.h>

#include "core.h"

template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(P...), int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads,
                                                       shared);
}

template <class... P>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(P...),
                                           const cudaLaunchConfig_t* asked) {
  return cudaOccupancyMaxActiveClusters(clusters, reinterpret_cast<const void*>(kernel), asked);
}

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

namespace emulator {
template <class... P, size_t... i>
std::tuple<std::decay_t<P>...> arguments(void** from, std::index_sequence<i...>) {
  return {*static_cast<std::decay_t<P>*>(from[i])...};
}
}  // namespace emulator

template <class... P>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** args,
                                        size_t shared = 0, cudaStream_t stream = nullptr) {
  auto stored = emulator::arguments<P...>(args, std::index_sequence_for<P...>{});
  emulator::Config config = emulator::config(grid, block, shared, stream);
  config.cooperative = true;
  config.kernel = reinterpret_cast<const void*>(kernel);
  emulator::enqueue(config, "launched cooperatively",
                    [kernel, stored]() mutable { std::apply(kernel, stored); });
  return cudaSuccess;
}

template <class... P, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* asked, void (*kernel)(P...), Args&&... args) {
  std::tuple<std::decay_t<P>...> stored(std::forward<Args>(args)...);
  emulator::enqueue(emulator::config_of(*asked, reinterpret_cast<const void*>(kernel)),
                    "launched by cudaLaunchKernelEx",
                    [kernel, stored]() mutable { std::apply(kernel, stored); });
  return cudaSuccess;
}
