// Groups of elements that share a scale, on CUDA: who goes through them, how far they reach, and their grids.
// csrc/cpu/quant_groups.h does the same on the CPU.
//
// Threads take elements eight at a time: "turns" here, because groups are what shares a scale.
#pragma once
#include "groups.cuh"
#include "quant.h"

namespace onepass::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Some threads, and which of them this one is.
struct Team {
  int64_t thread, threads;
};
__device__ __forceinline__ Team whole_grid() {
  return {static_cast<int64_t>(blockIdx.x) * kQuantThreads + threadIdx.x,
          static_cast<int64_t>(gridDim.x) * kQuantThreads};
}

// Elements [from, to), by turns that begin at multiples of eight.
struct Run {
  int64_t from, to;

  // body(start, lanes): which elements of the turn are of the run.
  template <class Body>
  __device__ __forceinline__ void each_turn(const Team& team, const Body& body) const {
    for (int64_t at = from / kGroup + team.thread; at * kGroup < to; at += team.threads) {
      const int64_t start = at * kGroup;
      body(start, Lanes{from > start ? static_cast<int>(from - start) : 0,
                        to - start < kGroup ? static_cast<int>(to - start) : kGroup});
    }
  }
};

// A group's elements.
__device__ __forceinline__ Run run_of(const Groups& groups, int64_t group) {
  const int64_t from = groups.begin(group);
  return {from, from + groups.length(group)};
}

// Elements of a turn, those of other groups among them; zero beyond the last of the tensor.
template <class S>
__device__ __forceinline__ Group<S> turn_of(const QuantCall& call, const void* from, int64_t start,
                                            bool aligned) {
  const int64_t left = call.groups.numel() - start;
  Group<S> x{};
  load_group(x, from, start, left < kGroup ? static_cast<int>(left) : kGroup, aligned);
  return x;
}

// --- extents ----------------------------------------------------------------------------------------------
template <class S>
__device__ __forceinline__ Extent extent_of(const QuantCall& call, bool aligned, const Run& run,
                                            const Team& team) {
  Extent all;
  run.each_turn(team, [&](int64_t start, Lanes lanes) {
    const Group<S> x = turn_of<S>(call, call.real, start, aligned);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const float v = lanes.has(k) ? load(x.v[k]) : 0;
      all.merge({v, v, v - v == 0});
    }
  });
  return all;
}

// Of so many lanes that lie together: all of a warp, or some. Called by all of it.
template <int kLanes>
__device__ __forceinline__ Extent of_lanes(Extent mine) {
#pragma unroll
  for (int bit = kLanes / 2; bit > 0; bit /= 2) {
    const float low = __shfl_xor_sync(kAllLanes, mine.low, bit);
    const float high = __shfl_xor_sync(kAllLanes, mine.high, bit);
    mine.merge({low, high, __shfl_xor_sync(kAllLanes, static_cast<int>(mine.finite), bit) != 0});
  }
  return mine;
}

__device__ __forceinline__ Extent of_block(Extent mine) {
  constexpr int kWarps = kQuantThreads / 32;
  __shared__ float low[kWarps], high[kWarps];
  __shared__ bool finite[kWarps];
  mine = of_lanes<32>(mine);
  if (threadIdx.x % 32 == 0) {
    low[threadIdx.x / 32] = mine.low;
    high[threadIdx.x / 32] = mine.high;
    finite[threadIdx.x / 32] = mine.finite;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) mine.merge({low[i], high[i], finite[i]});
  return mine;
}

// Some lanes of a warp, a warp, or a block.
template <int kTeam>
__device__ __forceinline__ Extent of_team(const Extent& mine) {
  if constexpr (kTeam == kQuantThreads)
    return of_block(mine);
  else
    return of_lanes<kTeam>(mine);
}

// --- grids ------------------------------------------------------------------------------------------------
__device__ __forceinline__ Grid given_grid(const QuantCall& call, int64_t group) {
  const int32_t* const zero_point = global<int32_t>(call.zero_point);
  return Grid::given(global<float>(call.scale)[group], zero_point ? zero_point[group] : 0);
}
__device__ __forceinline__ Grid made_grid(const QuantCall& call, const Levels& levels, const Extent& extent,
                                          int64_t group, bool keep) {
  const Grid grid = Grid::make(extent, levels, call.is_signed);
  if (keep) {
    call.scale[group] = grid.scale;
    if (call.zero_point) call.zero_point[group] = grid.zero_point;
  }
  return Grid::given(grid.scale, grid.zero_point);  // the inverse of NaN, too: nothing is inside then
}

// The grids of a turn's elements, which have been found or given.
class Grids {
 public:
  __device__ __forceinline__ Grids(const QuantCall& call, int64_t start) : call_(call), start_(start) {
    const Groups& groups = call.groups;
    const int64_t row = start / groups.columns, begin = row * groups.columns, of_row = groups.of_row();
    const int64_t in_row = of_row == 1 ? 0 : (start - begin) / groups.size;
    row_end_ = begin + groups.columns;
    take(row * of_row + in_row, begin + in_row * groups.size);
  }
  // That of element k; asked for in order. Beyond the last element, the last grid.
  __device__ __forceinline__ const Grid& of(int k) {
    if (k == until_ && end_ < call_.groups.numel()) {
      if (end_ == row_end_) row_end_ += call_.groups.columns;
      take(group_ + 1, end_);
    }
    return grid_;
  }

 private:
  __device__ __forceinline__ void take(int64_t group, int64_t begin) {
    group_ = group;
    end_ = row_end_ - begin < call_.groups.size ? row_end_ : begin + call_.groups.size;
    until_ = end_ - start_ < kGroup ? static_cast<int>(end_ - start_) : kGroup;
    grid_ = given_grid(call_, group);
  }

  const QuantCall& call_;
  int64_t start_, group_, end_, row_end_;
  int until_;  // which element of the turn is the first of the next group
  Grid grid_;
};

// --- launches ---------------------------------------------------------------------------------------------
inline unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kQuantThreads - 1) / kQuantThreads);
}

inline unsigned blocks_for_turns(const Groups& groups) {
  return blocks_for((groups.numel() + kGroup - 1) / kGroup);
}

// body(storage type) with the one that real numbers have.
template <class Body>
void with_real(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBFloat16:
      return body(__nv_bfloat16{});
    case DType::kFloat16:
      return body(__half{});
    default:
      return body(float{});
  }
}

// body(threads of a team) with as many as have enough to do in groups of this length.
template <class Body>
void with_team(int64_t length, const Body& body) {
  if (length <= kLanesGroup) return body(std::integral_constant<int, 8>{});
  if (length <= kWarpGroup) return body(std::integral_constant<int, 32>{});
  body(std::integral_constant<int, kQuantThreads>{});
}

}  // namespace onepass::cuda
