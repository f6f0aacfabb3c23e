// Lion (Chen et al. 2023, algorithm 2).
//
//   u <- sign(beta1 * m + (1 - beta1) * g)
//   p <- p - lr * (u + weight_decay * p)
//   m <- beta2 * m + (1 - beta2) * g
//
// Of u only the sign counts, and its error is not carried on: beta1 is one number, so that where both terms
// cancel exactly the sign is 0.
#pragma once
#include "rule.h"

namespace onepass {

struct LionHyper : StepHyper {
  double beta1, beta2;
};

template <class Real>
struct Lion {
  using T = Real;
  using Hyper = LionHyper;
  static constexpr int kStates = 1;  // exp_avg
  static constexpr bool kL2 = false;

  T beta1, rest1, lr, decay;
  Decay<T> beta2;

  static ONEPASS_HD Lion make(const Hyper& h, double) {
    return {static_cast<T>(h.beta1), static_cast<T>(1.0 - h.beta1), static_cast<T>(h.lr),
            static_cast<T>(h.lr * h.weight_decay), Decay<T>::make(h.beta2)};
  }

  ONEPASS_HD void operator()(T g, T& p, T& exp_avg, T&, T&) const {
    p -= decay * p + lr * sign(beta1 * exp_avg + rest1 * g);
    exp_avg = beta2.keep(exp_avg, beta2.rest * g);
  }
};

}  // namespace onepass
