// Launches of clusters and of whole grids: what their threads see, and which ones there are.
#include <cooperative_groups.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <vector>

namespace cg = cooperative_groups;
using Shape = std::array<unsigned, 3>;
using Numbers = std::vector<int>;

static dim3 dim(const Shape& s) { return {s[0], s[1], s[2]}; }
static int volume(const dim3& d) { return static_cast<int>(d.x * d.y * d.z); }

// A launch configuration with its attributes.
struct Launch {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};

  Launch(const Shape& cluster, const Shape& grid, const Shape& block, size_t shared, bool cooperative) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {cluster[0], cluster[1], cluster[2]};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = cooperative;
    config.gridDim = dim(grid);
    config.blockDim = dim(block);
    config.dynamicSmemBytes = shared;
    config.attrs = attributes;
    config.numAttrs = 2;
  }
};

static int* zeros(size_t n) {
  void* p = nullptr;
  (void)cudaMalloc(&p, n * sizeof(int));
  (void)cudaMemset(p, 0, n * sizeof(int));
  return static_cast<int*>(p);
}
static Numbers host_copy(int* from, size_t n) {
  Numbers to(n);
  (void)cudaMemcpy(to.data(), from, n * sizeof(int), cudaMemcpyDeviceToHost);
  (void)cudaFree(from);
  return to;
}

// Each thread's place in its cluster, in the order of blocks and threads in the grid.
constexpr int kFields = 11;
__global__ void places_kernel(int* out) {
  const auto cluster = cg::this_cluster();
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const dim3 b = cluster.block_index(), t = cluster.thread_index();
  const unsigned fields[kFields] = {cluster.block_rank(),
                                    cluster.num_blocks(),
                                    cluster.thread_rank(),
                                    cluster.num_threads(),
                                    b.x,
                                    b.y,
                                    b.z,
                                    t.x,
                                    t.y,
                                    t.z,
                                    cluster.dim_threads().x};
  for (int i = 0; i < kFields; ++i)
    out[(block * volume(blockDim) + thread) * kFields + i] = static_cast<int>(fields[i]);
}
static Numbers places(const Shape& cluster, const Shape& grid, const Shape& block) {
  Launch launch(cluster, grid, block, 0, false);
  const size_t n = size_t{kFields} * volume(dim(grid)) * volume(dim(block));
  int* out = zeros(n);
  (void)cudaLaunchKernelEx(&launch.config, &places_kernel, out);
  return host_copy(out, n);
}

// Every block adds to the counts of every block of its cluster, in dynamic shared memory. Results are its own
// counts, but the first: what its neighbour has in static shared memory, and whose that is.
__global__ void counts_kernel(int* out, int ints) {
  extern __shared__ int counts[];
  __shared__ int mine;
  const auto cluster = cg::this_cluster();
  const int t = threadIdx.x, rank = static_cast<int>(cluster.block_rank());
  for (int i = t; i < ints; i += blockDim.x) counts[i] = 0;
  if (t == 0) mine = 100 + rank;
  cluster.sync();
  const int blocks = static_cast<int>(cluster.num_blocks()), next = (rank + 1) % blocks;
  for (int b = 0; b < blocks; ++b) atomicAdd(cluster.map_shared_rank(counts, b) + ints - 1 - t, rank + 1);
  const int* const its = cluster.map_shared_rank(&mine, next);
  const int read = *its + 1000 * static_cast<int>(cluster.query_shared_rank(its));
  cluster.barrier_arrive();
  const int before = t == 0 ? read : 0;  // work that needs nobody else
  cluster.barrier_wait();
  out[blockIdx.x * blockDim.x + t] = t == 0 ? before : counts[ints - 1 - t];
}
static Numbers counts(unsigned cluster, unsigned blocks, size_t shared) {
  Launch launch({cluster, 1, 1}, {blocks, 1, 1}, {32, 1, 1}, shared, false);
  (void)cudaFuncSetAttribute(counts_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared));
  int* out = zeros(32 * blocks);
  (void)cudaLaunchKernelEx(&launch.config, &counts_kernel, out, static_cast<int>(shared / sizeof(int)));
  return host_copy(out, 32 * blocks);
}

