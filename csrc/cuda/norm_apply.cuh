// The second passes over a normalization's tensors, on CUDA: what is one element's alone.
//
// Memory contract. Forward reads x (and the residual) once and writes y (and the mask) once; backward reads
// dy, x (and the residual, or the mask) once and writes dx (and the residual's gradient) once. A thread takes
// groups that are whole images or pixels apart, so that their channels are the same, and keeps what it needs
// of these in registers; where no step has that, it looks them up for each group. From the end of memory to
// its begin: what the first pass read last may still be in the L2 cache.
#pragma once
#include "norm_settle.cuh"

namespace onepass::cuda {

// Groups of each tensor that a thread has on their way: what fits its registers.
template <class S, bool kGrads>
constexpr int kApplyAhead = sizeof(S) == 2 || (sizeof(S) == 4 && !kGrads) ? 2 : 1;

// What the table has of a group's eight channels.
template <class T, bool kGrads>
struct GroupTable {
  Normalise<T> channel[kGroup];
  T slope[kGrads ? kGroup : 1], constant[kGrads ? kGroup : 1];

  // Those of one channel.
  __device__ __forceinline__ void fill(const NormWork& w, int64_t c) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) set(k, w, c);
  }
  // Those of the elements start, start + 1 ...; `last` channels innermost: each element is a channel further.
  __device__ __forceinline__ void look_up(const NormWork& w, int64_t start) {
    const NormShape& s = w.call.shape;
    const int64_t pixels = s.channels_last ? 1 : s.pixels;
    int64_t plane = start, pixel = 0;
    if (pixels > 1) {
      plane = start / pixels;
      pixel = start - plane * pixels;
    }
    int64_t c = plane % s.channels;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      set(k, w, c);
      if (++pixel < pixels) continue;
      pixel = 0;
      c = c + 1 < s.channels ? c + 1 : 0;
    }
  }

 private:
  __device__ __forceinline__ void set(int k, const NormWork& w, int64_t c) {
    const T* const table = global<const T>(w.table);
    const int64_t channels = w.call.shape.channels;
    channel[k] = {table[c], table[channels + c], table[2 * channels + c]};
    if constexpr (kGrads) {
      slope[k] = table[3 * channels + c];
      constant[k] = table[4 * channels + c];
    }
  }
};

// --- one group --------------------------------------------------------------------------------------------
template <class S>
struct ForwardGroup {
  static constexpr bool kGrads = false;
  using T = typename Arithmetic<S>::Type;
  Group<S> x, z;

  __device__ __forceinline__ void load(const NormWork& w, int64_t i, int n) {
    load_group(x, w.call.x, i, n, w.aligned);
    load_rest(w, i, n);
  }
  __device__ __forceinline__ void load_rest(const NormWork& w, int64_t i, int n) {
    if (w.call.residual) load_group(z, w.call.residual, i, n, w.aligned);
  }
  template <Activation act>
  __device__ __forceinline__ void finish(const NormWork& w, int64_t i, Lanes lanes,
                                         const GroupTable<T, false>& table) const {
    const T slope = static_cast<T>(w.call.negative_slope);
    Group<S> y;
    unsigned bits = 0;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const Normalise<T>& channel = table.channel[k];
      T v = normalise(cuda::load(x.v[k]), channel.mean, channel.scale, channel.shift);
      if (w.call.residual) v += cuda::load(z.v[k]);
      if (lanes.has(k) && passes<act>(v)) bits |= 1u << k;
      store(y.v[k], activate<act>(v, slope));
    }
    store_group(w.call.y, i, lanes, w.aligned, y);
    if (w.call.mask) global<uint8_t>(w.call.mask)[i / kGroup] = static_cast<uint8_t>(bits);
  }
};

template <class S>
struct BackwardGroup {
  static constexpr bool kGrads = true;
  using T = typename Arithmetic<S>::Type;
  GradGroup<S> in;

