// Quantization on CUDA.
//
// Memory contract. quantize reads each element twice, the second time from a cache where its group fits one,
// and writes a byte; where the grid is given, it reads once. dequantize reads a byte and writes an element.
// Threads take elements eight at a time: "turns" here, because groups are what shares a scale.
//
// Compiled without contraction of a * b + c: see rules/quant.h.
#include "quant.h"

#include "groups.cuh"

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

template <class S>
__device__ __forceinline__ Group<S> turn_of(const QuantWork& w, const void* from, int64_t start) {
  const int64_t left = w.call.groups.numel() - start;
  Group<S> x;
  load_group(x, from, start, left < kGroup ? static_cast<int>(left) : kGroup, w.aligned);
  return x;
}

// --- extents ----------------------------------------------------------------------------------------------
template <class S>
__device__ __forceinline__ Extent extent_of(const QuantWork& w, const Run& run, const Team& team) {
  Extent all;
  run.each_turn(team, [&](int64_t start, Lanes lanes) {
    const Group<S> x = turn_of<S>(w, w.call.real, start);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const float v = lanes.has(k) ? load(x.v[k]) : 0;
      all.merge({v, v, v - v == 0});
    }
  });
  return all;
}

__device__ __forceinline__ Extent of_warp(Extent mine) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) {
    const float low = __shfl_xor_sync(kAllLanes, mine.low, bit);
    const float high = __shfl_xor_sync(kAllLanes, mine.high, bit);
    mine.merge({low, high, true});
  }
  mine.finite = __all_sync(kAllLanes, mine.finite);
  return mine;
}

__device__ __forceinline__ Extent of_block(Extent mine) {
  constexpr int kWarps = kQuantThreads / 32;
  __shared__ float low[kWarps], high[kWarps];
  __shared__ bool finite[kWarps];
  mine = of_warp(mine);
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

// --- grids ------------------------------------------------------------------------------------------------
__device__ __forceinline__ Grid given_grid(const QuantCall& call, int64_t group) {
  const int32_t* const zero_point = global<int32_t>(call.zero_point);
  return Grid::given(global<float>(call.scale)[group], zero_point ? zero_point[group] : 0);
}
__device__ __forceinline__ Grid made_grid(const QuantWork& w, const Extent& extent, int64_t group,
                                          bool keep) {
  const Grid grid = Grid::make(extent, w.levels, w.call.is_signed);
  if (keep) {
    w.call.scale[group] = grid.scale;
    if (w.call.zero_point) w.call.zero_point[group] = grid.zero_point;
  }
  return grid;
}

template <class S>
__device__ __forceinline__ void put(const QuantWork& w, const Run& run, const Team& team, const Grid& grid) {
  const float lowest = w.levels.lowest(grid.zero_point);
  const float highest = w.levels.highest(grid.zero_point);
  run.each_turn(team, [&](int64_t start, Lanes lanes) {
    const Group<S> x = turn_of<S>(w, w.call.real, start);
    Group<uint8_t> q;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const float v = on_grid(lanes.has(k) ? load(x.v[k]) : 0, grid.inverse, lowest, highest);
      q.v[k] = static_cast<uint8_t>(__float2int_rn(v) + grid.zero_point);
    }
    store_group(w.call.whole, start, lanes, w.aligned, q);
  });
}

// --- kernels ----------------------------------------------------------------------------------------------
// A warp or a block for each group.
template <class S, bool kBlock>
__global__ void __launch_bounds__(kQuantThreads) quantize_groups(const __grid_constant__ QuantWork w) {
  constexpr int kTeam = kBlock ? kQuantThreads : 32;
  const int64_t group = whole_grid().thread / kTeam;
  if (group >= w.call.groups.count()) return;
  const Team team{static_cast<int>(threadIdx.x) % kTeam, kTeam};
  const int64_t from = w.call.groups.begin(group);
  const Run run{from, from + w.call.groups.length(group)};
  if (w.given) return put<S>(w, run, team, given_grid(w.call, group));
  const Extent mine = extent_of<S>(w, run, team), all = kBlock ? of_block(mine) : of_warp(mine);
  put<S>(w, run, team, made_grid(w, all, group, team.thread == 0));
}

