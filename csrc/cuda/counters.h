// Counters in device memory, by which the blocks of a launch learn who of them is the last. Kernels leave
// them at zero, so that nobody has to clear them between launches.
#pragma once
#include "kept.h"

namespace onepass::cuda {

class Counters {
 public:
  // So many of them, zero for what comes next on the stream.
  unsigned* hold(int64_t count, cudaStream_t stream) {
    if (count <= room_) return static_cast<unsigned*>(memory_.get());
    const Uncaptured here;
    room_ = std::max(count, kFewest);
    void* memory = nullptr;
    memory_.reset();  // cudaFree waits for the device: nothing still counts there
    ok(cudaMalloc(&memory, room_ * sizeof(unsigned)), "memory for counters");
    memory_.reset(memory);
    ok(cudaMemsetAsync(memory, 0, room_ * sizeof(unsigned), stream), "clearing counters");
    return static_cast<unsigned*>(memory);
  }

 private:
  static constexpr int64_t kFewest = 4096;

  DeviceMemory memory_;
  int64_t room_ = 0;
};

// Those of a queue: its launches come one after the other. A captured launch has its own for good: replays
// may run beside what comes later on this stream.
inline unsigned* counters_of(const Queue& queue, int64_t count) {
  struct Kept {
    Queue queue;
    Counters counters;
  };
  static std::mutex mutex;
  // Never destroyed: at exit the runtime may be gone before us.
  static auto &kept = *new std::list<Kept>, &captured = *new std::list<Kept>;
  const std::lock_guard lock(mutex);
  if (is_capturing(queue.stream))
    return captured.emplace_back(Kept{queue, {}}).counters.hold(count, queue.stream);
  auto found = std::find_if(kept.begin(), kept.end(), [&](const Kept& k) { return k.queue == queue; });
  if (found == kept.end()) found = kept.insert(kept.end(), Kept{queue, {}});
  return found->counters.hold(count, queue.stream);
}

}  // namespace onepass::cuda
