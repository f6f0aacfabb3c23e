// Global memory: bounds, alignment, offsets, lifetime.
#include "bug.h"

__global__ void read_past_end(float* out, const float* in, int n, bool fixed) {
  const int t = threadIdx.x;
  out[t] = fixed && t + 1 == n ? 0 : in[t + 1];
}
BUG(read_past_end, "the last thread reads behind an array") {
  read_past_end<<<1, 64>>>(c.out(64), c.iota(64), 64, c.fixed);
}

__global__ void missing_bounds_check(float* out, int n, bool fixed) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (!fixed || i < n) out[i] = 1;
}
BUG(missing_bounds_check, "the last block has more threads than elements are left") {
  missing_bounds_check<<<2, 64>>>(c.out(100), 100, c.fixed);
}

__global__ void vector_tail_off_by_one(float* out, const float* in, int n, bool fixed) {
  const int t = threadIdx.x;
  const int vectors = fixed ? n / 4 : n / 4 + 1;
  for (int i = t; i < vectors; i += blockDim.x) {
    const float4 v = reinterpret_cast<const float4*>(in)[i];
    reinterpret_cast<float4*>(out)[i] = make_float4(v.x + 1, v.y + 1, v.z + 1, v.w + 1);
  }
  for (int i = n / 4 * 4 + t; i < n; i += blockDim.x) out[i] = in[i] + 1;
}
BUG(vector_tail_off_by_one, "a vector loop takes the tail along, and what lies behind it") {
  vector_tail_off_by_one<<<1, 32>>>(c.out(253), c.iota(253), 253, c.fixed);
}

__global__ void misaligned_vector(float* out, const float* in) {
  const int t = threadIdx.x;
  out[t] = reinterpret_cast<const float4*>(in)[t].x;
}
BUG(misaligned_vector, "a float4 from an address that is a multiple of 4 only") {
  misaligned_vector<<<1, 8>>>(c.out(8), c.iota(64) + (c.fixed ? 4 : 1));
}

__global__ void misaligned_atomic(float* out, void* counter) {
  atomicAdd(static_cast<unsigned*>(counter), 1u);
  out[threadIdx.x] = 1;
}
BUG(misaligned_atomic, "an atomic on an address that is no multiple of its size") {
  char* counters = reinterpret_cast<char*>(c.zeros(4));
  misaligned_atomic<<<1, 32>>>(c.out(32), counters + (c.fixed ? 4 : 2));
}

__global__ void offset_in_32_bits(float* out, int stride, bool fixed) {
  const int row = blockIdx.x;
  const int64_t offset = fixed ? int64_t{row} * stride : row * stride;
  if (threadIdx.x == 0) out[row] = static_cast<float>(offset >> 20);
}
BUG(offset_in_32_bits, "row times stride is taken in 32 bits and passes 2^31") {
  offset_in_32_bits<<<4, 32>>>(c.out(4), 1 << 30, c.fixed);
}

__global__ void copy_one(float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x]; }
BUG(use_after_free, "device memory is freed before the launch that reads it") {
  float* in = c.iota(64);
  if (!c.fixed) c.free(in);
  copy_one<<<1, 64>>>(c.out(64), in);
}

BUG(block_too_large, "a block of more than 1024 threads") {
  const unsigned threads = c.fixed ? 1024 : 1056;
  copy_one<<<1, threads>>>(c.out(1056), c.iota(1056));
}

BUG(empty_grid, "a launch of no blocks, which an empty list leads to") {
  const int n = 0;
  float* out = c.out(64);
  if (!c.fixed || n > 0) copy_one<<<n / 64, 64>>>(out, out);
}
