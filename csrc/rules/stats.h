// What is to be known of all gradients before a step: their norm, and whether all of them are finite.
//
// Sums run in double, whatever the gradients are: the square of the largest float is 1.2e77, far from
// overflow, so neither large gradients (1e25) nor small ones (1e-30) are lost, and a sum that is not finite
// has met an inf or a NaN. Squares of float64 gradients above 1e154 do overflow; the norm then is inf, as
// torch has it, and whether a gradient was not finite is told by `poison` alone: 0 * x is NaN for exactly
// those x.
#pragma once
#include "rule.h"

namespace onepass {

struct GradSum {
  double squares = 0, poison = 0;

  // Sums that run side by side lie apart. T: what the gradient is computed in, float or double.
  template <class T>
  static ONEPASS_HD void add(T x, double& squares, double& poison) {
    const double wide = x;
    squares += wide * wide;
    if constexpr (sizeof(T) == sizeof(double)) poison += 0 * wide;
  }
  template <class T>
  ONEPASS_HD void add(T x) {
    add(x, squares, poison);
  }
  // Behind the last add of such T: a sum of float squares tells by itself.
  template <class T>
  ONEPASS_HD void settle() {
    if constexpr (sizeof(T) != sizeof(double)) poison = 0 * squares;
  }
  ONEPASS_HD void merge(const GradSum& other) {
    squares += other.squares;
    poison += other.poison;
  }
  ONEPASS_HD bool finite() const { return poison == 0; }
  // Of the unscaled gradients.
  ONEPASS_HD double norm(double inv_scale) const { return std::sqrt(squares) * std::fabs(inv_scale); }
};

}  // namespace onepass
