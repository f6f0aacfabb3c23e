// Several blocks: tickets, fences, grid barriers.
#include <cooperative_groups.h>

#include "bug.h"

// Each block leaves a partial sum; the block that draws the last ticket adds them.
__global__ void last_block_adds(float* out, float* partial, unsigned* ticket, bool before, bool after) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
    if (before) __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  if (after) __threadfence();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
    *out = sum;
    *ticket = 0;
  }
}
BUG(missing_fence_before_ticket, "a block draws its ticket before what it wrote is seen by others") {
  last_block_adds<<<4, 32>>>(c.out(1), c.floats(4), c.zeros(1), c.fixed, true);
}
BUG(missing_fence_after_ticket, "the last block reads what others wrote without a fence after its ticket") {
  last_block_adds<<<4, 32>>>(c.out(1), c.floats(4), c.zeros(1), true, c.fixed);
}

__global__ void counter_without_atomics(float* out, float* counter, bool fixed) {
  if (threadIdx.x == 0) {
    if (fixed)
      atomicAdd(counter, 1.0f);
    else
      *counter += 1;
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}
BUG(counter_without_atomics, "blocks add to one counter without atomics") {
  counter_without_atomics<<<4, 32>>>(c.out(128), c.iota(1), c.fixed);
}

__global__ void overlapping_blocks(float* out, int step) {
  out[blockIdx.x * step + threadIdx.x] = static_cast<float>(blockIdx.x);
}
BUG(overlapping_blocks, "the pieces of two blocks overlap by an element") {
  overlapping_blocks<<<4, 64>>>(c.out(256), c.fixed ? 64 : 63);
}

__global__ void block_waits_for_no_block(float* out, float* data, bool fixed) {
  const int b = blockIdx.x;
  if (threadIdx.x == 0) {
    data[b] = static_cast<float>(b);
    out[b] = fixed || b == 0 ? 0 : data[b - 1];
  }
}
BUG(block_waits_for_no_block, "a block reads what the block before it writes in the same launch") {
  block_waits_for_no_block<<<4, 32>>>(c.out(4), c.floats(4), c.fixed);
}

__global__ void ticket_reset_too_early(float* out, unsigned* ticket, bool fixed) {
  if (threadIdx.x == 0) {
    if (!fixed && blockIdx.x == 0) *ticket = 0;
    out[blockIdx.x] = atomicAdd(ticket, 1u) < gridDim.x ? 1 : 0;
  }
}
BUG(ticket_reset_too_early, "block 0 clears a counter that other blocks may already have advanced") {
  ticket_reset_too_early<<<4, 32>>>(c.out(4), c.zeros(1), c.fixed);
}

__global__ void missing_grid_sync(float* out, float* data, bool fixed) {
  const int b = blockIdx.x;
  if (threadIdx.x == 0) data[b] = static_cast<float>(b);
  if (fixed) cooperative_groups::this_grid().sync();
  if (threadIdx.x == 0) out[b] = data[(b + 1) % gridDim.x];
}
__global__ void some_blocks_skip_grid_sync(float* out, bool fixed) {
  if (fixed || blockIdx.x != 1) cooperative_groups::this_grid().sync();
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}
BUG(missing_grid_sync, "blocks of a cooperative launch exchange data without grid.sync") {
  float *out = c.out(4), *data = c.floats(4);
  bool fixed = c.fixed;
  void* args[] = {&out, &data, &fixed};
  (void)cudaLaunchCooperativeKernel(missing_grid_sync, dim3(4), dim3(32), args);
}
BUG(some_blocks_skip_grid_sync, "one block does not come to grid.sync") {
  float* out = c.out(4);
  bool fixed = c.fixed;
  void* args[] = {&out, &fixed};
  (void)cudaLaunchCooperativeKernel(some_blocks_skip_grid_sync, dim3(4), dim3(32), args);
}
BUG(cooperative_grid_too_large, "a cooperative launch of more blocks than run at a time") {
  float* out = c.out(64);
  bool fixed = true;
  void* args[] = {&out, &fixed};
  (void)cudaLaunchCooperativeKernel(some_blocks_skip_grid_sync, dim3(c.fixed ? 6 : 7), dim3(32), args);
}

__global__ void one_buffer_in_all_rounds(float* out, float* data, bool fixed) {
  const int b = blockIdx.x, n = gridDim.x;
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    float* const at = data + (fixed ? round % 2 * n : 0);
    if (threadIdx.x == 0) at[b] = static_cast<float>(10 * round + b);
    cooperative_groups::this_grid().sync();
    sum += at[(b + 1) % n];
  }
  if (threadIdx.x == 0) out[b] = sum;
}
BUG(one_buffer_in_all_rounds,
    "with one grid.sync a round, a block writes what others still read of the last") {
  float *out = c.out(4), *data = c.floats(8);
  bool fixed = c.fixed;
  void* args[] = {&out, &data, &fixed};
  (void)cudaLaunchCooperativeKernel(one_buffer_in_all_rounds, dim3(4), dim3(32), args);
}
BUG(grid_sync_without_cooperative_launch, "grid.sync in a launch that is not cooperative") {
  float *out = c.out(4), *data = c.floats(4);
  bool fixed = true;
  void* args[] = {&out, &data, &fixed};
  if (c.fixed)
    (void)cudaLaunchCooperativeKernel(missing_grid_sync, dim3(4), dim3(32), args);
  else
    missing_grid_sync<<<4, 32>>>(out, data, fixed);
}
