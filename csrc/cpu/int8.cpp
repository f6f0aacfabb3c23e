// The CPU kernels of the 8-bit matrix product. Compiled once per instruction set.
//
// Memory contract: `multiply` reads 64 bytes of weights, and a tile's rows, for each four of k; sums stay in
// registers over all fours it is given. `finish` reads 16 sums and writes 16 outputs.
//
// Every form is exact. AVX2's product of unsigned and signed bytes adds two of them in 16 bits, which hold
// 2 * 128 * 127: so it is given |x| and the weight with the sign of x; or, of 7 bits, x + 64, which is below
// 128. VNNI adds four in 32 bits: it is given x + 128.
#include "int8_kernels.h"

#include "../rules/norm.h"
#include "vector_exp.h"

namespace onepass::ONEPASS_ISA {

// --- rows of x --------------------------------------------------------------------------------------------
constexpr Int8Form kPlain{4, 4, 0}, kSigned{4, 8, 0}, kSevenBits{6, 4, 64}, kShifted{12, 4, 128};

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

// Four bytes, each plus the same number, without a carry from one to the next.
ONEPASS_INLINE uint32_t plus(uint32_t four, uint32_t number) {
  constexpr uint32_t kEach = 0x01010101, kSigns = 0x80808080;
  return ((four & ~kSigns) + (number & 0x7f) * kEach) ^ ((four ^ number * kEach) & kSigns);
}
// Their sizes: 128 of -128.
ONEPASS_INLINE uint32_t sizes_of(uint32_t four) {
  const uint32_t signs = (four >> 7) & 0x01010101, ones = signs * 0xff;
  return plus(four ^ ones, 0) + signs;
}
template <bool kSizes>
ONEPASS_INLINE void place_as(const int8_t* x, int64_t k, uint32_t offset, int64_t apart, uint8_t* to) {
  for (int64_t i = 0; i < k; i += kFour, to += apart) {
    uint32_t four = 0;
    if (i + kFour <= k)
      std::memcpy(&four, x + i, kFour);
    else
      std::memcpy(&four, x + i, static_cast<size_t>(k - i));
    const uint32_t first = kSizes ? sizes_of(four) : plus(four, offset);
    std::memcpy(to, &first, kFour);
    if (kSizes) std::memcpy(to + kFour, &four, kFour);
  }
}
static void place(const int8_t* x, int64_t k, const Int8Form& form, int32_t rows, int32_t r, uint8_t* to) {
  const int64_t apart = static_cast<int64_t>(rows) * form.bytes;
  to += static_cast<int64_t>(r) * form.bytes;
  if (form.bytes == 8)
    place_as<true>(x, k, 0, apart, to);
  else
    place_as<false>(x, k, static_cast<uint32_t>(form.offset), apart, to);
}

// --- products ---------------------------------------------------------------------------------------------
#if defined(__AVX2__)
ONEPASS_INLINE __m256i all_of(const uint8_t* four) {
  int32_t bits;
  std::memcpy(&bits, four, sizeof bits);
  return _mm256_set1_epi32(bits);
}
template <int kRows, bool kSigns>
static void multiply_avx2(const uint8_t* tile, const int8_t* panel, int64_t fours, int32_t* c) {
  __m256i sums[kRows][2];
  for (int r = 0; r < kRows; ++r)
    for (int h = 0; h < 2; ++h)
      sums[r][h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(c + r * kPanel + h * 8));
  const __m256i ones = _mm256_set1_epi16(1);
  constexpr int kBytes = kSigns ? 8 : 4;
  for (int64_t k = 0; k < fours; ++k, panel += kStep, tile += kRows * kBytes) {
    const __m256i w[2] = {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel)),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32))};
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = all_of(tile + r * kBytes);
      for (int h = 0; h < 2; ++h) {
        __m256i by = w[h];
        if constexpr (kSigns) by = _mm256_sign_epi8(by, all_of(tile + r * kBytes + 4));
        sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(_mm256_maddubs_epi16(x, by), ones));
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int h = 0; h < 2; ++h)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * kPanel + h * 8), sums[r][h]);
}
#endif
#if defined(__AVX512F__)
// The sums of so many rows. Members, not an array: gcc 12 would keep that in memory.
template <int kRows>
struct Sums {
  Sums<kRows - 1> others;
  __m512i last;

