// The CPU kernels of the 8-bit matrix product. Compiled once per instruction set.
//
// Memory contract: `multiply` reads 64 bytes of weights, and a tile's rows, for each four of k; sums stay in
// registers over all fours it is given. `finish` reads 16 sums and writes 16 outputs.
//
// Every form is exact. AVX2's product of unsigned and signed bytes adds two of them in 16 bits, which hold
// 2 * 128 * 127: so it is given |x| and the weight, all of its bits turned round where x is negative. That is
// -w - 1, by an instruction that every port has, where the one for -w has to wait for the multiplier's; what
// it lacks, |x| for each negative x, is the same for all outputs, and the sums start with it. Of 7 bits it is
// given x + 64, which is below 128. VNNI adds four in 32 bits: it is given x + 128.
#include "int8_kernels.h"

#include "int8_finish.h"

namespace onepass::ONEPASS_ISA {

// --- rows of x --------------------------------------------------------------------------------------------
constexpr Int8Form kPlain{4, 4, 0, 0}, kSigned{5, 8, 0, 1}, kSevenBits{6, 4, 64, 1}, kShifted{12, 4, 128, 3};

#if defined(__AVX512F__)
static bool has_vnni() {
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
}
#endif

static const Int8Form* form([[maybe_unused]] int32_t bits) {
#if defined(__AVX512F__)
  if (has_vnni()) return &kShifted;
#endif
#if defined(__AVX2__)
  return bits == 7 ? &kSevenBits : &kSigned;
#else
  return &kPlain;
#endif
}

// What one row becomes in a tile. A block of x is 32 numbers, eight fours, which go to eight places.
#if defined(__AVX2__)
constexpr int64_t kBlock = 32;
static __m256i block_at(const int8_t* x, int64_t some) {
  if (some >= kBlock) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  alignas(kBlock) int8_t padded[kBlock] = {};
  std::memcpy(padded, x, static_cast<size_t>(some));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(padded));
}
ONEPASS_INLINE void scatter(__m256i block, int64_t fours, int64_t apart, uint8_t* to) {
  alignas(kBlock) uint8_t bytes[kBlock];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), block);
  for (int64_t four = 0; four < fours; ++four) std::memcpy(to + four * apart, bytes + four * kFour, kFour);
}
template <bool kSigns>
static int32_t place_as(const int8_t* x, int64_t k, int32_t offset, int64_t apart, uint8_t* to) {
  const __m256i zero = _mm256_setzero_si256(), more = _mm256_set1_epi8(static_cast<int8_t>(offset));
  __m256i lacking = zero;
  for (int64_t i = 0; i < k; i += kBlock, to += kBlock / kFour * apart) {
    const int64_t fours = std::min(kBlock / kFour, (k - i + kFour - 1) / kFour);
    const __m256i v = block_at(x + i, k - i);
    if constexpr (kSigns) {
      const __m256i size = _mm256_abs_epi8(v), negative = _mm256_cmpgt_epi8(zero, v);
      lacking = _mm256_add_epi64(lacking, _mm256_sad_epu8(_mm256_and_si256(size, negative), zero));
      scatter(size, fours, apart, to);
      scatter(negative, fours, apart, to + kFour);
    } else {
      scatter(_mm256_add_epi8(v, more), fours, apart, to);
    }
  }
  int64_t sums[4];
  std::memcpy(sums, &lacking, sizeof sums);
  return static_cast<int32_t>(sums[0] + sums[1] + sums[2] + sums[3]);
}
static int32_t place(const int8_t* x, int64_t k, const Int8Form& form, int32_t rows, int32_t r, uint8_t* to) {
  const int64_t apart = static_cast<int64_t>(rows) * form.bytes;
  to += static_cast<int64_t>(r) * form.bytes;
  if (form.bytes == 8) return place_as<true>(x, k, 0, apart, to);
  return place_as<false>(x, k, form.offset, apart, to);
}
#else
static int32_t place(const int8_t* x, int64_t k, const Int8Form&, int32_t rows, int32_t r, uint8_t* to) {
  to += r * kFour;
  for (int64_t i = 0; i < k; i += kFour, to += rows * kFour) {
    std::memset(to, 0, kFour);
    std::memcpy(to, x + i, static_cast<size_t>(std::min(kFour, k - i)));
  }
  return 0;
}
#endif

// --- products ---------------------------------------------------------------------------------------------
ONEPASS_INLINE int32_t four_at(const void* bytes) {
  int32_t four;
  std::memcpy(&four, bytes, sizeof four);
  return four;
}

// The sums of one row for the outputs of a panel. kBytes: of a four of the row.
#if defined(__AVX2__)
template <bool kSigns>
struct RowSums256 {
  struct Weights {
    __m256i low, high;
  };
  static constexpr int kBytes = kSigns ? 8 : 4;
  __m256i low, high;

