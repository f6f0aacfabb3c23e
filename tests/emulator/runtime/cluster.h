// Blocks that run side by side: they wait for each other and see each other's shared memory.
#pragma once
#include "block.h"

namespace emulator {

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;  // by rank
  unsigned number = 0;                         // in the grid
  size_t threads = 0;                          // in all blocks

  size_t arrived = 0;
  unsigned generation = 0;  // of cluster barriers
  Token barrier[2];         // of even and odd generations
  void* last_atomic = nullptr;
};

// Until all threads have exited or wait for the other clusters.
void run_cluster(Cluster& cluster);

}  // namespace emulator
