// What a kernel reads of a launch: its arguments, and the table that they lead to in device memory. Plain
// data and plain C++.
//
// A table changes when a parameter, a state, a group or a hyperparameter does, which is seldom; then it is
// written anew. Gradients lie elsewhere at every step, so their pointers travel as kernel arguments, and only
// a launch with more tensors than arguments can hold has them in the table.
#pragma once
#include "../common/plan.h"
#include "../rules/scale.h"

namespace onepass::cuda {

constexpr int kVectorBytes = 16;   // of one access to global memory
constexpr int64_t kTile = 4096;    // elements that a block takes at a time
constexpr int kSmallSlots = 496;   // gradient pointers in the 4 KB of arguments that every driver takes
constexpr int kLargeSlots = 4064;  // in the 32 KB that drivers for CUDA 12.1 and later take
constexpr int kSumBlocks = 864;    // into so many sums the squares of all gradients are parted, at most

// One parameter of a step. Tile 0 starts at element 0 and holds the `head`; all others start on a 16-byte
// boundary of the parameter.
struct DeviceRow {
  void* data[kMaxStreams];  // parameter, nothing for the gradient, states, average of weights
  void* step;               // null where nobody counts
  int64_t numel, first_tile;
  int32_t group;
  int32_t head;    // elements before the parameter's first 16-byte boundary
  int32_t box;     // where its box starts in the table's boxes; -1 where all streams are one run
  bool aligned;    // every other stream, but for the gradient, has a 16-byte boundary where the parameter has
                   // one
  bool step_f64;   // the step counter is float64, else float32
  bool wide_grad;  // the gradient of a half parameter is float32; else it has the parameter's dtype
};

// One gradient where nothing else is looked at. Nothing here changes when the gradient moves.
struct GradRow {
  int64_t numel, first_tile;
  int32_t box;
  DType dtype;
};

// One gradient and the sum that it is added to, which stays where it is. The sum is float32, or float64 for a
// float64 gradient.
struct SumRow {
  void* sum;
  int64_t numel, first_tile;
  int32_t box;
  DType dtype;  // of the gradient
};

// The part of a kernel's arguments that leads to the rows and their gradients.
template <class Row, int kSlots>
struct Work {
  const Row* rows;
  const int64_t* boxes;
  void* const* grads;  // null where the pointers are in `grad`
  int64_t tiles;
  int32_t count;  // of rows
  void* grad[kSlots];
};

// Pointers are to device memory, null where there is none.
template <int kSlots>
struct OptimArgs {
  const double* hyper;
  const float *grad_scale, *found_inf;
  const double* stats;
  unsigned* blocks_done;  // zero between launches
  int32_t hyper_columns;
  GradsAfter grads_after;
  bool ema;     // the stream behind the states is the average of weights
  bool counts;  // rows have step counters
  Work<DeviceRow, kSlots> work;
};

// What the blocks of a grad_stats launch leave for the last of them.
struct PartialSums {
  double squares[kSumBlocks], poison[kSumBlocks];
};

template <int kSlots>
struct StatsArgs {
  const float* grad_scale;
  PartialSums* sums;
  unsigned* blocks_done;
  double* stats;  // the result
  Work<GradRow, kSlots> work;
};

template <int kSlots>
struct ClipArgs {
  const double* stats;
  double max_norm;
  Work<GradRow, kSlots> work;
};

template <int kSlots>
struct SumArgs {
  const float* inv_scale;
  Work<SumRow, kSlots> work;
};

// Of the loss scale: everything that one thread needs.
constexpr int kMostFlags = 256;
struct ScaleArgs {
  ScaleRule rule;
  float* scale;
  int32_t* growth_tracker;
  int64_t* skipped;
  int32_t count;  // of found_infs
  const float* found_infs[kMostFlags];
};

constexpr size_t kSmallArgs = 4096, kLargeArgs = 32764;
static_assert(sizeof(OptimArgs<kSmallSlots>) <= kSmallArgs && sizeof(OptimArgs<kLargeSlots>) <= kLargeArgs);
static_assert(sizeof(StatsArgs<kSmallSlots>) <= kSmallArgs && sizeof(StatsArgs<kLargeSlots>) <= kLargeArgs);
static_assert(sizeof(ClipArgs<kSmallSlots>) <= kSmallArgs && sizeof(ClipArgs<kLargeSlots>) <= kLargeArgs);
static_assert(sizeof(SumArgs<kSmallSlots>) <= kSmallArgs && sizeof(SumArgs<kLargeSlots>) <= kLargeArgs);
static_assert(sizeof(ScaleArgs) <= kSmallArgs);

}  // namespace onepass::cuda
