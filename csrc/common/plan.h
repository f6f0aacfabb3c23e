// What one launch of a multi-tensor op works on, and how the work is cut. Plain data: the CPU and the CUDA
// drivers read the same rows.
#pragma once
#include <cstdint>
#include <vector>

#include "layout.h"

namespace onepass {

constexpr int kMaxStates = 3;
constexpr int kMaxStreams = 2 + kMaxStates + 1;
enum Stream {
  kParam = 0,
  kGrad = 1,
  kState = 2
};  // the states, then the average of weights, if there is one

// One parameter of a step. Small, because with many tensors the rows themselves are traffic.
struct Row {
  void* data[kMaxStreams];  // parameter, gradient, states in the rule's order, average of weights
  int64_t numel;
  const Layout* box;  // null where all streams are one run of numel elements; owned by the row's owner
  void* step;         // the step counter's element, advanced by one; null where nobody counts: t is 2
  double t;           // the number of this step, from 1
  int32_t group;      // row of the hyperparameter tensor
  DType dtype[kMaxStreams];
  DType step_dtype;  // float32 or float64

  void lie(const Layout& layout) {
    numel = layout.numel;
    box = layout.flat ? nullptr : &layout;
  }
};

// What a step leaves in the gradients: what was there, zeros, or the unscaled and clipped gradient.
enum class GradsAfter : int32_t { kKept, kZeroed, kWritten };

struct Launch {
  std::vector<Row> rows;
  std::vector<int64_t> begin;  // rows.size() + 1 running sums of numel: where each row starts in the whole
  const double* hyper = nullptr;
  int64_t hyper_columns = 0;
  bool ema = false;  // the stream behind the states is the average of weights
  GradsAfter grads_after = GradsAfter::kKept;

  // On the device, null where there is none: one float32 element each, and what grad_stats left (stats.h).
  const float *grad_scale = nullptr, *found_inf = nullptr;
  const double* stats = nullptr;
  bool hyper_on_device = false;

  void clear() {
    rows.clear();
    begin.assign(1, 0);
  }
  void add(const Row& row) {
    rows.push_back(row);
    begin.push_back(begin.back() + row.numel);
  }
  int64_t numel() const { return begin.back(); }
};

struct Cut {
  int64_t row, offset;
};

// A piece never starts inside 64 elements: so the elements that a vector loop leaves to its tail are the same
// ones for any number of pieces, and so are the bits.
constexpr int64_t kCutMultiple = 64;

// Where the element stands that has `target` elements before it.
inline Cut cut_at(const std::vector<int64_t>& begin, int64_t target) {
  const int64_t rows = static_cast<int64_t>(begin.size()) - 1;
  const int64_t row = std::upper_bound(begin.begin(), begin.end(), target) - begin.begin() - 1;
  if (row == rows) return {rows, 0};
  return {row, (target - begin[row]) / kCutMultiple * kCutMultiple};
}

// Where piece k of `pieces` equal ones starts, k = 0 .. pieces. 64-bit throughout: numel may pass 2^31.
inline Cut cut(const std::vector<int64_t>& begin, int64_t pieces, int64_t k) {
  if (k == 0) return {0, 0};
  if (k == pieces) return {static_cast<int64_t>(begin.size()) - 1, 0};
  const int64_t numel = begin.back();
  return cut_at(begin, numel / pieces * k + numel % pieces * k / pieces);
}

}  // namespace onepass
