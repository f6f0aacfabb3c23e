// The products of the 8-bit product's gradients on CUDA: their kernels, started.
#include "int8_backward_tiles.cuh"

namespace onepass::cuda {

template <class T, bool kLong>
static void start_tiles(const GradientInt8Work& w, cudaStream_t stream) {
  const Int8Call& call = w.product.call;
  const int64_t tiles = (call.m + T::kM - 1) / T::kM * ((call.shape.n + T::kN - 1) / T::kN);
  constexpr int kBytes = kGradientBytes<T, kLong>;
  // What goes wrong here is the runtime's last error.
  (void)cudaFuncSetAttribute(gradient_tiles<T, kLong>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  gradient_tiles<T, kLong><<<static_cast<unsigned>(tiles), T::kThreads, kBytes, stream>>>(w);
}

void start_gradient(const GradientInt8Work& w, Int8Cut cut, bool is_long, cudaStream_t stream) {
  if (is_long)
    return cut == Int8Cut::kSmall ? start_tiles<SmallTiling, true>(w, stream)
                                  : start_tiles<MiddleTiling, true>(w, stream);
  switch (cut) {
    case Int8Cut::kLarge:
      return start_tiles<LargeTiling, false>(w, stream);
    case Int8Cut::kMiddle:
      return start_tiles<MiddleTiling, false>(w, stream);
    default:
      return start_tiles<SmallTiling, false>(w, stream);
  }
}

}  // namespace onepass::cuda
