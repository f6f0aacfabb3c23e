// Room 2, memory on the CPU: gradients alone.
//
// Memory contract. `sum_piece` reads each gradient once and writes nothing; `scale_piece` reads and writes
// each once, or, for a factor of 0, only writes; `unscale_piece` does both at once: it reads and writes each
// once.
#pragma once
#include "../rules/stats.h"
#include "multi_tensor.h"

namespace onepass::ONEPASS_ISA {

// Sums run side by side, so that none waits for the addition before; merged in a fixed order.
constexpr int kLanes = 16;

template <class T>
struct Lanes {
  double squares[kLanes] = {}, poison[kLanes] = {};

  template <class S>  // what the gradient is stored in
  void add(const S* g, int64_t n) {
    double s[kLanes], bad[kLanes];
    std::copy_n(squares, kLanes, s);
    std::copy_n(poison, kLanes, bad);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (int k = 0; k < kLanes; ++k) add(g[i + k], s[k], bad[k]);
    for (int k = 0; k < n - i; ++k) add(g[i + k], s[k], bad[k]);
    std::copy_n(s, kLanes, squares);
    std::copy_n(bad, kLanes, poison);
  }

  template <class S>
  static void add(S stored, double& squares, double& poison) {
    T g;
    load(g, stored);
    GradSum::add(g, squares, poison);
  }

  GradSum sum() const {
    GradSum all;
    for (int k = 0; k < kLanes; ++k) all.merge({squares[k], poison[k]});
    all.settle<T>();
    return all;
  }
};

template <class T>
void add_row(Lanes<T>& lanes, const Row& row, int64_t from, int64_t to) {
  if (!row.box && is_stored<T>(row.dtype[kGrad]))
    return lanes.add(static_cast<const T*>(row.data[kGrad]) + from, to - from);
  if (!row.box && is_stored<BFloat16>(row.dtype[kGrad]))
    return lanes.add(static_cast<const BFloat16*>(row.data[kGrad]) + from, to - from);
  Window<T> g{row, kGrad};
  for (int64_t i = from; i < to; i += kTile) {
    const int64_t n = to - i < kTile ? to - i : kTile;
    lanes.add(g.load(i, n), n);
  }
}

// Calls each(lanes, row, first, last) for the blocks of a piece; what it adds to the lanes is summed.
template <class Each>
GradSum sum_blocks(const Launch& launch, Cut from, Cut to, const Each& each) {
  Lanes<float> single[kMaxStrands];
  Lanes<double> twice[kMaxStrands];
  for_each_block(launch, from, to, kMaxStrands, [&](int k, const Row& row, int64_t first, int64_t last) {
    if (row.dtype[kGrad] == DType::kFloat64)
      each(twice[k], row, first, last);
    else
      each(single[k], row, first, last);
  });
  GradSum sum;
  for (int k = 0; k < kMaxStrands; ++k) {
    sum.merge(single[k].sum());
    sum.merge(twice[k].sum());
  }
  return sum;
}

// Structs, not lambdas: tests/test_build.py reads the names of what is compiled, and those can be read.
struct Add {
  template <class T>
  void operator()(Lanes<T>& lanes, const Row& row, int64_t first, int64_t last) const {
    add_row(lanes, row, first, last);
  }
};

inline GradSum sum_piece(const Launch& launch, Cut from, Cut to) {
  return sum_blocks(launch, from, to, Add{});
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

// The sums are of what was there before. Block by block, so that what is scaled is still in a cache.
struct AddAndScale {
  double factor;

  template <class T>
  void operator()(Lanes<T>& lanes, const Row& row, int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; i += kBlock) {
      const int64_t end = last - i < kBlock ? last : i + kBlock;
      add_row(lanes, row, i, end);
      if (factor != 1) scale_row<T>(row, static_cast<T>(factor), false, i, end);
    }
  }
};

inline GradSum unscale_piece(const Launch& launch, double factor, Cut from, Cut to) {
  return sum_blocks(launch, from, to, AddAndScale{factor});
}

inline void scale_piece(const Launch& launch, double factor, bool zero, Cut from, Cut to) {
  for_each_block(launch, from, to, kMaxStrands, [&](int, const Row& row, int64_t first, int64_t last) {
    if (row.dtype[kGrad] == DType::kFloat64)
      scale_row<double>(row, factor, zero, first, last);
    else
      scale_row<float>(row, static_cast<float>(factor), zero, first, last);
  });
}

}  // namespace onepass::ONEPASS_ISA
