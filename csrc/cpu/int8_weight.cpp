// The CPU kernels of the product of real numbers and 8-bit weights. Compiled once per instruction set.
//
// Memory contract: `multiply` reads 64 bytes of weights for each four of k, once for all its rows, and four
// floats of each row. For a tile of rows bytes become floats in registers; for more, a block of the panel
// becomes floats once, in memory that stays in the first cache. Sums stay in registers over a block. `finish`
// reads 64 sums of a row and writes its 16 outputs.
//
// A vector holds outputs with their four k side by side, as a panel does, so that bytes need not be moved. An
// output has four sums, of every fourth k, which come together behind the last. Each is rounded in the order
// of k: a row has the same bits however many rows there are and wherever a block begins.
#include "int8_weight_kernels.h"

#include "int8_finish.h"

namespace onepass::ONEPASS_ISA {

using Fours = VectorOf<float, kHalfLanes>;  // as long as the processor has them

constexpr int kTile = 4;  // vectors of the weight whose sums stay in registers, and rows:
#if defined(__AVX512F__)
constexpr int kTileRows = 6;  // 24 sums of 32 registers
#elif defined(__FMA__)
constexpr int kTileRows = 3;  // 12 sums of 16 registers
#else
constexpr int kTileRows = 2;  // a product needs a register of its own
#endif
constexpr int kPanelVectors = kStep / kHalfLanes;
constexpr int64_t kBlock = 64;  // fours at a time: 16 KB of floats

// --- weights ----------------------------------------------------------------------------------------------
ONEPASS_INLINE Fours load_fours(const float* from) {
  Fours v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
ONEPASS_INLINE Fours load_fours(const int8_t* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Fours v;
  for (int k = 0; k < kHalfLanes; ++k) v[k] = from[k];
  return v;
#endif
}
static void widen_panel(const int8_t* panel, int64_t fours, float* to) {
  for (int64_t i = 0; i < fours * kStep; i += kHalfLanes) {
    const Fours v = load_fours(panel + i);
    std::memcpy(to + i, &v, sizeof v);
  }
}

// --- products ---------------------------------------------------------------------------------------------
// The same four of x beside each output.
ONEPASS_INLINE Fours repeated(const float* four) {
#if defined(__AVX512F__)
  return _mm512_broadcast_f32x4(_mm_loadu_ps(four));
#elif defined(__AVX2__)
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(four));
#else
  return load_fours(four);
#endif
}

// Some rows by some vectors of a panel, whose weights are bytes or floats. All loops over sums are unrolled:
// gcc 12 keeps an array in memory that a single loop walks through.
template <int kRows, int kVectors, class Weight>
[[gnu::noinline]] static void multiply_tile(const float* x, int64_t apart, const Weight* panel, int64_t fours,
                                            float* sums) {
  Fours sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = load_fours(sums + r * kStep + v * kHalfLanes);
  do {  // there is one at least
    Fours each[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) each[r] = repeated(x + r * apart);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Fours w = load_fours(panel + v * kHalfLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[r][v] = multiply_add(w, each[r], sum[r][v]);
    }
    x += kFour;
    panel += kStep;
  } while (--fours > 0);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      std::memcpy(sums + r * kStep + v * kHalfLanes, &sum[r][v], sizeof sum[r][v]);
}

// All vectors of a panel. One row has registers for two tiles of them.
template <int kRows, class Weight>
static void multiply_rows(const float* x, int64_t apart, const Weight* panel, int64_t fours, float* sums) {
  constexpr int kVectors = kRows == 1 ? std::min(2 * kTile, kPanelVectors) : kTile;
  for (int v = 0; v < kPanelVectors; v += kVectors)
    multiply_tile<kRows, kVectors>(x, apart, panel + v * kHalfLanes, fours, sums + v * kHalfLanes);
}
template <int kMost, class Weight>
static void multiply_few(const float* x, int64_t apart, int64_t rows, const Weight* panel, int64_t fours,
                         float* sums) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return multiply_few<kMost - 1>(x, apart, rows, panel, fours, sums);
  }
  multiply_rows<kMost>(x, apart, panel, fours, sums);
}

static void multiply(const float* x, int64_t apart, int64_t rows, const int8_t* panel, int64_t fours,
                     float* sums) {
  alignas(64) float wide[kBlock * kStep];
  std::fill_n(sums, rows * kStep, 0.0f);
  for (int64_t first = 0; first < fours; first += kBlock, x += kBlock * kFour, panel += kBlock * kStep) {
    const int64_t some = std::min(kBlock, fours - first);
    if (rows <= kTileRows) {
      multiply_few<kTileRows>(x, apart, rows, panel, some, sums);
      continue;
    }
    widen_panel(panel, some, wide);
    for (int64_t r = 0; r < rows; r += kTileRows)
      multiply_few<kTileRows>(x + r * apart, apart, std::min<int64_t>(kTileRows, rows - r), wide, some,
                              sums + r * kStep);
  }
}

// --- before and behind ------------------------------------------------------------------------------------
template <class S>
static void widen(const void* x, int64_t k, float* to) {
  load_run(to, static_cast<const S*>(x), 1, k);
  std::fill_n(to + k, -k & (kFour - 1), 0.0f);
}

// The sums of as many fours as a vector has lanes.
ONEPASS_INLINE Vector<float> sums_of_fours(const float* from) {
#if defined(__AVX2__)
  const auto two = [&](int k) ONEPASS_FLAT {
    return _mm256_hadd_ps(_mm256_loadu_ps(from + k * 8), _mm256_loadu_ps(from + k * 8 + 8));
  };
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_ps(_mm256_hadd_ps(two(0), two(2)), order);
#else
  Vector<float> v;
  for (int k = 0; k < kLanes<float>; ++k, from += kFour) v[k] = (from[0] + from[1]) + (from[2] + from[3]);
  return v;
#endif
}

template <class S, Gate gate>
static void finish_as(const Int8Call& call, const float* sums, int64_t first, int64_t rows, int64_t from,
                      int64_t n) {
  const PanelOutputs outputs(call, from, n);
  for (int64_t r = 0; r < rows; ++r, sums += kStep) {
    store_outputs<S>(call, first + r, from, n, [&](int k) ONEPASS_FLAT {
      const Vector<float> v = sums_of_fours(sums + k * kLanes<float> * kFour);
      return gated<gate>(v * outputs.scale[k] + outputs.bias[k]);
    });
  }
}
static void finish(const Int8Call& call, const float* sums, int64_t first, int64_t rows, int64_t from,
                   int64_t n) {
  with_output(call, [&]<class S, Gate gate>() { finish_as<S, gate>(call, sums, first, rows, from, n); });
}

extern const Int8WeightKernels int8_weight_kernels;
constinit const Int8WeightKernels int8_weight_kernels = {
    {widen<float>, nullptr, widen<BFloat16>, widen<Float16>}, multiply, finish};

}  // namespace onepass::ONEPASS_ISA
