// First passes where pixels are innermost: a block goes through a part of one channel's planes, and the last
// block of a channel settles it. Where planes do not begin at a group of eight, the group at their edge is
// read by the neighbour, too.
#pragma once
#include "norm_sums.cuh"

namespace onepass::cuda {

// The groups that a thread takes of a channel's planes, one after the other.
struct PlaneWalk {
  int64_t channels, channel, pixels, slots;  // slots: groups that a plane may touch
  int64_t image, slot, left;                 // left: of all slots, to the end of the part

  __device__ __forceinline__ PlaneWalk(const NormWork& w, int64_t channel, int64_t part)
      : channels(w.call.shape.channels), channel(channel), pixels(w.call.shape.pixels) {
    slots = plane_slots(pixels);
    const int64_t all = w.call.shape.images * slots, at = all * part / w.plan.parts + threadIdx.x;
    left = all * (part + 1) / w.plan.parts - at;
    image = at / slots;
    slot = at - image * slots;
  }
  // Where the group starts in memory that this is at, and what of it belongs to the plane: nothing at the
  // end.
  __device__ __forceinline__ Lanes here(int64_t& start) const {
    const int64_t plane = (image * channels + channel) * pixels;
    start = (plane / kGroup + slot) * kGroup;
    const int64_t begin = plane - start, end = begin + pixels;
    if (left <= 0) return {0, 0};
    return {begin > 0 ? static_cast<int>(begin) : 0, end < kGroup ? static_cast<int>(end) : kGroup};
  }
  __device__ __forceinline__ void next() {
    left -= kNormThreads;
    image += kNormThreads / slots;
    slot += kNormThreads % slots;
    if (slot < slots) return;
    slot -= slots;
    ++image;
  }
};

// What a thread sums up of a part. keep(k, group): is called with the kth group of the part.
template <class Sums, int kMost, class S, class Keep>
__device__ __forceinline__ Pair sum_planes(const Channel<S>& channel, PlaneWalk walk, const Keep& keep) {
  const NormWork& w = channel.w;
  int64_t nearest;
  const Lanes nearest_lanes = walk.here(nearest);
  Sums mine;
  mine.begin(channel,
             nearest_lanes.any() ? nearest + nearest_lanes.begin : element_of(w.call.shape, channel.c, 0));
  int count = 0;
  int64_t own = threadIdx.x;
  with_activation_of<Sums>(w, [&](auto act) {
    while (walk.left > 0) {
      typename Sums::Input in[kMost];
      Lanes lanes[kMost];
#pragma unroll
      for (int a = 0; a < kMost; ++a) {
        int64_t start;
        lanes[a] = walk.here(start);
        if (lanes[a].any()) Sums::fetch(in[a], w, start, in_group(w.call.shape, start), w.aligned);
        walk.next();
      }
#pragma unroll
      for (int a = 0; a < kMost; ++a) {
        if (lanes[a].any()) {
          count += lanes[a].end - lanes[a].begin;
          keep(own + a * kNormThreads, in[a]);
        }
#pragma unroll
        for (int k = 0; k < kGroup; ++k)
          if (lanes[a].has(k)) mine.template add<decltype(act)::value>(w, in[a], k);
      }
      own += kMost * kNormThreads;
    }
  });
  return mine.result(channel, count);
}

template <class S, template <class> class Sums>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks<S>)
    norm_planar(const __grid_constant__ NormWork w) {
  using Mine = Sums<S>;
  const int64_t unit = blockIdx.x / w.plan.parts, part = blockIdx.x % w.plan.parts;
  const Channel<S> channel{w, unit};
  Pair all = sum_of_block(
      sum_planes<Mine, kAhead<S, Mine::kGrads>>(channel, PlaneWalk(w, unit, part), [](auto...) {}));
  if (w.plan.parts > 1) {
    if (threadIdx.x == 0) leave(w, part, unit, all);
    if (!is_last_of_unit(w, unit)) return;
    Pair some;
    for (int64_t p = threadIdx.x; p < w.plan.parts; p += kNormThreads) some.add(left_by(w, p, unit));
    all = sum_of_block(some);
  }
  settle<Mine, S>(w, unit, 1, all);
}

}  // namespace onepass::cuda
