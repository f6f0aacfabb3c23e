// The product of real numbers and 8-bit weights on CUDA: its kernels, started.
#include "int8_weight_rows.cuh"
#include "int8_weight_tiles.cuh"

namespace onepass::cuda {

template <class T>
static void start_tiles(const Int8Work& w, cudaStream_t stream) {
  const int64_t tiles = (w.call.m + T::kM - 1) / T::kM * ((w.call.shape.n + T::kN - 1) / T::kN);
  // What goes wrong here is the runtime's last error.
  (void)cudaFuncSetAttribute(int8_weight_tiles<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kBytes);
  int8_weight_tiles<T><<<static_cast<unsigned>(tiles), T::kThreads, T::kBytes, stream>>>(w);
}

template <class S, int kRows>
static void start_rows(const Int8Work& w, cudaStream_t stream) {
  if constexpr (kRows > 1)
    if (2 * w.call.m <= kRows) return start_rows<S, kRows / 2>(w, stream);
  const int64_t blocks = (w.call.shape.n + kBlockOutputs - 1) / kBlockOutputs;
  int8_weight_rows<S, kRows><<<static_cast<unsigned>(blocks), kRowsThreads, 0, stream>>>(w);
}

template <class S>
static void start_of(const Int8Work& w, Int8Cut cut, cudaStream_t stream) {
  if (cut == Int8Cut::kRows && !w.aligned) cut = Int8Cut::kSmall;  // which gathers what lies anywhere
  switch (cut) {
    case Int8Cut::kRows:
      return start_rows<S, kMostInRows>(w, stream);
    case Int8Cut::kSmall:
      return start_tiles<SmallWeightTiling<S>>(w, stream);
    case Int8Cut::kMiddle:
      return start_tiles<MiddleWeightTiling<S>>(w, stream);
    case Int8Cut::kLarge:
      return start_tiles<LargeWeightTiling<S>>(w, stream);
  }
}

void start_int8_weight(const Int8Work& work, Int8Cut cut, cudaStream_t stream) {
  switch (work.call.x_dtype) {
    case DType::kBFloat16:
      return start_of<__nv_bfloat16>(work, cut, stream);
    case DType::kFloat16:
      return start_of<__half>(work, cut, stream);
    default:
      return start_of<float>(work, cut, stream);
  }
}

}  // namespace onepass::cuda
