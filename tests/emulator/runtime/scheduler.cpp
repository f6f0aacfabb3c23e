// Runs a grid: every thread of a block until it waits, then the next, until the block is done. No thread is
// ever interrupted; which one goes first is the caller's choice.
#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>

#include "block.h"

namespace emulator {

constexpr size_t kMostConcurrentThreads = 4096;

Settings settings;
Here here;
Thread* current = nullptr;

static const std::function<void()>* kernel = nullptr;
static const char* kernel_name = "";
static std::string failure;  // of this launch; empty while there is none
static Token launched, finished, grid_token[2];
static unsigned grid_generation = 0;
static std::vector<Fiber*> fibers;  // thread k of a launch always runs on fibre k

static std::string position(const uint3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

void fail(const char* format, ...) {
  {
    const Unseen unseen;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    failure = "emulator: kernel " + std::string(kernel_name) + ", block " + position(here.block) +
              ", thread " + position(here.thread) + ": " + text;
  }
  publish(&finished);
  Fiber::yield();  // never resumed: the launch is over
  abort();
}

void check_aligned(const void* p, size_t bytes, const char* what, Where where) {
  if (reinterpret_cast<uintptr_t>(p) % bytes)
    fail("%s of %zu bytes at %p, which is not a multiple of them, at %s:%d", what, bytes, p, where.file,
         where.line);
}

static std::vector<int> ordered(size_t n, unsigned salt) {
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (settings.order == Order::kReverse) return {order.rbegin(), order.rend()};
  if (settings.order == Order::kShuffled) {
    std::mt19937 random(settings.seed * 7919u + salt);
    std::shuffle(order.begin(), order.end(), random);
  }
  return order;
}

// What every fibre does for good: a thread of one kernel, then of the next.
static void thread_main() {
  for (;;) {
    observe(&launched);
    (*kernel)();
    if (copies_in_flight(*current)) fail("the thread exits while a cp.async is under way");
    current->state = State::kExited;
    ++current->block->exited;
    publish(&finished);
    Fiber::yield();
  }
}

void wait(State state, const char* what, Where where) {
  current->state = state;
  current->waits_in = what;
  current->where = where;
  Fiber::yield();
}

static void resume(Thread* t) {
  current = t;
  here.thread = t->index;
  here.lane = t->number % kWarp;
  t->fiber->resume();
  current = nullptr;
}

void block_barrier(const char* what, Where where) {
  Block& block = *current->block;
  Token* token = &block.barrier[block.generation % 2];
  publish(token);
  if (current->last_atomic) block.atomic_before_barrier = current->last_atomic;
  ++block.at_barrier;
  wait(State::kAtBlockBarrier, what, where);
  observe(token);
}

int block_vote(const char* what, Vote vote, bool mine, Where where) {
  int& votes = current->block->votes[current->block->generation % 2];
  votes += mine;
  const int all = static_cast<int>(current->block->threads.size());
  block_barrier(what, where);
  const int yes = votes;
  return vote == Vote::kCount ? yes : vote == Vote::kOr ? yes > 0 : yes == all;
}

void grid_barrier(Where where) {
  Token* token = &grid_token[grid_generation % 2];
  publish(token);
  ++current->block->at_grid_barrier;
  wait(State::kAtGridBarrier, "grid.sync", where);
  observe(token);
}

static std::string about(const Block& block) {
  return "emulator: kernel " + std::string(kernel_name) + ", block " + position(block.index) + ": ";
}

// Where the threads of a block that cannot go on are.
static std::string describe(const Block& block) {
  std::map<std::string, int> counts;
  for (const Thread& t : block.threads) {
    std::string at = "exited";
    if (t.state != State::kExited) {
      at = "wait in " + std::string(t.waits_in) + " at " + t.where.file + ":" + std::to_string(t.where.line);
      char mask[32];
      snprintf(mask, sizeof mask, ", mask %08x", t.state == State::kAtWarpCall ? t.call->mask : 0);
      if (t.state == State::kAtWarpCall) at += mask;
    }
    ++counts[at];
  }
  std::string text = about(block) + "its threads do not meet:";
  for (const auto& [at, count] : counts) text += "\n  " + std::to_string(count) + " " + at;
  return text;
}

static bool at_one_place(const Block& block) {
  for (const Thread& t : block.threads)
    if (t.where.line != block.threads[0].where.line) return false;
  return true;
}

// Until all its threads have exited or wait for the other blocks.
static void run_block(Block& block) {
  here.block = block.index;
  const size_t n = block.threads.size();
  const auto all_ready = [&](unsigned salt) {
    for (int i : ordered(n, salt + block.number)) block.ready.push(&block.threads[i]);
  };
  if (!block.started) all_ready(1);
  block.started = true;
  for (;;) {
    while (!block.ready.empty()) {
      resume(block.ready.pop());
      if (!failure.empty()) return;
    }
    if (shared_overrun(block)) {
      failure = about(block) + "something was written behind a shared variable";
      return;
    }
    if (block.exited == n || block.at_grid_barrier == n) return;
    if (block.at_barrier != n || !at_one_place(block)) {
      failure = describe(block);
      return;
    }
    block.at_barrier = 0;
    block.votes[++block.generation % 2] = 0;
    all_ready(1000 * block.generation);
  }
}

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
    if (!failure.empty()) return;
    if (concurrent) continue;
    kept.clear();
    observe(&finished);
    publish(&launched);
  }
}

static void run_cooperatively(const Config& config, unsigned blocks, size_t threads) {
  std::vector<std::unique_ptr<Block>> all;
  for (int number : ordered(blocks, 0)) all.push_back(make_block(config, number, number * threads));
  for (;;) {
    size_t waiting = 0;
    for (auto& block : all) {
      run_block(*block);
      if (!failure.empty()) return;
      waiting += block->at_grid_barrier == threads;
    }
    if (!waiting) return;
    if (waiting != all.size()) {
      failure = "emulator: kernel " + std::string(kernel_name) + ": " + std::to_string(waiting) + " of " +
                std::to_string(all.size()) + " blocks wait in grid.sync, the others exited";
      return;
    }
    ++grid_generation;
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
  kernel = &body;
  kernel_name = name.c_str();
  failure.clear();
  here.block_size = config.block;
  here.grid_size = config.grid;
  if (settings.concurrent_blocks && threads * blocks > kMostConcurrentThreads)
    throw std::runtime_error("emulator: kernel " + name + ": concurrent blocks have at most " +
                             std::to_string(kMostConcurrentThreads) + " threads in a grid");
  publish(&launched);
  if (cooperative)
    run_cooperatively(config, blocks, threads);
  else
    run_in_turn(config, blocks, threads, settings.concurrent_blocks);
  observe(&finished);
  kernel_name = "";
  if (failure.empty()) return;
  // Some fibres stopped inside the kernel. Their stacks are given up: the sanitizers have marks on them.
  fibers.clear();
  throw std::runtime_error(failure);
}

}  // namespace emulator
