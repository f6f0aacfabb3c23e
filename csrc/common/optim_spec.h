// The optimizer ops as their argument checks, plans and drivers see them. A new optimizer is a line in the
// enum and a spec at the foot.
#pragma once
#include <bit>

#include "check.h"
#include "plan.h"

namespace onepass {

enum Optimizer {
  kAdam,
  kAdamW,
  kSgd,
  kRmsprop,
  kAdagrad,
  kLion,
  kOnEveryDevice,  // those above; those below are of the CPU alone, and of float32
  kAdamAsTorch = kOnEveryDevice,
  kAdamWAsTorch,
  kOptimizers
};

// A variant of an optimizer is which of its optional states it keeps, bit k for the k-th of them.
constexpr int kMaxVariants = 4;

// Does the rule hang on the number of the step? SGD's does where it has to tell a first step from the others,
// which is for whoever calls to say: rows then have a step counter, else not.
enum class Counts { kNever, kMaybe, kAlways };

// One column of the hyperparameter tensor: 0 <= value, and value < below where there is such a bound. `what`
// is torch's word for it; null: a switch, any value.
struct Column {
  const char* what;
  double below = 0;
};
constexpr int kMaxColumns = 10;

struct OptimSpec {
  Optimizer kernel;
  const char* op;
  const char* lists[kMaxStates];  // of states, as the op's schema names them; the optional ones come last
  int required;                   // how many of them are always kept
  int optional;
  Counts counts;
  Column own[kMaxColumns];
  int64_t columns;  // of the hyperparameter tensor: those of StepHyper, then its own

  int states(int variant) const { return required + std::popcount(static_cast<unsigned>(variant)); }

  // The list of state s, of those that the variant keeps.
  const char* state_name(int variant, int s) const {
    if (s < required) return lists[s];
    for (int k = 0; k < optional; ++k)
      if (variant >> k & 1 && s-- == required) return lists[required + k];
    return "emas";
  }
};

constexpr Column kStepColumns[] = {{"learning rate"}, {"weight_decay value"}, {nullptr},
                                   {"l1 value"},      {"ema_decay value", 1}, {"max_grad_norm value"}};

inline const OptimSpec& optim_spec(Optimizer which) {
  constexpr Column kBeta1{"beta parameter at index 0", 1}, kBeta2{"beta parameter at index 1", 1};
  constexpr Column kEps{"epsilon value"}, kMomentum{"momentum value"}, kSwitch{nullptr};
  // An average kept apart from its maximum, and so on: required states, then optional ones.
#define ADAM {"exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"}, 2, 1, Counts::kAlways, {kBeta1, kBeta2, kEps}, 9
  static const OptimSpec specs[kOptimizers] = {
      {kAdam, "adam_", ADAM},
      {kAdamW, "adamw_", ADAM},
      {kSgd, "sgd_", {"momentum_buffers"}, 0, 1, Counts::kMaybe, {kMomentum, kSwitch, kSwitch}, 9},
      {kRmsprop,
       "rmsprop_",
       {"square_avgs", "grad_avgs", "momentum_buffers"},
       1,
       2,
       Counts::kAlways,
       {{"alpha value"}, kEps, kMomentum},
       9},
      {kAdagrad, "adagrad_", {"sums"}, 1, 0, Counts::kAlways, {{"lr_decay value"}, kEps}, 8},
      {kLion, "lion_", {"exp_avgs"}, 1, 0, Counts::kNever, {kBeta1, kBeta2}, 8},
      {kAdamAsTorch, "adam_as_torch_", ADAM},
      {kAdamWAsTorch, "adamw_as_torch_", ADAM},
  };
#undef ADAM
  return specs[which];
}

inline const OptimSpec& optim_spec(const std::string& op) {
  for (int k = 0; k < kOptimizers; ++k)
    if (op == optim_spec(static_cast<Optimizer>(k)).op) return optim_spec(static_cast<Optimizer>(k));
  fail("no optimizer op is named '", op, "'");
}

// hyper: one row.
inline void check_hyper_row(const OptimSpec& spec, const double* hyper, int64_t row) {
  for (int64_t k = 0; k < spec.columns; ++k) {
    const int64_t shared = static_cast<int64_t>(std::size(kStepColumns));
    const Column& column = k < shared ? kStepColumns[k] : spec.own[k - shared];
    // Written so that NaN fails.
    if (column.what && !(hyper[k] >= 0 && (column.below == 0 || hyper[k] < column.below)))
      fail(spec.op, ": hyper[", row, "]: Invalid ", column.what, ": ", hyper[k]);
  }
}

}  // namespace onepass
