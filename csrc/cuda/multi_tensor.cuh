// Room 3, memory on CUDA: the driver that walks any list of tensors under any optimizer rule, in one launch.
//
// Memory contract. Each stream (parameter, gradient, states, average of weights) is read once and, but for
// the gradient, written once; the gradient is written where the step leaves zeros or its clipped values in
// it. All in 128-bit accesses where all streams of a row are 16-byte aligned at the same elements; its first
// and last elements, and rows whose streams are not, one element a thread. A step counter is read by every
// block that works on its row, so all counters are advanced by the last block to finish. Where found_inf or
// stats say that a gradient is not finite, nothing is written but zeros into gradients that are to be zeroed.
// Offsets are 64 bits wide.
//
// What only some steps do (the average, the gradient's new values) is a branch that all threads of a launch
// take alike, not a kernel of its own.
#pragma once
#include "../rules/step.h"
#include "tiles.cuh"

namespace onepass::cuda {

// How the streams of a step are kept. S: parameter and gradient; M: states. The average of weights is kept in
// the arithmetic type, and so is a gradient that was summed in it.
template <class Rule, class S_, class M_>
struct Kind {
  using Step = onepass::Step<Rule>;
  using S = S_;
  using M = M_;
  using T = typename Rule::T;
  static constexpr int kStates = Rule::kStates;
  static constexpr int kHeld = kStates ? kStates : 1;  // C++ has no empty arrays
  static constexpr int kChunk = kPerVector<M>;         // elements whose states a thread holds at a time
  static constexpr int kEach = kChunk > kPerVector<S> ? kChunk : kPerVector<S>;  // that it takes at a time
};

// The streams of one row.
template <class K>
struct Streams {
  typename K::S* param;
  void* grad;
  bool wide;  // the gradient is of type T, else S
  typename K::M* state[K::kHeld];
  typename K::T* ema;
  bool has_ema;
  GradsAfter after;

  template <class Args>
  __device__ Streams(const Args& args, const DeviceRow& row, void* gradient)
      : param(global<typename K::S>(row.data[kParam])),
        grad(global<void>(gradient)),
        wide(sizeof(typename K::S) < sizeof(typename K::T) && row.wide_grad),
        ema(global<typename K::T>(row.data[kState + K::kStates])),
        has_ema(args.ema),
        after(args.grads_after) {
#pragma unroll
    for (int s = 0; s < K::kStates; ++s) state[s] = global<typename K::M>(row.data[kState + s]);
  }

