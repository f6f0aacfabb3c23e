// Quantization on CUDA.
//
// Memory contract. quantize reads each element twice, the second time from a cache where its group fits one,
// and writes a byte; where the grid is given, it reads once. dequantize reads a byte and writes an element.
//
// Compiled without contraction of a * b + c: see rules/quant.h.
#include "quant.h"

#include "quant_groups.cuh"

namespace onepass::cuda {

template <class S>
__device__ __forceinline__ void put(const QuantWork& w, const Run& run, const Team& team, const Grid& grid) {
  const float lowest = w.levels.lowest(grid.zero_point);
  const float highest = w.levels.highest(grid.zero_point);
  run.each_turn(team, [&](int64_t start, Lanes lanes) {
    const Group<S> x = turn_of<S>(w.call, w.call.real, start, w.aligned);
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
  const Run run = run_of(w.call.groups, group);
  if (w.given) return put<S>(w, run, team, given_grid(w.call, group));
  const Extent mine = extent_of<S>(w.call, w.aligned, run, team);
  const Extent all = kBlock ? of_block(mine) : of_lanes<32>(mine);
  put<S>(w, run, team, made_grid(w.call, w.levels, all, group, team.thread == 0));
}

// One group of a whole tensor, in parts: first what each of them reaches,
template <class S>
__global__ void __launch_bounds__(kQuantThreads) extents(const __grid_constant__ QuantWork w) {
  const Extent all = of_block(extent_of<S>(w.call, w.aligned, {0, w.call.groups.numel()}, whole_grid()));
  if (threadIdx.x == 0) w.extents[blockIdx.x] = all;
}
// then the grid, which every block makes for itself, and the numbers.
template <class S>
__global__ void __launch_bounds__(kQuantThreads) quantize_whole(const __grid_constant__ QuantWork w) {
  const Run run{0, w.call.groups.numel()};
  if (w.given) return put<S>(w, run, whole_grid(), given_grid(w.call, 0));
  Extent mine;
  for (int64_t part = threadIdx.x; part < w.parts; part += kQuantThreads) mine.merge(w.extents[part]);
  put<S>(w, run, whole_grid(), made_grid(w.call, w.levels, of_block(mine), 0, whole_grid().thread == 0));
}

template <class S>
__global__ void __launch_bounds__(kQuantThreads) dequantize_groups(const __grid_constant__ QuantWork w) {
  const int64_t numel = w.call.groups.numel(), start = whole_grid().thread * kGroup;
  if (start >= numel) return;
  const Group<uint8_t> q = turn_of<uint8_t>(w.call, w.call.whole, start, w.aligned);
  Grids grids(w.call, start);
  Group<S> x;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const Grid& grid = grids.of(k);
    const int whole = w.call.is_signed ? static_cast<int8_t>(q.v[k]) : q.v[k];
    store(x.v[k], static_cast<float>(whole - grid.zero_point) * grid.scale);
  }
  const int64_t left = numel - start;
  store_group(w.call.real, start, {0, left < kGroup ? static_cast<int>(left) : kGroup}, w.aligned, x);
}

// --- launches ---------------------------------------------------------------------------------------------
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
  const unsigned blocks = blocks_for_turns(w.call.groups);
  with_real(w.call.dtype,
            [&](auto real) { dequantize_groups<decltype(real)><<<blocks, kQuantThreads, 0, stream>>>(w); });
}

}  // namespace onepass::cuda
