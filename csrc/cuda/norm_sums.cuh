// The first passes over a normalization's tensors, on CUDA: sums over each channel.
//
// Memory contract. Moments read x once; sums of gradients read x and dy once, and the residual or the mask
// where they are needed. Each block writes two doubles a channel; the last block of a unit reads those of its
// unit and settles its channels. How blocks go through memory: norm_planar.cuh, norm_interleaved.cuh.
#pragma once
#include "norm_settle.cuh"

namespace onepass::cuda {

// Groups of each tensor that a thread has on their way.
template <class S, bool kGrads>
constexpr int kAhead = sizeof(S) == 8 ? 1
                       : kGrads       ? 2
                                      : 4;

// --- what is summed ---------------------------------------------------------------------------------------
// Distances of x from an element near by, so that a large mean does not eat them.
template <class S>
struct MomentSums {
  using T = typename Arithmetic<S>::Type;
  using Input = Group<S>;
  static constexpr bool kGrads = false;
  static __device__ __forceinline__ void fetch(Input& in, const NormWork& w, int64_t i, int n, bool aligned) {
    load_group(in, w.call.x, i, n, aligned);
  }

  T near = 0, first = 0, second = 0;

  // nearest: where the first element of this thread lies.
  __device__ __forceinline__ void begin(const Channel<S>& channel, int64_t nearest) {
    near = channel.x(nearest);
  }
  template <Activation>
  __device__ __forceinline__ void add(const NormWork&, const Input& in, int k) {
    const T distance = load(in.v[k]) - near;
    first += distance;
    second = multiply_add(distance, distance, second);
  }
  // About the channel's first element, as everybody's.
  __device__ __forceinline__ Pair result(const Channel<S>& channel, int count) const {
    const double apart = static_cast<double>(near) - channel.first();
    return {first + count * apart, second + 2 * apart * first + count * apart * apart};
  }
};

template <class S>
struct GradSums {
  using T = typename Arithmetic<S>::Type;
  using Input = GradGroup<S>;
  static constexpr bool kGrads = true;
  static __device__ __forceinline__ void fetch(Input& in, const NormWork& w, int64_t i, int n, bool aligned) {
    in.load(w, i, n, aligned);
  }

  Normalise<T> channel;
  T first = 0, second = 0;

  __device__ __forceinline__ void begin(const Channel<S>& c, int64_t) { channel = c.normalise(); }
  template <Activation act>
  __device__ __forceinline__ void add(const NormWork& w, const Input& in, int k) {
    const T g = in.template gradient<act>(w.call, k, channel);
    first += g;
    second = multiply_add(g, load(in.x.v[k]) - channel.mean, second);
  }
  __device__ __forceinline__ Pair result(const Channel<S>&, int) const { return {first, second}; }
};

// Moments are those of x whatever follows.
template <class Sums, class Body>
__device__ __forceinline__ void with_activation_of(const NormWork& w, const Body& body) {
  if constexpr (Sums::kGrads)
    with_activation(w.call.act, body);
  else
    body(std::integral_constant<Activation, Activation::kNone>{});
}

// --- what blocks leave each other -------------------------------------------------------------------------
__device__ __forceinline__ double* left(const NormWork& w, int which, int64_t part, int64_t c) {
  return global<double>(w.sums) + (which * w.plan.parts + part) * w.call.shape.channels + c;
}
__device__ __forceinline__ void leave(const NormWork& w, int64_t part, int64_t c, const Pair& sums) {
  *left(w, 0, part, c) = sums.first;
  *left(w, 1, part, c) = sums.second;
}
__device__ __forceinline__ Pair left_by(const NormWork& w, int64_t part, int64_t c) {
  return {__ldcg(left(w, 0, part, c)), __ldcg(left(w, 1, part, c))};
}

// Is this the last block of its unit? It leaves the counter at zero.
__device__ __forceinline__ bool is_last_of_unit(const NormWork& w, int64_t unit) {
  unsigned* const counter = global<unsigned>(w.counters) + unit;
  const bool last = is_last_block(counter, static_cast<unsigned>(w.plan.parts));
  if (last && threadIdx.x == 0) *counter = 0;
  return last;
}

// --- settling ---------------------------------------------------------------------------------------------
// Channels begin ... begin + width - 1, of which thread k knows the sums of the kth. By all threads of a
// block.
template <class Sums, class S>
__device__ __forceinline__ void settle(const NormWork& w, int64_t begin, int width, const Pair& sums) {
  const int own = static_cast<int>(threadIdx.x);
  const Channel<S> channel{w, begin + own};
  if constexpr (Sums::kGrads) {
    if (own < width) channel.settle_grads(sums);
  } else {
    Moments batch;
    if (own < width) batch = moments_of(sums, channel.first(), static_cast<double>(w.call.shape.count()));
    const bool odd = own < width && !batch.finite();
    if (__syncthreads_or(odd))  // seldom
      for (int c = 0; c < width; ++c) {
        if (!__syncthreads_or(odd && own == c)) continue;
        const NormShape& s = w.call.shape;
        const Moments again =
            moments_again<S>(w.call.x, s.images, s.channels, s.pixels, s.channels_last, begin + c);
        if (own == c) batch = again;
      }
    if (own < width) channel.settle(batch);
  }
}

}  // namespace onepass::cuda
