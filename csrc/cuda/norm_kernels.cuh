// The kernels of normalizations for one storage type, put together. Each type is a file of its own, so that
// they are compiled side by side.
#pragma once
#include "norm_resident.cuh"

namespace onepass::cuda {

template <class S, template <class> class Sums>
void start_sums(const NormWork& w, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(w.plan.blocks());
  if (w.call.shape.channels_last)
    norm_interleaved<S, Sums><<<blocks, kNormThreads, 0, stream>>>(w);
  else
    norm_planar<S, Sums><<<blocks, kNormThreads, 0, stream>>>(w);
}

inline unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(threads > 0 ? (threads + kNormThreads - 1) / kNormThreads : 1);
}

template <class S, template <class> class Each>
void start_apply(const NormWork& w, cudaStream_t stream) {
  norm_apply<S, Each><<<blocks_for(w.plan.stride), kNormThreads, 0, stream>>>(w);
}

// Both passes. together: how blocks are, of which each waits for others.
template <class Kernel>
void start_together(Kernel* kernel, const NormWork& w, int64_t bytes, cudaLaunchAttribute together,
                    cudaStream_t stream) {
  // What goes wrong here is the runtime's last error.
  const int memory = static_cast<int>(bytes);
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, memory);
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(w.plan.blocks());
  config.blockDim = kNormThreads;
  config.dynamicSmemBytes = memory;
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = 1;
  (void)cudaLaunchKernelEx(&config, kernel, w);
}

template <class S, template <class> class Sums, template <class> class Each>
void start_whole(const NormWork& w, cudaStream_t stream) {
  const int64_t bytes = w.plan.kept * kGroup * (Each<S>::kGrads ? 2 : 1) * sizeof(S);
  cudaLaunchAttribute together{};
  if (!w.call.shape.channels_last) {
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = static_cast<unsigned>(w.plan.parts);
    together.val.clusterDim.y = together.val.clusterDim.z = 1;
    start_together(norm_clusters<S, Sums, Each>, w, bytes, together, stream);
  } else if constexpr (sizeof(S) < sizeof(double)) {  // see fits_slices
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    start_together(norm_slices<S, Sums, Each>, w, bytes, together, stream);
  }
}

template <class S>
void start_given(const NormWork& w, cudaStream_t stream) {
  norm_given<S><<<blocks_for(w.call.shape.channels), kNormThreads, 0, stream>>>(w);
}
template <class S>
void start_grad_given(const NormWork& w, cudaStream_t stream) {
  norm_grad_given<S><<<blocks_for(w.call.shape.channels), kNormThreads, 0, stream>>>(w);
}

template <class S>
constexpr NormKernels kNormKernels = {start_sums<S, MomentSums>,
                                      start_sums<S, GradSums>,
                                      start_given<S>,
                                      start_grad_given<S>,
                                      start_apply<S, ForwardGroup>,
                                      start_apply<S, BackwardGroup>,
                                      start_whole<S, MomentSums, ForwardGroup>,
                                      start_whole<S, GradSums, BackwardGroup>};

}  // namespace onepass::cuda
