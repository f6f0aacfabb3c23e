// Rows of elements between their storage type and the arithmetic type, contiguous or strided.
// Included once per instruction set, inside its namespace's build: see isa.h.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../common/dtype.h"

namespace onepass::ONEPASS_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float as_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t as_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

template <class T>
inline void load(T& to, T from) {
  to = from;
}
template <class T>
inline void store(T& to, T from) {
  to = from;
}

template <class T>
inline void load(T& to, BFloat16 from) {
  to = as_float(static_cast<uint32_t>(from.bits) << 16);
}
// To nearest, ties to even. A NaN must not be rounded: the carry could turn it into inf or a number.
inline void store(BFloat16& to, float from) {
  const uint32_t bits = as_bits(from);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(from != from ? (bits >> 16) | 0x40u : rounded);
}

#if defined(__F16C__)
inline void load(float& to, Float16 from) { to = _cvtsh_ss(from.bits); }
inline void store(Float16& to, float from) { to.bits = _cvtss_sh(from, _MM_FROUND_TO_NEAREST_INT); }
#else
// Without F16C: scale the exponent by multiplication, which also handles subnormals.
inline void load(float& to, Float16 from) {
  const uint32_t sign = static_cast<uint32_t>(from.bits & 0x8000u) << 16, rest = from.bits & 0x7fffu;
  const float magnitude = rest >= 0x7c00u ? as_float(0x7f800000u | (rest << 13))  // inf, NaN
                                          : as_float(rest << 13) * 0x1p112f;
  to = as_float(as_bits(magnitude) | sign);
}
inline void store(Float16& to, float from) {
  const uint32_t bits = as_bits(from), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {  // NaN: keep its payload's top, stay quiet
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more round to inf
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal in the low bits
    half = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | half);
}
#endif

// n elements from memory into to[0..n), and back. A stride of 1 is its own loop so that it vectorises.
template <class S, class T>
inline void load_run(T* to, const S* from, int64_t stride, int64_t n) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) load(to[i], from[i]);
  else
    for (int64_t i = 0; i < n; ++i) load(to[i], from[i * stride]);
}
template <class S, class T>
inline void store_run(S* to, const T* from, int64_t stride, int64_t n) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) store(to[i], from[i]);
  else
    for (int64_t i = 0; i < n; ++i) store(to[i * stride], from[i]);
}

#if defined(__F16C__)
inline void load_run(float* to, const Float16* from, int64_t stride, int64_t n) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  for (; i < n; ++i) load(to[i], from[i * stride]);
}
inline void store_run(Float16* to, const float* from, int64_t stride, int64_t n) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) store(to[i * stride], from[i]);
}
#endif

}  // namespace onepass::ONEPASS_ISA
