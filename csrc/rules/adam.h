// Adam (Kingma & Ba 2015), AMSGrad (Reddi et al. 2018), AdamW (Loshchilov & Hutter 2019).
//
//   g  <- gradient, after Step: with weight_decay * p unless decoupled
//   m  <- beta1 * m + (1 - beta1) * g
//   v  <- beta2 * v + (1 - beta2) * g^2
//   v' <- v, or with AMSGrad the largest v so far
//   p  <- p - [ lr * weight_decay * p  +  lr / (1 - beta1^t) * m / (sqrt(v') / sqrt(1 - beta2^t) + eps) ]
//             ^ decoupled only
//
// Order of rounding. Everything in the brackets is summed before p is touched, so that p is rounded
// once a step. torch multiplies p by fp32(1 - lr * weight_decay) first: that factor is off by up to 3e-8,
// the same way at every step, and p is rounded twice. eps stands outside the root, after the bias
// correction, as in torch. A weight that is inf becomes NaN (0 * inf, inf - inf), also where
// weight_decay is 0 and torch would keep it.
#pragma once
#include "rule.h"

namespace onepass {

struct AdamHyper : StepHyper {
  double beta1, beta2, eps;
};

template <class Real, bool kDecoupled, bool kAmsgrad>
struct Adam {
  using T = Real;
  using Hyper = AdamHyper;
  static constexpr int kStates = kAmsgrad ? 3 : 2;  // exp_avg, exp_avg_sq[, max_exp_avg_sq]
  static constexpr bool kL2 = !kDecoupled;

  Decay<T> beta1, beta2;
  T step_size, rsqrt_bias2, eps, decay;

  // t is the number of this step, from 1.
  static ONEPASS_HD Adam make(const Hyper& h, double t) {
    const double bias1 = 1.0 - std::pow(h.beta1, t), bias2 = 1.0 - std::pow(h.beta2, t);
    return {Decay<T>::make(h.beta1),      Decay<T>::make(h.beta2),
            static_cast<T>(h.lr / bias1), static_cast<T>(1.0 / std::sqrt(bias2)),
            static_cast<T>(h.eps),        static_cast<T>(h.lr * h.weight_decay)};
  }

  ONEPASS_HD void operator()(T g, T& p, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq) const {
    exp_avg = beta1.keep(exp_avg, beta1.rest * g);
    exp_avg_sq = beta2.keep(exp_avg_sq, beta2.rest * g * g);
    if constexpr (kAmsgrad) max_exp_avg_sq = max_or_nan(max_exp_avg_sq, exp_avg_sq);
    const T largest = kAmsgrad ? max_exp_avg_sq : exp_avg_sq;
    const T update = step_size * exp_avg / (std::sqrt(largest) * rsqrt_bias2 + eps);
    p -= kDecoupled ? decay * p + update : update;
  }
};

template <class T>
using AdamRule = Adam<T, /*kDecoupled=*/false, /*kAmsgrad=*/false>;
template <class T>
using AdamAmsgrad = Adam<T, false, true>;
template <class T>
using AdamWRule = Adam<T, true, false>;
template <class T>
using AdamWAmsgrad = Adam<T, true, true>;

}  // namespace onepass
