// Step<Rule>: all that the optimizer phase does to one element, in this order, for every optimizer:
//
//   g   <- clip / loss scale * gradient
//   g   <- -g to maximize, + weight_decay * p unless the rule decays weights itself, + l1 * sign(p)
//   p   <- the rule
//   ema <- ema_decay * ema + (1 - ema_decay) * p
//
// with clip = min(1, max_grad_norm / (norm + 1e-6)), as torch has it.
// norm is that of all gradients, unscaled: rules/stats.h. The gradient that is written back, where one is, is
// the one of the first line.
#pragma once
#include "rule.h"

namespace onepass {

// What a launch reads once of the loss scale and of the gradients' norm. Where nobody has measured the norm,
// it is 0 and max_grad_norm is inf.
struct Scaling {
  double inv_scale = 1.0, norm = 0.0;
};

ONEPASS_HD double clip_coefficient(double max_norm, double norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1.0 ? 1.0 : coefficient;  // NaN stays NaN
}

template <class Rule>
struct Step {
  using T = typename Rule::T;
  using Hyper = typename Rule::Hyper;
  static constexpr int kStates = Rule::kStates;

  T grad_factor, factor;  // the gradient's first line; with the sign that maximize gives it
  T l2, l1;
  Decay<T> ema;
  Rule rule;

  // t is the number of this step, from 1.
  static ONEPASS_HD Step make(const Hyper& h, double t, const Scaling& scaling) {
    const double factor = scaling.inv_scale * clip_coefficient(h.max_grad_norm, scaling.norm);
    return {static_cast<T>(factor),         static_cast<T>(h.maximize != 0 ? -factor : factor),
            static_cast<T>(h.weight_decay), static_cast<T>(h.l1),
            Decay<T>::make(h.ema_decay),    Rule::make(h, t)};
  }

  // The gradient as torch would leave it behind: unscaled and clipped.
  ONEPASS_HD T clipped(T g) const { return grad_factor * g; }

  // a, b, c: the rule's states; those it does not keep are ignored. kL1: false where l1 is known to be 0.
  template <bool kL1 = true>
  ONEPASS_HD void apply(T g, T& p, T& a, T& b, T& c) const {
    g = factor * g;
    if constexpr (Rule::kL2) g = g + l2 * p;
    if constexpr (kL1) g = g + l1 * sign(p);
    rule(g, p, a, b, c);
  }
  ONEPASS_HD void operator()(T g, T& p, T& a, T& b, T& c) const { apply(g, p, a, b, c); }

  ONEPASS_HD T average(T average_so_far, T p) const { return ema.keep(average_so_far, ema.rest * p); }
};

}  // namespace onepass
