// Room 3, memory on CUDA: gradients alone, of any dtypes in one launch.
//
// Memory contract. `sum_grads` reads each gradient once and writes two doubles in all; `unscale_grads` does
// so too, and writes each once, or nothing where the loss scale is 1; `clip_grads` reads and writes each
// once, or nothing where the coefficient is 1. In 128-bit accesses wherever a gradient lies: what
// stands before its first 16-byte boundary in a tile, or behind the last one, is taken one element a thread;
// so are gradients that are not one run. Tiles are taken from the last one down: the step that follows begins
// with what was read last, and may find it in the L2 cache.
#pragma once
#include "../rules/stats.h"
#include "../rules/step.h"
#include "grads.h"
#include "tiles.cuh"

namespace onepass::cuda {

// On a multiprocessor: all kSumBlocks then run at once where there are 108, on an A100, or more.
constexpr int kMostBlocks = 8;

// Calls body with a null pointer of a gradient's storage type.
template <class Body>
__device__ __forceinline__ void with_type(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32) return body(static_cast<float*>(nullptr));
  if (dtype == DType::kBFloat16) return body(static_cast<__nv_bfloat16*>(nullptr));
  if (dtype == DType::kFloat16) return body(static_cast<__half*>(nullptr));
  body(static_cast<double*>(nullptr));
}

// The elements of a gradient that are in its tile number `tile`.
template <class Row, class S>
__device__ __forceinline__ Span span_of(const Row& row, const S* grad, int64_t tile) {
  const int64_t from = tile * kTile, end = from + kTile, to = end < row.numel ? end : row.numel;
  const int64_t off = reinterpret_cast<uintptr_t>(grad + from) % kVectorBytes / sizeof(S);
  const int64_t first = from + (off ? kPerVector<S> - off : 0);
  return Span::make(from, row.box < 0 && first < to ? first : to, to, kPerVector<S>);
}

// Calls body(gradient, box, span, row) for every tile of this block: tiles - 1 - blockIdx.x, and so on down.
template <class Work, class Body>
__device__ __forceinline__ void each_tile_down(const Work& work, const Body& body) {
  int row = work.count - 1;
  for (int64_t tile = work.tiles - 1 - blockIdx.x; tile >= 0; tile -= gridDim.x) {
    row = row_before(work, row, tile);
    const auto& at = work.rows[row];
    void* const memory = grad_of(work, row);
    const int64_t* const box = at.box < 0 ? nullptr : work.boxes + at.box;
    with_type(at.dtype, [&](auto* typed) {
      auto* const grad = global<std::remove_pointer_t<decltype(typed)>>(memory);
      body(grad, box, span_of(at, grad, tile - at.first_tile), at);
    });
  }
}

// The sum over all threads of a block, or over the first `count` sums of a launch; known to thread 0. In an
// order of its own, so that the bits are the same in every run.
__device__ __forceinline__ GradSum sum_of_block(const GradSum& mine) {
  __shared__ double squares[kThreads], poison[kThreads];
  squares[threadIdx.x] = mine.squares;
  poison[threadIdx.x] = mine.poison;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      squares[threadIdx.x] += squares[threadIdx.x + half];
      poison[threadIdx.x] += poison[threadIdx.x + half];
    }
  }
  __syncthreads();  // before the next call writes here again
  return {squares[0], poison[0]};
}

// Sums of the gradients as they come; kUnscale: and leaves them unscaled. kSumBlocks blocks at most, on any
// device: the same sums, and bits, everywhere.
template <bool kUnscale, int kSlots>
__device__ __forceinline__ void measure(const StatsArgs<kSlots>& args) {
  const double inv_scale = args.grad_scale ? 1.0 / static_cast<double>(*args.grad_scale) : 1.0;
  const bool scaled = inv_scale != 1;
  GradSum mine;
  each_tile_down(args.work, [&](auto* grad, const int64_t* box, const Span& span, const GradRow&) {
    using S = std::remove_pointer_t<decltype(grad)>;
    constexpr int kEach = kPerVector<S>;
    const auto factor = static_cast<typename Arithmetic<S>::Type>(inv_scale);
    GradSum tile;
#pragma unroll 4
    for (int64_t i = span.first + threadIdx.x * kEach; i < span.end; i += kThreads * kEach) {
      S g[kEach];
      load_vectors(g, grad + i);
#pragma unroll
      for (int j = 0; j < kEach; ++j) tile.add(load(g[j]));
      if constexpr (kUnscale) {
        if (!scaled) continue;
#pragma unroll
        for (int j = 0; j < kEach; ++j) store(g[j], factor * load(g[j]));
        store_vectors(grad + i, g);
      }
    }
    span.each_element([&](int64_t i) {
      S& g = grad[offset_of_grad(box, i)];
      tile.add(load(g));
      if (kUnscale && scaled) store(g, factor * load(g));
    });
    tile.template settle<typename Arithmetic<S>::Type>();
    mine.merge(tile);
  });
  const GradSum block = sum_of_block(mine);
  if (threadIdx.x == 0) {
    args.sums->squares[blockIdx.x] = block.squares;
    args.sums->poison[blockIdx.x] = block.poison;
  }
  if (!is_last_block(args.blocks_done, gridDim.x)) return;

  GradSum some;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads)
    some.merge({__ldcg(args.sums->squares + b), __ldcg(args.sums->poison + b)});
  const GradSum all = sum_of_block(some);
  if (threadIdx.x > 0) return;
  args.stats[0] = all.norm(inv_scale);
  args.stats[1] = all.finite() ? 0.0 : 1.0;
  *args.blocks_done = 0;
}

template <int kSlots>
__global__ void __launch_bounds__(kThreads, kMostBlocks)
    sum_grads(const __grid_constant__ StatsArgs<kSlots> args) {
  measure<false>(args);
}

template <int kSlots>
__global__ void __launch_bounds__(kThreads, kMostBlocks)
    unscale_grads(const __grid_constant__ StatsArgs<kSlots> args) {
  measure<true>(args);
}

template <int kSlots>
__global__ void __launch_bounds__(kThreads, kMostBlocks)
    clip_grads(const __grid_constant__ ClipArgs<kSlots> args) {
  const double coefficient = clip_coefficient(args.max_norm, args.stats[0]);
  if (coefficient == 1) return;
  each_tile_down(args.work, [&](auto* grad, const int64_t* box, const Span& span, const GradRow&) {
    using S = std::remove_pointer_t<decltype(grad)>;
    constexpr int kEach = kPerVector<S>;
    const auto factor = static_cast<typename Arithmetic<S>::Type>(coefficient);
    for (int64_t i = span.first + threadIdx.x * kEach; i < span.end; i += kThreads * kEach) {
      S g[kEach];
      load_vectors(g, grad + i);
#pragma unroll
      for (int j = 0; j < kEach; ++j) store(g[j], factor * load(g[j]));
      store_vectors(grad + i, g);
    }
    span.each_element([&](int64_t i) {
      S& g = grad[offset_of_grad(box, i)];
      store(g, factor * load(g));
    });
  });
}

}  // namespace onepass::cuda
