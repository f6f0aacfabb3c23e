// Step<Rule>: all that an optimizer step does to one element, in this order, for every optimizer:
//
//   unscale the gradient, negate it to maximize, add the L2 term, apply the rule.
//
// Clipping, L1 and the average of weights join here, and are then there for every rule.
#pragma once
#include "rule.h"

namespace onepass {

template <class Rule>
struct Step {
  using T = typename Rule::T;
  using Hyper = typename Rule::Hyper;
  static constexpr int kStates = Rule::kStates;

  T grad_factor;  // 1 / loss scale, negative to maximize
  T l2;
  Rule rule;

  static ONEPASS_HD Step make(const Hyper& h, double t, double inv_scale) {
    return {static_cast<T>(h.maximize != 0 ? -inv_scale : inv_scale), static_cast<T>(h.weight_decay),
            Rule::make(h, t)};
  }

  // a, b, c: the rule's states; those it does not keep are ignored.
  ONEPASS_HD void operator()(T g, T& p, T& a, T& b, T& c) const {
    g = g * grad_factor;
    if constexpr (Rule::kL2) g = g + l2 * p;
    rule(g, p, a, b, c);
  }
};

}  // namespace onepass
