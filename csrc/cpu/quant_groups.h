// Groups of elements that share a scale: what they hold, and how they are shared out among torch's threads.
#pragma once
#include <algorithm>

#include "isa.h"
#include "parallel.h"

namespace onepass {

inline int of(DType dtype) { return static_cast<int>(dtype); }
inline char* element(void* data, int64_t i, int64_t size) { return static_cast<char*>(data) + i * size; }

inline Grid grid_of(const QuantCall& call, int64_t group) {
  return Grid::given(call.scale[group], call.zero_point ? call.zero_point[group] : 0);
}
inline void keep(const QuantCall& call, int64_t group, const Grid& grid) {
  call.scale[group] = grid.scale;
  if (call.zero_point) call.zero_point[group] = grid.zero_point;
}
inline Extent extent(const QuantCall& call, int64_t from, int64_t n) {
  return current_isa().quant->extent[of(call.dtype)](element(call.real, from, size_of(call.dtype)), n);
}
// --- in parallel ------------------------------------------------------------------------------------------
// body(group) for all of them.
template <class Body>
void each_group(const Groups& groups, const Body& body) {
  const int64_t pieces = pieces_of(groups.numel()), count = groups.count();
  in_parallel(pieces, [&](int64_t k) {
    for (int64_t g = count * k / pieces; g < count * (k + 1) / pieces; ++g) body(g);
  });
}
// body(piece, from, n) for pieces of a group that is all there is.
template <class Body>
void each_piece(int64_t numel, int64_t pieces, const Body& body) {
  constexpr int64_t kLineOfBytes = 64;
  const int64_t lines = (numel + kLineOfBytes - 1) / kLineOfBytes;
  in_parallel(pieces, [&](int64_t k) {
    const int64_t from = lines * k / pieces * kLineOfBytes;
    body(k, from, std::min(lines * (k + 1) / pieces * kLineOfBytes, numel) - from);
  });
}

}  // namespace onepass
