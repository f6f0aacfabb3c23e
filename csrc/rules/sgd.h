// SGD (Robbins & Monro 1951) with momentum (Polyak 1964; Nesterov 1983, in the form of Sutskever et al.
// 2013).
//
//   g <- gradient, after Step: with weight_decay * p
//   b <- g in the first step, later momentum * b + (1 - dampening) * g
//   p <- p - lr * [ b, or with Nesterov's g + momentum * b, or without momentum g ]
//
// The first step is told by the step counter, not by what b holds: a step that is skipped for inf leaves
// both, and the next one is the first again.
#pragma once
#include "rule.h"

namespace onepass {

struct SgdHyper : StepHyper {
  double momentum, dampening, nesterov;
};

template <class Real, bool kMomentum>
struct Sgd {
  using T = Real;
  using Hyper = SgdHyper;
  static constexpr int kStates = kMomentum ? 1 : 0;  // [momentum_buffer]
  static constexpr bool kL2 = true;

  T lr, keep, add, momentum;  // b <- keep * b + add * g
  bool nesterov;

  static ONEPASS_HD Sgd make(const Hyper& h, double t) {
    const bool first = t == 1;
    return {static_cast<T>(h.lr), static_cast<T>(first ? 0.0 : h.momentum),
            static_cast<T>(first ? 1.0 : 1.0 - h.dampening), static_cast<T>(h.momentum), h.nesterov != 0};
  }

  ONEPASS_HD void operator()(T g, T& p, T& momentum_buffer, T&, T&) const {
    if constexpr (kMomentum) {
      momentum_buffer = keep * momentum_buffer + add * g;
      g = nesterov ? g + momentum * momentum_buffer : momentum_buffer;
    }
    p -= lr * g;
  }
};

template <class T>
using SgdPlain = Sgd<T, /*kMomentum=*/false>;
template <class T>
using SgdMomentum = Sgd<T, true>;

}  // namespace onepass
