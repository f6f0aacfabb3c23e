// Tables that are kept from one launch to the next, because the same lists come again and again.
#pragma once
#include <algorithm>
#include <list>
#include <mutex>

#include "memory.h"

namespace onepass::cuda {

// Where a launch runs: on a device, which is the current one, in the order of a stream.
struct Queue {
  int device;
  cudaStream_t stream;
  bool operator==(const Queue&) const = default;
};

// What a table is known by. first: where the list's first parameter lies; null for gradients on their own,
// which lie elsewhere every time.
struct Key {
  Queue queue;
  const void* kernel;
  const void* first;
  bool operator==(const Key&) const = default;
};

struct KeptTable {
  Key key;
  DeviceTable table;
  int64_t resident = 0;  // blocks of its kernel that the device runs at a time; 0: not asked yet
};

constexpr size_t kMostTables = 64;

// Held while a table is looked for and until its kernel is in the stream.
inline std::mutex& tables_mutex() {
  static std::mutex mutex;
  return mutex;
}

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ok(cudaStreamIsCapturing(stream, &status), "capture status");
  return status != cudaStreamCaptureStatusNone;
}

// The most recently used comes first. A captured launch has a table of its own for good: replays write it.
inline KeptTable& table_for(const Key& key) {
  // Never destroyed: at exit the runtime may be gone before us.
  static auto &tables = *new std::list<KeptTable>, &captured = *new std::list<KeptTable>;
  if (is_capturing(key.queue.stream)) return captured.emplace_back();
  const auto found = std::find_if(tables.begin(), tables.end(), [&](auto& kept) { return kept.key == key; });
  if (found != tables.end()) {
    tables.splice(tables.begin(), tables, found);
  } else {
    tables.emplace_front().key = key;
    if (tables.size() > kMostTables) tables.pop_back();
  }
  return tables.front();
}

}  // namespace onepass::cuda