  static ONEPASS_INLINE __m256i load256(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static ONEPASS_INLINE Weights weights(const int8_t* step) { return {load256(step), load256(step + 32)}; }
  ONEPASS_INLINE void load(const int32_t* c) { low = load256(c), high = load256(c + 8); }
  ONEPASS_INLINE void store(int32_t* c) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + 8), high);
  }
  ONEPASS_INLINE void add_products(const uint8_t* fours, const Weights& w) {
    const __m256i x = _mm256_set1_epi32(four_at(fours));
    if constexpr (kSigns) {
      const __m256i negative = _mm256_set1_epi32(four_at(fours + kFour));
      low = plus_products(low, x, _mm256_xor_si256(w.low, negative));
      high = plus_products(high, x, _mm256_xor_si256(w.high, negative));
    } else {
      low = plus_products(low, x, w.low);
      high = plus_products(high, x, w.high);
    }
  }

 private:
  static ONEPASS_INLINE __m256i plus_products(__m256i sum, __m256i x, __m256i w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
  }
};
#endif
#if defined(__AVX512F__)
struct RowSums512 {
  using Weights = __m512i;
  static constexpr int kBytes = 4;
  __m512i all;

  static ONEPASS_INLINE Weights weights(const int8_t* step) { return _mm512_loadu_si512(step); }
  ONEPASS_INLINE void load(const int32_t* c) { all = _mm512_loadu_si512(c); }
  ONEPASS_INLINE void store(int32_t* c) const { _mm512_storeu_si512(c, all); }
  // The instruction by its name: its function would need all of this file to be for processors that have it.
  ONEPASS_INLINE void add_products(const uint8_t* fours, const Weights& w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(all) : "v"(_mm512_set1_epi32(four_at(fours))), "v"(w));
  }
};
#endif
#if defined(__AVX2__)
// The sums of so many rows for a panel, and those of so many panels. Members, not arrays: gcc 12 would keep
// them in memory.
template <class Row, int kRows>
struct PanelSums {
  PanelSums<Row, kRows - 1> others;
  Row last;

  ONEPASS_INLINE void load(const int32_t* c) {
    others.load(c);
    last.load(c + (kRows - 1) * kPanel);
  }
  ONEPASS_INLINE void add_products(const uint8_t* fours, const typename Row::Weights& w) {
    others.add_products(fours, w);
    last.add_products(fours + (kRows - 1) * Row::kBytes, w);
  }
  ONEPASS_INLINE void store(int32_t* c) const {
    others.store(c);
    last.store(c + (kRows - 1) * kPanel);
  }
};
template <class Row>
struct PanelSums<Row, 0> {
  ONEPASS_INLINE void load(const int32_t*) {}
  ONEPASS_INLINE void add_products(const uint8_t*, const typename Row::Weights&) {}
  ONEPASS_INLINE void store(int32_t*) const {}
};
template <class Row, int kRows, int kPanels>
struct Sums {
  Sums<Row, kRows, kPanels - 1> others;
  PanelSums<Row, kRows> last;

  ONEPASS_INLINE void load(const int32_t* c) {
    others.load(c);
    last.load(c + (kPanels - 1) * kRows * kPanel);
  }
  ONEPASS_INLINE void add_products(const uint8_t* fours, const int8_t* step, int64_t apart) {
    others.add_products(fours, step, apart);
    last.add_products(fours, Row::weights(step + (kPanels - 1) * apart));
  }
  ONEPASS_INLINE void store(int32_t* c) const {
    others.store(c);
    last.store(c + (kPanels - 1) * kRows * kPanel);
  }
};
template <class Row, int kRows>
struct Sums<Row, kRows, 0> {
  ONEPASS_INLINE void load(const int32_t*) {}
  ONEPASS_INLINE void add_products(const uint8_t*, const int8_t*, int64_t) {}
  ONEPASS_INLINE void store(int32_t*) const {}
};

// Panels lie one behind the other: while the last tile multiplies one piece, the next comes near.
constexpr int64_t kReadAhead = kDepth * kPanel;

// A function of its own: side by side with others gcc 12 copies the sums around their products.
template <class Row, int kRows, int kPanels>
[[gnu::noinline]] static void multiply_as(const uint8_t* tile, const int8_t* panels, int64_t apart,
                                          int64_t fours, int32_t* c) {
  Sums<Row, kRows, kPanels> sums;
  sums.load(c);
  for (int64_t k = 0; k < fours; ++k, tile += kRows * Row::kBytes, panels += kStep) {
    if constexpr (kPanels == 1) _mm_prefetch(panels + kReadAhead, _MM_HINT_T1);
    sums.add_products(tile, panels, apart);
  }
  sums.store(c);
}
#endif
static void multiply_plainly(const uint8_t* tile, int32_t rows, const int8_t* panel, int64_t fours,
                             int32_t* c) {
  for (int64_t k = 0; k < fours; ++k, panel += kStep, tile += rows * kFour)
    for (int32_t r = 0; r < rows; ++r) {
      int8_t x[kFour];
      std::memcpy(x, tile + r * kFour, kFour);
      for (int64_t n = 0; n < kPanel; ++n) {
        int32_t sum = 0;
        for (int64_t j = 0; j < kFour; ++j) sum += x[j] * panel[n * kFour + j];
        c[r * kPanel + n] += sum;
      }
    }
}

