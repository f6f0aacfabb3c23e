// A fibre: a stack of its own and a place to go on from. Every CUDA thread is one; the scheduler's own stack
// is the place they all return to. The sanitizers are told of every switch.
#pragma once
#include <cstddef>

namespace emulator {

class Fiber {
 public:
  explicit Fiber(void (*entry)());  // `entry` never returns; after the last piece of work it waits in yield()
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void resume();        // from the scheduler: runs the fibre until it yields
  static void yield();  // from the running fibre: back to the scheduler

 private:
  static void begin();

  void* stack_pointer_;
  char* stack_;
  void* sanitizer_ = nullptr;  // TSan: its fibre. ASan: what it keeps of the stack while we are away
  void (*entry_)();
};

// What the sanitizers shall believe. All are empty in other modes.
//
// Publish and observe are two halves of an edge: all that the publisher did before comes before all that the
// observer does after.
void publish(void* token);
void observe(void* token);

// While one lives, memory that is allocated or freed is not seen as an access by the running CUDA thread.
class Unseen {
 public:
  Unseen();
  ~Unseen();
};

}  // namespace emulator
