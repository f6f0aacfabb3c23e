#include "fake_quant_launch.h"

#include <vector>

#include "quant_groups.h"

namespace onepass {

static void put(const FakeQuantCall& call, int64_t group, int64_t from, int64_t n) {
  current_isa().fake_quant->forward[of(call.dtype)](call, grid_of(call, group), from, n);
}
static double take(const FakeQuantCall& call, const Grid& grid, int64_t from, int64_t n) {
  return current_isa().fake_quant->backward[of(call.dtype)](call, grid, from, n);
}

// --- in parallel ------------------------------------------------------------------------------------------
// The elements of groups whose grid is known, cut without regard to groups, but on bytes of the mask.
static void put_all(const FakeQuantCall& call) {
  const Groups& groups = call.groups;
  const int64_t numel = groups.numel();
  if (numel == 0) return;
  each_piece(numel, pieces_of(numel), [&](int64_t, int64_t from, int64_t n) {
    for (const int64_t to = from + n; from < to;) {
      const int64_t group = groups.holding(from);
      const int64_t end = std::min(to, groups.begin(group) + groups.length(group));
      put(call, group, from, end - from);
      from = end;
    }
  });
}

// settle(group, found, blocks) of what measure(group, from, n) has found of each block of a group. Blocks are
// the same for any number of threads, and so is what is made of them.
template <class T, class Measure, class Settle>
static void over_groups(const Groups& groups, const Measure& measure, const Settle& settle) {
  constexpr int64_t kBlock = 32768;
  const int64_t count = groups.count(), pieces = pieces_of(groups.numel());
  const int64_t blocks = (std::max<int64_t>(1, std::min(groups.size, groups.columns)) + kBlock - 1) / kBlock;
  std::vector<T> found(static_cast<size_t>(count * blocks));
  in_parallel(pieces, [&](int64_t k) {
    for (int64_t i = count * blocks * k / pieces; i < count * blocks * (k + 1) / pieces; ++i) {
      const int64_t group = i / blocks, before = i % blocks * kBlock;
      const int64_t n = std::min(kBlock, groups.length(group) - before);
      if (n > 0) found[static_cast<size_t>(i)] = measure(group, groups.begin(group) + before, n);
    }
  });
  in_parallel(pieces, [&](int64_t k) {
    for (int64_t g = count * k / pieces; g < count * (k + 1) / pieces; ++g)
      settle(g, found.data() + g * blocks, blocks);
  });
}

// --- whole calls ------------------------------------------------------------------------------------------
static void keep_grid(const FakeQuantCall& call, int64_t group, const Extent& all) {
  keep(call, group, Grid::make(all, call.levels, call.is_signed));
}

// Rows of groups, each of which is still in the cache when it is read again. Eight rows end with a byte of
// the mask, whatever their length.
static void find_and_put(const FakeQuantCall& call, int64_t pieces) {
  const int64_t rows = call.groups.rows, of_row = call.groups.of_row();
  const auto cut = [&](int64_t k) { return k == pieces ? rows : rows / 8 * k / pieces * 8; };
  in_parallel(pieces, [&](int64_t k) {
    for (int64_t g = cut(k) * of_row; g < cut(k + 1) * of_row; ++g) {
      const int64_t from = call.groups.begin(g), n = call.groups.length(g);
      keep_grid(call, g, extent(call, from, n));
      if (n > 0) put(call, g, from, n);
    }
  });
}

int64_t fake_quantize_scratch(const FakeQuantCall&, bool) { return 0; }
int64_t fake_quantize_backward_scratch(const FakeQuantCall&) { return 0; }

void fake_quantize(const FakeQuantCall& call, bool given) {
  if (given) return put_all(call);
  const int64_t pieces = pieces_of(call.groups.numel());
  if (pieces == 1 || call.groups.rows / 8 >= pieces) return find_and_put(call, pieces);
  over_groups<Extent>(
      call.groups, [&](int64_t, int64_t from, int64_t n) { return extent(call, from, n); },
      [&](int64_t group, const Extent* found, int64_t blocks) {
        Extent all;
        for (int64_t i = 0; i < blocks; ++i) all.merge(found[i]);
        keep_grid(call, group, all);
      });
  put_all(call);
}

void fake_quantize_backward(const FakeQuantCall& call) {
  const int64_t numel = call.groups.numel();
  if (!call.grad_scale)
    return each_piece(numel, pieces_of(numel),
                      [&](int64_t, int64_t from, int64_t n) { take(call, {1, 1, 0}, from, n); });
  over_groups<double>(
      call.groups,
      [&](int64_t group, int64_t from, int64_t n) { return take(call, grid_of(call, group), from, n); },
      [&](int64_t group, const double* found, int64_t blocks) {
        double sum = 0;
        for (int64_t i = 0; i < blocks; ++i) sum += found[i];
        call.grad_scale[group] = static_cast<float>(sum);
      });
}

}  // namespace onepass
