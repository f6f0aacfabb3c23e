// Fake quantization: x to q and back, output = steps * scale, where steps = q - zero_point, as quant.h has
// it.
//
// Gradients by the straight-through estimator (Bengio et al., arXiv:1308.3432): rounding counts as no change
// at all, and what was cut off at an end of the range does not move the output. That of the scale is LSQ's
// (Esser et al., arXiv:1902.08153): d output / d scale = steps - x / scale inside the range, steps where x
// was cut off.
#pragma once
#include <cstring>

#include "quant.h"

namespace onepass {

// To nearest, ties to even, where |v| < 2^22; what is larger stays beyond all levels.
template <class T>
ONEPASS_HD T rounded(T v) {
  return (v + kRounds) - kRounds;
}

template <class T, class S>
ONEPASS_HD T steps_of(T x, S inverse, S lowest, S highest) {
  return rounded(on_grid(x, inverse, lowest, highest));
}

// Inside the range: the nearest whole number is one of its levels, as torch's fake_quantize counts. NaN is
// not, and nothing is where the scale is NaN.
template <class T, class S>
ONEPASS_HD auto is_inside(T x, S inverse, T steps) {
  return rounded(x * inverse) == steps;
}

// A scale as the sum of two numbers of 12 bits: their products with steps are exact. So x - steps * scale,
// which is a small part of x, is rounded once, whether or not a * b + c is one operation.
struct StepSize {
  float high, low, inverse;

  static ONEPASS_HD StepSize make(float scale) {
    uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    bits &= 0xfffff000u;
    float high;
    std::memcpy(&high, &bits, sizeof high);
    return {high, scale - high, 1 / scale};
  }
};

// d output / d scale. M: a bool, or a vector of them.
template <class T, class M>
ONEPASS_HD T scale_grad(T x, T steps, M inside, const StepSize& size) {
  const T off = (x - steps * size.high) - steps * size.low;
  return inside ? off * -size.inverse : steps;
}

}  // namespace onepass
