// What a normalization computes once a channel, on CUDA: statistics, what the second pass needs of them,
// gradients of weight and bias. csrc/cpu/norm_channels.h does the same on the CPU.
#pragma once
#include "norm_memory.cuh"
#include "tiles.cuh"

namespace onepass::cuda {

// Two sums over some elements: of the distances from the channel's first element and of their squares, or of
// gradients and of their products with x - mean.
struct Pair {
  double first = 0, second = 0;

  __device__ __forceinline__ void add(const Pair& other) {
    first += other.first;
    second += other.second;
  }
  __device__ __forceinline__ bool finite() const { return 0 * first + 0 * second == 0; }
};

// Where an element of a channel lies; j counts all of them.
__device__ __forceinline__ int64_t element_of(const NormShape& s, int64_t channel, int64_t j) {
  if (s.channels_last) return j * s.channels + channel;
  return (j / s.pixels * s.channels + channel) * s.pixels + j % s.pixels;
}

// The sums over all threads of a block, known to each of them. In an order of its own: the same bits in every
// run. Called by all threads.
__device__ __forceinline__ Pair sum_of_block(Pair mine) {
  constexpr int kWarps = kNormThreads / 32;
  __shared__ double first[kWarps], second[kWarps];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    mine.first += __shfl_down_sync(0xffffffffu, mine.first, lanes);
    mine.second += __shfl_down_sync(0xffffffffu, mine.second, lanes);
  }
  __syncthreads();  // what the last call left was read
  if (threadIdx.x % 32 == 0) {
    first[threadIdx.x / 32] = mine.first;
    second[threadIdx.x / 32] = mine.second;
  }
  __syncthreads();
  Pair all;
#pragma unroll
  for (int k = 0; k < kWarps; ++k) all.add({first[k], second[k]});
  return all;
}

// One channel of a call. T: the arithmetic type, S: that of storage.
template <class S, class T = Arithmetic<S>::Type>
struct Channel {
  const NormWork& w;
  int64_t c;

  __device__ __forceinline__ int64_t all() const { return w.call.shape.channels; }
  __device__ __forceinline__ T* entry(void* table, int row) const {
    return global<T>(table) + row * all() + c;
  }
  __device__ __forceinline__ T x(int64_t at) const {
    return load(global<const S>(const_cast<void*>(w.call.x))[at]);
  }
  __device__ __forceinline__ double first() const { return x(element_of(w.call.shape, c, 0)); }
  __device__ __forceinline__ ChannelStats stats() const {
    return {*entry(w.call.stats, 0), *entry(w.call.stats, 1), *entry(w.call.stats, 2)};
  }
  __device__ __forceinline__ double weight() const { return get_or(w.call.weight, c, 1); }

  __device__ __forceinline__ Normalise<T> normalise() const {
    return Normalise<T>::make(stats(), weight(), get_or(w.call.bias, c, 0));
  }
  __device__ __forceinline__ void keep(const Normalise<T>& made) const {
    *entry(w.table, 0) = made.mean;
    *entry(w.table, 1) = made.scale;
    *entry(w.table, 2) = made.shift;
  }
  __device__ __forceinline__ void set_stats(double mean, double variance) const {
    const auto made = ChannelStats::make<T>(mean, variance, w.eps);
    *entry(w.call.stats, 0) = static_cast<T>(made.mean);
    *entry(w.call.stats, 1) = static_cast<T>(made.mean_low);
    *entry(w.call.stats, 2) = static_cast<T>(made.invstd);
  }

  // How much this batch counts for; the counter is raised later, by the second pass.
  __device__ __forceinline__ double factor() const {
    if (!w.running.average) return w.running.momentum;
    return w.running.batches ? 1.0 / static_cast<double>(*global<int64_t>(w.running.batches) + 1) : 0;
  }
  __device__ __forceinline__ void follow(const Moments& batch) const {
    const ChannelVector &mean = w.running.mean, &variance = w.running.variance;
    if (mean.data) set(mean, c, running(get(mean, c), batch.mean, factor()));
    if (variance.data) set(variance, c, running(get(variance, c), batch.unbiased(), factor()));
  }
  __device__ __forceinline__ void set_batch(const Moments& batch) const {
    set_stats(batch.mean, batch.variance());
    follow(batch);
  }

  // sums: of g, and of g * (x - mean) with the rounded mean.
  __device__ __forceinline__ void set_affine(double sum, double dot) const {
    set(w.dbias, c, sum);
    set(w.dweight, c, dot * stats().invstd);
  }
  __device__ __forceinline__ void keep_grad(double sum, double dot, double count) const {
    const auto made = InputGrad<T>::make(stats(), weight(), sum, dot, count);
    keep(normalise());
    *entry(w.table, 3) = made.slope;
    *entry(w.table, 4) = made.constant;
  }

  __device__ __forceinline__ void settle(const Moments& batch) const {
    if (w.settle == Settle::kForward) {
      set_batch(batch);
      if (w.table) keep(normalise());
      return;
    }
    *entry(w.out, 0) = static_cast<T>(batch.mean);
    *entry(w.out, 1) = low_part<T>(batch.mean);
    *entry(w.out, 2) = static_cast<T>(batch.m2);
    if (c == 0) global<T>(w.out)[3 * all()] = static_cast<T>(batch.count);
  }
  __device__ __forceinline__ void settle_grads(const Pair& sums) const {
    const double count = static_cast<double>(w.call.shape.count());
    const double dot = whole_dot(sums.second, sums.first, stats());
    set_affine(sums.first, dot);
    if (w.settle == Settle::kBackward) return keep_grad(sums.first, dot, count);
    *entry(w.out, 0) = static_cast<T>(sums.first);
    *entry(w.out, 1) = static_cast<T>(dot);
    if (c == 0) global<T>(w.out)[2 * all()] = static_cast<T>(count);
  }
};

// The moments that sums of distances from the first element make.
__device__ __forceinline__ Moments moments_of(const Pair& sums, double first, double count) {
  const double m2 = sums.second - sums.first * sums.first / count;
  return {count, first + sums.first / count, m2 < 0 ? 0 : m2};
}

// A channel that met inf, NaN or numbers whose squares overflow, again in double and in two passes: the mean
// then is what torch has, +-inf or NaN, and squares of 1e30 fit. By all threads of a block; seldom, so that
// it is not worth registers of its caller. Its arguments are numbers, because a struct would go through
// memory.
template <class S>
__device__ __noinline__ Moments moments_again(const void* x, int64_t images, int64_t channels, int64_t pixels,
                                              bool channels_last, int64_t channel) {
  const NormShape shape{images, channels, pixels, channels_last};
  const S* const from = global<const S>(const_cast<void*>(x));
  const auto at = [&](int64_t j) { return static_cast<double>(load(from[element_of(shape, channel, j)])); };
  const int64_t count = shape.count();
  Pair sum, squares;
  for (int64_t j = threadIdx.x; j < count; j += kNormThreads) sum.first += at(j);
  const double mean = sum_of_block(sum).first / static_cast<double>(count);
  for (int64_t j = threadIdx.x; j < count; j += kNormThreads) {
    const double distance = at(j) - mean;
    squares.first += distance * distance;
  }
  return {static_cast<double>(count), mean, sum_of_block(squares).first};
}

}  // namespace onepass::cuda
