// Room 3, memory on CUDA: the driver that walks any list of tensors under any optimizer rule, in one launch.
//
// Memory contract. Each stream (parameter, gradient, states) is read once and, but for the gradient, written
// once, in 128-bit accesses where all streams of a row are 16-byte aligned at the same elements; its first
// and last elements, and rows whose streams are not, one element a thread. A step counter is read by every
// block that works on its row, so all counters are advanced by the last block to finish. Where found_inf is
// set, nothing is written. Offsets are 64 bits wide.
#pragma once
#include "../rules/step.h"
#include "vector.cuh"

namespace onepass::cuda {

// Blocks are small because some kernels take close to 100 registers a thread: five of 128 threads fit then,
// and only two of 256. The bound is on registers (128), so that the compiler does not spill to fit more
// blocks.
constexpr int kThreads = 128, kMinBlocks = 4;

template <int kSlots>
__device__ __forceinline__ const void* grad_of(const OptimArgs<kSlots>& args, int row) {
  return args.grads ? args.grads[row] : args.grad[row];
}

__device__ __forceinline__ double read_step(const DeviceRow& row) {
  return row.step_f64 ? *global<const double>(row.step) : *global<const float>(row.step);
}

// The last row that starts at or before a tile: of rows without elements, which start where the next one
// does, never one. A block's tiles only grow, so the row it is in is a lower bound.
template <class Args>
__device__ __forceinline__ int find_row(const Args& args, int low, int64_t tile) {
  int high = args.count;  // rows from `high` on start behind the tile
  if (low + 1 < high && args.rows[low + 1].first_tile > tile) return low;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (args.rows[middle].first_tile <= tile)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Coefficients cost two pow() in double: one thread makes them, and only where the group or the step number
// is another than for the tile before. What they were made for lies beside them, to save registers.
template <class Step>
struct Coefficients {
  Step step;
  double t;
  int32_t group;
};

// Where the loss is not scaled, the factor is 1.
template <class Args>
__device__ __forceinline__ double inv_scale_of(const Args& args) {
  return args.grad_scale ? 1.0 / static_cast<double>(*args.grad_scale) : 1.0;
}

// Called by all threads of a block with the same row. `made` is shared memory; its group is -1 before.
template <class Step, class Args>
__device__ __forceinline__ void make_coefficients(Coefficients<Step>& made, const Args& args,
                                                  const DeviceRow& row) {
  const double t = read_step(row) + 1;
  if (row.group == made.group && t == made.t) return;
  __syncthreads();  // all have compared, and taken the coefficients before
  if (threadIdx.x == 0) {
    const double* hyper = args.hyper + static_cast<int64_t>(row.group) * args.hyper_columns;
    made.step = Step::make(*reinterpret_cast<const typename Step::Hyper*>(hyper), t, inv_scale_of(args));
    made.t = t;
    made.group = row.group;
  }
  __syncthreads();
}

// The streams of one row, typed. S: storage of parameter and gradient; T: of the states, and of the
// arithmetic.
template <class S, class T, int kStates>
struct Streams {
  S* param;
  const S* grad;
  T* state[kStates];

  __device__ Streams(const DeviceRow& row, const void* gradient)
      : param(global<S>(row.data[kParam])), grad(global<const S>(const_cast<void*>(gradient))) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) state[s] = global<T>(row.data[kState + s]);
  }
};

// The rule on one element. state: of this element, one entry a state.
template <class Step, class T = typename Step::T>
__device__ __forceinline__ void apply(const Step& step, T g, T& p, T (&state)[Step::kStates]) {
  constexpr int kStates = Step::kStates;
  T unused = T(0);
  step(g, p, state[0], kStates > 1 ? state[kStates > 1 ? 1 : 0] : unused,
       kStates > 2 ? state[kStates > 2 ? 2 : 0] : unused);
}

// Elements [from, to), which all streams have on 16-byte boundaries; a multiple of what a thread takes: a
// vector of the parameter and one of the gradient, then, part by part, the vectors of the states beside them.
template <class Step, class S, class T = typename Step::T>
__device__ __forceinline__ void update_vectors(const Step step, const Streams<S, T, Step::kStates>& at,
                                               int64_t from, int64_t to) {
  constexpr int kEach = kPerVector<S>, kPart = kPerVector<T>, kStates = Step::kStates;
  for (int64_t i = from + static_cast<int64_t>(threadIdx.x) * kEach; i < to; i += kThreads * kEach) {
    S p[kEach], g[kEach];
    load_vector(p, at.param + i);
    load_vector(g, at.grad + i);
#pragma unroll
    for (int part = 0; part < kEach; part += kPart) {
      T state[kStates][kPart];
#pragma unroll
      for (int s = 0; s < kStates; ++s) load_vector(state[s], at.state[s] + i + part);
#pragma unroll
      for (int j = 0; j < kPart; ++j) {
        T param = load(p[part + j]), one[kStates];
#pragma unroll
        for (int s = 0; s < kStates; ++s) one[s] = state[s][j];
        apply(step, load(g[part + j]), param, one);
        store(p[part + j], param);
#pragma unroll
        for (int s = 0; s < kStates; ++s) state[s][j] = one[s];
      }
#pragma unroll
      for (int s = 0; s < kStates; ++s) store_vector(at.state[s] + i + part, state[s]);
    }
    store_vector(at.param + i, p);
  }
}

