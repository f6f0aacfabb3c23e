#include "streams.h"

#include <deque>
#include <map>
#include <set>
#include <stdexcept>
#include <vector>

#include "scheduler.h"

namespace emulator {

Counts counts;
int64_t loaded_bytes = 0, stored_bytes = 0;

struct Stream {
  std::deque<Work> waiting;
  size_t finished = 0;
  bool running = false;
};
static std::map<cudaStream_t, Stream> streams;
static std::set<cudaStream_t> unordered;  // streams that ignore the null stream

size_t queued(cudaStream_t s) { return streams[s].finished + streams[s].waiting.size(); }
bool done(cudaStream_t s, size_t upto) { return streams[s].finished >= upto; }

// An error leaves nothing behind that a later call would run.
static void forget_all() {
  for (auto& [handle, stream] : streams) {
    stream.finished += stream.waiting.size();
    stream.waiting.clear();
    stream.running = false;
  }
}

void drain(cudaStream_t s, size_t upto) {
  Stream& stream = streams[s];
  if (stream.running) return;  // one of its own operations waits for another stream, which waits for us
  while (stream.finished < upto) {
    const Work work = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    stream.running = true;
    try {
      work();
    } catch (...) {
      ++stream.finished;
      forget_all();
      throw;
    }
    stream.running = false;
    ++stream.finished;
  }
}

void drain(cudaStream_t s) { drain(s, queued(s)); }
void drain_all() {
  for (auto& [handle, stream] : streams) drain(handle);
}

void set_blocking(cudaStream_t s, bool blocking) {
  if (blocking)
    unordered.erase(s);
  else
    unordered.insert(s);
}

// The null stream waits for all others but the unordered ones, and they for it.
void queue(cudaStream_t s, Work work) {
  std::vector<std::pair<cudaStream_t, size_t>> before;
  if (!s) {
    for (auto& [handle, stream] : streams)
      if (handle && !unordered.count(handle)) before.emplace_back(handle, queued(handle));
  } else if (!unordered.count(s)) {
    before.emplace_back(nullptr, queued(nullptr));
  }
  streams[s].waiting.push_back([before, work = std::move(work)] {
    for (const auto& [handle, upto] : before) drain(handle, upto);
    work();
  });
}

void enqueue(const Config& config, const char* name, std::function<void()> body) {
  check_launch(config, name);
  ++counts.launches;
  queue(config.stream,
        [=, name = std::string(name), body = std::move(body)] { run_grid(config, name, body); });
}

}  // namespace emulator

// What Python calls, through ctypes.
using namespace emulator;
extern "C" {
EMULATOR_API void emulator_set_order(int order, unsigned seed) {
  settings.order = static_cast<Order>(order);
  settings.seed = seed;
}
EMULATOR_API void emulator_set_concurrent_blocks(int on) { settings.concurrent_blocks = on; }
EMULATOR_API int64_t emulator_launches() { return counts.launches; }
EMULATOR_API int64_t emulator_copies() { return counts.copies; }
EMULATOR_API int64_t emulator_copied_bytes() { return counts.copied_bytes; }
EMULATOR_API int64_t emulator_loaded_bytes() { return loaded_bytes; }
EMULATOR_API int64_t emulator_stored_bytes() { return stored_bytes; }
EMULATOR_API void emulator_reset_counts() {
  counts = {};
  loaded_bytes = stored_bytes = 0;
}
// Null, or what went wrong.
EMULATOR_API const char* emulator_synchronize() {
  static std::string message;
  try {
    drain_all();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
}
