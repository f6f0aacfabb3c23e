#include "int8_launch.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace onepass {

constexpr int64_t kRowsBytes = 256 * 1024;   // of rows of x at a time: they stay in the second
constexpr int64_t kMostRows = 192;           // at a time, whose sums stay in the first
constexpr int64_t kMostFew = 4;              // rows that any form calls few
constexpr int64_t kScratchBytes = 64 << 20;  // of rows of x in tiles, which are kept from call to call
constexpr int64_t kProductsPerThread = 1 << 20;

static const Int8Kernels& kernels() { return *current_isa().int8; }

// --- rows of x, cut into tiles ----------------------------------------------------------------------------
// Of heights that differ by one at most: none is filled up.
struct Tiles {
  const Int8Form& form;
  int64_t m, fours, count, least, more;  // least: rows of a tile; the first `more` tiles have one more
  std::vector<uint8_t>& memory;
  std::vector<Int8Row>& rows;

  Tiles(const Int8Form& form, int64_t m, int64_t fours)
      : form(form),
        m(m),
        fours(fours),
        count((m + form.rows - 1) / form.rows),
        least(m / count),
        more(m % count),
        memory(kept()),
        rows(kept_rows()) {
    const size_t bytes = static_cast<size_t>(m * fours * form.bytes);
    if (memory.size() < bytes) memory.resize(bytes);
    if (rows.size() < static_cast<size_t>(m)) rows.resize(static_cast<size_t>(m));
  }
  int64_t begin(int64_t tile) const { return tile * least + std::min(tile, more); }
  int32_t height(int64_t tile) const { return static_cast<int32_t>(least + (tile < more)); }
  uint8_t* at(int64_t tile, int64_t four = 0) const {
    return memory.data() + (begin(tile) * fours + height(tile) * four) * form.bytes;
  }

 private:  // grow to the largest call that this thread has made
  static std::vector<uint8_t>& kept() {
    static thread_local std::vector<uint8_t> memory;
    return memory;
  }
  static std::vector<Int8Row>& kept_rows() {
    static thread_local std::vector<Int8Row> rows;
    return rows;
  }
};

// Row i of x as whole numbers in -128..127, in q or where they are; and what they stand for.
struct WholeRow {
  const int8_t* q;
  float scale;
  int32_t zero;
};
static WholeRow whole_row(const Int8Call& call, int64_t i, int8_t* q) {
  const int64_t k = call.shape.k;
  const bool is_signed = call.x_is_real ? call.symmetric : call.x_is_signed;
  const int32_t shift = is_signed ? 0 : 1 << (call.bits - 1);
  WholeRow row{q, call.x_scale ? call.x_scale[i] : 1, call.x_zero ? call.x_zero[i] : 0};
  if (call.x_is_real) {
    const QuantKernels& quant = *current_isa().quant;
    const int type = static_cast<int>(call.x_dtype);
    const char* x = static_cast<const char*>(call.x) + i * k * size_of(call.x_dtype);
    const Levels levels = Levels::make(call.symmetric, call.bits);
    const Grid grid = Grid::make(quant.extent[type](x, k), levels, call.symmetric);
    quant.quantize[type](x, k, grid, levels, q);
    row.scale = grid.scale;
    row.zero = grid.zero_point;
  } else {
    const auto* x = static_cast<const int8_t*>(call.x) + i * k;
    if (is_signed)
      row.q = x;
    else
      std::memcpy(q, x, static_cast<size_t>(k));
  }
  if (!is_signed)
    for (int64_t j = 0; j < k; ++j) q[j] = static_cast<int8_t>(static_cast<uint8_t>(q[j]) - shift);
  row.zero -= shift;
  return row;
}

static void fill(const Int8Call& call, const Tiles& tiles, int64_t tile) {
  static thread_local std::vector<int8_t> q;
  if (q.size() < static_cast<size_t>(call.shape.k)) q.resize(static_cast<size_t>(call.shape.k));
  for (int32_t r = 0; r < tiles.height(tile); ++r) {
    const int64_t i = tiles.begin(tile) + r;
    const WholeRow row = whole_row(call, i, q.data());
    int32_t start = kernels().place(row.q, call.shape.k, tiles.form, tiles.height(tile), r, tiles.at(tile));
    if (call.x_start) start += call.x_start[i];
    tiles.rows[static_cast<size_t>(i)] = {row.scale, row.zero + tiles.form.offset, start};
  }
}

