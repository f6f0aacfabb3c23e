// Of cooperative groups the grid and the cluster, for their barriers, and for the shared memory of the
// latter.
#pragma once
#include "core.h"

namespace cooperative_groups {

struct grid_group {
  void sync(EMULATOR_WHERE) const { emulator::grid_barrier(where); }
};
inline grid_group this_grid() { return {}; }

struct cluster_group {
  struct arrival_token {};

  static void sync(EMULATOR_WHERE) {
    emulator::cluster_arrive("cluster.sync", where);
    emulator::cluster_wait("cluster.sync", where);
  }
  static arrival_token barrier_arrive(EMULATOR_WHERE) {
    emulator::cluster_arrive("cluster.barrier_arrive", where);
    return {};
  }
  static void barrier_wait(EMULATOR_WHERE) { emulator::cluster_wait("cluster.barrier_wait", where); }
  static void barrier_wait(arrival_token&&, EMULATOR_WHERE) { barrier_wait(where); }

  template <class T>
  static T* map_shared_rank(T* p, int rank, EMULATOR_WHERE) {
    return static_cast<T*>(emulator::map_shared(p, static_cast<unsigned>(rank), where));
  }
  static unsigned query_shared_rank(const void* p, EMULATOR_WHERE) { return emulator::shared_rank(p, where); }

  static dim3 block_index() { return emulator::here.block_in_cluster; }
  static unsigned block_rank() { return emulator::here.block_rank; }
  static dim3 dim_blocks() { return emulator::here.cluster_size; }
  static unsigned num_blocks() { return volume(dim_blocks()); }

  static dim3 thread_index() {
    const auto& [t, b, n] =
        std::tie(emulator::here.thread, emulator::here.block_in_cluster, emulator::here.block_size);
    return {b.x * n.x + t.x, b.y * n.y + t.y, b.z * n.z + t.z};
  }
  static unsigned thread_rank() {
    const auto& [t, n] = std::tie(emulator::here.thread, emulator::here.block_size);
    return block_rank() * volume(n) + (t.z * n.y + t.y) * n.x + t.x;
  }
  static dim3 dim_threads() {
    const auto& [b, n] = std::tie(emulator::here.cluster_size, emulator::here.block_size);
    return {b.x * n.x, b.y * n.y, b.z * n.z};
  }
  static unsigned num_threads() { return volume(dim_threads()); }
  static unsigned size() { return num_threads(); }

 private:
  static unsigned volume(const dim3& d) { return d.x * d.y * d.z; }
};
inline cluster_group this_cluster(EMULATOR_WHERE) {
  emulator::need_clusters(where);
  return {};
}

}  // namespace cooperative_groups
