#include "isa.h"

#include <cstdlib>
#include <string>

#include "../common/check.h"

namespace onepass {

// ONEPASS_ISAS is ISA(name, opt_in) ISA(name, opt_in) ..., from setup.py.
#define ISA(name, opt_in)                                 \
  namespace name {                                        \
  extern const KernelTable kernels;                       \
  extern const NormKernels norm_kernels;                  \
  extern const QuantKernels quant_kernels;                \
  extern const FakeQuantKernels fake_quant_kernels;       \
  extern const Int8Kernels int8_kernels;                  \
  extern const Int8WeightKernels int8_weight_kernels;     \
  extern const Int8BackwardKernels int8_backward_kernels; \
  }
ONEPASS_ISAS
#undef ISA

const std::vector<Isa>& built_isas() {
#define ISA(name, opt_in)        \
  {#name,                        \
   &name::kernels,               \
   &name::norm_kernels,          \
   &name::quant_kernels,         \
   &name::fake_quant_kernels,    \
   &name::int8_kernels,          \
   &name::int8_weight_kernels,   \
   &name::int8_backward_kernels, \
   opt_in},
  static const std::vector<Isa> isas = {ONEPASS_ISAS};
#undef ISA
  return isas;
}

// Kernels that do nothing: what is left of a step is the host's part of it. Not among built_isas().
static const NormKernels& idle_norm() {
  static const NormKernels kernels = [] {
    NormKernels table{};
    for (auto& moments : table.moments)
      moments = [](const NormCall&, NormBlock, double*, double*, double*) {};
    for (int act = 0; act < kActivations; ++act)
      for (int t = 0; t < kDTypes; ++t) {
        table.apply[act][t] =
            table.grad_apply[act][t] = [](const NormCall&, const void*, int64_t, int64_t) {};
        table.grad_sums[act][t] = [](const NormCall&, const void*, NormBlock, double*, double*, double*) {};
      }
    table.read_probe = [](const float*, const float*, int64_t) { return 0.0f; };
    table.copy_probe = [](const float*, const float*, float*, int64_t, bool) {};
    return table;
  }();
  return kernels;
}
static const QuantKernels& idle_quant() {
  static const QuantKernels kernels = [] {
    QuantKernels table{};
    for (int t = 0; t < kRealDTypes; ++t) {
      table.extent[t] = [](const void*, int64_t) { return Extent{}; };
      table.quantize[t] = [](const void*, int64_t, const Grid&, const Levels&, void*) {};
      table.dequantize[t] = [](const void*, int64_t, const Grid&, bool, void*) {};
    }
    return table;
  }();
  return kernels;
}
static const FakeQuantKernels& idle_fake_quant() {
  static const FakeQuantKernels kernels = [] {
    FakeQuantKernels table{};
    for (int t = 0; t < kRealDTypes; ++t) {
      table.forward[t] = [](const FakeQuantCall&, const Grid&, int64_t, int64_t) {};
      table.backward[t] = [](const FakeQuantCall&, const Grid&, int64_t, int64_t) { return 0.0; };
    }
    return table;
  }();
  return kernels;
}
static const Int8Kernels& idle_int8() {
  static constexpr Int8Form form{1, kFour, 0, 0};
  static const Int8Kernels kernels{
      [](int32_t) { return &form; },
      [](const int8_t*, int64_t, const Int8Form&, int32_t, int32_t, uint8_t*) { return 0; },
      [](const uint8_t*, int32_t, const Int8Form&, const int8_t*, int64_t, int64_t, int64_t, int32_t*) {},
      [](const Int8Call&, const int32_t*, const Int8Row*, int64_t, int64_t, int64_t, int64_t) {}};
  return kernels;
}
static const Int8WeightKernels& idle_int8_weight() {
  static const Int8WeightKernels kernels = [] {
    Int8WeightKernels table{};
    for (auto& widen : table.widen) widen = [](const void*, int64_t, float*) {};
    table.multiply = [](const float*, int64_t, int64_t, const int8_t*, int64_t, float*) {};
    table.finish = [](const Int8Call&, const float*, int64_t, int64_t, int64_t, int64_t) {};
    return table;
  }();
  return kernels;
}
static const Int8BackwardKernels& idle_int8_backward() {
  static const Int8BackwardKernels kernels = [] {
    Int8BackwardKernels table{};
    for (int t = 0; t < kRealDTypes; ++t) {
      table.row[t] = [](const void*, const float*, int64_t, float*) {};
      table.columns[t] = [](const void*, const float*, int64_t, int64_t, int64_t, int64_t, float*) {};
      table.narrow[t] = [](const float*, int64_t, void*) {};
    }
    table.round = [](const float*, int64_t, const Grid&, const Philox&, int64_t, int8_t*) {};
    table.turn = [](const uint8_t*, int64_t, int64_t, int64_t, uint8_t, int8_t*, int32_t*) {};
    return table;
  }();
  return kernels;
}
static const Isa& idle() {
  static const KernelTable kernels = [] {
    KernelTable table{};
    for (auto& variants : table.optim)
      for (OptimKernel& kernel : variants) kernel = [](const Launch&, Cut, Cut) {};
    table.sum_grads = [](const Launch&, Cut, Cut) { return GradSum{}; };
    table.scale_grads = [](const Launch&, double, bool, Cut, Cut) {};
    table.unscale_grads = [](const Launch&, double, Cut, Cut) { return GradSum{}; };
    table.accumulate = [](const Launch&, double, Cut, Cut) {};
    table.rmw_probe = [](float*, const float*, float*, float*, int64_t) {};
    return table;
  }();
  static const Isa isa{"idle",
                       &kernels,
                       &idle_norm(),
                       &idle_quant(),
                       &idle_fake_quant(),
                       &idle_int8(),
                       &idle_int8_weight(),
                       &idle_int8_backward(),
                       true};
  return isa;
}

static unsigned features_here() {
  unsigned f = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) f |= kAvx2;
  if (__builtin_cpu_supports("fma")) f |= kFma;
  if (__builtin_cpu_supports("f16c")) f |= kF16c;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    f |= kAvx512;
#endif
  return f;
}

bool runs_here(const Isa& isa) {
  static const unsigned here = features_here();
  return (isa.kernels->features & ~here) == 0;
}

static const Isa& find(const std::string& name) {
  if (name == idle().name) return idle();
  std::string known;
  for (const Isa& isa : built_isas()) {
    if (name == isa.name) {
      if (!runs_here(isa)) fail("ONEPASS_ISA: this processor cannot run '", name, "'");
      return isa;
    }
    known += std::string(known.empty() ? "" : ", ") + isa.name;
  }
  fail("ONEPASS_ISA: '", name, "' is not built; built are: ", known);
}

static const Isa& strongest() {
  const Isa* best = &built_isas().front();
  for (const Isa& isa : built_isas())
    if (!isa.opt_in && runs_here(isa)) best = &isa;
  return *best;
}

static const Isa*& chosen() {
  static const Isa* isa = [] {
    const char* asked = std::getenv("ONEPASS_ISA");
    return asked && *asked ? &find(asked) : &strongest();
  }();
  return isa;
}

const Isa& current_isa() { return *chosen(); }

void use_isa(const std::string& name) { chosen() = name.empty() ? &strongest() : &find(name); }

}  // namespace onepass
