// Lanes of a warp: masks, divergence, memory between lanes.
#include "bug.h"

constexpr unsigned kAll = 0xffffffffu, kLower = 0x0000ffffu;

__global__ void lane_not_in_mask(float* out, bool fixed) {
  const int t = threadIdx.x;
  out[t] = __shfl_xor_sync(fixed ? kAll : kLower, static_cast<float>(t), 1);
}
BUG(lane_not_in_mask, "all lanes call a shuffle whose mask names half of them") {
  lane_not_in_mask<<<1, 32>>>(c.out(32), c.fixed);
}

__global__ void shuffle_in_divergent_code(float* out, bool fixed) {
  const int t = threadIdx.x;
  float x = static_cast<float>(t);
  if (fixed) {
    const float other = __shfl_down_sync(kAll, x, 16);
    if (t < 16) x += other;
  } else if (t < 16) {
    x += __shfl_down_sync(kAll, x, 16);
  }
  out[t] = x;
}
BUG(shuffle_in_divergent_code, "a shuffle with a full mask in a branch that half of the lanes take") {
  shuffle_in_divergent_code<<<1, 32>>>(c.out(32), c.fixed);
}

__global__ void reads_lane_outside_mask(float* out, bool fixed) {
  const int t = threadIdx.x;
  float x = 0;
  if (t < 16) x = __shfl_sync(kLower, static_cast<float>(t), fixed ? 15 : 16);
  out[t] = x;
}
BUG(reads_lane_outside_mask, "a shuffle from a lane that takes no part in it") {
  reads_lane_outside_mask<<<1, 32>>>(c.out(32), c.fixed);
}

__global__ void mask_names_missing_lanes(float* out, bool fixed) {
  const int t = threadIdx.x;
  const unsigned mask = fixed && t >= 32 ? kLower : kAll;
  out[t] = static_cast<float>(__ballot_sync(mask, t % 2));
}
BUG(mask_names_missing_lanes, "a full mask in the last warp of a block of 48 threads") {
  mask_names_missing_lanes<<<1, 48>>>(c.out(48), c.fixed);
}

__global__ void vote_in_uneven_loop(float* out, bool fixed) {
  const int t = threadIdx.x;
  int rounds = 0;
  for (int i = t; i < (fixed ? 96 + t : 100); i += 32) rounds += __any_sync(kAll, i == 70);
  out[t] = static_cast<float>(rounds);
}
BUG(vote_in_uneven_loop, "a vote in a strided loop whose last round not all lanes take") {
  vote_in_uneven_loop<<<1, 32>>>(c.out(32), c.fixed);
}

__global__ void missing_syncwarp(float* out, bool fixed) {
  __shared__ float s[32];
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  if (fixed) __syncwarp();
  out[t] = s[t ^ 1];
}
BUG(missing_syncwarp, "lanes of a warp exchange through shared memory without __syncwarp") {
  missing_syncwarp<<<1, 32>>>(c.out(32), c.fixed);
}

__global__ void warp_synchronous_reduction(float* out, bool fixed) {
  __shared__ float s[64];
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  s[t + 32] = 0;
  __syncwarp();
  for (int half = 16; half; half /= 2) {
    const float other = s[t + half];
    if (fixed) __syncwarp();
    s[t] += other;
    if (fixed) __syncwarp();
  }
  if (t == 0) out[0] = s[0];
}
BUG(warp_synchronous_reduction, "a reduction that trusts lanes to run in step") {
  warp_synchronous_reduction<<<1, 32>>>(c.out(1), c.fixed);
}

__global__ void shuffle_is_no_barrier(float* out, bool fixed) {
  __shared__ float s[32];
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  const float one = __shfl_sync(kAll, 1.0f, 0);
  if (fixed) __syncwarp();
  out[t] = s[31 - t] * one;
}
BUG(shuffle_is_no_barrier, "a shuffle is taken for a barrier: it orders no memory") {
  shuffle_is_no_barrier<<<1, 32>>>(c.out(32), c.fixed);
}
