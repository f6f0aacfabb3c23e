// Runs a block: each thread until it waits, then the next, until all are done. No thread is ever interrupted;
// which one goes first is the caller's choice.
#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>

#include "block.h"

namespace emulator {

Settings settings;
Here here;
Thread* current = nullptr;
Grid grid;

std::string position(const uint3& i) {
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
    grid.failure = "emulator: kernel " + std::string(grid.name) + ", block " + position(here.block) +
                   ", thread " + position(here.thread) + ": " + text;
  }
  publish(&grid.finished);
  Fiber::yield();  // never resumed: the launch is over
  abort();
}

void check_aligned(const void* p, size_t bytes, const char* what, Where where) {
  if (reinterpret_cast<uintptr_t>(p) % bytes)
    fail("%s of %zu bytes at %p, which is not a multiple of them, at %s:%d", what, bytes, p, where.file,
         where.line);
}

std::vector<int> ordered(size_t n, unsigned salt) {
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  if (settings.order == Order::kReverse) return {order.rbegin(), order.rend()};
  if (settings.order == Order::kShuffled) {
    std::mt19937 random(settings.seed * 7919u + salt);
    std::shuffle(order.begin(), order.end(), random);
  }
  return order;
}

void thread_main() {
  for (;;) {
    observe(&grid.launched);
    observe(&current->block->born);
    (*grid.kernel)();
    if (copies_in_flight(*current)) fail("the thread exits while a cp.async is under way");
    current->state = State::kExited;
    leave(*current->block);
    publish(&grid.finished);
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
  if (!grid.cooperative)
    fail("grid.sync at %s:%d in a launch that is not cooperative", where.file, where.line);
  Token* token = &grid.barrier[grid.generation % 2];
  publish(token);
  ++current->block->at_grid_barrier;
  wait(State::kAtGridBarrier, "grid.sync", where);
  observe(token);
  ++current->epoch;
}

static std::string about(const Block& block) {
  return "emulator: kernel " + std::string(grid.name) + ", block " + position(block.index) + ": ";
}

std::string describe(const Block& block) {
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
  std::string text;
  for (const auto& [at, count] : counts) text += "\n  " + std::to_string(count) + " " + at;
  return text;
}

static bool at_one_place(const Block& block) {
  for (const Thread& t : block.threads)
    if (t.where.line != block.threads[0].where.line) return false;
  return true;
}

void run_block(Block& block) {
  here.block = block.index;
  here.block_rank = block.rank;
  here.block_in_cluster = block.in_cluster;
  const size_t n = block.threads.size();
  const auto all_ready = [&](unsigned salt) {
    for (int i : ordered(n, salt + block.number)) block.ready.push(&block.threads[i]);
  };
  if (!block.started) {
    shared_memory_begins(block);
    all_ready(1);
  }
  block.started = true;
  for (;;) {
    while (!block.ready.empty()) {
      resume(block.ready.pop());
      if (!grid.failure.empty()) return;
    }
    if (shared_overrun(block)) {
      grid.failure = about(block) + "something was written behind a shared variable";
      return;
    }
    if (block.exited == n || block.at_grid_barrier == n) return;
    if (block.at_barrier != n && block.at_cluster_barrier) return;  // other blocks may release some
    if (block.at_barrier != n || !at_one_place(block)) {
      grid.failure = about(block) + "its threads do not meet:" + describe(block);
      return;
    }
    block.at_barrier = 0;
    block.votes[++block.generation % 2] = 0;
    all_ready(1000 * block.generation);
  }
}

}  // namespace emulator