// body(std::integral_constant<int, rows>) for rows from 1 to kMost.
template <int kMost, class Body>
ONEPASS_INLINE void with_rows(int32_t rows, const Body& body) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return with_rows<kMost - 1>(rows, body);
  }
  body(std::integral_constant<int, kMost>{});
}

// Of one panel, or for few rows of several.
template <class Row, const Int8Form& form>
ONEPASS_INLINE void multiply_rows(const uint8_t* tile, int32_t rows, const int8_t* panels, int64_t apart,
                                  int64_t count, int64_t fours, int32_t* c) {
  if (count == kPanelsAtOnce)
    return with_rows<form.few>(
        rows, [&](auto n) { multiply_as<Row, n.value, kPanelsAtOnce>(tile, panels, apart, fours, c); });
  with_rows<form.rows>(rows, [&](auto n) { multiply_as<Row, n.value, 1>(tile, panels, apart, fours, c); });
}

static void multiply(const uint8_t* tile, int32_t rows, [[maybe_unused]] const Int8Form& form,
                     const int8_t* panels, [[maybe_unused]] int64_t apart, [[maybe_unused]] int64_t count,
                     int64_t fours, int32_t* c) {
#if defined(__AVX512F__)
  if (&form == &kShifted)
    return multiply_rows<RowSums512, kShifted>(tile, rows, panels, apart, count, fours, c);
#endif
#if defined(__AVX2__)
  if (&form == &kSevenBits)
    return multiply_rows<RowSums256<false>, kSevenBits>(tile, rows, panels, apart, count, fours, c);
  if (&form == &kSigned)
    return multiply_rows<RowSums256<true>, kSigned>(tile, rows, panels, apart, count, fours, c);
#endif
  multiply_plainly(tile, rows, panels, fours, c);
}

// --- behind the product -----------------------------------------------------------------------------------
using Whole32 = VectorOf<uint32_t, kLanes<float>>;

// S: uint8_t for outputs that are quantized again, signed or not.
template <class S, Gate gate>
static void finish_as(const Int8Call& call, const int32_t* c, const Int8Row* rows, int64_t first,
                      int64_t count, int64_t from, int64_t n) {
  const PanelOutputs outputs(call, from, n);
  [[maybe_unused]] const OutputGrid grid(call);
  Integers<float> sums[PanelOutputs::kVectors];
  std::memcpy(sums, call.weight + call.shape.sums_at() + from * sizeof(int32_t), sizeof sums);
  for (int64_t r = 0; r < count; ++r, c += kPanel) {
    const auto made = [&](int k) ONEPASS_FLAT {
      Integers<float> whole;
      std::memcpy(&whole, c + k * kLanes<float>, sizeof whole);
      const Integers<float> sum = without_zero<Whole32>(whole, sums[k], rows[r].zero);
      const Vector<float> v = __builtin_convertvector(sum, Vector<float>);
      return gated<gate>(scaled(v, outputs.scale[k], rows[r].scale, outputs.bias[k]));
    };
    if constexpr (std::is_same_v<S, uint8_t>)
      store_quantized(call, grid, first + r, from, n, made);
    else
      store_outputs<S>(call, first + r, from, n, made);
  }
}

static void finish_raw(const Int8Call& call, const int32_t* c, const Int8Row* rows, int64_t first,
                       int64_t count, int64_t from, int64_t n) {
  const auto* sums = reinterpret_cast<const int32_t*>(call.weight + call.shape.sums_at()) + from;
  for (int64_t r = 0; r < count; ++r, c += kPanel) {
    int32_t* y = static_cast<int32_t*>(call.y) + (first + r) * call.shape.n + from;
    for (int64_t i = 0; i < n; ++i) y[i] = without_zero(c[i], sums[i], rows[r].zero);
  }
}

static void finish(const Int8Call& call, const int32_t* c, const Int8Row* rows, int64_t first, int64_t count,
                   int64_t from, int64_t n) {
  if (call.raw) return finish_raw(call, c, rows, first, count, from, n);
  const auto as = [&]<class S, Gate gate>() { finish_as<S, gate>(call, c, rows, first, count, from, n); };
  if (call.y_scale) return with_gate<uint8_t>(call.gate, as);
  with_output(call, as);
}

extern const Int8Kernels int8_kernels;
constinit const Int8Kernels int8_kernels = {form, place, multiply, finish};

}  // namespace onepass::ONEPASS_ISA
