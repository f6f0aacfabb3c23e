// Gradients of the 8-bit product on torch's threads: ../common/int8_driver.h. Same bits for any number of
// them.
//
// Memory contract, for each gradient: g is read once and left as a byte an element, the other factor is read
// once and turned into panels; then they are multiplied, as int8_mm does. What is kept in between grows to
// the largest call that a thread has made: a byte an element of g and of the other factor. Sums beyond
// kMaxDepth also go through float32 rows of the result.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "int8_launch.h"
#include "isa.h"
#include "parallel.h"

namespace onepass {

constexpr int64_t kColumns = 16;                 // at a time: a cache line of a row of float32
constexpr int64_t kRowsInPieces = 192;           // of a result whose sums are added up in float32
constexpr uint32_t kOfRows = 0, kOfColumns = 1;  // Philox's streams

static const Int8BackwardKernels& kernels() { return *current_isa().int8_backward; }

// Memory that is kept from call to call.
template <class T>
static T* at_least(std::vector<T>& kept, int64_t size) {
  if (kept.size() < static_cast<size_t>(size)) kept.resize(static_cast<size_t>(size));
  return kept.data();
}

// One gradient: y[line, output] = scale[line] * sum over d of q[line, d] * (right[d, output] - zero[d]),
// where q * scale are lines of g times a factor for each d.
struct Gradient {
  const Int8Backward& call;
  bool of_rows;  // lines of g are its rows, else its columns
  int64_t lines, depth, outputs;
  const float* factors;
  const void* right;
  bool right_is_signed;
  const int32_t* zero;
  void* y;

  int32_t shift() const { return right_is_signed ? 0 : 128; }  // panels hold right - shift
  bool has_starts() const { return !right_is_signed || zero; }
};

static Gradient of_input(const Int8Backward& call, const int8_t* weight) {
  return {.call = call,
          .of_rows = true,
          .lines = call.m,
          .depth = call.n,
          .outputs = call.k,
          .factors = call.w_scale,
          .right = weight,
          .right_is_signed = true,
          .zero = nullptr,
          .y = call.grad_input};
}
static Gradient of_weight(const Int8Backward& call) {
  return {.call = call,
          .of_rows = false,
          .lines = call.n,
          .depth = call.m,
          .outputs = call.k,
          .factors = call.x_scale,
          .right = call.x,
          .right_is_signed = call.x_is_signed,
          .zero = call.x_zero,
          .y = call.grad_weight};
}

// --- pieces of the depth ----------------------------------------------------------------------------------
// As many numbers as an int32 has room for the sum of: q * (right - shift), and what it starts with.
static int64_t most_of_sum(const Gradient& of) {
  int64_t reach = of.shift() + 128;
  for (int64_t d = 0; of.zero && d < of.depth; ++d)
    reach = std::max(reach, std::abs(int64_t{of.shift()} - of.zero[d]) + 128);
  return std::clamp<int64_t>(((int64_t{1} << 31) - 1) / (127 * reach), 1, kMaxDepth);
}

// Where things are of each piece: lines of q, what their sums start with, panels.
struct Pieces {
  const Gradient& of;
  int64_t count, bytes;
  int8_t* q;
  float* scales;
  int32_t* starts;
  uint8_t* panels;

