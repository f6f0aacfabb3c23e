// The device that is emulated, and what it says of itself.
#include <cuda_runtime_api.h>

#include <optional>

#include "scheduler.h"

namespace emulator {

// Of a block, by compute capability times ten.
static size_t shared_of(int capability) {
  if (capability < 80) return 64 << 10;
  if (capability == 80 || capability == 87) return 163 << 10;
  if (capability < 90 || capability / 10 == 12) return 99 << 10;
  return 227 << 10;
}

static std::optional<size_t> value_of(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return settings.multiprocessors;
    case cudaDevAttrMaxThreadsPerBlock:
      return kMaxThreads;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return kMaxThreads * kBlocksPerMultiprocessor;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return kMaxStaticShared;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return settings.max_shared;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return settings.max_shared + settings.reserved_shared;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return settings.reserved_shared;
    case cudaDevAttrL2CacheSize:
      return settings.l2_cache;
    case cudaDevAttrWarpSize:
      return kWarp;
    case cudaDevAttrCooperativeLaunch:
      return 1;
    case cudaDevAttrClusterLaunch:
      return settings.capability >= 90;
    case cudaDevAttrComputeCapabilityMajor:
      return settings.capability / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return settings.capability % 10;
    default:
      return {};
  }
}

}  // namespace emulator

using namespace emulator;
extern "C" {
EMULATOR_API void emulator_set_multiprocessors(int count) { settings.multiprocessors = count; }
EMULATOR_API void emulator_set_compute_capability(int times_ten) {
  settings.capability = times_ten;
  settings.max_shared = shared_of(times_ten);
  settings.reserved_shared = times_ten < 80 ? 0 : 1024;
}
EMULATOR_API void emulator_set_max_shared_memory(size_t bytes) { settings.max_shared = bytes; }
EMULATOR_API void emulator_set_l2_cache(size_t bytes) { settings.l2_cache = bytes; }

EMULATOR_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto known = value_of(attribute);
  if (!known) return cudaErrorInvalidValue;
  *value = static_cast<int>(*known);
  return cudaSuccess;
}
}
