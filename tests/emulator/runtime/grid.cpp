// Runs a grid: block after block, or all of them in turn between grid barriers.
#include <stdexcept>

#include "block.h"
#include "scheduler.h"

namespace emulator {

constexpr size_t kMostConcurrentThreads = 4096;

static std::vector<Fiber*> fibers;  // thread k of a launch always runs on fibre k

static std::unique_ptr<Block> make_block(const Config& config, unsigned number, size_t first_fiber) {
  auto block = std::make_unique<Block>();
  block->number = number;
  const dim3 &g = config.grid, &b = config.block;
  block->index = {number % g.x, number / g.x % g.y, number / g.x / g.y};
  block->threads.resize(size_t{b.x} * b.y * b.z);
  block->ready.reserve(block->threads.size());
  block->dynamic_shared = config.shared;
  for (size_t k = 0; k < block->threads.size(); ++k) {
    Thread& t = block->threads[k];
    const unsigned i = static_cast<unsigned>(k);
    t.index = {i % b.x, i / b.x % b.y, i / b.x / b.y};
    t.number = static_cast<int>(k);
    t.block = block.get();
    while (fibers.size() <= first_fiber + k) fibers.push_back(new Fiber(&thread_main));
    t.fiber = fibers[first_fiber + k];
  }
  return block;
}

// One block after another, each on the same fibres; or, concurrent, on fibres of their own, which nothing
// orders.
static void run_in_turn(const Config& config, unsigned blocks, size_t threads, bool concurrent) {
  std::vector<std::unique_ptr<Block>> kept;
  for (int number : ordered(blocks, 0)) {
    kept.push_back(make_block(config, number, concurrent ? number * threads : 0));
    run_block(*kept.back());
    if (!grid.failure.empty()) return;
    if (concurrent) continue;
    kept.clear();
    observe(&grid.finished);
    publish(&grid.launched);
  }
}

static void run_cooperatively(const Config& config, unsigned blocks, size_t threads) {
  std::vector<std::unique_ptr<Block>> all;
  for (int number : ordered(blocks, 0)) all.push_back(make_block(config, number, number * threads));
  for (;;) {
    size_t waiting = 0;
    for (auto& block : all) {
      run_block(*block);
      if (!grid.failure.empty()) return;
      waiting += block->at_grid_barrier == threads;
    }
    if (!waiting) return;
    if (waiting != all.size()) {
      grid.failure = "emulator: kernel " + std::string(grid.name) + ": " + std::to_string(waiting) + " of " +
                     std::to_string(all.size()) + " blocks wait in grid.sync, the others exited";
      return;
    }
    ++grid.generation;
    for (auto& block : all) {
      block->at_grid_barrier = 0;
      for (Thread& t : block->threads) block->ready.push(&t);
    }
  }
}

void run_grid(const Config& config, bool cooperative, const std::string& name,
              const std::function<void()>& body) {
  const size_t threads = size_t{config.block.x} * config.block.y * config.block.z;
  const unsigned blocks = config.grid.x * config.grid.y * config.grid.z;
  grid.kernel = &body;
  grid.name = name.c_str();
  grid.failure.clear();
  here.block_size = config.block;
  here.grid_size = config.grid;
  if (settings.concurrent_blocks && threads * blocks > kMostConcurrentThreads)
    throw std::runtime_error("emulator: kernel " + name + ": concurrent blocks have at most " +
                             std::to_string(kMostConcurrentThreads) + " threads in a grid");
  publish(&grid.launched);
  if (cooperative)
    run_cooperatively(config, blocks, threads);
  else
    run_in_turn(config, blocks, threads, settings.concurrent_blocks);
  observe(&grid.finished);
  grid.name = "";
  if (grid.failure.empty()) return;
  // Some fibres stopped inside the kernel. Their stacks are given up: the sanitizers have marks on them.
  fibers.clear();
  throw std::runtime_error(grid.failure);
}

}  // namespace emulator
