// Adam and AdamW once more, in the order of rounding of torch's fused CPU kernel for float32 (torch 2.13
// with FMA), for whoever has to reproduce a run bit by bit. Less accurate than adam.h, which says why;
// formula and references are there. Compiled without contraction: each product that is rounded together with
// a sum stands here as an fma. torch's kernel takes a tensor's last elements, which do not fill a vector, one
// by one, and its compiler contracted the second moment otherwise there: kTail.
#pragma once
#include "adam.h"

namespace onepass {

template <class Real, bool kDecoupled, bool kAmsgrad, bool kTail>
struct AdamAsTorch {
  using T = Real;
  using Hyper = AdamHyper;
  static constexpr int kStates = kAmsgrad ? 3 : 2;  // exp_avg, exp_avg_sq[, max_exp_avg_sq]
  static constexpr bool kL2 = false;                // added below, by an fma

  T weight_decay, shrink, weight, beta2, rest2, root_bias2, eps, minus_step;
  bool decays, small;  // is there weight decay; is 1 - beta1 below a half: where lerp changes its formula

  static ONEPASS_HD AdamAsTorch make(const Hyper& h, double t) {
    const double bias1 = 1.0 - std::pow(h.beta1, t), bias2 = 1.0 - std::pow(h.beta2, t);
    const T weight = static_cast<T>(1.0 - h.beta1);
    const bool small = std::fabs(weight) < T(0.5);
    return {static_cast<T>(h.weight_decay),
            static_cast<T>(1.0 - h.lr * h.weight_decay),
            small ? weight : weight - T(1),
            static_cast<T>(h.beta2),
            static_cast<T>(1.0 - h.beta2),
            static_cast<T>(std::sqrt(bias2)),
            static_cast<T>(h.eps),
            static_cast<T>(-(h.lr / bias1)),
            h.weight_decay != 0,
            small};
  }

  ONEPASS_HD void operator()(T g, T& p, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq) const {
    if constexpr (kDecoupled)
      p = decays ? p * shrink : p;
    else
      g = decays ? std::fma(p, weight_decay, g) : g;
    exp_avg = std::fma(weight, g - exp_avg, small ? exp_avg : g);
    const T add = rest2 * g;
    exp_avg_sq = kTail ? std::fma(exp_avg_sq, beta2, add * g) : std::fma(add, g, exp_avg_sq * beta2);
    if constexpr (kAmsgrad) max_exp_avg_sq = max_or_nan(max_exp_avg_sq, exp_avg_sq);
    const T largest = kAmsgrad ? max_exp_avg_sq : exp_avg_sq;
    p = p + minus_step * exp_avg / (std::sqrt(largest) / root_bias2 + eps);
  }
};

}  // namespace onepass
