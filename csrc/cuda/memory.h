// Device tables and how they get there: pinned staging, in the order of the stream, without waiting.
#pragma once
#include <cuda_runtime_api.h>

#include <memory>

#include "../common/check.h"
#include "image.h"

namespace onepass::cuda {

inline void ok(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail("onepass: ", what, ": ", cudaGetErrorString(error));
}

// Memory may be taken while a stream is being captured into a graph: it is no part of the graph.
class Uncaptured {
 public:
  Uncaptured() { ok(cudaThreadExchangeStreamCaptureMode(&mode_), "stream capture mode"); }
  ~Uncaptured() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  Uncaptured(const Uncaptured&) = delete;
  Uncaptured& operator=(const Uncaptured&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

struct FreeDevice {
  void operator()(void* memory) const { (void)cudaFree(memory); }
};
struct FreePinned {
  void operator()(void* memory) const { (void)cudaFreeHost(memory); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;
using PinnedMemory = std::unique_ptr<void, FreePinned>;
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent>;

// A table on a device, with what was last written to it.
//
// An image is copied into the next of kSlots pinned buffers and from there, by the stream, to the device: the
// host waits only where the device is kSlots tables behind. On one stream a kernel still reads the old table
// before the copy begins. Under capture the copy becomes a node of the graph, which reads the pinned buffer
// at each replay: such a table is written once and belongs to its graph.
class DeviceTable {
 public:
  // Returns the table's memory on the device, holding `image` for what comes next on the stream.
  char* hold(const Image& image, cudaStream_t stream) {
    reserve(image.bytes.size(), stream);
    if (image.bytes == written_) return start();
    Slot& slot = slots_[next_++ % kSlots];
    if (slot.copied) ok(cudaEventSynchronize(slot.copied.get()), "waiting for a table to be copied");
    make(slot);
    std::memcpy(slot.memory.get(), image.bytes.data(), image.bytes.size());
    written_.clear();  // of what fails below nothing is known
    ok(cudaMemcpyAsync(start(), slot.memory.get(), image.bytes.size(), cudaMemcpyHostToDevice, stream),
       "copying a table");
    ok(cudaEventRecord(slot.copied.get(), stream), "recording that a table was copied");
    written_ = image.bytes;
    return start();
  }

  // A counter that kernels leave at zero, and a place for what their blocks leave each other.
  unsigned* counter() { return static_cast<unsigned*>(memory_.get()); }
  PartialSums* sums() { return reinterpret_cast<PartialSums*>(front() + kCounterBytes); }

 private:
  static constexpr int kSlots = 4;
  static constexpr size_t kCounterBytes = 256, kFrontBytes = kCounterBytes + sizeof(PartialSums);
  struct Slot {
    PinnedMemory memory;
    Event copied;
  };

  char* front() { return static_cast<char*>(memory_.get()); }
  char* start() { return front() + kFrontBytes; }

  // cudaFree waits for the device, so nothing still reads what is let go; rounded up, so that it is seldom.
  void reserve(size_t bytes, cudaStream_t stream) {
    if (memory_ && bytes <= room_) return;
    const Uncaptured here;
    room_ = (bytes + bytes / 2 + 4095) / 4096 * 4096;
    written_.clear();
    for (Slot& slot : slots_) slot = {};
    void* memory = nullptr;
    memory_.reset();
    ok(cudaMalloc(&memory, kFrontBytes + room_), "memory for a table");
    memory_.reset(memory);
    ok(cudaMemsetAsync(memory, 0, kCounterBytes, stream), "clearing a counter");
  }

  void make(Slot& slot) {
    if (slot.memory) return;
    const Uncaptured here;
    void* memory = nullptr;
    ok(cudaHostAlloc(&memory, room_, cudaHostAllocDefault), "pinned memory for a table");
    slot.memory.reset(memory);
    cudaEvent_t event = nullptr;
    ok(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
    slot.copied.reset(event);
  }

  DeviceMemory memory_;
  size_t room_ = 0;
  std::vector<char> written_;
  Slot slots_[kSlots];
  size_t next_ = 0;
};

}  // namespace onepass::cuda
