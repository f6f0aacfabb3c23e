// Room 2, memory on the CPU: sums of gradients over several backward passes.
//
// Memory contract. A row's parameter stream is the sum, float32, or float64 for float64 gradients; it is read
// and written once, the gradient, of any dtype, read once. Streams of float32, float64 and bfloat16 that lie
// alike are worked on in place, others through tiles.
#pragma once
#include "strands.h"
#include "window.h"

namespace onepass::ONEPASS_ISA {

template <class T, class S>
void add_scaled(T factor, int64_t n, T* __restrict sum, const S* __restrict g) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    T grad;
    load(grad, g[i]);
    sum[i] += factor * grad;
  }
}

template <class S, class T>
bool add_in_place(T factor, const Row& row, int64_t from, int64_t to) {
  if (row.box || !is_stored<S>(row.dtype[kGrad])) return false;
  add_scaled(factor, to - from, static_cast<T*>(row.data[kParam]) + from,
             static_cast<const S*>(row.data[kGrad]) + from);
  return true;
}

template <class T>
void add_grad(T factor, const Row& row, int64_t from, int64_t to) {
  if (add_in_place<T>(factor, row, from, to)) return;
  if constexpr (sizeof(T) == 4)
    if (add_in_place<BFloat16>(factor, row, from, to)) return;
  Window<T> sum{row, kParam}, g{row, kGrad};
  for (int64_t i = from; i < to; i += kTile) {
    const int64_t n = to - i < kTile ? to - i : kTile;
    add_scaled(factor, n, sum.load(i, n), g.load(i, n));
    sum.store(i, n);
  }
}

inline void accumulate_piece(const Launch& launch, double factor, Cut from, Cut to) {
  for_each_block(launch, from, to, kMaxStrands, [&](int, const Row& row, int64_t first, int64_t last) {
    if (row.dtype[kGrad] == DType::kFloat64)
      add_grad<double>(factor, row, first, last);
    else
      add_grad<float>(static_cast<float>(factor), row, first, last);
  });
}

}  // namespace onepass::ONEPASS_ISA