  explicit Pieces(const Gradient& of) : of(of) {
    static thread_local std::vector<int8_t> kept_q;
    static thread_local std::vector<float> kept_scales;
    static thread_local std::vector<int32_t> kept_starts;
    static thread_local std::vector<uint8_t> kept_panels;
    const int64_t most = most_of_sum(of);
    count = std::max<int64_t>(1, (of.depth + most - 1) / most);
    bytes = (PackedShape{of.outputs, (of.depth + count - 1) / count}.bytes() + 63) / 64 * 64;
    q = at_least(kept_q, of.lines * of.depth);
    scales = at_least(kept_scales, of.lines);
    starts = at_least(kept_starts, of.has_starts() ? of.lines * count : 0);
    panels = at_least(kept_panels, bytes * count);
  }
  int64_t begin(int64_t p) const { return of.depth * p / count; }
  int64_t length(int64_t p) const { return begin(p + 1) - begin(p); }
  PackedShape shape(int64_t p) const { return {of.outputs, length(p)}; }
  int8_t* line(int64_t p, int64_t i) const { return q + of.lines * begin(p) + i * length(p); }
};

// --- g to 8 bits ------------------------------------------------------------------------------------------
// The sum of q * (shift - zero). As unsigned: what overflows on the way comes back with the products.
static int32_t start_of(const Gradient& of, const int8_t* q, int64_t first, int64_t n) {
  uint32_t sum = 0;
  for (int64_t d = 0; d < n; ++d)
    sum +=
        static_cast<uint32_t>(q[d]) * static_cast<uint32_t>(of.shift() - (of.zero ? of.zero[first + d] : 0));
  return static_cast<int32_t>(sum);
}

static void quantize(const Pieces& pieces, int64_t i, const float* line) {
  const Gradient& of = pieces.of;
  const QuantKernels& quant = *current_isa().quant;
  constexpr int kReal = static_cast<int>(DType::kFloat32);
  const Levels levels = Levels::make(true, 8);
  const Grid grid = Grid::make(quant.extent[kReal](line, of.depth), levels, true);
  const Philox philox = Philox::make(of.call.seed, of.of_rows ? kOfRows : kOfColumns);
  pieces.scales[i] = grid.scale;
  for (int64_t p = 0; p < pieces.count; ++p) {
    const int64_t from = pieces.begin(p), n = pieces.length(p);
    int8_t* q = pieces.line(p, i);
    if (of.call.by_chance)
      kernels().round(line + from, n, grid, philox, i * of.depth + from, q);
    else
      quant.quantize[kReal](line + from, n, grid, levels, q);
    if (of.has_starts()) pieces.starts[p * of.lines + i] = start_of(of, q, from, n);
  }
}

// Lines [first, first + count).
static void quantize_lines(const Pieces& pieces, int64_t first, int64_t count) {
  static thread_local std::vector<float> kept;
  const Gradient& of = pieces.of;
  const int type = static_cast<int>(of.call.g_dtype);
  const int64_t apart = of.depth + 16;  // not a power of two, whose columns would meet in the same sets
  const auto* g = static_cast<const char*>(of.call.g);
  float* to = at_least(kept, count * apart);
  if (of.of_rows)
    kernels().row[type](g + first * of.depth * size_of(of.call.g_dtype), of.factors, of.depth, to);
  else
    kernels().columns[type](g + first * size_of(of.call.g_dtype), of.factors, of.depth, of.lines, count,
                            apart, to);
  for (int64_t j = 0; j < count; ++j) quantize(pieces, first + j, to + j * apart);
}

static void quantize_all(const Pieces& pieces) {
  const int64_t at_once = pieces.of.of_rows ? 1 : kColumns, lines = pieces.of.lines;
  const int64_t groups = (lines + at_once - 1) / at_once, threads = pieces_of(lines * pieces.of.depth);
  in_parallel(threads, [&](int64_t k) {
    for (int64_t i = groups * k / threads; i < groups * (k + 1) / threads; ++i)
      quantize_lines(pieces, i * at_once, std::min(at_once, lines - i * at_once));
  });
}

// --- the other factor to panels ---------------------------------------------------------------------------
static void turn_all(const Pieces& pieces) {
  const Gradient& of = pieces.of;
  const auto* right = static_cast<const uint8_t*>(of.right);
  const int64_t panels = pieces.shape(0).panels(), work = panels * pieces.count;
  const int64_t threads = pieces_of(of.depth * of.outputs);
  in_parallel(threads, [&](int64_t k) {
    for (int64_t i = work * k / threads; i < work * (k + 1) / threads; ++i) {
      const int64_t piece = i / panels, first = i % panels * kPanel;
      const PackedShape shape = pieces.shape(piece);
      uint8_t* packed = pieces.panels + piece * pieces.bytes;
      kernels().turn(right + pieces.begin(piece) * of.outputs + first, shape.k, of.outputs,
                     std::min(kPanel, of.outputs - first), static_cast<uint8_t>(of.shift()),
                     reinterpret_cast<int8_t*>(packed + shape.panels_at()) + i % panels * shape.panel_bytes(),
                     reinterpret_cast<int32_t*>(packed + shape.sums_at()) + first);
    }
  });
}

// --- products ---------------------------------------------------------------------------------------------
// Of `count` lines from `first` on, by a piece of the depth.
static void multiply(const Pieces& pieces, int64_t p, int64_t first, int64_t count, DType dtype, void* y) {
  Int8Call call;
  call.m = count;
  call.shape = pieces.shape(p);
  call.weight = pieces.panels + p * pieces.bytes;
  call.x = pieces.line(p, first);
  call.x_scale = pieces.scales + first;
  if (pieces.of.has_starts()) call.x_start = pieces.starts + p * pieces.of.lines + first;
  call.y = y;
  call.y_dtype = dtype;
  int8_mm(call);
}

static void multiply_in_pieces(const Pieces& pieces) {
  static thread_local std::vector<float> kept;
  const Gradient& of = pieces.of;
  const DType dtype = of.call.dtype;
  float* sums = at_least(kept, 2 * kRowsInPieces * of.outputs);
  for (int64_t first = 0; first < of.lines; first += kRowsInPieces) {
    const int64_t count = std::min(kRowsInPieces, of.lines - first), size = count * of.outputs;
    float* more = sums + size;
    multiply(pieces, 0, first, count, DType::kFloat32, sums);
    for (int64_t p = 1; p < pieces.count; ++p) {
      multiply(pieces, p, first, count, DType::kFloat32, more);
      for (int64_t i = 0; i < size; ++i) sums[i] += more[i];
    }
    char* y = static_cast<char*>(of.y) + first * of.outputs * size_of(dtype);
    kernels().narrow[static_cast<int>(dtype)](sums, size, y);
  }
}

static void compute(const Gradient& of) {
  if (of.lines == 0 || of.outputs == 0) return;
  const Pieces pieces(of);
  quantize_all(pieces);
  turn_all(pieces);
  if (pieces.count == 1)
    multiply(pieces, 0, 0, of.lines, of.call.dtype, of.y);
  else
    multiply_in_pieces(pieces);
}

int64_t int8_mm_bwd_scratch(const Int8Backward&) { return 0; }

void int8_mm_bwd(const Int8Backward& call) {
  if (call.grad_input) {
    static thread_local std::vector<int8_t> kept;
    const int8_t* weight = call.weight;
    if (call.packed) {
      int8_t* plain = at_least(kept, call.n * call.k);
      int8_unpack(call.packed, plain);
      weight = plain;
    }
    compute(of_input(call, weight));
  }
  if (call.grad_weight) compute(of_weight(call));
}

}  // namespace onepass
