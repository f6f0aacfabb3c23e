// The host side: what is still under way when the host goes on.
#include "bug.h"

__global__ void scale(float* out, const float* in) { out[threadIdx.x] = 2 * in[threadIdx.x]; }

static float* pinned_floats(size_t n) {
  static void* memory = nullptr;  // kept: a staging buffer outlives its launches
  if (!memory) (void)cudaMallocHost(&memory, n * sizeof(float));
  return static_cast<float*>(memory);
}
static void fill(float* p, size_t n, float value) {
  for (size_t i = 0; i < n; ++i) p[i] = value;
}

BUG(staging_reused_too_early, "a pinned buffer is written again before its copy has run") {
  float *staging = pinned_floats(64), *in = c.floats(64), *out = c.out(64);
  fill(staging, 64, 1);
  (void)cudaMemcpyAsync(in, staging, 64 * sizeof(float), cudaMemcpyHostToDevice, nullptr);
  scale<<<1, 64>>>(out, in);
  if (c.fixed) (void)cudaStreamSynchronize(nullptr);
  fill(staging, 64, 5);
}

BUG(result_read_before_synchronising, "the host reads a copy back before it has run") {
  float *staging = pinned_floats(64), *result = c.floats(64);
  fill(staging, 64, 0);
  scale<<<1, 64>>>(result, c.iota(64));
  (void)cudaMemcpyAsync(staging, result, 64 * sizeof(float), cudaMemcpyDeviceToHost, nullptr);
  if (c.fixed) (void)cudaStreamSynchronize(nullptr);
  float* out = c.out(64);
  for (int i = 0; i < 64; ++i) out[i] = staging[i];
}

BUG(streams_without_event, "one stream reads what another one writes, without an event between them") {
  cudaStream_t writes = nullptr, reads = nullptr;
  (void)cudaStreamCreateWithFlags(&writes, cudaStreamNonBlocking);
  (void)cudaStreamCreateWithFlags(&reads, cudaStreamNonBlocking);
  cudaEvent_t written = nullptr;
  (void)cudaEventCreateWithFlags(&written, cudaEventDisableTiming);
  float *between = c.iota(64), *out = c.out(64);
  scale<<<1, 64, 0, writes>>>(between, c.iota(64));
  (void)cudaEventRecord(written, writes);
  if (c.fixed) (void)cudaStreamWaitEvent(reads, written, 0);
  scale<<<1, 64, 0, reads>>>(out, between);
  (void)cudaStreamSynchronize(reads);
  (void)cudaEventDestroy(written);
  (void)cudaStreamDestroy(writes);
  (void)cudaStreamDestroy(reads);
}
