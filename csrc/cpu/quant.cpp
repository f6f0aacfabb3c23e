// The CPU kernels of quantization. Compiled once per instruction set.
//
// Memory contract: `extent` reads each element once; `quantize` reads each once and writes a byte;
// `dequantize` the other way round.
#include "quant_kernels.h"

#include "vector.h"

namespace onepass::ONEPASS_ISA {

template <class S>
using Bytes = VectorOf<uint8_t, kLanes<S>>;

// Whole numbers from -128 to 255, one a byte.
template <class S>
ONEPASS_INLINE Bytes<S> narrowed_to_bytes(Integers<S> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) return bits_as<Bytes<S>>(_mm512_cvtepi32_epi8(bits_as<__m512i>(v)));
  if constexpr (sizeof v == 32) {
    const __m128i bytes = _mm256_cvtepi32_epi8(bits_as<__m256i>(v));
    Bytes<S> low;
    std::memcpy(&low, &bytes, sizeof low);
    return low;
  }
#elif defined(__AVX2__)
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i packed = _mm256_shuffle_epi8(bits_as<__m256i>(v), order);
  const __m128i bytes =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
  Bytes<S> low;
  std::memcpy(&low, &bytes, sizeof low);
  return low;
#endif
  return __builtin_convertvector(v, Bytes<S>);
}
// kLanes bytes, each a whole number.
template <class S, class Byte>
ONEPASS_INLINE Integers<S> widened_bytes(const Byte* q) {
  [[maybe_unused]] constexpr bool is_signed = std::is_signed_v<Byte>;
#if defined(__AVX512F__)
  if constexpr (kLanes<S> == 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    return bits_as<Integers<S>>(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
  }
#endif
#if defined(__AVX2__)
  if constexpr (kLanes<S> == 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(q));
    return bits_as<Integers<S>>(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
  }
#endif
  Integers<S> v;
  for (int k = 0; k < kLanes<S>; ++k) v[k] = q[k];
  return v;
}

// --- kernels ----------------------------------------------------------------------------------------------
template <class S>
Extent extent(const void* from, int64_t n) {
  const S* x = static_cast<const S*>(from);
  Vector<S> low{}, high{}, odd{};  // odd: 0 where all are finite, else NaN
  for_each_vector<S>(0, n, [&](int64_t i, auto lanes) ONEPASS_FLAT {
    const Vector<S> v = lanes.load(x + i);
    low = v < low ? v : low;
    high = v > high ? v : high;
    odd += v - v;
  });
  Extent all;
  for (int k = 0; k < kLanes<S>; ++k) all.merge({low[k], high[k], odd[k] == 0});
  return all;
}

template <class S>
void quantize(const void* from, int64_t n, const Grid& grid, const Levels& levels, void* to) {
  const S* x = static_cast<const S*>(from);
  uint8_t* q = static_cast<uint8_t*>(to);
  const float lowest = levels.lowest(grid.zero_point);
  const float highest = levels.highest(grid.zero_point);
  for_each_vector<S>(0, n, [&](int64_t i, auto lanes) ONEPASS_FLAT {
    const Vector<S> v = on_grid(lanes.load(x + i), grid.inverse, lowest, highest) + kRounds;
    const Bytes<S> bytes = narrowed_to_bytes<S>(bits_as<Integers<S>>(v) + grid.zero_point);
    std::memcpy(q + i, &bytes, static_cast<size_t>(lanes.loaded()));
  });
}

template <class S, class Byte>
ONEPASS_INLINE void dequantize_from(const Byte* q, int64_t n, const Grid& grid, S* x) {
  const Integers<S> zero_point = Integers<S>{} + grid.zero_point;
  for_each_vector<S>(0, n, [&](int64_t i, auto lanes) ONEPASS_FLAT {
    Byte part[kLanes<S>] = {};
    const Byte* at = q + i;
    if (lanes.loaded() < kLanes<S>) at = static_cast<Byte*>(std::memcpy(part, at, static_cast<size_t>(n)));
    const auto steps = __builtin_convertvector(widened_bytes<S>(at) - zero_point, Vector<S>);
    lanes.store(x + i, steps * grid.scale, false);
  });
}
template <class S>
void dequantize(const void* q, int64_t n, const Grid& grid, bool is_signed, void* x) {
  if (is_signed)
    dequantize_from(static_cast<const int8_t*>(q), n, grid, static_cast<S*>(x));
  else
    dequantize_from(static_cast<const uint8_t*>(q), n, grid, static_cast<S*>(x));
}

#define EACH_REAL(kernel) {kernel<float>, nullptr, kernel<BFloat16>, kernel<Float16>}

extern const QuantKernels quant_kernels;
constinit const QuantKernels quant_kernels = {EACH_REAL(extent), EACH_REAL(quantize), EACH_REAL(dequantize)};

}  // namespace onepass::ONEPASS_ISA
