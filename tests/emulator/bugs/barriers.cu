// Threads of a block that do not wait for each other, or do not meet.
#include "bug.h"

__global__ void missing_barrier(float* out, bool fixed) {
  __shared__ float s[64];
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  if (fixed) __syncthreads();
  out[t] = s[63 - t];
}
BUG(missing_barrier, "reads what another thread wrote, without a barrier between") {
  missing_barrier<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void barrier_in_divergent_branch(float* out, bool fixed) {
  const int t = threadIdx.x;
  if (fixed || t < 32) __syncthreads();
  out[t] = 1;
}
BUG(barrier_in_divergent_branch, "only half of the threads come to the barrier") {
  barrier_in_divergent_branch<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void barriers_in_two_branches(float* out, bool fixed) {
  const int t = threadIdx.x;
  if (fixed)
    __syncthreads();
  else if (t % 2)
    __syncthreads();
  else
    __syncthreads();
  out[t] = 1;
}
BUG(barriers_in_two_branches, "all threads come to a barrier, but not to the same one") {
  barriers_in_two_branches<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void early_exit_before_barrier(float* out, int n, bool fixed) {
  __shared__ float s[64];
  const int t = threadIdx.x;
  if (!fixed && t >= n) return;
  s[t] = t < n ? 1 : 0;
  __syncthreads();
  if (t < n) out[t] = s[(t + 1) % n];
}
BUG(early_exit_before_barrier, "threads behind the end return, the others wait for them") {
  early_exit_before_barrier<<<1, 64>>>(c.out(50), 50, c.fixed);
}

__global__ void barrier_in_uneven_loop(float* out, bool fixed) {
  const int t = threadIdx.x;
  for (int i = 0; i < (fixed ? 4 : 3 + t % 2); ++i) __syncthreads();
  out[t] = 1;
}
BUG(barrier_in_uneven_loop, "a loop with a barrier runs more often in some threads") {
  barrier_in_uneven_loop<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void buffer_reused_in_loop(float* out, bool fixed) {
  __shared__ float s[64];
  const int t = threadIdx.x;
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    s[t] = static_cast<float>(t + i);
    __syncthreads();
    sum += s[(t + 33) % 64];
    if (fixed) __syncthreads();
  }
  out[t] = sum;
}
BUG(buffer_reused_in_loop, "the next round overwrites shared memory that others still read") {
  buffer_reused_in_loop<<<1, 64>>>(c.out(64), c.fixed);
}

__device__ float sum_of_block(float x, float* s, bool guarded) {
  const int t = threadIdx.x;
  s[t] = x;
  __syncthreads();
  for (int half = 32; half; half /= 2) {
    if (t < half) s[t] += s[t + half];
    __syncthreads();
  }
  const float sum = s[0];
  if (guarded) __syncthreads();
  return sum;
}
__global__ void missing_second_barrier(float* out, bool fixed) {
  __shared__ float s[64];
  const float first = sum_of_block(1, s, fixed);
  out[threadIdx.x] = first + sum_of_block(2, s, fixed);
}
BUG(missing_second_barrier, "a second reduction writes where the result of the first is still read") {
  missing_second_barrier<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void reduction_levels_unordered(float* out, bool fixed) {
  __shared__ float s[128];
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  __syncthreads();
  for (int half = 64; half; half /= 2) {
    if (t < half) s[t] += s[t + half];
    if (fixed) __syncthreads();
  }
  if (t == 0) out[0] = s[0];
}
BUG(reduction_levels_unordered, "a tree reduction without a barrier between its levels") {
  reduction_levels_unordered<<<1, 128>>>(c.out(1), c.fixed);
}
