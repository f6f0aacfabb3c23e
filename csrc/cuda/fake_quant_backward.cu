// Gradients of fake quantization on CUDA.
//
// Memory contract. Each element of the output's gradient and a bit of the mask are read once, and x where the
// gradient of scale is wanted, and the input's gradient is written. That of scale is summed up in double, in
// an order of its own for each length of groups: the same bits in every run.
//
// Compiled without contraction of a * b + c: see rules/quant.h.
#include "fake_quant.h"

#include "../rules/fake_quant.h"
#include "quant_groups.cuh"

namespace onepass::cuda {

__device__ __forceinline__ unsigned bits_of(const FakeQuantWork& w, int64_t start) {
  return global<uint8_t>(w.call.mask)[start / kGroup];
}
template <class S>
__device__ __forceinline__ void pass(const FakeQuantWork& w, int64_t start, Lanes lanes, const Group<S>& grad,
                                     unsigned bits) {
  Group<S> dx;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) dx.v[k] = bits >> k & 1 ? grad.v[k] : S{};
  store_group(w.call.grad_input, start, lanes, w.aligned, dx);
}

// The gradient of input alone: memory as it lies, a turn a thread.
template <class S>
__global__ void __launch_bounds__(kQuantThreads) pass_all(const __grid_constant__ FakeQuantWork w) {
  const int64_t start = whole_grid().thread * kGroup, left = w.call.groups.numel() - start;
  if (left <= 0) return;
  const Group<S> grad = turn_of<S>(w.call, w.call.grad_output, start, w.aligned);
  pass(w, start, {0, left < kGroup ? static_cast<int>(left) : kGroup}, grad, bits_of(w, start));
}

// --- and of scale -----------------------------------------------------------------------------------------
template <int kLanes>
__device__ __forceinline__ double sum_of_lanes(double mine) {
#pragma unroll
  for (int bit = kLanes / 2; bit > 0; bit /= 2) mine += __shfl_xor_sync(kAllLanes, mine, bit);
  return mine;
}
__device__ __forceinline__ double sum_of_block(double mine) {
  constexpr int kWarps = kQuantThreads / 32;
  __shared__ double sums[kWarps];
  mine = sum_of_lanes<32>(mine);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = mine;
  __syncthreads();
  double all = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) all += sums[i];
  return all;
}

template <int kTeam>
__device__ __forceinline__ double sum_of_team(double mine) {
  if constexpr (kTeam == kQuantThreads)
    return sum_of_block(mine);
  else
    return sum_of_lanes<kTeam>(mine);
}

// The gradient of input; returns this thread's share of that of scale.
template <class S>
__device__ __forceinline__ double gradients(const FakeQuantWork& w, const Run& run, const Team& team,
                                            const Grid& grid) {
  const float lowest = w.call.levels.lowest(grid.zero_point);
  const float highest = w.call.levels.highest(grid.zero_point);
  const StepSize size = StepSize::make(grid.scale);
  double sum = 0;
  run.each_turn(team, [&](int64_t start, Lanes lanes) {
    const Group<S> grad = turn_of<S>(w.call, w.call.grad_output, start, w.aligned);
    const Group<S> x = turn_of<S>(w.call, w.call.real, start, w.aligned);
    const unsigned bits = bits_of(w, start);
    pass(w, start, lanes, grad, bits);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const float v = load(x.v[k]), steps = steps_of(v, grid.inverse, lowest, highest);
      const float term = load(grad.v[k]) * scale_grad(v, steps, (bits >> k & 1) != 0, size);
      sum += static_cast<double>(lanes.has(k) ? term : 0);
    }
  });
  return sum;
}

// A team for each group, or for each part of one.
template <class S, int kTeam>
__global__ void __launch_bounds__(kQuantThreads) grads_of_groups(const __grid_constant__ FakeQuantWork w) {
  const int64_t at = whole_grid().thread / kTeam, group = at / w.parts, part = at % w.parts;
  const bool there = group < w.call.groups.count();
  const Run run = there ? run_of(w.call.groups, group) : Run{0, 0};
  const int64_t thread = threadIdx.x % kTeam;
  const Team team{part * kTeam + thread, w.parts * kTeam};
  const double mine = gradients<S>(w, run, team, given_grid(w.call, there ? group : 0));
  const double sum = sum_of_team<kTeam>(mine);
  if (!there || thread > 0) return;
  if (w.sums)
    w.sums[at] = sum;
  else
    w.call.grad_scale[group] = static_cast<float>(sum);
}

// A block for each group.
__global__ void __launch_bounds__(kQuantThreads) sums_of_parts(const __grid_constant__ FakeQuantWork w) {
  double mine = 0;
  for (int64_t part = threadIdx.x; part < w.parts; part += kQuantThreads)
    mine += w.sums[blockIdx.x * w.parts + part];
  const double sum = sum_of_block(mine);
  if (threadIdx.x == 0) w.call.grad_scale[blockIdx.x] = static_cast<float>(sum);
}

// --- launches ---------------------------------------------------------------------------------------------
void start_pass_all(const FakeQuantWork& w, cudaStream_t stream) {
  const unsigned blocks = blocks_for_turns(w.call.groups);
  with_real(w.call.dtype,
            [&](auto real) { pass_all<decltype(real)><<<blocks, kQuantThreads, 0, stream>>>(w); });
}
void start_grads_of_groups(const FakeQuantWork& w, cudaStream_t stream) {
  with_real(w.call.dtype, [&](auto real) {
    with_team(w.call.groups.length(0), [&](auto team) {
      constexpr int kTeam = team;
      const unsigned blocks = blocks_for(w.call.groups.count() * w.parts * kTeam);
      grads_of_groups<decltype(real), kTeam><<<blocks, kQuantThreads, 0, stream>>>(w);
    });
  });
}
void start_sums_of_parts(const FakeQuantWork& w, cudaStream_t stream) {
  sums_of_parts<<<static_cast<unsigned>(w.call.groups.count()), kQuantThreads, 0, stream>>>(w);
}

}  // namespace onepass::cuda
