// The dispatcher's way in on the CPU: a schema's arguments to rows, one launch. Stable ABI, so one build
// serves every torch from 2.10 on. Schemas are defined in onepass/ops.py; here each op has a line at the
// foot.
#include <torch/csrc/stable/library.h>

#include "cpu/launch.h"
#include "optim_call.h"

namespace onepass {

static void optim_step(const OptimCall& call) {
  std::vector<Layout> layouts;
  Launch launch = launch_of(call, layouts);
  if (launch.found_inf && *launch.found_inf != 0) return;
  if (launch.grad_scale) launch.inv_scale = 1.0 / *launch.grad_scale;
  for (Row& row : launch.rows) row.t = read_step(row.step, row.step_dtype) + 1;
  run(launch, current_isa().kernels->optim[call.spec.kernel][call.variant]);
}

// Hands the tensors of a list to the plan that asked: the one stable way from a Python tensor to its handle.
static void hold(Tensors tensors, int64_t into) { *reinterpret_cast<Tensors*>(into) = std::move(tensors); }

STABLE_TORCH_LIBRARY_FRAGMENT(onepass, m) { m.def("_hold(Tensor[] tensors, int into) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(onepass, CompositeExplicitAutograd, m) { m.impl("_hold", TORCH_BOX(&hold)); }

STABLE_TORCH_LIBRARY_IMPL(onepass, CPU, m) {
  m.impl("adam_", TORCH_BOX((&adam<kAdam, optim_step>)));
  m.impl("adamw_", TORCH_BOX((&adam<kAdamW, optim_step>)));
}

}  // namespace onepass
