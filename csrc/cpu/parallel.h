// Work on torch's threads.
#pragma once
#include <torch/csrc/stable/ops.h>

namespace onepass {

// Below this many elements a thread's start costs more than its share of the work.
constexpr int64_t kElementsPerThread = 16384;

// Calls body(k) for k in [0, pieces), side by side where there are several.
template <class Body>
void in_parallel(int64_t pieces, const Body& body) {
  if (pieces == 1) return body(0);
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) body(k);
  });
}

// How many pieces so many elements are worth being cut into.
inline int64_t pieces_of(int64_t numel) {
  const int64_t wanted = numel / kElementsPerThread + 1;
  return wanted == 1 ? 1 : std::min<int64_t>(wanted, torch::stable::get_num_threads());
}

}  // namespace onepass
