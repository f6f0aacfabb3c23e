// A normalization that reads its input once: both passes in one launch, between which what was read stays in
// shared memory.
//
// Memory contract. Forward reads x (and the residual) once and writes y (and the mask) once; backward reads
// dy and x once, the mask or the residual twice where it needs them, and writes dx (and the residual's
// gradient) once. What is summed up travels through shared memory of a cluster, or as in norm_sums.cuh.
#pragma once
#include <cooperative_groups.h>

#include "norm_apply.cuh"
#include "norm_interleaved.cuh"
#include "norm_planar.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define ONEPASS_CLUSTERS 1
#else
#define ONEPASS_CLUSTERS 0
#endif

namespace onepass::cuda {

// Where a block keeps the groups that it has read: x, and dy. A vector lies beside those of the other
// threads, so that a warp's accesses are to all banks.
template <class S>
struct Kept {
  uint4* vectors;
  int64_t groups;  // of a tensor

  static constexpr int kVectors = kGroup / kPerVector<S>;

  __device__ __forceinline__ uint4& at(int tensor, int k, int64_t group) const {
    return vectors[(tensor * kVectors + k) * groups + group];
  }
  __device__ __forceinline__ void put(int tensor, int64_t group, const Group<S>& from) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k)
      memcpy(&at(tensor, k, group), from.v + k * kPerVector<S>, kVectorBytes);
  }
  __device__ __forceinline__ void get(int tensor, int64_t group, Group<S>& to) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) memcpy(to.v + k * kPerVector<S>, &at(tensor, k, group), kVectorBytes);
  }

  __device__ __forceinline__ void put(int64_t group, const Group<S>& x) const { put(0, group, x); }
  __device__ __forceinline__ void put(int64_t group, const GradGroup<S>& in) const {
    put(0, group, in.x);
    put(1, group, in.dy);
  }
  // The others of an element's inputs come from memory.
  __device__ __forceinline__ void get(int64_t group, const NormWork& w, int64_t i, int n,
                                      ForwardGroup<S>& to) const {
    get(0, group, to.x);
    to.load_rest(w, i, n);
  }
  __device__ __forceinline__ void get(int64_t group, const NormWork& w, int64_t i, int n,
                                      BackwardGroup<S>& to) const {
    get(0, group, to.in.x);
    get(1, group, to.in.dy);
    to.in.load_rest(w, i, n, w.aligned);
  }
};

// --- a cluster a channel ----------------------------------------------------------------------------------
// The second pass over a part of a channel's planes.
template <class S, template <class> class Each>
__device__ __forceinline__ void apply_planes(const Channel<S>& channel, PlaneWalk walk, const Kept<S>& kept) {
  using Mine = Each<S>;
  constexpr int kMost = kApplyAhead<S, Mine::kGrads>;
  const NormWork& w = channel.w;
  GroupTable<typename Mine::T, Mine::kGrads> table;
  table.fill(w, channel.c);
  int64_t own = threadIdx.x;
  with_activation(w.call.act, [&](auto act) {
    while (walk.left > 0) {
      Mine mine[kMost];
      Lanes lanes[kMost];
      int64_t start[kMost];
#pragma unroll
      for (int a = 0; a < kMost; ++a, walk.next()) {
        lanes[a] = walk.here(start[a]);
        if (lanes[a].any())
          kept.get(own + a * kNormThreads, w, start[a], in_group(w.call.shape, start[a]), mine[a]);
      }
#pragma unroll
      for (int a = 0; a < kMost; ++a)
        if (lanes[a].any()) mine[a].template finish<decltype(act)::value>(w, start[a], lanes[a], table);
      own += kMost * kNormThreads;
    }
  });
}

// The sums of a channel, of which each block of its cluster has a part; settled by the first of these.
template <class Sums, class S>
__device__ __forceinline__ void settle_in_cluster(const Channel<S>& channel, const Pair& own) {
#if ONEPASS_CLUSTERS
  __shared__ double its[2];
  const auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) {
    its[0] = own.first;
    its[1] = own.second;
  }
  cluster.sync();
  if (cluster.block_rank() == 0) {
    Pair all;
#pragma unroll 1
    for (unsigned p = 0; p < cluster.num_blocks(); ++p) {
      const double* const of_part = cluster.map_shared_rank(its, static_cast<int>(p));
      all.add({of_part[0], of_part[1]});
    }
    settle<Sums, S>(channel.w, channel.c, 1, all);
  }
  cluster.sync();  // what was settled is seen, and nobody reads another block's memory any more