// One group of a whole tensor, in parts: first what each of them reaches,
template <class S>
__global__ void __launch_bounds__(kQuantThreads) extents(const __grid_constant__ QuantWork w) {
  const Extent all = of_block(extent_of<S>(w, {0, w.call.groups.numel()}, whole_grid()));
  if (threadIdx.x == 0) w.extents[blockIdx.x] = all;
}
// then the grid, which every block makes for itself, and the numbers.
template <class S>
__global__ void __launch_bounds__(kQuantThreads) quantize_whole(const __grid_constant__ QuantWork w) {
  const Run run{0, w.call.groups.numel()};
  if (w.given) return put<S>(w, run, whole_grid(), given_grid(w.call, 0));
  Extent mine;
  for (int64_t part = threadIdx.x; part < w.parts; part += kQuantThreads) mine.merge(w.extents[part]);
  put<S>(w, run, whole_grid(), made_grid(w, of_block(mine), 0, whole_grid().thread == 0));
}

template <class S>
__global__ void __launch_bounds__(kQuantThreads) dequantize_groups(const __grid_constant__ QuantWork w) {
  const Groups& groups = w.call.groups;
  const int64_t numel = groups.numel(), start = whole_grid().thread * kGroup;
  if (start >= numel) return;
  const Group<uint8_t> q = turn_of<uint8_t>(w, w.call.whole, start);
  int64_t group = groups.holding(start), end = groups.begin(group) + groups.length(group);
  Grid grid = given_grid(w.call, group);
  Group<S> x;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if (start + k == end && end < numel) {
      end += groups.length(++group);
      grid = given_grid(w.call, group);
    }
    const int whole = w.call.is_signed ? static_cast<int8_t>(q.v[k]) : q.v[k];
    store(x.v[k], static_cast<float>(whole - grid.zero_point) * grid.scale);
  }
  const int64_t left = numel - start;
  store_group(w.call.real, start, {0, left < kGroup ? static_cast<int>(left) : kGroup}, w.aligned, x);
}

// --- launches ---------------------------------------------------------------------------------------------
static unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kQuantThreads - 1) / kQuantThreads);
}

// body(storage type) with the one that real numbers have.
template <class Body>
static void with_real(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBFloat16:
      return body(__nv_bfloat16{});
    case DType::kFloat16:
      return body(__half{});
    default:
      return body(float{});
  }
}

void start_quantize_groups(const QuantWork& w, cudaStream_t stream) {
  const int64_t count = w.call.groups.count();
  with_real(w.call.dtype, [&](auto real) {
    using S = decltype(real);
    if (w.call.groups.length(0) <= kWarpGroup)
      quantize_groups<S, false><<<blocks_for(count * 32), kQuantThreads, 0, stream>>>(w);
    else
      quantize_groups<S, true><<<static_cast<unsigned>(count), kQuantThreads, 0, stream>>>(w);
  });
}
void start_extents(const QuantWork& w, cudaStream_t stream) {
  with_real(w.call.dtype, [&](auto real) {
    extents<decltype(real)><<<static_cast<unsigned>(w.parts), kQuantThreads, 0, stream>>>(w);
  });
}
void start_quantize_whole(const QuantWork& w, cudaStream_t stream) {
  with_real(w.call.dtype, [&](auto real) {
    quantize_whole<decltype(real)><<<static_cast<unsigned>(w.parts), kQuantThreads, 0, stream>>>(w);
  });
}
void start_dequantize(const QuantWork& w, cudaStream_t stream) {
  const unsigned blocks = blocks_for((w.call.groups.numel() + kGroup - 1) / kGroup);
  with_real(w.call.dtype,
            [&](auto real) { dequantize_groups<decltype(real)><<<blocks, kQuantThreads, 0, stream>>>(w); });
}

}  // namespace onepass::cuda
