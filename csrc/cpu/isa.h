// Kernels are compiled once per instruction set, from one source, and picked at run time.
//
// setup.py's table ISAS is the one place that lists the sets: a line there (a name and its compiler flags)
// builds every kernel file once more inside namespace onepass::<name> and adds that namespace's table to the
// list below. What the set needs of the processor is read off the compiler's own macros, not written again.
#pragma once
#include <string>

#include "../common/optim_spec.h"
#include "../common/plan.h"
#include "../rules/stats.h"
#include "fake_quant_kernels.h"
#include "int8_backward_kernels.h"
#include "int8_kernels.h"
#include "int8_weight_kernels.h"
#include "norm_kernels.h"
#include "quant_kernels.h"

#ifndef ONEPASS_ISA  // the namespace of the file being compiled; set per build by setup.py
#define ONEPASS_ISA baseline
#endif

namespace onepass {

// Works on the piece [from, to) of a launch.
using OptimKernel = void (*)(const Launch&, Cut from, Cut to);

struct KernelTable {
  unsigned features;                             // what the processor must have
  OptimKernel optim[kOptimizers][kMaxVariants];  // null for a variant that an optimizer does not have
  GradSum (*sum_grads)(const Launch&, Cut from, Cut to);
  void (*scale_grads)(const Launch&, double factor, bool zero, Cut from, Cut to);
  GradSum (*unscale_grads)(const Launch&, double factor, Cut from, Cut to);
  void (*accumulate)(const Launch&, double factor, Cut from, Cut to);
  void (*rmw_probe)(float* p, const float* g, float* m, float* v, int64_t n);
};

enum Feature : unsigned { kAvx2 = 1, kFma = 2, kF16c = 4, kAvx512 = 8 };

constexpr unsigned compiled_features() {
  unsigned f = 0;
#ifdef __AVX2__
  f |= kAvx2;
#endif
#ifdef __FMA__
  f |= kFma;
#endif
#ifdef __F16C__
  f |= kF16c;
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
  f |= kAvx512;
#endif
  return f;
}

struct Isa {
  const char* name;
  const KernelTable* kernels;
  const NormKernels* norm;
  const QuantKernels* quant;
  const FakeQuantKernels* fake_quant;
  const Int8Kernels* int8;
  const Int8WeightKernels* int8_weight;
  const Int8BackwardKernels* int8_backward;
  bool opt_in;  // runs only when asked for
};

const std::vector<Isa>& built_isas();   // weakest first
bool runs_here(const Isa& isa);         // has this processor what it needs?
const Isa& current_isa();               // ONEPASS_ISA, or the strongest that runs here
void use_isa(const std::string& name);  // throws if it is not built or does not run here; "idle": no work

}  // namespace onepass
