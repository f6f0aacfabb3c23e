// The kernels of normalizations, one table an instruction set: see isa.h.
#pragma once
#include "../common/norm.h"

namespace onepass {

// Is memory slow beside the caches, for one core? Measured: yes on Skylake-SP (9.5 GB/s of 40 in the L2), no
// on Zen 4 (25). Then what is read twice should be in a cache by then, what comes from there goes back
// through it, and lines are asked for ahead of prefetchers, which stop where a page ends.
static inline bool memory_is_slow() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

// Where channels lie apart, is it worth while to read a few of them at a time, so that the second pass finds
// them in a cache? Where memory is slow; and on AMD's before Zen 4 (Zen 3: backward with a residual in two
// thirds of the time).
static inline bool groups_pay() {
#if defined(__x86_64__)
  return memory_is_slow() || (__builtin_cpu_is("amd") && !__builtin_cpu_supports("avx512f"));
#else
  return false;
#endif
}

// Are stores past the caches slower than those through them, of data that a cache holds? Measured: yes on
// Skylake-SP, by a third; no on Emerald Rapids (1.3 to 1.6 times as fast) and Zen 4. What tells them apart:
static inline bool stores_past_are_slow() {
#if defined(__x86_64__)
  return memory_is_slow() && !__builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Where a load lies at the same place of a page as a store past the caches shortly before it, does it wait?
// Measured: yes on Zen 3 (norm_walk.h).
static inline bool loads_wait() { return groups_pay() && !memory_is_slow(); }

// What a reduction runs over: images [first, last) of channels [begin, end), or, where channels are
// innermost, pixels [first, last) of all images in a row, and all channels.
struct NormBlock {
  int64_t first, last, begin, end;
};

// Where channels are innermost, kernels may compute a line's elements in turn (vector.h): of sixteen first
// those of even places. Coefficients and sums of the first `in_turn` columns then lie as they are computed.
struct Order {
  int64_t in_turn = 0;
  int64_t operator()(int64_t column) const {
    return column < in_turn ? (column & ~15) | (column & 1) << 3 | (column >> 1 & 7) : column;
  }
};

constexpr int kActivations = 4, kDTypes = 4;  // those of DType that are served, in its order

// Coefficients are arrays [.., channels] of the arithmetic type: mean, scale, shift (Normalise); for
// grad_apply slope and constant (InputGrad) behind them.
struct NormKernels {
  // Mean and squared deviations of each channel of the block. scratch: 3 doubles a channel.
  using Moments = void (*)(const NormCall&, NormBlock, double* scratch, double* mean, double* m2);
  // Sums of g and of g * (x - mean) of each channel of the block. scratch: 2 doubles a channel.
  using GradSums = void (*)(const NormCall&, const void* coefficients, NormBlock, double* scratch,
                            double* sum, double* dot);
  // Elements [from, to) in the order of memory; where there is a mask, from is a multiple of 8.
  using Apply = void (*)(const NormCall&, const void* coefficients, int64_t from, int64_t to);

  Moments moments[kDTypes];
  Apply apply[kActivations][kDTypes];
  GradSums grad_sums[kActivations][kDTypes];
  Apply grad_apply[kActivations][kDTypes];

  bool in_turn[kDTypes];  // whole lines of 32 halves

  // Yardsticks: norm_probe.h.
  float (*read_probe)(const float* a, const float* b, int64_t n);
  void (*copy_probe)(const float* a, const float* b, float* to, int64_t n, bool past);
};

}  // namespace onepass
