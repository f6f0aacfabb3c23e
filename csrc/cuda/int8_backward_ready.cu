// What the 8-bit product's gradients multiply, made ready on CUDA: lines of g in 8 bits and the other factor
// turned, in one launch. The first blocks do the one, the others the other; neither waits for the other.
//
// Memory contract: int8_backward_rows.cuh, int8_backward_columns.cuh, int8_backward_turn.cuh.
//
// Compiled without contraction of a * b + c: see rules/quant.h.
#include "int8_backward_columns.cuh"
#include "int8_backward_rows.cuh"
#include "int8_backward_turn.cuh"

namespace onepass::cuda {

template <class S, int kTeam>
__global__ void __launch_bounds__(kQuantThreads) ready_of_rows(const __grid_constant__ ReadyInt8Work w) {
  if (blockIdx.x < w.line_blocks)
    quantize_rows<S, kTeam>(w, blockIdx.x);
  else
    turn_square(w, blockIdx.x - w.line_blocks);
}

template <class S>
__global__ void __launch_bounds__(kQuantThreads) ready_of_columns(const __grid_constant__ ReadyInt8Work w) {
  if (blockIdx.x < w.line_blocks)
    quantize_columns<S>(w, blockIdx.x);
  else
    turn_square(w, blockIdx.x - w.line_blocks);
}

// --- launches ---------------------------------------------------------------------------------------------
template <class S, int kTeam>
static void start_rows(ReadyInt8Work& w, unsigned squares, cudaStream_t stream) {
  w.line_blocks = blocks_for(w.lines * kTeam);
  ready_of_rows<S, kTeam><<<w.line_blocks + squares, kQuantThreads, 0, stream>>>(w);
}
template <class S>
static void start_columns(ReadyInt8Work& w, unsigned squares, cudaStream_t stream) {
  w.line_blocks = static_cast<unsigned>((w.lines + kAcross - 1) / kAcross);
  ready_of_columns<S><<<w.line_blocks + squares, kQuantThreads, 0, stream>>>(w);
}

void start_ready(ReadyInt8Work w, cudaStream_t stream) {
  const int64_t squares = (w.width + kSide - 1) / kSide * ((w.outputs + kSide - 1) / kSide);
  with_real(w.g_dtype, [&](auto real) {
    using S = decltype(real);
    if (!w.of_rows) return start_columns<S>(w, static_cast<unsigned>(squares), stream);
    if (w.depth <= kWarpGroup) return start_rows<S, 32>(w, static_cast<unsigned>(squares), stream);
    start_rows<S, kQuantThreads>(w, static_cast<unsigned>(squares), stream);
  });
}

}  // namespace onepass::cuda
