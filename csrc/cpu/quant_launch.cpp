#include "quant_launch.h"

#include <algorithm>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace onepass {

static const QuantKernels& kernels() { return *current_isa().quant; }
static int of(DType dtype) { return static_cast<int>(dtype); }
static char* element(void* data, int64_t i, int64_t size) { return static_cast<char*>(data) + i * size; }

// --- groups -----------------------------------------------------------------------------------------------
static Grid grid_of(const QuantCall& call, int64_t group) {
  return Grid::given(call.scale[group], call.zero_point ? call.zero_point[group] : 0);
}
static void keep(const QuantCall& call, int64_t group, const Grid& grid) {
  call.scale[group] = grid.scale;
  if (call.zero_point) call.zero_point[group] = grid.zero_point;
}
static Extent extent(const QuantCall& call, int64_t from, int64_t n) {
  return kernels().extent[of(call.dtype)](element(call.real, from, size_of(call.dtype)), n);
}
static void put(const QuantCall& call, int64_t from, int64_t n, const Grid& grid, const Levels& levels) {
  const char* x = element(call.real, from, size_of(call.dtype));
  kernels().quantize[of(call.dtype)](x, n, grid, levels, element(call.whole, from, 1));
}
static void take(const QuantCall& call, int64_t from, int64_t n, const Grid& grid) {
  char* x = element(call.real, from, size_of(call.dtype));
  kernels().dequantize[of(call.dtype)](element(call.whole, from, 1), n, grid, call.is_signed, x);
}

// --- in parallel ------------------------------------------------------------------------------------------
// body(group) for all of them.
template <class Body>
static void each_group(const Groups& groups, const Body& body) {
  const int64_t pieces = pieces_of(groups.numel()), count = groups.count();
  in_parallel(pieces, [&](int64_t k) {
    for (int64_t g = count * k / pieces; g < count * (k + 1) / pieces; ++g) body(g);
  });
}
// body(piece, from, n) for pieces of a group that is all there is.
template <class Body>
static void each_piece(int64_t numel, int64_t pieces, const Body& body) {
  constexpr int64_t kLineOfBytes = 64;
  const int64_t lines = (numel + kLineOfBytes - 1) / kLineOfBytes;
  in_parallel(pieces, [&](int64_t k) {
    const int64_t from = lines * k / pieces * kLineOfBytes;
    body(k, from, std::min(lines * (k + 1) / pieces * kLineOfBytes, numel) - from);
  });
}

static void quantize_whole(const QuantCall& call, bool given, bool symmetric, const Levels& levels) {
  const int64_t numel = call.groups.numel(), pieces = pieces_of(numel);
  if (!given) {
    std::vector<Extent> extents(static_cast<size_t>(pieces));
    each_piece(numel, pieces, [&](int64_t k, int64_t from, int64_t n) {
      extents[static_cast<size_t>(k)] = extent(call, from, n);
    });
    Extent all;
    for (const Extent& each : extents) all.merge(each);
    keep(call, 0, Grid::make(all, levels, symmetric));
  }
  const Grid grid = grid_of(call, 0);
  each_piece(numel, pieces, [&](int64_t, int64_t from, int64_t n) { put(call, from, n, grid, levels); });
}

void quantize(const QuantCall& call, bool given, bool symmetric, const Levels& levels) {
  if (call.groups.count() == 1) return quantize_whole(call, given, symmetric, levels);
  each_group(call.groups, [&](int64_t g) {
    const int64_t from = call.groups.begin(g), n = call.groups.length(g);
    if (!given) keep(call, g, Grid::make(extent(call, from, n), levels, symmetric));
    put(call, from, n, grid_of(call, g), levels);
  });
}

void dequantize(const QuantCall& call) {
  if (call.groups.count() == 1)
    return each_piece(call.groups.numel(), pieces_of(call.groups.numel()),
                      [&](int64_t, int64_t from, int64_t n) { take(call, from, n, grid_of(call, 0)); });
  each_group(call.groups,
             [&](int64_t g) { take(call, call.groups.begin(g), call.groups.length(g), grid_of(call, g)); });
}

}  // namespace onepass
