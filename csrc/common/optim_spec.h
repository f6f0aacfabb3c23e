// One optimizer op as its argument checks, its plan and its drivers see it. A new optimizer is a line in the
// enum and a spec at the foot.
#pragma once
#include "../rules/adam.h"
#include "check.h"
#include "plan.h"

namespace onepass {

enum Optimizer { kAdam, kAdamW, kOptimizers };

struct OptimSpec {
  Optimizer kernel;
  const char* op;
  const char* lists[kMaxStreams];  // the op's tensor lists, in the order of Row's streams
  int states[2];                   // how many the rule keeps, without and with its variant (Adam: amsgrad)
  int64_t columns;                 // of the hyperparameter tensor
  void (*check)(const OptimSpec&, const double* hyper, int64_t row);

  int streams(bool variant) const { return kState + states[variant]; }
};

inline void check_adam(const OptimSpec& spec, const double* hyper, int64_t row) {
  const AdamHyper& h = *reinterpret_cast<const AdamHyper*>(hyper);
  const auto check = [&](bool good, const char* what, double value) {
    if (!good) fail(spec.op, ": hyper[", row, "]: Invalid ", what, ": ", value);
  };
  // Written so that NaN fails.
  check(h.lr >= 0, "learning rate", h.lr);
  check(h.beta1 >= 0 && h.beta1 < 1, "beta parameter at index 0", h.beta1);
  check(h.beta2 >= 0 && h.beta2 < 1, "beta parameter at index 1", h.beta2);
  check(h.eps >= 0, "epsilon value", h.eps);
  check(h.weight_decay >= 0, "weight_decay value", h.weight_decay);
}

constexpr int64_t kAdamColumns = sizeof(AdamHyper) / sizeof(double);
#define ADAM_LISTS {"params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"}

inline const OptimSpec& optim_spec(Optimizer which) {
  static const OptimSpec specs[kOptimizers] = {
      {kAdam, "adam_", ADAM_LISTS, {2, 3}, kAdamColumns, check_adam},
      {kAdamW, "adamw_", ADAM_LISTS, {2, 3}, kAdamColumns, check_adam},
  };
  return specs[which];
}

#undef ADAM_LISTS

inline const OptimSpec& optim_spec(const std::string& op) {
  for (int k = 0; k < kOptimizers; ++k)
    if (op == optim_spec(static_cast<Optimizer>(k)).op) return optim_spec(static_cast<Optimizer>(k));
  fail("no optimizer op is named '", op, "'");
}

}  // namespace onepass
