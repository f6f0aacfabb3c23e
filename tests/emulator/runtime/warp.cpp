// Warp operations. A lane leaves a pointer to its call and waits; the last lane to arrive moves the data
// between the stacks of all of them.
#include <cstring>

#include "block.h"

namespace emulator {

// Not through memcpy, which the sanitizers replace: to them, these bytes change without anybody's access.
static void move_unseen(void* to, const void* from, size_t bytes) {
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static bool named(unsigned mask, int lane) { return mask >> lane & 1; }

static bool same_call(const WarpCall& a, const Thread& other) {
  if (other.state != State::kAtWarpCall) return false;
  const WarpCall& b = *other.call;
  return a.mask == b.mask && a.where.line == b.where.line && !strcmp(a.what, b.what) &&
         !strcmp(a.where.file, b.where.file);
}

static void check(const WarpCall& call, const Block& block, int lane, int first) {
  if (!named(call.mask, lane))
    fail("%s: lane %d is not in its own mask %08x, at %s:%d", call.what, lane, call.mask, call.where.file,
         call.where.line);
  for (int i = 0; i < kWarp; ++i)
    if (named(call.mask, i) && first + i >= static_cast<int>(block.threads.size()))
      fail("%s: mask %08x names lane %d, but the block has %zu threads, at %s:%d", call.what, call.mask, i,
           block.threads.size(), call.where.file, call.where.line);
  if (call.kind == WarpCall::kShuffle && !named(call.mask, call.source))
    fail("%s: lane %d reads lane %d, which is not in mask %08x, at %s:%d", call.what, lane, call.source,
         call.mask, call.where.file, call.where.line);
}

// All lanes of the mask are here.
static void complete(const WarpCall& any, Thread* warp) {
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!named(any.mask, lane)) continue;
    const WarpCall& call = *warp[lane].call;
    if (call.kind == WarpCall::kShuffle) move_unseen(call.out, warp[call.source].call->in, call.bytes);
    if (call.kind == WarpCall::kGather)
      for (int i = 0; i < kWarp; ++i)
        if (named(any.mask, i))
          move_unseen(static_cast<char*>(call.out) + i * call.bytes, warp[i].call->in, call.bytes);
  }
}

// Of the warp operations only __syncwarp orders memory.
static void order_memory(const WarpCall& call, Block& block, Thread* warp, int warp_number) {
  const int slot = block.next_slot[warp_number]++ % Block::kSyncSlots;
  for (int i = 0; i < kWarp; ++i)
    if (named(call.mask, i)) {
      observe(&warp[i].token);
      warp[i].sync_slot = slot;
    }
  publish(&block.warp_sync[warp_number][slot]);
}

void warp_call(WarpCall& call) {
  Thread& self = *current;
  Block& block = *self.block;
  const int warp_number = self.number / kWarp, first = warp_number * kWarp;
  Thread* const warp = block.threads.data() + first;
  check(call, block, here.lane, first);

  self.call = &call;
  self.state = State::kAtWarpCall;
  if (call.kind == WarpCall::kSync) publish(&self.token);
  bool last = true;
  for (int i = 0; i < kWarp && last; ++i)
    if (named(call.mask, i)) last = same_call(call, warp[i]);
  if (last) {
    complete(call, warp);
    if (call.kind == WarpCall::kSync) order_memory(call, block, warp, warp_number);
    for (int i = 0; i < kWarp; ++i) {
      if (!named(call.mask, i)) continue;
      warp[i].state = State::kReady;
      if (&warp[i] != &self) block.ready.push(&warp[i]);
    }
  } else {
    wait(State::kAtWarpCall, call.what, call.where);
  }
  if (call.kind == WarpCall::kSync) observe(&block.warp_sync[warp_number][self.sync_slot]);
}

}  // namespace emulator
