// cp.async: what has arrived, and when its buffer may be filled again.
#include <cuda_pipeline.h>

#include "bug.h"

__global__ void wait_too_weak(float* out, const float* in, bool fixed) {
  __shared__ __align__(16) float s[2][128];
  const int t = threadIdx.x;
  for (int i = 0; i < 2; ++i) {
    __pipeline_memcpy_async(&s[i][t * 4], in + i * 128 + t * 4, 16);
    __pipeline_commit();
  }
  __pipeline_wait_prior(fixed ? 0 : 1);
  __syncthreads();
  out[t] = s[1][t * 4];
  __pipeline_wait_prior(0);
}
BUG(wait_too_weak, "waits for the first group and reads the second") {
  wait_too_weak<<<1, 32>>>(c.out(32), c.iota(256), c.fixed);
}

__global__ void async_without_barrier(float* out, const float* in, bool fixed) {
  __shared__ __align__(16) float s[128];
  const int t = threadIdx.x;
  __pipeline_memcpy_async(&s[t * 4], in + t * 4, 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  if (fixed) __syncthreads();
  out[t] = s[127 - t * 4];
}
BUG(async_without_barrier, "a wait is for one's own copies; others' are read without a barrier") {
  async_without_barrier<<<1, 32>>>(c.out(32), c.iota(128), c.fixed);
}

__global__ void double_buffer_overrun(float* out, const float* in, bool fixed) {
  __shared__ __align__(16) float s[2][128];
  const int t = threadIdx.x;
  const auto start = [&](int i) {
    if (i < 4) __pipeline_memcpy_async(&s[i % 2][t * 4], in + i * 128 + t * 4, 16);
    __pipeline_commit();
  };
  float sum = 0;
  start(0);
  for (int i = 0; i < 4; ++i) {
    start(i + 1);
    __pipeline_wait_prior(1);
    __syncthreads();
    sum += s[i % 2][127 - t * 4];
    if (fixed) __syncthreads();
  }
  __pipeline_wait_prior(0);
  out[t] = sum;
}
BUG(double_buffer_overrun, "the next copy goes to the buffer that other threads still read") {
  double_buffer_overrun<<<1, 32>>>(c.out(32), c.iota(512), c.fixed);
}

__global__ void misaligned_async_copy(float* out, const float* in) {
  __shared__ __align__(16) float s[128];
  const int t = threadIdx.x;
  __pipeline_memcpy_async(&s[t * 4], in + t * 4, 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  out[t] = s[t * 4];
}
BUG(misaligned_async_copy, "16 bytes from an address that is a multiple of 4 only") {
  misaligned_async_copy<<<1, 32>>>(c.out(32), c.iota(136) + (c.fixed ? 4 : 1));
}

__global__ void exit_with_copy_under_way(float* out, const float* in, bool fixed) {
  __shared__ __align__(16) float s[128];
  const int t = threadIdx.x;
  __pipeline_memcpy_async(&s[t * 4], in + t * 4, 16);
  __pipeline_commit();
  if (fixed) __pipeline_wait_prior(0);
  out[t] = 1;
}
BUG(exit_with_copy_under_way, "the block ends before its copies have arrived") {
  exit_with_copy_under_way<<<1, 32>>>(c.out(32), c.iota(128), c.fixed);
}
