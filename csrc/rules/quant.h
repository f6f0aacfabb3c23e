// Quantization to 8 bits: x = (q - zero_point) * scale, q to nearest, ties to even, cut off at the ends of
// its range; as in Jacob et al., arXiv:1712.05877, and torch's fake_quantize.
//
// All in float: x * (1 / scale) is rounded before it is rounded to a whole number, as torch has it. Files
// that find grids are compiled without contraction of a * b + c, so that every backend has the same q.
// on_grid may stand in any file: a choice stands between its product and whatever is added to it.
#pragma once
#include <cstdint>

#include "rule.h"

namespace onepass {

// The whole numbers that are in use. Symmetric: signed, as many below zero as above it; else unsigned.
struct Levels {
  int32_t low, high;

  static ONEPASS_HD Levels make(bool symmetric, int32_t bits) {
    const int32_t half = (1 << (bits - 1)) - 1;
    return symmetric ? Levels{-half, half} : Levels{0, (1 << bits) - 1};
  }
  // The ends of the range, from the zero point on.
  ONEPASS_HD float lowest(int32_t zero_point) const { return static_cast<float>(low - zero_point); }
  ONEPASS_HD float highest(int32_t zero_point) const { return static_cast<float>(high - zero_point); }
  ONEPASS_HD float steps(bool symmetric) const { return static_cast<float>(symmetric ? high : high - low); }
};

// What values that share a scale reach: zero is always among them, for it has to be exact.
struct Extent {
  float low = 0, high = 0;
  bool finite = true;

  ONEPASS_HD void merge(const Extent& other) {
    low = other.low < low ? other.low : low;
    high = other.high > high ? other.high : high;
    finite = finite && other.finite;
  }
};

constexpr float kSmallestScale = 0x1p-126f;  // of a run of zeros, too: its inverse is still a number

struct Grid {
  float scale, inverse;
  int32_t zero_point;

  // The finest that holds all values. Where one of them is not a number, or inf, the scale is NaN, all q are
  // zero_point, and what is made of them is NaN.
  static ONEPASS_HD Grid make(const Extent& x, const Levels& levels, bool symmetric) {
    if (!x.finite) return {NAN, 0, 0};
    const float steps = levels.steps(symmetric);
    const float width =
        symmetric ? (x.high > -x.low ? x.high : -x.low) / steps : x.high / steps - x.low / steps;
    const float scale = width > kSmallestScale ? width : kSmallestScale, inverse = 1 / scale;
    if (symmetric) return {scale, inverse, 0};
    const float zero = std::nearbyint(-x.low * inverse);
    return {scale, inverse, levels.low + static_cast<int32_t>(zero < steps ? zero : steps)};
  }
  static ONEPASS_HD Grid given(float scale, int32_t zero_point) { return {scale, 1 / scale, zero_point}; }
};

// 1.5 * 2^23: what is added to it is rounded to a whole number, to even, and stands in the lowest bits.
constexpr float kRounds = 12582912.0f;

// q - zero_point, before it is rounded; (q - zero_point) * scale is the way back. NaN becomes zero. T may be
// a vector.
template <class T, class S>
ONEPASS_HD T on_grid(T x, S inverse, S lowest, S highest) {
  T v = x * inverse;
  v = v == v ? v : T{};
  v = v < lowest ? T{} + lowest : v;
  return v > highest ? T{} + highest : v;
}

}  // namespace onepass
