// The state of a block while it runs.
#pragma once
#include <memory>
#include <vector>

#include "core.h"
#include "fiber.h"

namespace emulator {

enum class State { kReady, kAtBlockBarrier, kAtWarpCall, kAtGridBarrier, kAtClusterBarrier, kExited };

struct Block;
struct Cluster;

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

  bool arrived = false;  // at a cluster barrier, for which it has not waited yet
  Where arrived_at{};
  unsigned arrived_generation = 0;
  int epoch = 0;  // how many barriers of the cluster and the grid it has passed
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
  size_t bytes, align;
  bool dynamic;
};

struct Block {
  uint3 index{};
  unsigned number = 0;  // in the grid
  std::vector<Thread> threads;
  ReadyQueue ready;
  bool started = false;
  size_t exited = 0, at_barrier = 0, at_grid_barrier = 0, at_cluster_barrier = 0;

  unsigned generation = 0;  // of block barriers
  Token barrier[2];         // of even and odd generations
  int votes[2] = {0, 0};

  static constexpr int kSyncSlots = 64;
  Token warp_sync[kMaxThreads / kWarp][kSyncSlots];
  int next_slot[kMaxThreads / kWarp] = {};

  std::vector<SharedVariable> shared;
  size_t static_shared = 0, dynamic_shared = 0;
  void* atomic_before_barrier = nullptr;  // the last atomic of a thread that has since passed a barrier

  Cluster* cluster = nullptr;  // of this block alone, where the launch asks for none
  unsigned rank = 0;           // in the cluster
  dim3 in_cluster;
  Token born, died;    // of its shared memory
  int mapped_in = -1;  // the last epoch in which another block mapped its shared memory
  Where mapped_at{};

  ~Block();
};

extern Thread* current;  // null outside a kernel

// The launch that runs.
struct Grid {
  const std::function<void()>* kernel = nullptr;
  const char* name = "";
  bool cooperative = false;
  std::string failure;  // empty while there is none
  Token launched, finished;
  unsigned generation = 0;  // of grid barriers
  Token barrier[2];         // of even and odd generations
};
extern Grid grid;

void thread_main();            // what every fibre does for good: a thread of one kernel, then of the next
void run_block(Block& block);  // until all its threads have exited or some wait for the other blocks
void leave(Block& block);      // the running thread of it exits
std::string describe(const Block& block);  // where its threads are
std::string position(const uint3& index);
std::vector<int> ordered(size_t n, unsigned salt);  // 0 .. n-1 as the settings say

bool copies_in_flight(const Thread& t);
bool shared_overrun(const Block& block);
const SharedVariable* variable_of(const Block& block, const void* p);
void* variable_in(Block& block, const SharedVariable& like);  // the same variable in another block
void shared_memory_begins(Block& block);
void shared_memory_ends(Block& block);

// The running thread stops here until the scheduler finds it ready.
void wait(State state, const char* what, Where where);

}  // namespace emulator
