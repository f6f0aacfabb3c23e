// RMSprop (Tieleman & Hinton 2012), centered (Graves 2013), with momentum.
//
//   g <- gradient, after Step: with weight_decay * p
//   v <- alpha * v + (1 - alpha) * g^2
//   a <- alpha * a + (1 - alpha) * g                  centered
//   u <- g / (sqrt(v - a^2) + eps)                    a = 0 unless centered; eps as torch has it
//   b <- momentum * b + u,   p <- p - lr * b          without momentum p - lr * u
//
// v - a^2 is a variance and not negative; where rounding makes it so, it is taken as 0 (torch gives NaN).
#pragma once
#include "rule.h"

namespace onepass {

struct RmspropHyper : StepHyper {
  double alpha, eps, momentum;
};

template <class Real, bool kCentered, bool kMomentum>
struct Rmsprop {
  using T = Real;
  using Hyper = RmspropHyper;
  static constexpr int kStates = 1 + kCentered + kMomentum;  // square_avg[, grad_avg][, momentum_buffer]
  static constexpr bool kL2 = true;

  Decay<T> alpha;
  T lr, eps, momentum;

  static ONEPASS_HD Rmsprop make(const Hyper& h, double) {
    return {Decay<T>::make(h.alpha), static_cast<T>(h.lr), static_cast<T>(h.eps), static_cast<T>(h.momentum)};
  }

  ONEPASS_HD void operator()(T g, T& p, T& square_avg, T& second, T& third) const {
    square_avg = alpha.keep(square_avg, alpha.rest * g * g);
    T variance = square_avg;
    if constexpr (kCentered) {
      T& grad_avg = second;
      grad_avg = alpha.keep(grad_avg, alpha.rest * g);
      variance = variance - grad_avg * grad_avg;
      variance = variance < T(0) ? T(0) : variance;  // NaN stays NaN
    }
    const T update = g / (std::sqrt(variance) + eps);
    if constexpr (kMomentum) {
      T& momentum_buffer = kCentered ? third : second;
      momentum_buffer = momentum * momentum_buffer + update;
      p -= lr * momentum_buffer;
    } else {
      p -= lr * update;
    }
  }
};

template <class T>
using RmspropPlain = Rmsprop<T, /*kCentered=*/false, /*kMomentum=*/false>;
template <class T>
using RmspropCentered = Rmsprop<T, true, false>;
template <class T>
using RmspropMomentum = Rmsprop<T, false, true>;
template <class T>
using RmspropCenteredMomentum = Rmsprop<T, true, true>;

}  // namespace onepass
