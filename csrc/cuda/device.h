// What a CUDA device has, as far as it decides how work is cut up.
#pragma once
#include "memory.h"

namespace onepass::cuda {

struct Device {
  int64_t multiprocessors;
  int64_t shared, block_shared,
      reserved_shared;         // bytes: of a multiprocessor, of a block, of a block besides
  int64_t l2_cache;            // bytes
  bool clusters, cooperative;  // launches that it runs

  explicit Device(int device)
      : multiprocessors(ask(cudaDevAttrMultiProcessorCount, device)),
        shared(ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)),
        block_shared(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
        reserved_shared(ask(cudaDevAttrReservedSharedMemoryPerBlock, device)),
        l2_cache(ask(cudaDevAttrL2CacheSize, device)),
        clusters(ask(cudaDevAttrClusterLaunch, device)),
        cooperative(ask(cudaDevAttrCooperativeLaunch, device)) {}

 private:
  static int ask(cudaDeviceAttr attribute, int device) {
    int value = 0;
    ok(cudaDeviceGetAttribute(&value, attribute, device), "an attribute of the device");
    return value;
  }
};

}  // namespace onepass::cuda
