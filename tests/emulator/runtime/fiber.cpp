#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(EMULATOR_ASAN)
extern "C" void __sanitizer_start_switch_fiber(void** keep, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* kept, const void** old_bottom, size_t* old_size);
#elif defined(EMULATOR_TSAN)
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* token);
extern "C" void __tsan_release(void* token);
extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);
#endif

// Keeps what the calling convention (System V, x86-64) says a function preserves: six registers and the stack
// pointer, which also finds the return address. Everything else was saved by the caller.
extern "C" void emulator_swap(void** save, void* load);
asm(R"(
.text
.globl emulator_swap
.hidden emulator_swap
.type emulator_swap, @function
emulator_swap:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
.size emulator_swap, . - emulator_swap
)");

namespace emulator {

constexpr size_t kStack = 256 << 10;  // reserved; only touched pages become memory
constexpr size_t kPage = 4096;
constexpr int kSavedRegisters = 6;

static Fiber* running = nullptr;
static void* scheduler_stack_pointer = nullptr;
#if defined(EMULATOR_ASAN)
static const void* scheduler_bottom = nullptr;
static size_t scheduler_size = 0;
#elif defined(EMULATOR_TSAN)
static void* scheduler_fiber = nullptr;
constexpr unsigned kNoEdge = 1;  // a switch alone orders nothing
#endif

Fiber::Fiber(void (*entry)()) : entry_(entry) {
  void* memory =
      mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  mprotect(stack_, kPage, PROT_NONE);  // a stack that overflows stops here

  // The frame that the first swap pops: registers of no meaning, then begin() as the return address, and one
  // word more, since a function starts 8 bytes off a 16-byte boundary.
  void** frame = reinterpret_cast<void**>(stack_ + kStack);
  *--frame = nullptr;
  *--frame = reinterpret_cast<void*>(&Fiber::begin);
  for (int i = 0; i < kSavedRegisters; ++i) *--frame = nullptr;
  stack_pointer_ = frame;
#if defined(EMULATOR_TSAN)
  sanitizer_ = __tsan_create_fiber(0);
#endif
}

void Fiber::begin() {
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  running->entry_();
  abort();  // entry never returns
}

void Fiber::resume() {
  running = this;
#if defined(EMULATOR_ASAN)
  void* keep = nullptr;
  __sanitizer_start_switch_fiber(&keep, stack_, kStack);
#elif defined(EMULATOR_TSAN)
  scheduler_fiber = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(sanitizer_, kNoEdge);
#endif
  emulator_swap(&scheduler_stack_pointer, stack_pointer_);
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(keep, nullptr, nullptr);
#endif
}

void Fiber::yield() {
  Fiber* self = running;
#if defined(EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(&self->sanitizer_, scheduler_bottom, scheduler_size);
#elif defined(EMULATOR_TSAN)
  __tsan_switch_to_fiber(scheduler_fiber, kNoEdge);
#endif
  emulator_swap(&self->stack_pointer_, scheduler_stack_pointer);
#if defined(EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(self->sanitizer_, &scheduler_bottom, &scheduler_size);
#endif
}

#if defined(EMULATOR_TSAN)
void publish(void* token) { __tsan_release(token); }
void observe(void* token) { __tsan_acquire(token); }
Unseen::Unseen() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }  // writes too, in spite of its name
Unseen::~Unseen() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
#else
void publish(void*) {}
void observe(void*) {}
Unseen::Unseen() {}
Unseen::~Unseen() {}
#endif

}  // namespace emulator