  ONEPASS_INLINE void load(const int32_t* c) {
    others.load(c);
    last = _mm512_loadu_si512(c + (kRows - 1) * kPanel);
  }
  // The instruction by its name: its function would need all of this file to be for processors that have it.
  ONEPASS_INLINE void add_products(const uint8_t* fours, __m512i w) {
    others.add_products(fours, w);
    int32_t four;
    std::memcpy(&four, fours + (kRows - 1) * kFour, sizeof four);
    asm("vpdpbusd %2, %1, %0" : "+v"(last) : "v"(_mm512_set1_epi32(four)), "v"(w));
  }
  ONEPASS_INLINE void add(const Sums& more) {
    others.add(more.others);
    last = _mm512_add_epi32(last, more.last);
  }
  ONEPASS_INLINE void store(int32_t* c) const {
    others.store(c);
    _mm512_storeu_si512(c + (kRows - 1) * kPanel, last);
  }
};
template <>
struct Sums<0> {
  ONEPASS_INLINE void load(const int32_t*) {}
  ONEPASS_INLINE void add_products(const uint8_t*, __m512i) {}
  ONEPASS_INLINE void add(const Sums&) {}
  ONEPASS_INLINE void store(int32_t*) const {}
};

template <int kRows>
static void multiply_vnni(const uint8_t* tile, const int8_t* panel, int64_t fours, int32_t* c) {
  constexpr int kBytes = kRows * kFour;
  Sums<kRows> sums;
  sums.load(c);
  int64_t k = 0;
  if constexpr (kRows <= 3) {  // several for each row, so that none waits for the product before
    static constexpr int32_t zeros[3 * kPanel] = {};
    Sums<kRows> second, third, fourth;
    second.load(zeros);
    third.load(zeros);
    fourth.load(zeros);
    for (; k + 4 <= fours; k += 4, tile += 4 * kBytes, panel += 4 * kStep) {
      sums.add_products(tile, _mm512_loadu_si512(panel));
      second.add_products(tile + kBytes, _mm512_loadu_si512(panel + kStep));
      third.add_products(tile + 2 * kBytes, _mm512_loadu_si512(panel + 2 * kStep));
      fourth.add_products(tile + 3 * kBytes, _mm512_loadu_si512(panel + 3 * kStep));
    }
    third.add(fourth);
    sums.add(second);
    sums.add(third);
  }
  for (; k < fours; ++k, tile += kBytes, panel += kStep) sums.add_products(tile, _mm512_loadu_si512(panel));
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

static void multiply(const uint8_t* tile, int32_t rows, [[maybe_unused]] const Int8Form& form,
                     const int8_t* panel, int64_t fours, int32_t* c) {
#if defined(__AVX512F__)
  if (&form == &kShifted)
    return with_rows<kShifted.rows>(rows, [&](auto n) { multiply_vnni<n.value>(tile, panel, fours, c); });
#endif
#if defined(__AVX2__)
  if (&form == &kSevenBits)
    return with_rows<kSevenBits.rows>(rows,
                                      [&](auto n) { multiply_avx2<n.value, false>(tile, panel, fours, c); });
  if (&form == &kSigned)
    return with_rows<kSigned.rows>(rows,
                                   [&](auto n) { multiply_avx2<n.value, true>(tile, panel, fours, c); });
#endif
  multiply_plainly(tile, rows, panel, fours, c);
}

// --- behind the product -----------------------------------------------------------------------------------
template <Gate gate>
ONEPASS_INLINE Vector<float> gated(Vector<float> v) {
  if constexpr (gate == Gate::kRelu) return activate<Activation::kRelu>(v, 0.0f);
  if constexpr (gate == Gate::kSilu) return v * sigmoid(v);
  if constexpr (gate == Gate::kGelu)
    for (int k = 0; k < kLanes<float>; ++k) v[k] *= 0.5f * (1 + std::erf(v[k] * 0.70710678118654752f));
  return v;
}

// What is the same for all rows: of the outputs of a panel.
struct PanelOutputs {
  static constexpr int kVectors = kPanel / kLanes<float>;
  Integers<float> sums[kVectors];
  Vector<float> scale[kVectors], bias[kVectors];

  PanelOutputs(const Int8Call& call, int64_t from, int64_t n) {
    const auto* all = reinterpret_cast<const int32_t*>(call.weight + call.shape.sums_at()) + from;
    std::memcpy(sums, all, sizeof sums);
    float scales[kPanel], biases[kPanel] = {};
    std::fill_n(scales, kPanel, 1.0f);
    const size_t bytes = static_cast<size_t>(n) * sizeof(float);
    if (call.w_scale) std::memcpy(scales, call.w_scale + from, bytes);
    if (call.bias) std::memcpy(biases, call.bias + from, bytes);
    std::memcpy(scale, scales, sizeof scale);
    std::memcpy(bias, biases, sizeof bias);
  }
};

template <class S, Gate gate>
static void finish_as(const Int8Call& call, const int32_t* c, const Int8Row* rows, int64_t first,
                      int64_t count, int64_t from, int64_t n) {
  const PanelOutputs outputs(call, from, n);
  for (int64_t r = 0; r < count; ++r, c += kPanel) {
    float real[kPanel];
    for (int k = 0; k < PanelOutputs::kVectors; ++k) {
      Integers<float> whole;
      std::memcpy(&whole, c + k * kLanes<float>, sizeof whole);
      const Vector<float> v = __builtin_convertvector(whole - outputs.sums[k] * rows[r].zero, Vector<float>);
      store_wide<float>(real + k * kLanes<float>,
                        gated<gate>(v * outputs.scale[k] * rows[r].scale + outputs.bias[k]));
    }
    S* y = static_cast<S*>(call.y) + (first + r) * call.shape.n + from;
    if (n == kPanel)
      store_run(y, real, 1, kPanel);
    else
      store_run(y, real, 1, n);
  }
}

static void finish_raw(const Int8Call& call, const int32_t* c, const Int8Row* rows, int64_t first,
                       int64_t count, int64_t from, int64_t n) {
  const auto* sums = reinterpret_cast<const int32_t*>(call.weight + call.shape.sums_at()) + from;
  for (int64_t r = 0; r < count; ++r, c += kPanel) {
    int32_t* y = static_cast<int32_t*>(call.y) + (first + r) * call.shape.n + from;
    for (int64_t i = 0; i < n; ++i)  // as unsigned: what overflows on the way comes back
      y[i] = static_cast<int32_t>(static_cast<uint32_t>(c[i]) -
                                  static_cast<uint32_t>(sums[i]) * static_cast<uint32_t>(rows[r].zero));
  }
}

template <Gate gate>
static void finish_with(const Int8Call& call, const int32_t* c, const Int8Row* rows, int64_t first,
                        int64_t count, int64_t from, int64_t n) {
  switch (call.y_dtype) {
    case DType::kBFloat16:
      return finish_as<BFloat16, gate>(call, c, rows, first, count, from, n);
    case DType::kFloat16:
      return finish_as<Float16, gate>(call, c, rows, first, count, from, n);
    default:
      return finish_as<float, gate>(call, c, rows, first, count, from, n);
  }
}
static void finish(const Int8Call& call, const int32_t* c, const Int8Row* rows, int64_t first, int64_t count,
                   int64_t from, int64_t n) {
  if (call.raw) return finish_raw(call, c, rows, first, count, from, n);
  switch (call.gate) {
    case Gate::kNone:
      return finish_with<Gate::kNone>(call, c, rows, first, count, from, n);
    case Gate::kRelu:
      return finish_with<Gate::kRelu>(call, c, rows, first, count, from, n);
    case Gate::kGelu:
      return finish_with<Gate::kGelu>(call, c, rows, first, count, from, n);
    case Gate::kSilu:
      return finish_with<Gate::kSilu>(call, c, rows, first, count, from, n);
  }
}

extern const Int8Kernels int8_kernels;
constinit const Int8Kernels int8_kernels = {form, place, multiply, finish};

}  // namespace onepass::ONEPASS_ISA
