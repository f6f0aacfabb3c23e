// First passes where channels are innermost: a block goes through a part of all pixels, a slice of up to 64
// channels each, and the last block of a slice settles its channels.
#pragma once
#include "norm_sums.cuh"

namespace onepass::cuda {

// Where the threads of a block stand in a slice of a pixel's channels: in rows, eight channels each.
struct Slice {
  int64_t begin;    // its first channel
  int width;        // its channels
  int rows;         // of threads
  int row, column;  // of this one: column is its first channel
  int n;            // its channels; 0 where it has none

  __device__ __forceinline__ Slice(const NormWork& w, int64_t unit) : begin(unit * w.plan.width) {
    const int64_t rest = w.call.shape.channels - begin;
    width = static_cast<int>(rest < w.plan.width ? rest : w.plan.width);
    const int across = (width + kGroup - 1) / kGroup, own = static_cast<int>(threadIdx.x);
    rows = kNormThreads / across;
    row = own / across;
    column = own % across * kGroup;
    n = row >= rows ? 0 : width - column < kGroup ? width - column : kGroup;
  }
};

// The pixels that a thread takes of a part, one after the other.
struct RowWalk {
  int64_t channels, begin;  // begin: its first channel
  int64_t at, last, step;   // at: a pixel

  __device__ __forceinline__ RowWalk(const NormWork& w, const Slice& slice, int64_t part)
      : channels(w.call.shape.channels), begin(slice.begin + slice.column), step(slice.rows) {
    const int64_t pixels = w.call.shape.rows();
    last = pixels * (part + 1) / w.plan.parts;
    at = slice.n ? pixels * part / w.plan.parts + slice.row : last;
  }
  __device__ __forceinline__ bool has(int a) const { return at + a * step < last; }
  __device__ __forceinline__ int64_t start(int a) const { return (at + a * step) * channels + begin; }
  __device__ __forceinline__ int count() const {
    return at < last ? static_cast<int>((last - at + step - 1) / step) : 0;
  }
};

// The sums of the rows of a block: thread c gets those of channel c. what(k): those of the kth channel of
// this thread. By all threads of a block.
struct RowSums {
  double* memory;  // of kNormThreads * kGroup
  int rows, width;

  template <class What>
  __device__ __forceinline__ double sum(int row, int column, int n, const What& what) const {
    __syncthreads();  // what the last call left was read
#pragma unroll
    for (int k = 0; k < kGroup; ++k)
      if (k < n) memory[row * width + column + k] = what(k);
    __syncthreads();
    double all = 0;
    const int own = static_cast<int>(threadIdx.x);
    if (own < width)
      for (int at = own; at < rows * width; at += width) all += memory[at];
    return all;
  }
  template <class What>
  __device__ __forceinline__ Pair sums(int row, int column, int n, const What& what) const {
    const double first = sum(row, column, n, [&](int k) { return what(k).first; });
    return {first, sum(row, column, n, [&](int k) { return what(k).second; })};
  }
};

// What a block sums up of its part of a slice: thread c gets the sums of channel c. keep(k, group): is called
// with the kth group of this thread. memory: for RowSums.
template <class Sums, int kMost, class S, class Keep>
__device__ __forceinline__ Pair sum_rows(const NormWork& w, const Slice& slice, RowWalk walk, double* memory,
                                         const Keep& keep) {
  const bool aligned = w.aligned && walk.channels % kGroup == 0;
  Sums mine[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k)
    if (k < slice.n)
      mine[k].begin(Channel<S>{w, walk.begin + k}, (walk.has(0) ? walk.start(0) : walk.begin) + k);
  const int count = walk.count();
  int64_t turn = 0;
  with_activation_of<Sums>(w, [&](auto act) {
#pragma unroll 1  // kMost at a time, and no more, is what registers allow
    for (; walk.has(0); walk.at += kMost * walk.step, turn += kMost) {
      typename Sums::Input in[kMost];
#pragma unroll
      for (int a = 0; a < kMost; ++a)
        if (walk.has(a)) Sums::fetch(in[a], w, walk.start(a), slice.n, aligned);
#pragma unroll
      for (int a = 0; a < kMost; ++a) {
        if (!walk.has(a)) continue;
        keep(turn + a, in[a]);
#pragma unroll
        for (int k = 0; k < kGroup; ++k)
          if (k < slice.n) mine[k].template add<decltype(act)::value>(w, in[a], k);
      }
    }
  });
  Pair own[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k)
    if (k < slice.n) own[k] = mine[k].result(Channel<S>{w, walk.begin + k}, count);
  const RowSums rows{memory, slice.rows, slice.width};
  return rows.sums(slice.row, slice.column, slice.n, [&](int k) { return own[k]; });
}

// Leaves what a block has of a slice; the last block of the slice settles it with what all have left.
template <class Sums, class S>
__device__ __forceinline__ void settle_slice(const NormWork& w, int64_t unit, int64_t part,
                                             const Slice& slice, double* memory, Pair all) {
  if (w.plan.parts > 1) {
    const int own = static_cast<int>(threadIdx.x), width = slice.width;
    if (own < width) leave(w, part, slice.begin + own, all);
    if (!is_last_of_unit(w, unit)) return;
    const RowSums rows{memory, kNormThreads / width, width};
    const int row = own / width, column = own % width;
    Pair some;
#pragma unroll 8
    for (int64_t p = row; p < (row < rows.rows ? w.plan.parts : 0); p += rows.rows)
      some.add(left_by(w, p, slice.begin + column));
    all = rows.sums(row, column, row < rows.rows, [&](int) { return some; });
  }
  settle<Sums, S>(w, slice.begin, slice.width, all);
}

template <class S, template <class> class Sums>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks<S>)
    norm_interleaved(const __grid_constant__ NormWork w) {
  using Mine = Sums<S>;
  __shared__ double memory[kNormThreads * kGroup];
  const int64_t unit = blockIdx.x / w.plan.parts, part = blockIdx.x % w.plan.parts;
  const Slice slice(w, unit);
  const Pair all =
      sum_rows<Mine, kAhead<S, Mine::kGrads>, S>(w, slice, RowWalk(w, slice, part), memory, [](auto...) {});
  settle_slice<Mine, S>(w, unit, part, slice, memory, all);
}

}  // namespace onepass::cuda