// --- products ---------------------------------------------------------------------------------------------
static const int8_t* panel_at(const Int8Call& call, int64_t p) {
  return reinterpret_cast<const int8_t*>(call.weight + call.shape.panels_at()) + p * call.shape.panel_bytes();
}
// What the sums of rows [from, from + rows) for panel p start with. Where they will go is asked for at once:
// a result that is written is read first, and comes near while rows are multiplied.
static void start(const Int8Call& call, const Tiles& tiles, int64_t from, int64_t rows, int64_t p,
                  int32_t* sums) {
  const int64_t bytes = call.y_bytes();
  const char* y = static_cast<const char*>(call.y) + (from * call.shape.n + p * kPanel) * bytes;
  for (int64_t r = 0; r < rows; ++r, y += call.shape.n * bytes) {
    __builtin_prefetch(y, 1);
    std::fill_n(sums + r * kPanel, kPanel, tiles.rows[static_cast<size_t>(from + r)].start);
  }
}
static void finish(const Int8Call& call, const Tiles& tiles, int64_t from, int64_t rows, int64_t p,
                   const int32_t* sums) {
  kernels().finish(call, sums, tiles.rows.data() + from, from, rows, p * kPanel,
                   std::min(kPanel, call.shape.n - p * kPanel));
}

// Tiles [first, last) by panel p.
static void multiply(const Int8Call& call, const Tiles& tiles, int64_t first, int64_t last, int64_t p) {
  alignas(64) int32_t sums[(kMostRows + 16) * kPanel];
  const int64_t from = tiles.begin(first), rows = tiles.begin(last) - from, fours = tiles.fours;
  start(call, tiles, from, rows, p, sums);
  for (int64_t four = 0; four < fours; four += kDepth / kFour) {
    const int64_t some = std::min(kDepth / kFour, fours - four);
    for (int64_t t = first; t < last; ++t)
      kernels().multiply(tiles.at(t, four), tiles.height(t), tiles.form, panel_at(call, p) + four * kStep, 0,
                         1, some, sums + (tiles.begin(t) - from) * kPanel);
  }
  finish(call, tiles, from, rows, p, sums);
}
// The one tile of few rows by panels [p, p + count).
static void multiply_few(const Int8Call& call, const Tiles& tiles, int64_t p, int64_t count) {
  alignas(64) int32_t sums[kPanelsAtOnce * kMostFew * kPanel];
  for (int64_t j = 0; j < count; ++j) start(call, tiles, 0, call.m, p + j, sums + j * call.m * kPanel);
  kernels().multiply(tiles.at(0), tiles.height(0), tiles.form, panel_at(call, p), call.shape.panel_bytes(),
                     count, tiles.fours, sums);
  for (int64_t j = 0; j < count; ++j) finish(call, tiles, 0, call.m, p + j, sums + j * call.m * kPanel);
}

int64_t threads_for(const Int8Call& call) {
  const int64_t wanted = call.m * call.shape.n * std::max<int64_t>(1, call.shape.k) / kProductsPerThread + 1;
  return wanted == 1 ? 1 : std::min<int64_t>(wanted, torch::stable::get_num_threads());
}
static void fill_all(const Int8Call& call, const Tiles& tiles, int64_t threads) {
  const int64_t fillers = std::min(threads, tiles.count);
  in_parallel(fillers, [&](int64_t k) {
    for (int64_t t = tiles.count * k / fillers; t < tiles.count * (k + 1) / fillers; ++t)
      fill(call, tiles, t);
  });
}
// Panels are read once, several side by side.
static void few_rows(const Int8Call& call, const Tiles& tiles, int64_t threads) {
  const int64_t panels = call.shape.panels(), groups = (panels + kPanelsAtOnce - 1) / kPanelsAtOnce;
  in_parallel(threads, [&](int64_t k) {
    const int64_t end = std::min(panels, groups * (k + 1) / threads * kPanelsAtOnce);
    int64_t p = groups * k / threads * kPanelsAtOnce;
    for (; p + kPanelsAtOnce <= end; p += kPanelsAtOnce) multiply_few(call, tiles, p, kPanelsAtOnce);
    for (; p < end; ++p) multiply_few(call, tiles, p, 1);
  });
}
// Blocks of tiles whose rows stay in a cache while all panels pass by; a piece of work is a block by a panel.
static void many_rows(const Int8Call& call, const Tiles& tiles, int64_t threads) {
  const int64_t panels = call.shape.panels();
  const int64_t row_bytes = std::max<int64_t>(1, tiles.fours * tiles.form.bytes);
  const int64_t rows = std::clamp<int64_t>(kRowsBytes / row_bytes, tiles.form.rows, kMostRows);
  const int64_t blocks = (tiles.count + rows / tiles.form.rows - 1) / (rows / tiles.form.rows);
  const auto first_tile = [&](int64_t block) { return tiles.count * block / blocks; };
  in_parallel(threads, [&](int64_t k) {
    const int64_t work = blocks * panels;
    for (int64_t i = work * k / threads; i < work * (k + 1) / threads; ++i)
      multiply(call, tiles, first_tile(i / panels), first_tile(i / panels + 1), i % panels);
  });
}

