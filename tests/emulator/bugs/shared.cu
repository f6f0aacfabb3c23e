// Shared memory: races, garbage, sizes, alignment.
#include "bug.h"

__global__ void shared_write_write(float* out, bool fixed) {
  __shared__ float s[32];
  const int t = threadIdx.x;
  if (!fixed || t % 2) s[t / 2] = static_cast<float>(t);
  __syncthreads();
  out[t] = s[t / 2];
}
BUG(shared_write_write, "two threads write different values to one element") {
  shared_write_write<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void shared_read_write(float* out, bool fixed) {
  __shared__ float s[65];
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  if (t == 0) s[64] = 0;
  __syncthreads();
  const float next = s[t + 1];
  if (fixed) __syncthreads();
  s[t] += next;
  __syncthreads();
  out[t] = s[t];
}
BUG(shared_read_write, "an element is changed while the neighbour reads it") {
  shared_read_write<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void histogram_without_atomics(float* out, bool fixed) {
  __shared__ float bins[4];
  const int t = threadIdx.x;
  if (t < 4) bins[t] = 0;
  __syncthreads();
  if (fixed)
    atomicAdd(&bins[t % 4], 1.0f);
  else
    bins[t % 4] += 1;
  __syncthreads();
  if (t < 4) out[t] = bins[t];
}
BUG(histogram_without_atomics, "threads add to one bin without atomics") {
  histogram_without_atomics<<<1, 64>>>(c.out(4), c.fixed);
}

__global__ void uninitialised_shared(float* out, bool fixed) {
  __shared__ float s[64];
  const int t = threadIdx.x;
  if (fixed || t < 50) s[t] = 1;
  __syncthreads();
  float sum = 0;
  for (float x : s) sum += x;
  out[t] = sum;
}
BUG(uninitialised_shared, "adds elements that nobody wrote") {
  uninitialised_shared<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void uninitialised_flag(float* out, bool fixed) {
  __shared__ bool found;
  const int t = threadIdx.x;
  if (fixed && t == 0) found = false;
  __syncthreads();
  if (t == 100) found = true;
  __syncthreads();
  out[t] = found ? 1 : 0;
}
BUG(uninitialised_flag, "a flag is set by some thread, and cleared by none") {
  uninitialised_flag<<<1, 64>>>(c.out(64), c.fixed);
}

// A state without a default constructor, as a kernel's coefficients are.
struct Line {
  Line(float slope, float offset) : slope(slope), offset(offset) {}
  float slope, offset;
};
__global__ void struct_read_before_written(float* out, bool fixed) {
  __shared__ Line line;
  const int t = threadIdx.x;
  if (t == 5) line = Line(2, 1);
  if (fixed) __syncthreads();
  out[t] = line.slope * t + line.offset;
}
BUG(struct_read_before_written, "one thread makes a shared struct, the others do not wait for it") {
  struct_read_before_written<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void shared_index_past_end(float* out, bool fixed) {
  __shared__ float s[64];
  const int t = threadIdx.x;
  s[t] = 1;
  __syncthreads();
  out[t] = fixed && t == 63 ? 0 : s[t + 1];
}
BUG(shared_index_past_end, "the last thread reads behind a shared array") {
  shared_index_past_end<<<1, 64>>>(c.out(64), c.fixed);
}

__global__ void vector_from_unaligned_shared(float* out, bool fixed) {
  __shared__ float loose[64];
  __shared__ __align__(16) float aligned[64];
  float* s = fixed ? aligned : loose;
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  __syncthreads();
  if (t < 16) out[t] = reinterpret_cast<float4*>(s)[t].y;
}
BUG(vector_from_unaligned_shared, "a float4 from an array that is aligned for float") {
  vector_from_unaligned_shared<<<1, 64>>>(c.out(16), c.fixed);
}

__global__ void dynamic_shared(float* out) {
  extern __shared__ float s[];
  const int t = threadIdx.x;
  s[t] = static_cast<float>(t);
  __syncthreads();
  out[t] = s[blockDim.x - 1 - t];
}
BUG(too_little_dynamic_shared, "the launch asks for half of the dynamic shared memory that is used") {
  dynamic_shared<<<1, 64, (c.fixed ? 64 : 32) * sizeof(float)>>>(c.out(64));
}
BUG(too_much_dynamic_shared, "more than 48 KB of dynamic shared memory, which the kernel was not allowed") {
  dynamic_shared<<<1, 64, (c.fixed ? 40 : 64) * 1024>>>(c.out(64));
}