// Where element i of a box lies in one stream. box: as table.h has it.
__device__ __forceinline__ int64_t offset_in(const int64_t* box, int stream, int64_t i) {
  const int dims = static_cast<int>(box[0]);
  const int64_t *sizes = box + 1, *strides = sizes + dims * (1 + stream);
  int64_t offset = 0;
  for (int d = dims - 1; d > 0; --d) {
    offset += i % sizes[d] * strides[d];
    i /= sizes[d];
  }
  return offset + i * strides[0];
}

// Elements [from, to), one a thread. box: null where all streams are one run.
template <class Step, class S, class T = typename Step::T>
__device__ __forceinline__ void update_elements(const Step step, const Streams<S, T, Step::kStates>& at,
                                                const int64_t* box, int64_t from, int64_t to) {
  constexpr int kStates = Step::kStates;
  for (int64_t i = from + threadIdx.x; i < to; i += kThreads) {
    const int64_t ip = box ? offset_in(box, kParam, i) : i, ig = box ? offset_in(box, kGrad, i) : i;
    int64_t is[kStates];
    T p = load(at.param[ip]), state[kStates];
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      is[s] = box ? offset_in(box, kState + s, i) : i;
      state[s] = at.state[s][is[s]];
    }
    apply(step, load(at.grad[ig]), p, state);
    store(at.param[ip], p);
#pragma unroll
    for (int s = 0; s < kStates; ++s) at.state[s][is[s]] = state[s];
  }
}

// One tile of one row: what is aligned in vectors, the rest by the element.
template <class Step, class S, class T = typename Step::T>
__device__ __forceinline__ void update_tile(const Step& step, const DeviceRow& row, const int64_t* boxes,
                                            const void* grad, int64_t tile) {
  const Streams<S, T, Step::kStates> at(row, grad);
  const int64_t start = row.head + tile * kTile, from = tile ? start : 0;
  const int64_t to = start + kTile < row.numel ? start + kTile : row.numel;
  const bool aligned = row.aligned && reinterpret_cast<uintptr_t>(at.grad + row.head) % kVectorBytes == 0;
  const int64_t first = aligned ? start : to;  // of the vectors; none where not aligned
  const int64_t end = aligned ? start + (to - start) / kPerVector<S> * kPerVector<S> : to;
  update_vectors(step, at, first, end);
  const int64_t* box = row.box < 0 ? nullptr : boxes + row.box;
#pragma unroll 1
  for (int part = 0; part < 2; ++part)  // before the vectors, behind them: one copy of the code
    update_elements(step, at, box, part ? end : from, part ? to : first);
}

// Every counter is one step further, once no block reads it any more.
template <class Args>
__device__ __forceinline__ void advance_steps(const Args& args) {
  __shared__ bool last;
  __syncthreads();  // the block's own reads are done
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(args.blocks_done, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  for (int i = static_cast<int>(threadIdx.x); i < args.count; i += kThreads) {
    const DeviceRow& row = args.rows[i];
    if (row.step_f64)
      *global<double>(row.step) += 1;
    else
      *global<float>(row.step) += 1;
  }
  if (threadIdx.x == 0) *args.blocks_done = 0;
}

// A persistent grid: block b takes tiles b, b + gridDim.x, ...
template <class Rule, class S, int kSlots>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    multi_tensor(const __grid_constant__ OptimArgs<kSlots> args) {
  if (args.found_inf && *args.found_inf != 0) return;
  __shared__ Coefficients<Step<Rule>> made;
  if (threadIdx.x == 0) made.group = -1;
  __syncthreads();
  int row = 0;
  for (int64_t tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
    row = find_row(args, row, tile);
    const DeviceRow& at = args.rows[row];
    make_coefficients(made, args, at);
    update_tile<Step<Rule>, S>(made.step, at, args.boxes, grad_of(args, row), tile - at.first_tile);
  }
  advance_steps(args);
}

}  // namespace onepass::cuda