static void some_rows(const Int8Call& call) {
  if (call.m == 0 || call.shape.panels() == 0) return;
  const Int8Form& form = *kernels().form(call.x_is_real ? call.bits : 8);
  const Tiles tiles(form, call.m, call.shape.fours());
  const int64_t threads = threads_for(call);
  fill_all(call, tiles, threads);
  if (call.m <= form.few)
    few_rows(call, tiles, threads);
  else
    many_rows(call, tiles, threads);
}

int64_t int8_scratch(const Int8Call&) { return 0; }

void int8_mm(const Int8Call& call) {
  const int64_t step = std::max<int64_t>(kMostRows, kScratchBytes / std::max<int64_t>(1, 8 * call.shape.k));
  for (int64_t first = 0; first < call.m; first += step) {
    Int8Call some = call;
    some.m = std::min(step, call.m - first);
    const int64_t x_bytes = call.x_is_real ? size_of(call.x_dtype) : 1;
    some.x = static_cast<const char*>(call.x) + first * call.shape.k * x_bytes;
    some.y = static_cast<char*>(call.y) + first * call.shape.n * call.y_bytes();
    if (call.x_scale) some.x_scale += first;
    if (call.x_zero) some.x_zero += first;
    if (call.x_start) some.x_start += first;
    some_rows(some);
  }
}

int64_t int8_probe(int64_t times) {
  const Int8Form& form = *kernels().form(8);
  const int64_t fours = kDepth / kFour;
  const std::vector<uint8_t> tile(static_cast<size_t>(form.rows * fours * form.bytes), 1);
  const std::vector<int8_t> panel(static_cast<size_t>(fours * kStep), 1);
  const int64_t threads = torch::stable::get_num_threads();
  in_parallel(threads, [&](int64_t k) {
    alignas(64) int32_t sums[64 * kPanel] = {};
    for (int64_t i = times * k / threads; i < times * (k + 1) / threads; ++i)
      kernels().multiply(tile.data(), form.rows, form, panel.data(), 0, 1, fours, sums);
  });
  return times * form.rows * kPanel * kDepth;
}

// --- packing ----------------------------------------------------------------------------------------------
static int8_t* panel_of(uint8_t* packed, const PackedShape& shape, int64_t n) {
  return reinterpret_cast<int8_t*>(packed + shape.panels_at()) + n / kPanel * shape.panel_bytes() +
         n % kPanel * kFour;
}

bool int8_pack(const int8_t* weight, const PackedShape& shape, uint8_t* packed) {
  if (std::find(weight, weight + shape.n * shape.k, -128) != weight + shape.n * shape.k) return false;
  std::memset(packed, 0, static_cast<size_t>(shape.bytes()));
  const PackedHeader header{kPackedMagic, kPackedVersion, shape.n, shape.k, {}};
  std::memcpy(packed, &header, sizeof header);
  auto* sums = reinterpret_cast<int32_t*>(packed + shape.sums_at());
  const int64_t pieces = pieces_of(shape.n * shape.k);
  in_parallel(pieces, [&](int64_t piece) {
    for (int64_t n = shape.n * piece / pieces; n < shape.n * (piece + 1) / pieces; ++n) {
      const int8_t* row = weight + n * shape.k;
      int8_t* to = panel_of(packed, shape, n);
      for (int64_t k = 0; k < shape.k; ++k) {
        sums[n] += row[k];
        to[k / kFour * kStep + k % kFour] = row[k];
      }
    }
  });
  return true;
}

void int8_unpack(const uint8_t* packed, int8_t* weight) {
  PackedHeader header;
  std::memcpy(&header, packed, sizeof header);
  const PackedShape shape{header.n, header.k};
  for (int64_t n = 0; n < shape.n; ++n) {
    const int8_t* from = panel_of(const_cast<uint8_t*>(packed), shape, n);
    for (int64_t k = 0; k < shape.k; ++k) weight[n * shape.k + k] = from[k / kFour * kStep + k % kFour];
  }
}

}  // namespace onepass
