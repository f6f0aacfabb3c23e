// Of cooperative groups the grid, for its barrier.
#pragma once
#include "core.h"

namespace cooperative_groups {

struct grid_group {
  void sync(EMULATOR_WHERE) const { emulator::grid_barrier(where); }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
