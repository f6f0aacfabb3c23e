// Shared memory, fences and cp.async.
#include <cstdlib>
#include <cstring>

#include "block.h"
#include "scheduler.h"

namespace emulator {

constexpr size_t kAllocation = 1024;  // alignment of what is allocated, and of dynamic shared memory
constexpr int kGarbage = 0xFF;        // a NaN in every float type, -1 in every integer, no valid bool

// The sanitizers replace these two, and so see an access by the running thread and check its bounds. Through
// pointers, for the compiler would write them out.
static void* (*volatile seen_copy)(void*, const void*, size_t) = &memcpy;
static void* (*volatile seen_set)(void*, int, size_t) = &memset;

Block::~Block() {
  const Unseen unseen;
  for (const SharedVariable& variable : shared) free(variable.memory);
}

bool guard_changed(const void* end) {
  for (size_t i = 0; i < kGuard; ++i)
    if (static_cast<const unsigned char*>(end)[i] != kGuardByte) return true;
  return false;
}

bool shared_overrun(const Block& block) {
  for (const SharedVariable& v : block.shared)
    if (guard_changed(static_cast<char*>(v.address) + v.bytes)) return true;
  return false;
}

// At exactly the declared alignment and not at twice that, so that luck is not relied on.
static void* allocate(Block& block, const void* key, size_t bytes, size_t align, bool dynamic) {
  const Unseen unseen;
  const size_t offset = align < kAllocation ? align : 0;
  void* memory = nullptr;
  if (posix_memalign(&memory, kAllocation, offset + bytes + kGuard)) abort();
  char* address = static_cast<char*>(memory) + offset;
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(address)[i] = static_cast<char>(kGarbage);
  memset(address + bytes, kGuardByte, kGuard);
  block.shared.push_back({key, memory, address, bytes, align, dynamic});
  return address;
}

static void* find(const Block& block, const void* key) {
  for (const SharedVariable& variable : block.shared)
    if (variable.key == key) return variable.address;
  return nullptr;
}

void* shared_memory(const void* key, size_t bytes, size_t align, const char* name) {
  Block& block = *current->block;
  if (void* found = find(block, key)) return found;
  block.static_shared += bytes;
  if (block.static_shared > kMaxStaticShared)
    fail("__shared__ %s: %zu bytes of static shared memory, and %zu is the most", name, block.static_shared,
         kMaxStaticShared);
  if (block.static_shared + block.dynamic_shared > settings.max_shared)
    fail("__shared__ %s: %zu bytes of static and %zu of dynamic shared memory, and %zu is the most", name,
         block.static_shared, block.dynamic_shared, settings.max_shared);
  return allocate(block, key, bytes, align, false);
}

void* dynamic_shared_memory() {
  static char key;
  Block& block = *current->block;
  if (void* found = find(block, &key)) return found;
  return allocate(block, &key, block.dynamic_shared, kAllocation, true);
}

const SharedVariable* variable_of(const Block& block, const void* p) {
  for (const SharedVariable& v : block.shared)
    if (p >= v.address && p < static_cast<char*>(v.address) + v.bytes) return &v;
  return nullptr;
}

void* variable_in(Block& block, const SharedVariable& like) {
  if (void* found = find(block, like.key)) return found;
  if (!like.dynamic) block.static_shared += like.bytes;
  return allocate(block, like.key, like.bytes, like.align, like.dynamic);
}

// Whoever wrote into a block before it started, or uses its memory after it ended, has done so in vain, and
// without a barrier between, which the sanitizers see.
void shared_memory_begins(Block& block) {
  for (const SharedVariable& v : block.shared) seen_set(v.address, kGarbage, v.bytes);
  publish(&block.born);
}

void shared_memory_ends(Block& block) {
  for (const SharedVariable& v : block.shared) seen_set(v.address, kGarbage, v.bytes);
#if defined(EMULATOR_ASAN)
  for (const SharedVariable& v : block.shared) free(v.memory);
  block.shared.clear();
#endif
}

void fence() {
  current->fenced = true;
  if (current->last_atomic) observe(current->last_atomic);
  if (current->block->atomic_before_barrier) observe(current->block->atomic_before_barrier);
}

bool fenced() { return current->fenced; }
void note_atomic(void* p) { current->last_atomic = p; }

// Until the wait there is garbage in the destination, and the source is read at the wait.
void async_copy(void* to, const void* from, size_t bytes, size_t zeros, Where where) {
  if ((bytes != 4 && bytes != 8 && bytes != 16) || zeros > bytes)
    fail("cp.async of %zu bytes, %zu of them zeros, at %s:%d", bytes, zeros, where.file, where.line);
  check_aligned(to, bytes, "cp.async to an address", where);
  check_aligned(from, bytes, "cp.async from an address", where);
  seen_set(to, kGarbage, bytes);
  const Unseen unseen;
  current->open_copies.push_back({to, from, bytes, zeros});
}

void async_commit() {
  const Unseen unseen;
  current->copy_groups.push_back(std::move(current->open_copies));
  current->open_copies.clear();
}

bool copies_in_flight(const Thread& t) {
  for (const auto& group : t.copy_groups)
    if (!group.empty()) return true;
  return !t.open_copies.empty();
}

void async_wait(size_t groups_left) {
  auto& groups = current->copy_groups;
  while (groups.size() > groups_left) {
    for (const Copy& copy : groups.front()) {
      const size_t data = copy.bytes - copy.zeros;
      if (data) seen_copy(copy.to, copy.from, data);
      if (copy.zeros) seen_set(static_cast<char*>(copy.to) + data, 0, copy.zeros);
    }
    const Unseen unseen;
    groups.erase(groups.begin());
  }
}

}  // namespace emulator