#endif
}

template <class S, template <class> class Sums, template <class> class Each>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks<S>)
    norm_clusters(const __grid_constant__ NormWork w) {
#if ONEPASS_CLUSTERS
  using Mine = Sums<S>;
  extern __shared__ uint4 memory[];
  const Kept<S> kept{memory, w.plan.kept};
  const int64_t unit = blockIdx.x / w.plan.parts, part = blockIdx.x % w.plan.parts;
  const Channel<S> channel{w, unit};
  const PlaneWalk walk(w, unit, part);
  const Pair own = sum_of_block(sum_planes<Mine, kAhead<S, Mine::kGrads>>(
      channel, walk, [&](int64_t group, const auto& in) { kept.put(group, in); }));
  settle_in_cluster<Mine>(channel, own);
  if (!Mine::kGrads && blockIdx.x == 0 && threadIdx.x == 0 && w.running.batches)
    ++*global<int64_t>(w.running.batches);
  apply_planes<S, Each>(channel, walk, kept);
#else
  __trap();  // never launched there
#endif
}

// --- slices, one after the other --------------------------------------------------------------------------
// The second pass over a part of a slice.
template <class S, template <class> class Each>
__device__ __forceinline__ void apply_rows(const NormWork& w, RowWalk walk, const Kept<S>& kept) {
  using Mine = Each<S>;
  if (!walk.has(0)) return;
  GroupTable<typename Mine::T, Mine::kGrads> table;
  table.look_up(w, walk.begin);
  int64_t own = threadIdx.x;
  with_activation(w.call.act, [&](auto act) {
#pragma unroll 1  // one group at a time: shared memory answers soon
    for (; walk.has(0); walk.at += walk.step, own += kNormThreads) {
      Mine mine;
      kept.get(own, w, walk.start(0), kGroup, mine);
      mine.template finish<decltype(act)::value>(w, walk.start(0), {0, kGroup}, table);
    }
  });
}

// Groups of each tensor that a thread has on their way. For sm_100 nvcc spills more than one of backward's.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <class S, bool kGrads>
constexpr int kSlicesAhead = kGrads ? 1 : kAhead<S, kGrads>;
#else
template <class S, bool kGrads>
constexpr int kSlicesAhead = kAhead<S, kGrads>;
#endif

// One block on a multiprocessor: both passes in one kernel take more registers than two blocks have. All
// blocks run at a time and take as many slices at once as they have room for. Pixels are whole groups.
template <class S, template <class> class Sums, template <class> class Each>
__global__ void __launch_bounds__(kNormThreads, 1) norm_slices(const __grid_constant__ NormWork w) {
  using Mine = Sums<S>;
  extern __shared__ uint4 memory[];
  __shared__ double sums[kNormThreads * kGroup];
  const Kept<S> kept{memory, w.plan.kept};
  const int64_t part = blockIdx.x % w.plan.parts, at_once = gridDim.x / w.plan.parts;
#pragma unroll 1
  for (int64_t first = 0; first < w.plan.units; first += at_once) {
    const int64_t unit = first + blockIdx.x / w.plan.parts;
    const bool works = unit < w.plan.units;
    if (works) {
      const Slice slice(w, unit);
      const auto keep = [&](int64_t turn, const auto& in) {
        kept.put(turn * kNormThreads + threadIdx.x, in);
      };
      const Pair all =
          sum_rows<Mine, kSlicesAhead<S, Mine::kGrads>, S>(w, slice, RowWalk(w, slice, part), sums, keep);
      settle_slice<Mine, S>(w, unit, part, slice, sums, all);
    }
    cooperative_groups::this_grid().sync();
    if (works) apply_rows<S, Each>(w, RowWalk(w, Slice(w, unit), part), kept);
  }
  if (!Mine::kGrads && blockIdx.x == 0 && threadIdx.x == 0 && w.running.batches)
    ++*global<int64_t>(w.running.batches);
}

}  // namespace onepass::cuda
