#include "quant_launch.h"

#include <vector>

#include "quant_groups.h"

namespace onepass {

static void put(const QuantCall& call, int64_t from, int64_t n, const Grid& grid, const Levels& levels) {
  const char* x = element(call.real, from, size_of(call.dtype));
  current_isa().quant->quantize[of(call.dtype)](x, n, grid, levels, element(call.whole, from, 1));
}
static void take(const QuantCall& call, int64_t from, int64_t n, const Grid& grid) {
  char* x = element(call.real, from, size_of(call.dtype));
  current_isa().quant->dequantize[of(call.dtype)](element(call.whole, from, 1), n, grid, call.is_signed, x);
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

int64_t quant_scratch(const QuantCall&) { return 0; }

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
