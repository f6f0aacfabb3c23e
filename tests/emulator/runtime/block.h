// The state of a block while it runs.
#pragma once
#include <memory>
#include <vector>

#include "core.h"
#include "fiber.h"

namespace emulator {

enum class State { kReady, kAtBlockBarrier, kAtWarpCall, kAtGridBarrier, kExited };

struct Block;

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros;
};

// A thing to hang a happens-before edge on: its address.
struct Token {
  alignas(8) char address[8];
};

struct Thread {
  uint3 index;
  int number = 0;  // in the block
  Block* block = nullptr;
  Fiber* fiber = nullptr;
  State state = State::kReady;

  const char* waits_in = "";
  Where where{};
  WarpCall* call = nullptr;
  int sync_slot = 0;  // of the warp: where the last __syncwarp was published
  Token token;

  std::vector<Copy> open_copies;  // cp.async not yet committed
  std::vector<std::vector<Copy>> copy_groups;

  bool fenced = false;
  void* last_atomic = nullptr;
};

// Threads that can go on, first come, first served. Each thread is in it once at most.
class ReadyQueue {
 public:
  void reserve(size_t threads) { ring_.resize(threads + 1); }
  void push(Thread* t) { ring_[end_++ % ring_.size()] = t; }
  Thread* pop() { return ring_[begin_++ % ring_.size()]; }
  bool empty() const { return begin_ == end_; }

 private:
  std::vector<Thread*> ring_;
  size_t begin_ = 0, end_ = 0;
};

struct SharedVariable {
  const void* key;
  void* memory;   // what was allocated
  void* address;  // where the variable lies in it
  size_t bytes;
};

struct Block {
  uint3 index{};
  unsigned number = 0;  // in the grid
  std::vector<Thread> threads;
  ReadyQueue ready;
  bool started = false;
  size_t exited = 0, at_barrier = 0, at_grid_barrier = 0;

  unsigned generation = 0;  // of block barriers
  Token barrier[2];         // of even and odd generations
  int votes[2] = {0, 0};

  static constexpr int kSyncSlots = 64;
  Token warp_sync[kMaxThreads / kWarp][kSyncSlots];
  int next_slot[kMaxThreads / kWarp] = {};

  std::vector<SharedVariable> shared;
  size_t static_shared = 0, dynamic_shared = 0;
  void* atomic_before_barrier = nullptr;  // the last atomic of a thread that has since passed a barrier

  ~Block();
};

extern Thread* current;  // null outside a kernel

// The launch that runs.
struct Grid {
  const std::function<void()>* kernel = nullptr;
  const char* name = "";
  std::string failure;  // empty while there is none
  Token launched, finished;
  unsigned generation = 0;  // of grid barriers
  Token barrier[2];         // of even and odd generations
};
extern Grid grid;

void thread_main();            // what every fibre does for good: a thread of one kernel, then of the next
void run_block(Block& block);  // until all its threads have exited or wait for the other blocks
std::vector<int> ordered(size_t n, unsigned salt);  // 0 .. n-1 as the settings say

bool copies_in_flight(const Thread& t);
bool shared_overrun(const Block& block);

// The running thread stops here until the scheduler finds it ready.
void wait(State state, const char* what, Where where);

}  // namespace emulator
