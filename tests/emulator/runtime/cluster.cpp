// The barrier of a cluster, and who may use whose shared memory when.
#include "cluster.h"

#include <algorithm>
#include <cstring>

#include "scheduler.h"

namespace emulator {

void need_clusters(Where where) {
  if (settings.capability < 90)
    fail("this_cluster() at %s:%d on a device of compute capability %d.%d, and clusters need 9.0", where.file,
         where.line, settings.capability / 10, settings.capability % 10);
}

static bool same_place(const Where& a, const Where& b) { return a.line == b.line && !strcmp(a.file, b.file); }

// A warp arrives as one; warps and blocks may do so at places of their own.
static void check_places(const Block& block) {
  for (const Thread& t : block.threads) {
    const Thread& first = block.threads[t.number / kWarp * kWarp];
    if (!same_place(t.arrived_at, first.arrived_at))
      fail("threads of one warp in block %s arrive at the cluster's barrier at %s:%d and at %s:%d",
           position(block.index).c_str(), first.arrived_at.file, first.arrived_at.line, t.arrived_at.file,
           t.arrived_at.line);
  }
}

// All threads of the cluster have arrived.
static void release(Cluster& cluster) {
  const Unseen unseen;
  ++cluster.generation;
  cluster.arrived = 0;
  for (auto& block : cluster.blocks) {
    if (cluster.last_atomic) block->atomic_before_barrier = cluster.last_atomic;
    block->at_cluster_barrier = 0;
    for (int i : ordered(block->threads.size(), 100 * cluster.generation + block->number)) {
      Thread& t = block->threads[i];
      if (t.state != State::kAtClusterBarrier) continue;
      t.state = State::kReady;
      block->ready.push(&t);
    }
  }
}

void cluster_arrive(const char* what, Where where) {
  Thread& self = *current;
  Cluster& cluster = *self.block->cluster;
  if (self.arrived)
    fail("%s at %s:%d, and the thread has not waited since it arrived at %s:%d", what, where.file, where.line,
         self.arrived_at.file, self.arrived_at.line);
  publish(&cluster.barrier[cluster.generation % 2]);
  self.arrived = true;
  self.arrived_at = where;
  self.arrived_generation = cluster.generation;
  if (self.last_atomic) cluster.last_atomic = self.last_atomic;
  if (++cluster.arrived < cluster.threads) return;
  for (const auto& block : cluster.blocks) check_places(*block);
  release(cluster);
}

void cluster_wait(const char* what, Where where) {
  Thread& self = *current;
  Cluster& cluster = *self.block->cluster;
  if (!self.arrived) fail("%s at %s:%d, and the thread has not arrived before", what, where.file, where.line);
  if (self.arrived_generation == cluster.generation) {
    ++self.block->at_cluster_barrier;
    wait(State::kAtClusterBarrier, what, where);
  }
  observe(&cluster.barrier[self.arrived_generation % 2]);
  self.arrived = false;
  ++self.epoch;
}

// Mapping counts as use. A correct kernel has a barrier behind it that the owner waits at before it exits; so
// the owner has then passed more barriers than the thread that mapped had passed or arrived at.
void* map_shared(const void* p, unsigned rank, Where where) {
  Block& mine = *current->block;
  Cluster& cluster = *mine.cluster;
  if (rank >= cluster.blocks.size())
    fail("map_shared_rank at %s:%d to rank %d of a cluster of %zu blocks", where.file, where.line,
         static_cast<int>(rank), cluster.blocks.size());
  const SharedVariable* const variable = variable_of(mine, p);
  if (!variable)
    fail("map_shared_rank at %s:%d of %p, which is not in the block's shared memory", where.file, where.line,
         p);
  Block& owner = *cluster.blocks[rank];
  if (&owner == &mine) return const_cast<void*>(p);
  if (owner.exited == owner.threads.size())
    fail("map_shared_rank at %s:%d to block %s, which has exited", where.file, where.line,
         position(owner.index).c_str());
  const int epoch = current->epoch + current->arrived;
  if (epoch > owner.mapped_in) {
    owner.mapped_in = epoch;
    owner.mapped_at = where;
  }
  const ptrdiff_t offset = static_cast<const char*>(p) - static_cast<char*>(variable->address);
  return static_cast<char*>(variable_in(owner, *variable)) + offset;
}

unsigned shared_rank(const void* p, Where where) {
  for (const auto& block : current->block->cluster->blocks)
    if (variable_of(*block, p)) return block->rank;
  fail("query_shared_rank at %s:%d of %p, which is not in the cluster's shared memory", where.file,
       where.line, p);
}

void leave(Block& block) {
  ++block.exited;
  if (block.cluster->blocks.size() == 1) return;
  publish(&block.died);
  if (block.exited < block.threads.size()) return;
  observe(&block.died);
  int epoch = 0;
  for (const Thread& t : block.threads) epoch = std::max(epoch, t.epoch);
  if (block.mapped_in >= epoch)
    fail(
        "the block exits and another one, which mapped its shared memory at %s:%d, may still use it: no "
        "barrier of the cluster is between",
        block.mapped_at.file, block.mapped_at.line);
  shared_memory_ends(block);
}

// Where the threads of a cluster that cannot go on are.
static std::string describe(const Cluster& cluster) {
  std::string text = "emulator: kernel " + std::string(grid.name) + ", cluster " +
                     std::to_string(cluster.number) + ": its threads do not meet:";
  for (const auto& block : cluster.blocks) text += "\n block " + position(block->index) + describe(*block);
  return text;
}

void run_cluster(Cluster& cluster) {
  for (bool ran = true; ran;) {
    ran = false;
    for (int rank : ordered(cluster.blocks.size(), 10 + cluster.number)) {
      Block& block = *cluster.blocks[rank];
      if (block.started && block.ready.empty()) continue;
      ran = true;
      run_block(block);
      if (!grid.failure.empty()) return;
    }
  }
  for (const auto& block : cluster.blocks)
    if (block->exited != block->threads.size() && block->at_grid_barrier != block->threads.size()) {
      grid.failure = describe(cluster);
      return;
    }
}

}  // namespace emulator
