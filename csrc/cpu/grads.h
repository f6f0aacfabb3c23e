// Room 2, memory on the CPU: gradients alone.
//
// Memory contract. `sum_piece` reads each gradient once and writes nothing; `scale_piece` reads and writes
// each once, or, for a factor of 0, only writes.
#pragma once
#include "../rules/stats.h"
#include "multi_tensor.h"

namespace onepass::ONEPASS_ISA {

// Sums run side by side, so that none waits for the addition before; merged in a fixed order.
constexpr int kLanes = 16;

template <class T>
GradSum sum_of(const T* g, int64_t n) {
  double squares[kLanes] = {}, poison[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) GradSum::add(g[i + k], squares[k], poison[k]);
  GradSum sum;
  for (; i < n; ++i) GradSum::add(g[i], sum.squares, sum.poison);
  for (int k = 0; k < kLanes; ++k) sum.merge({squares[k], poison[k]});
  sum.settle<T>();
  return sum;
}

template <class T>
GradSum sum_row(const Row& row, int64_t from, int64_t to) {
  Window<T> g{row, kGrad};
  if (g.in_place()) return sum_of(g.load(from, to - from), to - from);
  GradSum sum;
  for (int64_t i = from; i < to; i += kTile) {
    const int64_t n = to - i < kTile ? to - i : kTile;
    sum.merge(sum_of(g.load(i, n), n));
  }
  return sum;
}

inline GradSum sum_piece(const Launch& launch, Cut from, Cut to) {
  GradSum sum;
  for_each_row(launch, from, to, [&](const Row& row, int64_t first, int64_t last) {
    sum.merge(row.dtype[kGrad] == DType::kFloat64 ? sum_row<double>(row, first, last)
                                                  : sum_row<float>(row, first, last));
  });
  return sum;
}

template <class T>
void scale_row(const Row& row, T factor, bool zero, int64_t from, int64_t to) {
  Window<T> g{row, kGrad};
  for (int64_t i = from; i < to; i += kTile) {
    const int64_t n = to - i < kTile ? to - i : kTile;
    T* tile = zero && !g.in_place() ? g.tile : g.load(i, n);
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) tile[k] = zero ? T(0) : factor * tile[k];
    g.store(i, n);
  }
}

inline void scale_piece(const Launch& launch, double factor, bool zero, Cut from, Cut to) {
  for_each_row(launch, from, to, [&](const Row& row, int64_t first, int64_t last) {
    if (row.dtype[kGrad] == DType::kFloat64)
      scale_row<double>(row, factor, zero, first, last);
    else
      scale_row<float>(row, static_cast<float>(factor), zero, first, last);
  });
}

}  // namespace onepass::ONEPASS_ISA
