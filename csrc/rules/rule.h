// Room 1, arithmetic on one element. What every rule shares.
//
// A rule is a small struct of coefficients, templates on its arithmetic type T (float; double for
// float64 parameters). Coefficients are made in double, once per launch and group. Nothing here knows
// torch, a tensor, a thread or an instruction set: the same text is compiled for the CPU and for CUDA.
#pragma once
#include <cmath>

#if defined(__CUDACC__)
#define ONEPASS_HD __host__ __device__ __forceinline__
#else
#define ONEPASS_HD inline __attribute__((always_inline))
#endif

namespace onepass {

// One row of the hyperparameter tensor starts with these, whatever the optimizer; a rule's own follow. The
// columns of onepass.ops.STEP_HYPER, in its order.
struct StepHyper {
  double lr, weight_decay, maximize;
  double l1, ema_decay, max_grad_norm;  // of the whole optimizer: the same in every row
};

// The larger of two; NaN if either is NaN, as torch.maximum has it.
template <class T>
ONEPASS_HD T max_or_nan(T a, T b) {
  return (a > b || a != a) ? a : b;
}

// -1, 0 or 1; 0 for NaN, as torch.sign has it.
template <class T>
ONEPASS_HD T sign(T x) {
  return (x > T(0) ? T(1) : T(0)) - (x < T(0) ? T(1) : T(0));
}

// The decay factor of a running average: s <- beta * s + (1 - beta) * x.
//
// A beta rounded to fp32 is wrong by up to 3e-8, and a running average repeats that error at every
// step: with beta = 0.999 the average settles 1.3e-5 away from the truth. So beta is kept as the
// unevaluated sum hi + lo. Both parts are positive (hi is the float below beta): an average that has
// overflowed stays inf, where lo < 0 would give inf - inf.
template <class T>
struct Decay {
  T hi, lo, rest;  // beta = hi + lo, rest = 1 - beta

  static ONEPASS_HD Decay make(double beta) {
    const T hi = beta > 0 ? std::nextafter(static_cast<T>(beta), T(0)) : T(0);
    return {hi, static_cast<T>(beta - static_cast<double>(hi)), static_cast<T>(1.0 - beta)};
  }

  // beta * s + add, where add is the caller's rest * x
  ONEPASS_HD T keep(T s, T add) const { return hi * s + (lo * s + add); }
};

}  // namespace onepass
