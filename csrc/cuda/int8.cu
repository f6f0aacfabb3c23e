// The 8-bit matrix product on CUDA: its kernels, started.
#include "int8_rows.cuh"
#include "int8_tiles.cuh"

namespace onepass::cuda {

template <class T, bool kZeros>
static void start_tiles(const Int8Work& w, cudaStream_t stream) {
  const int64_t tiles = (w.call.m + T::kM - 1) / T::kM * ((w.call.shape.n + T::kN - 1) / T::kN);
  // What goes wrong here is the runtime's last error.
  (void)cudaFuncSetAttribute(int8_tiles<T, kZeros>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kBytes);
  int8_tiles<T, kZeros><<<static_cast<unsigned>(tiles), T::kThreads, T::kBytes, stream>>>(w);
}

template <int kRows, bool kZeros>
static void start_rows(const Int8Work& w, cudaStream_t stream) {
  if constexpr (kRows > 1)
    if (2 * w.call.m <= kRows) return start_rows<kRows / 2, kZeros>(w, stream);
  const int64_t blocks = (w.call.shape.n + kBlockOutputs - 1) / kBlockOutputs;
  int8_rows<kRows, kZeros><<<static_cast<unsigned>(blocks), kRowsThreads, 0, stream>>>(w);
}

template <bool kZeros>
static void start_with(const Int8Work& w, Int8Cut cut, cudaStream_t stream) {
  switch (cut) {
    case Int8Cut::kRows:
      return start_rows<kMostInRows, kZeros>(w, stream);
    case Int8Cut::kSmall:
      return start_tiles<SmallTiling, kZeros>(w, stream);
    case Int8Cut::kMiddle:
      return start_tiles<MiddleTiling, kZeros>(w, stream);
    case Int8Cut::kLarge:
      return start_tiles<LargeTiling, kZeros>(w, stream);
  }
}

void start_int8(const Int8Work& work, Int8Cut cut, cudaStream_t stream) {
  if (work.call.x_zero || !work.call.x_is_signed)
    start_with<true>(work, cut, stream);
  else
    start_with<false>(work, cut, stream);
}

}  // namespace onepass::cuda
