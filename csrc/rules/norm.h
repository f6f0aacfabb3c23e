// Batch normalization, its activation and their gradients: y = act((x - mean) / sqrt(var + eps) * weight +
// bias + residual), after Ioffe and Szegedy, arXiv:1502.03167; mean and biased variance over all elements of
// a channel; the running variance takes the unbiased one, as torch has it.
//
// A mean rounded to float is off by 3e-8 of itself, which is much where a channel's mean is large beside its
// deviation. So x - mean is taken of the rounded mean, which is nearly exact, and what the rounding cut off
// (mean_low) goes into the shift. Near zero x - mean would be one rounding too many: a mean below four
// deviations goes into the shift as a whole. Backward makes scale and shift again from what forward saved, by
// the same formula, so that the sign of the pre-activation is the same bit for bit.
#pragma once
#include <cstdint>
#include <type_traits>

#include "rule.h"

namespace onepass {

enum class Activation : int32_t { kNone, kRelu, kLeakyRelu, kSilu };

// a * b + c, rounded once where the processor can: forward and backward, and the ends of rows and their
// middles, have to round alike. T may be a vector of gcc's, here and below: csrc/cpu/vector.h says how those
// do it.
template <class T>
struct Fused {
  static ONEPASS_HD T multiply_add(T a, T b, T c) {
#if defined(__FMA__) || defined(__CUDA_ARCH__)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
  }
};
template <class T>
ONEPASS_HD T multiply_add(T a, T b, T c) {
  return Fused<T>::multiply_add(a, b, c);
}

// Count, mean and sum of squared deviations of some elements; two such are merged after Chan, Golub and
// LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
struct Moments {
  double count = 0, mean = 0, m2 = 0;

  // share: of the other in the count of both. In arrays of moments it is the same for all channels.
  static ONEPASS_HD void merge(double& mean, double& m2, double count, double share, double other_mean,
                               double other_m2) {
    const double delta = other_mean - mean;
    mean += delta * share;
    m2 += other_m2 + delta * delta * count * share;
  }
  ONEPASS_HD void merge(const Moments& other) {
    if (other.count == 0) return;
    merge(mean, m2, count, other.count / (count + other.count), other.mean, other.m2);
    count += other.count;
  }
  ONEPASS_HD double variance() const { return m2 / count; }
  // One element has no such variance, and is refused where the count is known in time.
  ONEPASS_HD double unbiased() const { return count > 1 ? m2 / (count - 1) : m2; }
  ONEPASS_HD bool finite() const { return 0 * mean + 0 * m2 == 0; }
};

// What rounding to T cuts off of a mean. Beside one that is not finite there is nothing low.
template <class T>
ONEPASS_HD T low_part(double mean) {
  return mean - mean == 0 ? static_cast<T>(mean - static_cast<double>(static_cast<T>(mean))) : T(0);
}

// What a step saves of a channel for its backward. Stored as T. The mean in two parts: what x is taken less,
// and the rest.
struct ChannelStats {
  double mean, mean_low, invstd;

  template <class T>
  static ONEPASS_HD ChannelStats make(double mean, double variance, double eps) {
    const double invstd = static_cast<T>(1 / std::sqrt(variance + eps));
    if (mean * mean < 16 * variance) return {0, static_cast<T>(mean), invstd};
    return {static_cast<T>(mean), low_part<T>(mean), invstd};
  }
};

// running <- (1 - momentum) * running + momentum * now
ONEPASS_HD double running(double before, double now, double momentum) {
  return (1 - momentum) * before + momentum * now;
}

// The pre-activation of one channel, the residual apart.
template <class T>
struct Normalise {
  T mean, scale, shift;

  static ONEPASS_HD Normalise make(const ChannelStats& stats, double weight, double bias) {
    const T scale = static_cast<T>(weight * stats.invstd);
    return {static_cast<T>(stats.mean), scale, static_cast<T>(bias - stats.mean_low * scale)};
  }
};
template <class T>
ONEPASS_HD T normalise(T x, T mean, T scale, T shift) {
  return multiply_add(x - mean, scale, shift);
}

// Kernels take x - mean without mean_low. The sum of g * (x - mean) with the whole of it:
ONEPASS_HD double whole_dot(double dot, double sum, const ChannelStats& stats) {
  return dot - stats.mean_low * sum;
}

// The gradient of x: scale * (g - sum(g) / n - (x - mean) * invstd^2 * sum(g * (x - mean)) / n), where g is
// the gradient of the pre-activation and the sums run over the channel. With given statistics only the first
// term.
template <class T>
struct InputGrad {
  T scale, slope, constant;

  static ONEPASS_HD InputGrad make(const ChannelStats& stats, double weight, double sum, double dot,
                                   double count) {
    const double scale = weight * stats.invstd;
    const T slope = static_cast<T>(-scale * stats.invstd * stats.invstd * dot / count);
    return {static_cast<T>(scale), slope, static_cast<T>(-scale * sum / count - slope * stats.mean_low)};
  }
};
template <class T>
ONEPASS_HD T input_grad(T g, T x, T mean, T scale, T slope, T constant) {
  return multiply_add(g, scale, multiply_add(x - mean, slope, constant));
}

// --- activations ------------------------------------------------------------------------------------------
// Of a vector lane by lane, where nobody knows better: csrc/cpu/vector_exp.h does for floats.
template <class T>
struct Exponential {
  static ONEPASS_HD T of(T v) {
    if constexpr (std::is_floating_point_v<T>) {
      return std::exp(v);
    } else {
      for (unsigned k = 0; k < sizeof(T) / sizeof(v[0]); ++k) v[k] = std::exp(v[k]);
      return v;
    }
  }
};
template <class T>
ONEPASS_HD T sigmoid(T v) {
  return 1 / (1 + Exponential<T>::of(-v));
}

// Does the gradient pass through unchanged? NaN as torch has it: relu hands it on, leaky_relu does not.
template <Activation act, class T>
ONEPASS_HD auto passes(T v) {
  if constexpr (act == Activation::kRelu)
    return !(v <= T{});
  else
    return v > T{};
}

template <Activation act, class T, class Slope>
ONEPASS_HD T activate(T v, Slope negative_slope) {
  if constexpr (act == Activation::kRelu) return passes<act>(v) ? v : T{};
  if constexpr (act == Activation::kLeakyRelu) return passes<act>(v) ? v : v * negative_slope;
  if constexpr (act == Activation::kSilu) return v * sigmoid(v);
  return v;
}

// What is left of a gradient at a pre-activation that passes or does not.
template <Activation act, class T, class Passed, class Slope>
ONEPASS_HD T gate(T g, Passed passed, Slope negative_slope) {
  if constexpr (act == Activation::kRelu) return passed ? g : T{};
  if constexpr (act == Activation::kLeakyRelu) return passed ? g : g * negative_slope;
  return g;
}

// The gradient of the pre-activation v, given that of the activation.
template <Activation act, class T, class Slope>
ONEPASS_HD T activation_grad(T g, T v, Slope negative_slope) {
  if constexpr (act == Activation::kSilu) {
    const T s = sigmoid(v);
    return g * s * (1 + v * (1 - s));
  } else if constexpr (act == Activation::kNone) {
    return g;
  } else {
    return gate<act>(g, passes<act>(v), negative_slope);
  }
}

}  // namespace onepass
