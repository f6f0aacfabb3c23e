// The CPU kernels of the gradients of the 8-bit product. Compiled once per instruction set, without
// contraction: every backend has the same q.
//
// Memory contract: `row` and `columns` read each element of g once, of 16 columns a cache line of float32 at
// a time, and write 4 bytes; `round` reads them and writes one; `turn` reads and writes each byte once.
#include "int8_backward_kernels.h"

#include <algorithm>

#include "vector.h"

namespace onepass::ONEPASS_ISA {

// --- lines of g -------------------------------------------------------------------------------------------
template <class S>
void row(const void* from, const float* factors, int64_t n, float* to) {
  const S* g = static_cast<const S*>(from);
  for (int64_t j = 0; j < n; ++j) load(to[j], g[j]);
  for (int64_t j = 0; factors && j < n; ++j) to[j] *= factors[j];
}

template <class S>
void columns(const void* from, const float* factors, int64_t m, int64_t n, int64_t count, int64_t apart,
             float* to) {
  const S* g = static_cast<const S*>(from);
  for (int64_t i = 0; i < m; ++i, g += n) {
    const float factor = factors ? factors[i] : 1;
    for (int64_t j = 0; j < count; ++j) {
      float value;
      load(value, g[j]);
      to[j * apart + i] = value * factor;
    }
  }
}

// --- rounding by chance -----------------------------------------------------------------------------------
constexpr int64_t kBlocks = 16, kDrawn = 4 * kBlocks;  // of random numbers at a time

static void draw(const Philox& philox, uint64_t block, uint32_t* words) {
  RandomWords drawn[kBlocks];
  for (uint64_t i = 0; i < kBlocks; ++i) drawn[i] = philox(block + i);
  std::memcpy(words, drawn, sizeof drawn);
}

static void round(const float* x, int64_t n, const Grid& grid, const Philox& philox, int64_t first,
                  int8_t* q) {
  constexpr float kMost = 127;
  uint32_t words[kDrawn];
  for (int64_t i = -(first % 4); i < n; i += kDrawn) {  // from the start of a block
    draw(philox, static_cast<uint64_t>(first + i) / 4, words);
    for (int64_t j = std::max<int64_t>(0, -i); j < std::min(kDrawn, n - i); ++j)
      q[i + j] =
          static_cast<int8_t>(rounded_by_chance(on_grid(x[i + j], grid.inverse, -kMost, kMost), words[j]));
  }
}

// --- panels -----------------------------------------------------------------------------------------------
using Outputs = VectorOf<uint8_t, kPanel>;  // a number of each
using Pairs = VectorOf<uint16_t, kPanel / 2>;

static Outputs outputs_at(const uint8_t* from, int64_t count, uint8_t flip) {
  Outputs row{};
  if (count == kPanel)  // of a size that is known: one instruction
    std::memcpy(&row, from, kPanel);
  else
    std::memcpy(&row, from, static_cast<size_t>(count));
  return row ^ flip;
}
// Numbers of a and b in turns, of the first eight outputs and of the others.
ONEPASS_INLINE Pairs low_pairs(Outputs a, Outputs b) {
  return bits_as<Pairs>(
      __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
}
ONEPASS_INLINE Pairs high_pairs(Outputs a, Outputs b) {
  return bits_as<Pairs>(
      __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}
ONEPASS_INLINE void put_fours(Pairs first, Pairs second, int8_t* to) {
  const Pairs low = __builtin_shufflevector(first, second, 0, 8, 1, 9, 2, 10, 3, 11);
  const Pairs high = __builtin_shufflevector(first, second, 4, 12, 5, 13, 6, 14, 7, 15);
  std::memcpy(to, &low, sizeof low);
  std::memcpy(to + sizeof low, &high, sizeof high);
}

static void turn(const uint8_t* from, int64_t depth, int64_t apart, int64_t count, uint8_t flip,
                 int8_t* panel, int32_t* sums) {
  int32_t totals[kPanel] = {};
  for (int64_t d = 0; d < depth; d += kFour, from += kFour * apart, panel += kStep) {
    Outputs rows[kFour] = {};
    for (int64_t j = 0; j < std::min(kFour, depth - d); ++j)
      rows[j] = outputs_at(from + j * apart, count, flip);
    put_fours(low_pairs(rows[0], rows[1]), low_pairs(rows[2], rows[3]), panel);
    put_fours(high_pairs(rows[0], rows[1]), high_pairs(rows[2], rows[3]), panel + kStep / 2);
    for (int64_t o = 0; o < kPanel; ++o)
      for (int64_t j = 0; j < kFour; ++j) totals[o] += static_cast<int8_t>(rows[j][o]);
  }
  std::memcpy(sums, totals, sizeof totals);
}

// --- back to storage --------------------------------------------------------------------------------------
template <class S>
void narrow(const float* x, int64_t n, void* to) {
  S* y = static_cast<S*>(to);
  for (int64_t i = 0; i < n; ++i) store(y[i], x[i]);
}

#define EACH_REAL(kernel) {kernel<float>, nullptr, kernel<BFloat16>, kernel<Float16>}

extern const Int8BackwardKernels int8_backward_kernels;
constinit const Int8BackwardKernels int8_backward_kernels = {EACH_REAL(row), EACH_REAL(columns), round, turn,
                                                             EACH_REAL(narrow)};

}  // namespace onepass::ONEPASS_ISA
