// The exponential function of a vector of floats, all lanes at once: about 1 ulp, and inf, 0, subnormal
// numbers and NaN where std::exp has them.
//
// exp(v) = 2^n * exp(r), where n is v / ln 2 to the nearest integer and |r| <= ln 2 / 2. The polynomial is
// that of expf in Moshier's Cephes library.
#pragma once
#include "vector.h"

namespace onepass {

template <class V>
ONEPASS_INLINE V polynomial(V, float last) {
  return V{} + last;
}
template <class V, class... Rest>
ONEPASS_INLINE V polynomial(V r, float first, Rest... rest) {
  return multiply_add(polynomial(r, rest...), r, V{} + first);
}

template <class V, class Int>
ONEPASS_INLINE V vector_exp(V v) {
  // Beyond these all is 0, or inf. A NaN is neither above nor below.
  const V low = V{} - 105.0f, high = V{} + 105.0f;
  v = v < low ? low : v;
  v = v > high ? high : v;

  // Added to this, a number is rounded to an integer, which stands in the lowest bits of the sum.
  const V rounder = V{} + 0x1.8p23f;
  const V sum = multiply_add(v, V{} + 0x1.715476p0f, rounder), n = sum - rounder;
  Int power;
  std::memcpy(&power, &sum, sizeof power);
  power -= 0x4b400000;

  const V r =
      multiply_add(n, V{} + 2.12194440e-4f, multiply_add(n, V{} - 0.693359375f, v));  // ln 2 in two parts
  const V rest = polynomial(r, 5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f, 8.3334519073e-3f,
                            1.3981999507e-3f, 1.9875691500e-4f);
  const V e = multiply_add(r * r, rest, r) + 1.0f;

  // 2^n may be too large or too small for a float, where the result is not: in two factors.
  const Int half = power >> 1, exponents[2] = {(half + 127) << 23, (power - half + 127) << 23};
  V factors[2];
  std::memcpy(factors, exponents, sizeof factors);
  return e * factors[0] * factors[1];
}

#define ONEPASS_EXPONENTIAL(bytes)                                    \
  template <>                                                         \
  struct Exponential<float __attribute__((vector_size(bytes)))> {     \
    using V = float __attribute__((vector_size(bytes)));              \
    using Int = int32_t __attribute__((vector_size(bytes)));          \
    static ONEPASS_INLINE V of(V v) { return vector_exp<V, Int>(v); } \
  };
#if defined(__AVX512F__)
ONEPASS_EXPONENTIAL(32)
ONEPASS_EXPONENTIAL(64)
#elif defined(__AVX2__)
ONEPASS_EXPONENTIAL(32)
#else
ONEPASS_EXPONENTIAL(16)
#endif
#undef ONEPASS_EXPONENTIAL

}  // namespace onepass