  __device__ __forceinline__ void load(const NormWork& w, int64_t i, int n) { in.load(w, i, n, w.aligned); }
  template <Activation act>
  __device__ __forceinline__ void finish(const NormWork& w, int64_t i, Lanes lanes,
                                         const GroupTable<T, true>& table) const {
    Group<S> dx, dz;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const Normalise<T>& channel = table.channel[k];
      const T g = in.template gradient<act>(w.call, k, channel), x = cuda::load(in.x.v[k]);
      const T with_all = input_grad(g, x, channel.mean, channel.scale, table.slope[k], table.constant[k]);
      store(dx.v[k], w.call.given ? g * channel.scale : with_all);
      store(dz.v[k], g);
    }
    store_group(w.call.dx, i, lanes, w.aligned, dx);
    if (w.call.dresidual) store_group(w.call.dresidual, i, lanes, w.aligned, dz);
  }
};

// --- all of them ------------------------------------------------------------------------------------------
template <class S, template <class> class Each>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks<S>)
    norm_apply(const __grid_constant__ NormWork w) {
  using Mine = Each<S>;
  constexpr int kMost = kApplyAhead<S, Mine::kGrads>;
  const int64_t numel = w.call.shape.numel(), groups = (numel + kGroup - 1) / kGroup, stride = w.plan.stride;
  // Blocks, too, from the end.
  const int64_t own = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kNormThreads + threadIdx.x;
  if (own == 0 && !Mine::kGrads && w.running.batches) ++*global<int64_t>(w.running.batches);
  if (own >= stride || own >= groups) return;

  GroupTable<typename Mine::T, Mine::kGrads> table;
  if (w.plan.fixed) table.look_up(w, own * kGroup);
  with_activation(w.call.act, [&](auto act) {
    for (int64_t at = own + (groups - 1 - own) / stride * stride; at >= 0; at -= kMost * stride) {
      Mine mine[kMost];
#pragma unroll
      for (int a = 0; a < kMost; ++a) {
        const int64_t start = (at - a * stride) * kGroup;
        if (start >= 0) mine[a].load(w, start, in_group(w.call.shape, start));
      }
#pragma unroll
      for (int a = 0; a < kMost; ++a) {
        const int64_t start = (at - a * stride) * kGroup;
        if (start < 0) continue;
        if (!w.plan.fixed) table.look_up(w, start);
        mine[a].template finish<decltype(act)::value>(w, start, {0, in_group(w.call.shape, start)}, table);
      }
    }
  });
}

// --- statistics or sums that are there already ------------------------------------------------------------
// A thread a channel: what the second pass needs, and what else a call leaves.
template <class S>
__global__ void __launch_bounds__(kNormThreads) norm_given(const __grid_constant__ NormWork w) {
  using T = typename Arithmetic<S>::Type;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kNormThreads + threadIdx.x;
  const int64_t channels = w.call.shape.channels, size = 3 * channels + 1;
  if (c >= channels) return;
  const Channel<S> channel{w, c};
  if (w.settle == Settle::kMoments) return channel.settle({0, 0, 0});  // of no elements
  if (w.mean.data) {
    channel.set_stats(get(w.mean, c), get(w.variance, c));
  } else {
    Moments all;
    for (int64_t p = 0; p < w.processes; ++p) {
      const T* const its = global<const T>(const_cast<void*>(w.came)) + p * size;
      all.merge({its[3 * channels], static_cast<double>(its[c]) + its[channels + c], its[2 * channels + c]});
    }
    if (all.count > 0)
      channel.set_batch(all);
    else
      channel.set_stats(0, 0);
  }
  channel.keep(channel.normalise());
}

template <class S>
__global__ void __launch_bounds__(kNormThreads) norm_grad_given(const __grid_constant__ NormWork w) {
  using T = typename Arithmetic<S>::Type;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kNormThreads + threadIdx.x;
  const int64_t channels = w.call.shape.channels;
  if (c >= channels) return;
  const Channel<S> channel{w, c};
  if (w.came) {
    const T* const sums = global<const T>(const_cast<void*>(w.came));
    return channel.keep_grad(sums[c], sums[channels + c], sums[2 * channels]);
  }
  if (w.settle == Settle::kGradSums || w.call.shape.numel() == 0) return channel.settle_grads({0, 0});
  channel.keep(channel.normalise());  // given statistics: dx needs no sums
}

}  // namespace onepass::cuda
