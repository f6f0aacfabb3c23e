// The emulated part of CUDA's runtime API.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "scheduler.h"
#include "streams.h"

using namespace emulator;

struct CUevent_st {  // the type behind cudaEvent_t
  cudaStream_t stream = nullptr;
  size_t upto = 0;  // how much of the stream it stands behind
};
struct CUstream_st {};

static std::map<const char*, size_t> pinned;  // start and size
static std::map<char*, size_t> allocated;     // the same, of everything
static std::exception_ptr late;               // of a kernel that ran inside a call that must not throw

static bool is_pinned(const void* p) {
  auto next = pinned.upper_bound(static_cast<const char*>(p));
  if (next == pinned.begin()) return false;
  --next;
  return static_cast<const char*>(p) < next->first + next->second;
}

// Destructors make these calls: what a kernel throws there waits for the next call that may throw.
static cudaError_t drain_in_destructor() {
  try {
    drain_all();
  } catch (...) {
    if (!late) late = std::current_exception();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

// Reports it once.
static void check_guard(char* start, size_t size) {
  if (!guard_changed(start + size)) return;
  memset(start + size, kGuardByte, kGuard);
  throw std::runtime_error("emulator: something was written behind an allocation of " + std::to_string(size) +
                           " bytes");
}

template <class Drain>
static cudaError_t synchronise(Drain drain) {
  if (late) std::rethrow_exception(std::exchange(late, nullptr));
  drain();
  for (const auto& [start, size] : allocated) check_guard(start, size);
  return cudaSuccess;
}

static cudaError_t allocate(void** to, size_t bytes) {
  *to = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (posix_memalign(to, 256, bytes + kGuard)) return cudaErrorMemoryAllocation;
  char* start = static_cast<char*>(*to);
  memset(start, 0xFF, bytes);
  memset(start + bytes, kGuardByte, kGuard);
  allocated[start] = bytes;
  return cudaSuccess;
}

extern "C" {

EMULATOR_API cudaError_t cudaMalloc(void** to, size_t bytes) { return allocate(to, bytes); }
EMULATOR_API cudaError_t cudaFree(void* p) {
  const cudaError_t error = drain_in_destructor();
  allocated.erase(static_cast<char*>(p));
  free(p);
  return error;
}

EMULATOR_API cudaError_t cudaHostAlloc(void** to, size_t bytes, unsigned) {
  const cudaError_t error = allocate(to, bytes);
  if (*to) pinned[static_cast<char*>(*to)] = bytes;
  return error;
}
EMULATOR_API cudaError_t cudaMallocHost(void** to, size_t bytes) { return cudaHostAlloc(to, bytes, 0); }
EMULATOR_API cudaError_t cudaFreeHost(void* p) {
  pinned.erase(static_cast<char*>(p));
  return cudaFree(p);
}

// From pinned memory and from the device the bytes are read when the copy runs; from other host memory now,
// as CUDA does.
EMULATOR_API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                         cudaStream_t stream) {
  ++counts.copies;
  counts.copied_bytes += static_cast<int64_t>(bytes);
  if (kind == cudaMemcpyHostToDevice && !is_pinned(from)) {
    const auto* start = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(start, start + bytes);
    queue(stream, [=] { memcpy(to, staged->data(), bytes); });
  } else {
    queue(stream, [=] { memmove(to, from, bytes); });
  }
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return cudaStreamSynchronize(nullptr);
}
EMULATOR_API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  queue(stream, [=] { memset(to, value, bytes); });
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

EMULATOR_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
EMULATOR_API cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {stream, queued(stream)};
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaEventQuery(cudaEvent_t event) {
  return done(event->stream, event->upto) ? cudaSuccess : cudaErrorNotReady;
}
EMULATOR_API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return synchronise([&] { drain(event->stream, event->upto); });
}

EMULATOR_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CUstream_st;
  set_blocking(*stream, flags != cudaStreamNonBlocking);
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, 0);
}
// The handle is kept: a new stream shall not take over what this one had queued.
EMULATOR_API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EMULATOR_API cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return done(stream, queued(stream)) ? cudaSuccess : cudaErrorNotReady;
}
EMULATOR_API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return synchronise([&] { drain(stream); });
}
EMULATOR_API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  queue(stream, [at = *event] { drain(at.stream, at.upto); });
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaDeviceSynchronize() {
  return synchronise([] { drain_all(); });
}
EMULATOR_API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

// Nothing fails without throwing.
EMULATOR_API cudaError_t cudaGetLastError() { return cudaSuccess; }
EMULATOR_API cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
EMULATOR_API const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
EMULATOR_API const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorLaunchFailure:
      return "a kernel failed";
    case cudaErrorNotReady:
      return "not ready";
    case cudaErrorInvalidClusterSize:
      return "no such cluster";
    default:
      return "an error";
  }
}

EMULATOR_API cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
EMULATOR_API cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
EMULATOR_API cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
}
