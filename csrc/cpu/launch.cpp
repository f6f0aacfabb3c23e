#include "launch.h"

#include <torch/csrc/stable/ops.h>

namespace onepass {

// Below this many elements a thread's start costs more than its share of the work.
constexpr int64_t kElementsPerThread = 16384;

void run(const Launch& launch, OptimKernel kernel) {
  const int64_t wanted = launch.numel() / kElementsPerThread + 1;
  const int64_t pieces = wanted == 1 ? 1 : std::min<int64_t>(wanted, torch::stable::get_num_threads());
  if (pieces == 1) {
    kernel(launch, {0, 0}, cut(launch.begin, 1, 1));
  } else {
    torch::stable::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k)
        kernel(launch, cut(launch.begin, pieces, k), cut(launch.begin, pieces, k + 1));
    });
  }
}

}  // namespace onepass
