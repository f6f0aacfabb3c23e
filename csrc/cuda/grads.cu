// The norm of all gradients, their unscaling and their clipping, on CUDA.
#include "grads.cuh"

namespace onepass::cuda {

template <int kSlots>
static void start_sum(const StatsArgs<kSlots>& args, unsigned blocks, cudaStream_t stream) {
  sum_grads<kSlots><<<blocks, kThreads, 0, stream>>>(args);
}
const GradsKernel<StatsArgs> sum_kernel = {start_sum<kSmallSlots>, start_sum<kLargeSlots>};

template <int kSlots>
static void start_unscale(const StatsArgs<kSlots>& args, unsigned blocks, cudaStream_t stream) {
  unscale_grads<kSlots><<<blocks, kThreads, 0, stream>>>(args);
}
const GradsKernel<StatsArgs> unscale_kernel = {start_unscale<kSmallSlots>, start_unscale<kLargeSlots>};

template <int kSlots>
static void start_clip(const ClipArgs<kSlots>& args, unsigned blocks, cudaStream_t stream) {
  clip_grads<kSlots><<<blocks, kThreads, 0, stream>>>(args);
}
const GradsKernel<ClipArgs> clip_kernel = {start_clip<kSmallSlots>, start_clip<kLargeSlots>};

}  // namespace onepass::cuda
