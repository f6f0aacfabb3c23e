// Blocks of a cluster: their barrier and each other's shared memory.
#include <cooperative_groups.h>

#include "bug.h"

// Clusters of so many blocks. On a GPU a launch that is refused returns an error; the emulator throws.
template <class... P, class... Args>
static void in_clusters(unsigned size, unsigned blocks, unsigned threads, void (*kernel)(P...),
                        Args... args) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {size, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.attrs = &cluster;
  config.numAttrs = 1;
  (void)cudaLaunchKernelEx(&config, kernel, args...);
}

// Each block gives its neighbours what its own shared memory holds.
__global__ void ring(float* out, bool before, bool after) {
  __shared__ float s[32];
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned t = threadIdx.x, next = (cluster.block_rank() + 1) % cluster.num_blocks();
  s[t] = static_cast<float>(blockIdx.x * 32 + t);
  if (before) cluster.sync();
  out[blockIdx.x * 32 + t] = cluster.map_shared_rank(s, next)[31 - t];
  if (after) cluster.sync();
}
BUG(missing_cluster_sync, "reads what another block wrote into its shared memory, without a barrier") {
  in_clusters(2, 2, 32, &ring, c.out(2 * 32), c.fixed, true);
}
BUG(owner_exits_too_early, "a block exits while another one reads its shared memory") {
  in_clusters(2, 2, 32, &ring, c.out(2 * 32), true, c.fixed);
}

__global__ void last_barrier_between_map_and_read(float* out, bool fixed) {
  __shared__ float s[32];
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned t = threadIdx.x, next = (cluster.block_rank() + 1) % cluster.num_blocks();
  const float* const its = cluster.map_shared_rank(s, next);
  s[t] = static_cast<float>(blockIdx.x * 32 + t);
  cluster.sync();
  out[blockIdx.x * 32 + t] = its[t];
  if (fixed) cluster.sync();
}
BUG(last_barrier_between_map_and_read, "no barrier behind the last use of a pointer that was mapped early") {
  in_clusters(2, 2, 32, &last_barrier_between_map_and_read, c.out(2 * 32), c.fixed);
}

__global__ void block_barrier_for_cluster(float* out, bool fixed) {
  __shared__ float s[64];
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned t = threadIdx.x, other = 1 - cluster.block_rank();
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    s[t] = static_cast<float>(round * 100 + t);
    cluster.sync();
    sum += cluster.map_shared_rank(s, other)[63 - t];
    if (fixed)
      cluster.sync();
    else
      __syncthreads();
  }
  cluster.sync();
  out[blockIdx.x * 64 + t] = sum;
}
BUG(block_barrier_for_cluster, "__syncthreads where another block still reads what is written next") {
  in_clusters(2, 2, 64, &block_barrier_for_cluster, c.out(2 * 64), c.fixed);
}

__global__ void written_before_it_runs(float* out, bool fixed) {
  __shared__ float inbox[32];
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned t = threadIdx.x, next = (cluster.block_rank() + 1) % cluster.num_blocks();
  if (fixed) cluster.sync();
  cluster.map_shared_rank(inbox, next)[t] = static_cast<float>(blockIdx.x * 32 + t);
  cluster.sync();
  out[blockIdx.x * 32 + t] = inbox[t];
}
BUG(written_before_it_runs, "writes into shared memory of a block that may not have started") {
  in_clusters(2, 2, 32, &written_before_it_runs, c.out(2 * 32), c.fixed);
}

__global__ void arrives_and_does_not_wait(float* out, bool fixed) {
  __shared__ float s[32];
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned t = threadIdx.x, other = 1 - cluster.block_rank();
  s[t] = static_cast<float>(blockIdx.x * 32 + t);
  cluster.barrier_arrive();
  if (fixed) cluster.barrier_wait();
  const float read = cluster.map_shared_rank(s, other)[t];
  if (!fixed) cluster.barrier_wait();
  cluster.sync();
  out[blockIdx.x * 32 + t] = read;
}
BUG(arrives_and_does_not_wait, "reads between its arrival at the cluster's barrier and its wait") {
  in_clusters(2, 2, 32, &arrives_and_does_not_wait, c.out(2 * 32), c.fixed);
}

// Who comes to the cluster's barrier.
__global__ void meeting(float* out, unsigned blocks, unsigned threads) {
  const auto cluster = cooperative_groups::this_cluster();
  if (cluster.block_rank() < blocks && threadIdx.x < threads) cluster.sync();
  out[blockIdx.x * 64 + threadIdx.x] = 1;
}
BUG(block_misses_cluster_barrier, "the last block of a cluster does not come to its barrier") {
  in_clusters(4, 4, 64, &meeting, c.out(4 * 64), c.fixed ? 4 : 3, 64);
}
BUG(warp_misses_cluster_barrier, "a warp of each block does not come to the cluster's barrier") {
  in_clusters(4, 4, 64, &meeting, c.out(4 * 64), 4, c.fixed ? 64 : 32);
}
BUG(rank_outside_of_cluster, "maps the memory of a block that a smaller cluster does not have") {
  in_clusters(c.fixed ? 2 : 1, 2, 64, &block_barrier_for_cluster, c.out(2 * 64), true);
}

__global__ void arrival_in_two_branches(float* out, bool fixed) {
  const auto cluster = cooperative_groups::this_cluster();
  if (fixed || threadIdx.x % 2)
    cluster.sync();
  else
    cluster.sync();
  out[blockIdx.x * 32 + threadIdx.x] = 1;
}
BUG(arrival_in_two_branches, "threads of one warp come to the cluster's barrier in two branches") {
  in_clusters(2, 2, 32, &arrival_in_two_branches, c.out(64), c.fixed);
}