  // Calls body with the gradient as a pointer to what it is stored in.
  template <class Body>
  __device__ __forceinline__ void with_grad(const Body& body) const {
    if (wide)
      body(static_cast<typename K::T*>(grad));
    else
      body(static_cast<typename K::S*>(grad));
  }
};

template <class T, class S, int n>
__device__ __forceinline__ void load_grads(T (&to)[n], const S* from) {
  S stored[n];
  load_vectors(stored, from);
#pragma unroll
  for (int j = 0; j < n; ++j) to[j] = load(stored[j]);
}
template <class T, class S, int n>
__device__ __forceinline__ void store_grads(S* to, const T (&from)[n]) {
  S stored[n];
#pragma unroll
  for (int j = 0; j < n; ++j) store(stored[j], from[j]);
  store_vectors(to, stored);
}

__device__ __forceinline__ double number_of_step(const DeviceRow& row) {
  if (!row.step) return 2;  // nobody counts: the first is behind us
  return 1 + (row.step_f64 ? *global<const double>(row.step) : *global<const float>(row.step));
}

template <class Args>
__device__ __forceinline__ Scaling scaling_of(const Args& args) {
  Scaling scaling;
  if (args.grad_scale) scaling.inv_scale = 1.0 / static_cast<double>(*args.grad_scale);
  if (args.stats) scaling.norm = args.stats[0];
  return scaling;
}

// Coefficients cost two pow() in double: one thread makes them, and only where the group or the step number
// is another than for the tile before. What they were made for lies beside them, to save registers.
template <class Step>
struct Coefficients {
  Step step;
  double t;
  int32_t group;
};

// Called by all threads of a block with the same row. `made` is shared memory; its group is -1 before.
template <class Step, class Args>
__device__ __forceinline__ void make_coefficients(Coefficients<Step>& made, const Args& args,
                                                  const DeviceRow& row) {
  const double t = number_of_step(row);
  if (row.group == made.group && t == made.t) return;
  __syncthreads();  // all have compared, and taken the coefficients before
  if (threadIdx.x == 0) {
    const double* hyper = args.hyper + static_cast<int64_t>(row.group) * args.hyper_columns;
    made.step = Step::make(*reinterpret_cast<const typename Step::Hyper*>(hyper), t, scaling_of(args));
    made.t = t;
    made.group = row.group;
  }
  __syncthreads();
}

// What the step leaves in a gradient, where it leaves something.
template <class Step, class T = typename Step::T>
__device__ __forceinline__ T left(const Step& step, GradsAfter after, T g) {
  return after == GradsAfter::kZeroed ? T(0) : step.clipped(g);
}

// Elements [from, to), which all streams have on 16-byte boundaries; a multiple of what a thread takes: of
// the parameter and the gradient as many as make a vector of any stream but the average, then, chunk by
// chunk, the states beside them.
template <class K>
__device__ __forceinline__ void update_vectors(const typename K::Step step, const Streams<K>& at,
                                               int64_t from, int64_t to) {
  for (int64_t i = from + static_cast<int64_t>(threadIdx.x) * K::kEach; i < to; i += kThreads * K::kEach) {
    typename K::S p[K::kEach];
    typename K::T g[K::kEach];
    load_vectors(p, at.param + i);
    at.with_grad([&](auto* grad) { load_grads(g, grad + i); });
#pragma unroll
    for (int chunk = 0; chunk < K::kEach; chunk += K::kChunk) {
      typename K::M state[K::kHeld][K::kChunk];
      typename K::T ema[K::kChunk];
#pragma unroll
      for (int s = 0; s < K::kStates; ++s) load_vectors(state[s], at.state[s] + i + chunk);
      if (at.has_ema) load_vectors(ema, at.ema + i + chunk);
#pragma unroll
      for (int j = 0; j < K::kChunk; ++j) {
        typename K::T param = load(p[chunk + j]), held[kMaxStates] = {};
#pragma unroll
        for (int s = 0; s < K::kStates; ++s) held[s] = load(state[s][j]);
        step(g[chunk + j], param, held[0], held[1], held[2]);
        if (at.has_ema) ema[j] = step.average(ema[j], param);
        store(p[chunk + j], param);
#pragma unroll
        for (int s = 0; s < K::kStates; ++s) store(state[s][j], held[s]);
      }
#pragma unroll
      for (int s = 0; s < K::kStates; ++s) store_vectors(at.state[s] + i + chunk, state[s]);
      if (at.has_ema) store_vectors(at.ema + i + chunk, ema);
    }
    store_vectors(at.param + i, p);
    if (at.after == GradsAfter::kKept) continue;
#pragma unroll
    for (int j = 0; j < K::kEach; ++j) g[j] = left(step, at.after, g[j]);
    at.with_grad([&](auto* grad) { store_grads(grad + i, g); });
  }
}

// Element i of the row. box: null where all streams are one run.
template <class K>
__device__ __forceinline__ void update_element(const typename K::Step& step, const Streams<K>& at,
                                               const int64_t* box, int64_t i) {
  int64_t in[kState + K::kStates + 1];  // where it lies in each stream
#pragma unroll
  for (int64_t& place : in) place = i;
  if (box) offsets_in(box, i, kState + K::kStates + at.has_ema, in);
  typename K::S& p = at.param[in[kParam]];
  typename K::T param = load(p), g, held[kMaxStates] = {};
  at.with_grad([&](auto* grad) { g = load(grad[in[kGrad]]); });
#pragma unroll
  for (int s = 0; s < K::kStates; ++s) held[s] = load(at.state[s][in[kState + s]]);
  step(g, param, held[0], held[1], held[2]);
  if (at.has_ema) {
    typename K::T& ema = at.ema[in[kState + K::kStates]];
    ema = step.average(ema, param);
  }
  if (at.after != GradsAfter::kKept)
    at.with_grad([&](auto* grad) { store(grad[in[kGrad]], left(step, at.after, g)); });
  store(p, param);
#pragma unroll
  for (int s = 0; s < K::kStates; ++s) store(at.state[s][in[kState + s]], held[s]);
}

// The part of a row that is in one of its tiles.
template <class K>
__device__ __forceinline__ Span span_of(const DeviceRow& row, const Streams<K>& at, int64_t tile) {
  const int64_t start = row.head + tile * kTile, end = start + kTile, to = end < row.numel ? end : row.numel;
  const uintptr_t grad = reinterpret_cast<uintptr_t>(at.grad) +
                         row.head * (at.wide ? sizeof(typename K::T) : sizeof(typename K::S));
  const bool aligned = row.aligned && grad % kVectorBytes == 0;
  return Span::make(tile ? start : 0, aligned ? start : to, to, K::kEach);
}

template <class K>
__device__ __forceinline__ void zero_grads(const Streams<K>& at, const int64_t* box, const Span& span) {
  at.with_grad([&](auto* grad) {
    using G = std::remove_pointer_t<decltype(grad)>;
    constexpr int kEach = kPerVector<G>;
    G zeros[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) store(zeros[j], typename K::T(0));
#pragma unroll 1
    for (int64_t i = span.first + static_cast<int64_t>(threadIdx.x) * kEach; i < span.end;
         i += kThreads * kEach)
      store_vectors(grad + i, zeros);
    span.each_element([&](int64_t i) { grad[offset_of_grad(box, i)] = zeros[0]; });
  });
}

// Every counter is one step further, once no block reads it any more.
template <class Args>
__device__ __forceinline__ void advance_steps(const Args& args) {
  if (!is_last_block(args.blocks_done, gridDim.x)) return;
  for (int i = static_cast<int>(threadIdx.x); i < args.work.count; i += kThreads) {
    const DeviceRow& row = args.work.rows[i];
    if (row.step_f64)
      *global<double>(row.step) += 1;
    else
      *global<float>(row.step) += 1;
  }
  if (threadIdx.x == 0) *args.blocks_done = 0;
}

// A persistent grid: block b takes tiles b, b + gridDim.x, ...
template <class Rule, class S, class M, int kSlots>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    multi_tensor(const __grid_constant__ OptimArgs<kSlots> args) {
  using K = Kind<Rule, S, M>;
  const bool skip = (args.found_inf && *args.found_inf != 0) || (args.stats && args.stats[1] != 0);
  if (skip && args.grads_after != GradsAfter::kZeroed) return;
  __shared__ Coefficients<typename K::Step> made;
  if (threadIdx.x == 0) made.group = -1;
  __syncthreads();
  int row = 0;
  for (int64_t tile = blockIdx.x; tile < args.work.tiles; tile += gridDim.x) {
    row = row_behind(args.work, row, tile);
    const DeviceRow& at = args.work.rows[row];
    const Streams<K> streams(args, at, grad_of(args.work, row));
    const Span span = span_of(at, streams, tile - at.first_tile);
    const int64_t* box = at.box < 0 ? nullptr : args.work.boxes + at.box;
    if (skip) {
      zero_grads(streams, box, span);
      continue;
    }
    make_coefficients(made, args, at);
    update_vectors(made.step, streams, span.first, span.end);
    span.each_element([&](int64_t i) { update_element(made.step, streams, box, i); });
  }
  if (args.counts && !skip) advance_steps(args);
}

}  // namespace onepass::cuda
