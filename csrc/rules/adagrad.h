// AdaGrad (Duchi et al. 2011).
//
//   g <- gradient, after Step: with weight_decay * p
//   s <- s + g^2
//   p <- p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)
#pragma once
#include "rule.h"

namespace onepass {

struct AdagradHyper : StepHyper {
  double lr_decay, eps;
};

template <class Real>
struct Adagrad {
  using T = Real;
  using Hyper = AdagradHyper;
  static constexpr int kStates = 1;  // sum
  static constexpr bool kL2 = true;

  T lr, eps;

  static ONEPASS_HD Adagrad make(const Hyper& h, double t) {
    return {static_cast<T>(h.lr / (1.0 + (t - 1.0) * h.lr_decay)), static_cast<T>(h.eps)};
  }

  ONEPASS_HD void operator()(T g, T& p, T& sum, T&, T&) const {
    sum = sum + g * g;
    p -= lr * g / (std::sqrt(sum) + eps);
  }
};

}  // namespace onepass
