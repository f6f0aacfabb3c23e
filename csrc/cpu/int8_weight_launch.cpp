// The product of real numbers and 8-bit weights on torch's threads: ../common/int8_driver.h. Same bits for
// any number of them.
#include <algorithm>
#include <vector>

#include "int8_launch.h"
#include "isa.h"
#include "parallel.h"

namespace onepass {

constexpr int64_t kRowsBytes = 256 * 1024;  // of rows of x at a time: they stay in the second cache
// At a time: many enough to be worth making a panel float, few enough that their sums stay near.
constexpr int64_t kFewRows = 48, kMostRows = 192;
constexpr int64_t kScratchBytes = 64 << 20;  // of rows of x as floats, which are kept from call to call

static const Int8WeightKernels& kernels() { return *current_isa().int8_weight; }

// Rows of x as floats with a whole number of fours: where they are, or in memory that grows to the largest
// call that this thread has made.
struct WideRows {
  const float* at;
  int64_t apart;

  WideRows(const Int8Call& call, int64_t threads)
      : at(static_cast<const float*>(call.x)), apart(call.shape.fours() * kFour) {
    if (call.x_dtype == DType::kFloat32 && apart == call.shape.k) return;
    static thread_local std::vector<float> kept;
    const size_t wanted = static_cast<size_t>(call.m * apart);
    if (kept.size() < wanted) kept.resize(wanted);
    float* to = kept.data();
    at = to;
    const int64_t pieces = std::min(threads, call.m), row_bytes = call.shape.k * size_of(call.x_dtype);
    in_parallel(pieces, [&](int64_t piece) {
      for (int64_t i = call.m * piece / pieces; i < call.m * (piece + 1) / pieces; ++i)
        kernels().widen[static_cast<int>(call.x_dtype)](static_cast<const char*>(call.x) + i * row_bytes,
                                                        call.shape.k, to + i * apart);
    });
  }
};

// Rows [first, last) by panel p.
static void multiply(const Int8Call& call, const WideRows& x, int64_t first, int64_t last, int64_t p) {
  alignas(64) float sums[kMostRows * kStep];
  const auto* panel =
      reinterpret_cast<const int8_t*>(call.weight + call.shape.panels_at()) + p * call.shape.panel_bytes();
  kernels().multiply(x.at + first * x.apart, x.apart, last - first, panel, call.shape.fours(), sums);
  kernels().finish(call, sums, first, last - first, p * kPanel, std::min(kPanel, call.shape.n - p * kPanel));
}

// A piece of work is a block of rows, which stay in a cache while all panels pass by, and a panel.
static void some_rows(const Int8Call& call) {
  const int64_t panels = call.shape.panels();
  if (call.m == 0 || panels == 0) return;
  const int64_t threads = threads_for(call);
  const WideRows x(call, threads);
  const int64_t row_bytes = std::max<int64_t>(1, x.apart * static_cast<int64_t>(sizeof(float)));
  const int64_t rows = std::clamp<int64_t>(kRowsBytes / row_bytes, kFewRows, kMostRows);
  const int64_t blocks = (call.m + rows - 1) / rows, work = blocks * panels;
  const auto first_row = [&](int64_t block) { return call.m * block / blocks; };
  in_parallel(threads, [&](int64_t k) {
    for (int64_t i = work * k / threads; i < work * (k + 1) / threads; ++i)
      multiply(call, x, first_row(i / panels), first_row(i / panels + 1), i % panels);
  });
}

void int8_weight_only_mm(const Int8Call& call) {
  const int64_t step =
      std::max<int64_t>(kMostRows, kScratchBytes / std::max<int64_t>(1, 4 * call.shape.fours() * kFour));
  for (int64_t first = 0; first < call.m; first += step) {
    Int8Call some = call;
    some.m = std::min(step, call.m - first);
    some.x = static_cast<const char*>(call.x) + first * call.shape.k * size_of(call.x_dtype);
    some.y = static_cast<char*>(call.y) + first * call.shape.n * size_of(call.y_dtype);
    some_rows(some);
  }
}

}  // namespace onepass
