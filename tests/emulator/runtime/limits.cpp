// Which launches a GPU would refuse, and how much of one runs at a time.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include "scheduler.h"
#include "streams.h"

namespace emulator {

constexpr size_t kPortableCluster = 8, kLargestCluster = 16;

// What cudaFuncSetAttribute allowed a kernel.
struct Allowed {
  size_t dynamic_shared = kMaxStaticShared;
  bool large_clusters = false;
};
static std::map<const void*, Allowed> allowed;

// kernel<<<...>>> does not say which of a template's kernels it is: the most that any was allowed.
static Allowed allowed_to(const void* kernel) {
  if (kernel) return allowed[kernel];
  Allowed most;
  for (const auto& [any, its] : allowed)
    most.dynamic_shared = std::max(most.dynamic_shared, its.dynamic_shared);
  return most;
}

static size_t blocks_of(const dim3& d) { return size_t{d.x} * d.y * d.z; }

// Its static shared memory is not known before a kernel runs, and not counted.
static size_t per_multiprocessor(const void* kernel, size_t threads, size_t shared) {
  if (threads > kMaxThreads || shared > settings.max_shared || shared > allowed_to(kernel).dynamic_shared)
    return 0;
  const size_t reserved = settings.reserved_shared;
  return std::min<size_t>((settings.max_shared + reserved) / std::max<size_t>(shared + reserved, 1),
                          kBlocksPerMultiprocessor);
}

// A device with fewer multiprocessors than a cluster has blocks would have none of its size; this one has
// one.
static size_t clusters_at_a_time(const Config& c) {
  const size_t fitting = per_multiprocessor(c.kernel, blocks_of(c.block), c.shared);
  const size_t clusters = fitting * settings.multiprocessors / blocks_of(c.cluster);
  return fitting ? std::max<size_t>(clusters, c.clustered) : 0;
}

// Empty, or why a GPU would not have it.
static std::string wrong_cluster(const Config& c) {
  const size_t size = blocks_of(c.cluster);
  const std::string text = "a cluster of " + std::to_string(size) + " blocks";
  if (!c.clustered) return "";
  if (settings.capability < 90)
    return text + " on a device of compute capability " + std::to_string(settings.capability / 10) + "." +
           std::to_string(settings.capability % 10);
  if (size == 0 || size > kLargestCluster) return text;
  if (size > kPortableCluster && !allowed_to(c.kernel).large_clusters)
    return text + " without cudaFuncAttributeNonPortableClusterSizeAllowed";
  if (c.grid.x % c.cluster.x || c.grid.y % c.cluster.y || c.grid.z % c.cluster.z)
    return text + ", which do not divide the grid";
  return "";
}

[[noreturn]] static void refuse(const char* name, const std::string& why) {
  throw std::runtime_error("emulator: kernel " + std::string(name) + " cannot be launched: " + why);
}

static void check_shared(const Config& c, const char* name) {
  const std::string text = std::to_string(c.shared) + " bytes of dynamic shared memory";
  if (c.shared > settings.max_shared) refuse(name, text);
  if (c.shared > allowed_to(c.kernel).dynamic_shared) refuse(name, text + " without cudaFuncSetAttribute");
}

void check_launch(const Config& c, const char* name) {
  const size_t threads = blocks_of(c.block), blocks = blocks_of(c.grid);
  if (threads == 0 || threads > kMaxThreads || c.block.z > 64)
    refuse(name, "a block of " + std::to_string(threads) + " threads");
  if (blocks == 0 || c.grid.x > INT32_MAX || c.grid.y > 65535 || c.grid.z > 65535)
    refuse(name, "a grid of " + std::to_string(blocks) + " blocks");
  check_shared(c, name);
  if (const std::string why = wrong_cluster(c); !why.empty()) refuse(name, why);
  const size_t resident = clusters_at_a_time(c) * blocks_of(c.cluster);
  if (c.cooperative && blocks > resident)
    refuse(name, "a cooperative grid of " + std::to_string(blocks) + " blocks where " +
                     std::to_string(resident) + " run at a time");
}

Config config_of(const cudaLaunchConfig_t& asked, const void* kernel) {
  Config c = config(asked.gridDim, asked.blockDim, asked.dynamicSmemBytes, asked.stream);
  c.kernel = kernel;
  for (unsigned i = 0; i < asked.numAttrs; ++i) {
    const cudaLaunchAttribute& a = asked.attrs[i];
    if (a.id == cudaLaunchAttributeClusterDimension) {
      c.cluster = {a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z};
      c.clustered = true;
    } else if (a.id == cudaLaunchAttributeCooperative) {
      c.cooperative = a.val.cooperative != 0;
    } else if (a.id != cudaLaunchAttributeIgnore && a.id != cudaLaunchAttributePriority) {
      refuse("launched by cudaLaunchKernelEx",
             "launch attribute " + std::to_string(a.id) + " is not modelled");
    }
  }
  return c;
}

}  // namespace emulator

using namespace emulator;
extern "C" {
// The templates in kernel_api.h end here, which know no types.
EMULATOR_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                                       int threads, size_t shared) {
  *blocks = static_cast<int>(per_multiprocessor(kernel, threads, shared));
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel,
                                                        const cudaLaunchConfig_t* asked) {
  const Config c = config_of(*asked, kernel);
  *clusters = 0;
  if (!wrong_cluster(c).empty()) return cudaErrorInvalidClusterSize;
  *clusters = static_cast<int>(clusters_at_a_time(c));
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || static_cast<size_t>(value) > settings.max_shared) return cudaErrorInvalidValue;
    allowed[kernel].dynamic_shared = std::max<size_t>(kMaxStaticShared, value);
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    if (settings.capability < 90) return cudaErrorInvalidValue;
    allowed[kernel].large_clusters = value != 0;
  } else if (attribute != cudaFuncAttributePreferredSharedMemoryCarveout) {  // which is a wish
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
}
