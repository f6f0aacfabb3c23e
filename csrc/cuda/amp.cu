// Sums of gradients over several backward passes, and the loss scale, on CUDA.
//
// Memory contract. `accumulate` reads each gradient and reads and writes its sum once, in 128-bit accesses
// where both lie on 16-byte boundaries at the same elements; the rest, and what is not one run, by one
// element a thread. `update_scale` is one thread.
#include "grads.cuh"

namespace onepass::cuda {

template <class S, class T>
__device__ __forceinline__ void add_vectors(T factor, const S* grad, T* sum, const Span& span) {
  constexpr int kEach = kPerVector<S>;  // whole vectors of the sum, too, which is at least as wide
#pragma unroll 2
  for (int64_t i = span.first + threadIdx.x * kEach; i < span.end; i += kThreads * kEach) {
    S g[kEach];
    T total[kEach];
    load_vectors(g, grad + i);
    load_vectors(total, sum + i);
#pragma unroll
    for (int j = 0; j < kEach; ++j) total[j] += factor * load(g[j]);
    store_vectors(sum + i, total);
  }
}

template <int kSlots>
__global__ void __launch_bounds__(kThreads, kMostBlocks)
    accumulate(const __grid_constant__ SumArgs<kSlots> args) {
  const float inv_scale = args.inv_scale ? *args.inv_scale : 1.0f;
  each_tile_down(args.work, [&](auto* grad, const int64_t* box, Span span, const SumRow& row) {
    using S = std::remove_pointer_t<decltype(grad)>;
    using T = typename Arithmetic<S>::Type;
    T* const sum = global<T>(row.sum);
    if (reinterpret_cast<uintptr_t>(sum + span.first) % kVectorBytes != 0) span.first = span.end = span.to;
    add_vectors(static_cast<T>(inv_scale), grad, sum, span);
    span.each_element([&](int64_t i) {
      int64_t at[kGrad + 1] = {i, i};
      if (box) offsets_in(box, i, kGrad + 1, at);
      sum[at[kParam]] += static_cast<T>(inv_scale) * load(grad[at[kGrad]]);
    });
  });
}

template <int kSlots>
static void start_accumulate(const SumArgs<kSlots>& args, unsigned blocks, cudaStream_t stream) {
  accumulate<kSlots><<<blocks, kThreads, 0, stream>>>(args);
}
const GradsKernel<SumArgs> accumulate_kernel = {start_accumulate<kSmallSlots>, start_accumulate<kLargeSlots>};

__global__ void update_scale(const __grid_constant__ ScaleArgs args) {
  bool overflow = false;
  for (int i = 0; i < args.count; ++i) overflow |= *args.found_infs[i] != 0;
  args.rule(overflow, *args.scale, *args.growth_tracker, args.skipped);
}

void start_update_scale(const ScaleArgs& args, cudaStream_t stream) {
  update_scale<<<1, 1, 0, stream>>>(args);
}

}  // namespace onepass::cuda
