// Fake quantization on CUDA, there and back.
//
// Memory contract. Each element of x is read once, and the output and a bit of the mask are written; where
// the grid is to be found, x is read twice, the second time from a cache where its group fits one.
//
// A turn's eight bits are a byte of the mask, which one thread writes: groups that begin within one are put
// by a second launch, which knows all grids.
//
// Compiled without contraction of a * b + c: see rules/quant.h.
#include "fake_quant.h"

#include "../rules/fake_quant.h"
#include "quant_groups.cuh"

namespace onepass::cuda {

// A turn, of which there are the first n elements. grid_at(k): that of its element k; asked for in order.
template <class S, class GridAt>
__device__ __forceinline__ void put_turn(const FakeQuantWork& w, int64_t start, int n,
                                         const GridAt& grid_at) {
  const Group<S> x = turn_of<S>(w.call, w.call.real, start, w.aligned);
  Group<S> y;
  unsigned inside = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const Grid grid = grid_at(k);
    const float v = load(x.v[k]), lowest = w.call.levels.lowest(grid.zero_point);
    const float steps = steps_of(v, grid.inverse, lowest, w.call.levels.highest(grid.zero_point));
    store(y.v[k], steps * grid.scale);
    inside |= static_cast<unsigned>(is_inside(v, grid.inverse, steps)) << k;
  }
  store_group(w.call.output, start, {0, n}, w.aligned, y);
  const unsigned there = (1u << n) - 1;
  global<uint8_t>(w.call.mask)[start / kGroup] = static_cast<uint8_t>(inside & there);
}

// A run that begins with a byte of the mask.
template <class S>
__device__ __forceinline__ void put(const FakeQuantWork& w, const Run& run, const Team& team,
                                    const Grid& grid) {
  run.each_turn(
      team, [&](int64_t start, Lanes lanes) { put_turn<S>(w, start, lanes.end, [&](int) { return grid; }); });
}

// A team for each group: finds its grid, and puts its elements there where its bytes of the mask are its own.
template <class S, int kTeam>
__global__ void __launch_bounds__(kQuantThreads) grids_of_groups(const __grid_constant__ FakeQuantWork w) {
  const int64_t group = whole_grid().thread / kTeam;
  const bool there = group < w.call.groups.count();
  const Run run = there ? run_of(w.call.groups, group) : Run{0, 0};
  const Team team{static_cast<int>(threadIdx.x) % kTeam, kTeam};
  const Extent all = of_team<kTeam>(extent_of<S>(w.call, w.aligned, run, team));
  const Grid grid = made_grid(w.call, w.call.levels, all, group, there && team.thread == 0);
  if (w.on_bytes) put<S>(w, run, team, grid);
}

// One group of a whole tensor, in parts. Its grid is given, or each block makes it of their extents.
template <class S>
__global__ void __launch_bounds__(kQuantThreads) put_whole(const __grid_constant__ FakeQuantWork w) {
  const Run run{0, w.call.groups.numel()};
  if (w.given) return put<S>(w, run, whole_grid(), given_grid(w.call, 0));
  Extent mine;
  for (int64_t part = threadIdx.x; part < w.parts; part += kQuantThreads) mine.merge(w.extents[part]);
  const bool keep = whole_grid().thread == 0;
  put<S>(w, run, whole_grid(), made_grid(w.call, w.call.levels, of_block(mine), 0, keep));
}

// Memory as it lies, a turn a thread; the grids of all groups are known.
template <class S>
__global__ void __launch_bounds__(kQuantThreads) put_all(const __grid_constant__ FakeQuantWork w) {
  const int64_t start = whole_grid().thread * kGroup, left = w.call.groups.numel() - start;
  if (left <= 0) return;
  Grids grids(w.call, start);
  put_turn<S>(w, start, left < kGroup ? static_cast<int>(left) : kGroup, [&](int k) { return grids.of(k); });
}

// --- launches ---------------------------------------------------------------------------------------------
void start_grids_of_groups(const FakeQuantWork& w, cudaStream_t stream) {
  with_real(w.call.dtype, [&](auto real) {
    with_team(w.call.groups.length(0), [&](auto team) {
      constexpr int kTeam = team;
      const unsigned blocks = blocks_for(w.call.groups.count() * kTeam);
      grids_of_groups<decltype(real), kTeam><<<blocks, kQuantThreads, 0, stream>>>(w);
    });
  });
}
void start_put_whole(const FakeQuantWork& w, cudaStream_t stream) {
  with_real(w.call.dtype, [&](auto real) {
    put_whole<decltype(real)><<<static_cast<unsigned>(w.parts), kQuantThreads, 0, stream>>>(w);
  });
}
void start_put_all(const FakeQuantWork& w, cudaStream_t stream) {
  const unsigned blocks = blocks_for_turns(w.call.groups);
  with_real(w.call.dtype,
            [&](auto real) { put_all<decltype(real)><<<blocks, kQuantThreads, 0, stream>>>(w); });
}

}  // namespace onepass::cuda
