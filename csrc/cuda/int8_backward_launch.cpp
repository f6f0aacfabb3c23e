#include "int8_backward_launch.h"

#include <limits>

#include "device.h"
#include "int8_backward.h"

namespace onepass::cuda {

constexpr uint32_t kOfRows = 0, kOfColumns = 1;  // Philox's streams

static bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// --- both gradients ---------------------------------------------------------------------------------------
struct Gradient {
  ReadyInt8Work ready{};
  void* y = nullptr;
  bool corrects = false;  // the other factor is not what it is read as, or has zero points

  bool is_empty() const { return !y || ready.lines == 0 || ready.outputs == 0; }
  int64_t scratch() const {
    const int64_t of_line = (corrects ? sizeof(int64_t) : 0) + sizeof(float);
    return is_empty() ? 0 : (ready.lines + ready.outputs) * ready.width + ready.lines * of_line;
  }
};

// What both have; where things are in scratch: q, the other factor turned, starts, scales.
static Gradient placed(const Int8Backward& call, Gradient made, uint32_t stream) {
  ReadyInt8Work& w = made.ready;
  w.g = call.g;
  w.g_dtype = call.g_dtype;
  w.by_chance = call.by_chance;
  w.philox = Philox::make(call.seed, stream);
  w.width = (w.depth + 15) / 16 * 16;
  const int64_t run = w.of_rows ? w.depth : w.lines;  // of g, side by side
  w.g_aligned = aligned(w.g) && run * size_of(w.g_dtype) % 16 == 0;
  w.factors_aligned = aligned(w.factors);
  w.right_aligned = aligned(w.right) && w.outputs % 16 == 0;
  w.q = static_cast<int8_t*>(call.scratch);
  w.turned = reinterpret_cast<uint8_t*>(w.q + w.lines * w.width);
  void* const behind = w.turned + w.outputs * w.width;
  w.starts = made.corrects ? static_cast<int64_t*>(behind) : nullptr;
  w.scales = made.corrects ? reinterpret_cast<float*>(w.starts + w.lines) : static_cast<float*>(behind);
  return made;
}

static Gradient of_input(const Int8Backward& call) {
  Gradient made{.y = call.grad_input};
  made.ready.of_rows = true;
  made.ready.lines = call.m;
  made.ready.depth = call.n;
  made.ready.outputs = call.k;
  made.ready.factors = call.w_scale;
  made.ready.right = reinterpret_cast<const uint8_t*>(call.weight);
  made.ready.right_is_signed = true;
  return placed(call, made, kOfRows);
}
static Gradient of_weight(const Int8Backward& call) {
  Gradient made{.y = call.grad_weight, .corrects = !call.x_is_signed || call.x_zero};
  made.ready.lines = call.n;
  made.ready.depth = call.m;
  made.ready.outputs = call.k;
  made.ready.factors = call.x_scale;
  made.ready.right = static_cast<const uint8_t*>(call.x);
  made.ready.right_is_signed = call.x_is_signed;
  made.ready.zero = call.x_zero;
  return placed(call, made, kOfColumns);
}

int64_t int8_mm_bwd_scratch(const Int8Backward& call) {
  return std::max(of_input(call).scratch(), of_weight(call).scratch());
}

// --- launches ---------------------------------------------------------------------------------------------
static GradientInt8Work product_of(const Gradient& made, DType dtype) {
  const ReadyInt8Work& ready = made.ready;
  Int8Call call;
  call.m = ready.lines;
  call.shape = {ready.outputs, ready.width};
  call.x = ready.q;
  call.weight = ready.turned;
  call.x_scale = ready.scales;
  call.y = made.y;
  call.y_dtype = dtype;
  const bool wide = ready.outputs % 8 == 0 && aligned(made.y);
  return {{call, true, wide}, ready.starts};
}

static void compute(const Gradient& made, DType dtype, Queue queue) {
  if (made.is_empty()) return;
  const ReadyInt8Work& ready = made.ready;
  const Int8Cut cut = largest_tiles(ready.lines, ready.outputs, Device(queue.device).multiprocessors);
  start_ready(ready, queue.stream);
  start_gradient(product_of(made, dtype), cut, ready.width > kMaxDepth, queue.stream);
  ok(cudaGetLastError(), "int8_mm_bwd");
}

// Kernels count numbers of a line in an int, a stage beyond the last one included.
static void check_depth(const Gradient& made) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1024;
  if (!made.is_empty() && made.ready.depth > kMost)
    fail("int8_mm_bwd: input has ", made.ready.depth, " rows, expected at most ", kMost);
}

void int8_mm_bwd(const Int8Backward& call, Queue queue) {
  const Gradient first = of_input(call), second = of_weight(call);
  check_depth(second);
  compute(first, call.dtype, queue);
  compute(second, call.dtype, queue);
}

}  // namespace onepass::cuda