// All blocks, round by round: each keeps its part in shared memory and adds what all blocks' parts begin
// with.
__global__ void rounds_kernel(int* out, int* totals, int rounds, int ints) {
  extern __shared__ int kept[];
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    for (int i = threadIdx.x; i < ints; i += blockDim.x) kept[i] = round * i + static_cast<int>(blockIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(totals + round, kept[ints - 1]);
    cg::this_grid().sync();
    sum += totals[round] + kept[threadIdx.x];
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
static Numbers rounds(unsigned cluster, unsigned blocks, int rounds, size_t shared) {
  Launch launch({cluster, 1, 1}, {blocks, 1, 1}, {64, 1, 1}, shared, true);
  (void)cudaFuncSetAttribute(rounds_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared));
  int *out = zeros(64 * blocks), *totals = zeros(rounds);
  (void)cudaLaunchKernelEx(&launch.config, &rounds_kernel, out, totals, rounds,
                           static_cast<int>(shared / sizeof(int)));
  Numbers results = host_copy(out, 64 * blocks);
  (void)cudaFree(totals);
  return results;
}

// A launch of nothing. A kernel of its own for each choice, for what a kernel was allowed remains.
template <bool shared, bool clusters>
__global__ void nothing_kernel(int) {}

template <bool shared, bool clusters>
static bool allow(int bytes) {
  bool allowed = true;
  const auto kernel = &nothing_kernel<shared, clusters>;
  if (shared) allowed &= !cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (clusters) allowed &= !cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return allowed;
}
// Whether it was allowed what it asked, blocks on a multiprocessor, the error and number of clusters.
template <bool shared, bool clusters>
static std::array<int, 4> nothing(const Launch& launch, bool runs) {
  const auto kernel = &nothing_kernel<shared, clusters>;
  const auto bytes = launch.config.dynamicSmemBytes;
  std::array<int, 4> said{allow<shared, clusters>(static_cast<int>(bytes))};
  (void)cudaOccupancyMaxActiveBlocksPerMultiprocessor(&said[1], kernel, volume(launch.config.blockDim),
                                                      bytes);
  said[2] = cudaOccupancyMaxActiveClusters(&said[3], kernel, &launch.config);
  if (runs) (void)cudaLaunchKernelEx(&launch.config, kernel, 0);
  (void)cudaDeviceSynchronize();
  return said;
}
static std::array<int, 4> launch(const Shape& cluster, const Shape& grid, size_t shared, bool cooperative,
                                 bool allow_shared, bool allow_clusters, bool runs) {
  const Launch launch(cluster, grid, {32, 1, 1}, shared, cooperative);
  if (allow_shared && allow_clusters) return nothing<true, true>(launch, runs);
  if (allow_shared) return nothing<true, false>(launch, runs);
  return allow_clusters ? nothing<false, true>(launch, runs) : nothing<false, false>(launch, runs);
}

static Numbers attributes() {
  Numbers values;
  for (const cudaDeviceAttr a :
       {cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor, cudaDevAttrClusterLaunch,
        cudaDevAttrCooperativeLaunch, cudaDevAttrMaxSharedMemoryPerBlockOptin,
        cudaDevAttrMaxSharedMemoryPerMultiprocessor, cudaDevAttrL2CacheSize}) {
    int value = -1;
    (void)cudaDeviceGetAttribute(&value, a, 0);
    values.push_back(value);
  }
  return values;
}

PYBIND11_MODULE(MODULE_NAME, m) {
  m.def("places", &places);
  m.def("counts", &counts);
  m.def("rounds", &rounds);
  m.def("launch", &launch);
  m.def("attributes", &attributes);
}
