// Runs a grid: cluster after cluster, or all of them in turn between grid barriers. Where a launch asks for
// none, every block is a cluster.
#include <stdexcept>

#include "cluster.h"
#include "scheduler.h"

namespace emulator {

constexpr size_t kMostConcurrentThreads = 4096;
#if defined(EMULATOR_TSAN)
constexpr size_t kMostFibers = 8000;  // TSan knows no more threads
#else
constexpr size_t kMostFibers = 32000;  // the kernel's limit on mappings, of which a stack takes two
#endif

static std::vector<Fiber*> fibers;  // thread k of a launch always runs on fibre k

static size_t volume(const dim3& d) { return size_t{d.x} * d.y * d.z; }
static dim3 position_in(unsigned number, const dim3& size) {
  return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

static std::unique_ptr<Block> make_block(const Config& config, uint3 index, size_t first_fiber) {
  auto block = std::make_unique<Block>();
  const dim3& g = config.grid;
  block->number = (index.z * g.y + index.y) * g.x + index.x;
  block->index = index;
  block->threads.resize(volume(config.block));
  block->ready.reserve(block->threads.size());
  block->dynamic_shared = config.shared;
  for (size_t k = 0; k < block->threads.size(); ++k) {
    Thread& t = block->threads[k];
    t.index = position_in(static_cast<unsigned>(k), config.block);
    t.number = static_cast<int>(k);
    t.block = block.get();
    while (fibers.size() <= first_fiber + k) fibers.push_back(new Fiber(&thread_main));
    t.fiber = fibers[first_fiber + k];
  }
  return block;
}

static std::unique_ptr<Cluster> make_cluster(const Config& config, unsigned number, size_t first_fiber) {
  auto cluster = std::make_unique<Cluster>();
  const dim3 &g = config.grid, &c = config.cluster;
  const dim3 at = position_in(number, {g.x / c.x, g.y / c.y, g.z / c.z});
  const size_t threads = volume(config.block);
  cluster->number = number;
  cluster->threads = volume(c) * threads;
  for (unsigned rank = 0; rank < volume(c); ++rank) {
    const dim3 in = position_in(rank, c);
    const uint3 index{at.x * c.x + in.x, at.y * c.y + in.y, at.z * c.z + in.z};
    auto block = make_block(config, index, first_fiber + rank * threads);
    block->cluster = cluster.get();
    block->rank = rank;
    block->in_cluster = in;
    cluster->blocks.push_back(std::move(block));
  }
  return cluster;
}

// One cluster after another, each on the same fibres; or, concurrent, on fibres of their own, which nothing
// orders.
static void run_in_turn(const Config& config, unsigned clusters, size_t threads, bool concurrent) {
  std::vector<std::unique_ptr<Cluster>> kept;
  for (int number : ordered(clusters, 0)) {
    kept.push_back(make_cluster(config, number, concurrent ? number * threads : 0));
    run_cluster(*kept.back());
    if (!grid.failure.empty()) return;
    if (concurrent) continue;
    kept.clear();
    observe(&grid.finished);
    publish(&grid.launched);
  }
}

static void release(Block& block) {
  block.at_grid_barrier = 0;
  for (int i : ordered(block.threads.size(), 10000 * grid.generation + block.number))
    block.ready.push(&block.threads[i]);
}

static void run_cooperatively(const Config& config, unsigned clusters, size_t threads) {
  std::vector<std::unique_ptr<Cluster>> all;
  std::vector<Block*> blocks;
  for (int number : ordered(clusters, 0)) {
    all.push_back(make_cluster(config, number, number * threads));
    for (auto& block : all.back()->blocks) blocks.push_back(block.get());
  }
  for (;;) {
    for (auto& cluster : all) {
      run_cluster(*cluster);
      if (!grid.failure.empty()) return;
    }
    size_t waiting = 0;
    for (const Block* block : blocks) waiting += block->at_grid_barrier > 0;
    if (!waiting) return;
    if (waiting != blocks.size()) {
      grid.failure = "emulator: kernel " + std::string(grid.name) + ": " + std::to_string(waiting) + " of " +
                     std::to_string(blocks.size()) + " blocks wait in grid.sync, the others exited";
      return;
    }
    ++grid.generation;
    for (Block* block : blocks) release(*block);
  }
}

static void check_threads(size_t alive, const std::string& name) {
  const size_t most = settings.concurrent_blocks ? kMostConcurrentThreads : kMostFibers;
  if (alive > most)
    throw std::runtime_error("emulator: kernel " + name + ": " + std::to_string(alive) +
                             " threads at a time" +
                             (settings.concurrent_blocks ? ", for blocks are concurrent," : "") + " and " +
                             std::to_string(most) + " is the most");
}

void run_grid(const Config& config, const std::string& name, const std::function<void()>& body) {
  const size_t threads = volume(config.block) * volume(config.cluster);
  const unsigned clusters = static_cast<unsigned>(volume(config.grid) / volume(config.cluster));
  const bool all_alive = config.cooperative || settings.concurrent_blocks;
  grid.kernel = &body;
  grid.name = name.c_str();
  grid.cooperative = config.cooperative;
  grid.failure.clear();
  here.block_size = config.block;
  here.grid_size = config.grid;
  here.cluster_size = config.cluster;
  check_threads(all_alive ? threads * clusters : threads, name);
  publish(&grid.launched);
  if (config.cooperative)
    run_cooperatively(config, clusters, threads);
  else
    run_in_turn(config, clusters, threads, settings.concurrent_blocks);
  observe(&grid.finished);
  grid.name = "";
  if (grid.failure.empty()) return;
  // Some fibres stopped inside the kernel. Their stacks are given up: the sanitizers have marks on them.
  fibers.clear();
  throw std::runtime_error(grid.failure);
}

}  // namespace emulator
