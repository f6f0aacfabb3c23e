// What the two halves of the runtime know of each other: streams queue, the scheduler runs.
#pragma once
#include "core.h"

namespace emulator {

enum class Order { kForward, kReverse, kShuffled };

struct Settings {
  Order order = Order::kForward;
  unsigned seed = 0;
  bool concurrent_blocks = false;  // each block has threads of its own: TSan then sees races between blocks
  int multiprocessors = 3;
  int capability = 90;             // compute capability, times ten
  size_t max_shared = 227 * 1024;  // of a block
  size_t reserved_shared = 1024;   // of every block besides, by the driver
  size_t l2_cache = size_t{50} << 20;
};
extern Settings settings;

constexpr int kBlocksPerMultiprocessor = 2;

// Runs every thread of every block. Throws what went wrong.
void run_grid(const Config& config, const std::string& name, const std::function<void()>& body);

}  // namespace emulator
