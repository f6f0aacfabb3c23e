// The dispatcher's way in on CUDA: the same arguments, rows and checks as on the CPU, one launch a dtype on
// torch's current stream. Part of onepass._cuda, which loads on a torch built for CUDA and on no other.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "optim_call.h"

// Declared here because torch's header of it wants all of CUDA's.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace onepass {

static void run_on(const OptimSpec& spec, bool variant, const Launch& launch, int64_t groups,
                   int32_t device) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS)
    fail(spec.op, ": torch names no current stream of cuda:", device);
  cuda::run(spec, variant, launch, groups, device, static_cast<cudaStream_t>(stream));
}

static void optim_step(const OptimCall& call) {
  std::vector<Layout> layouts;
  const Launch launch = launch_of(call, layouts);
  if (launch.rows.empty()) return;
  run_on(call.spec, call.variant, launch, view_of(call.hyper).sizes[0], call.device_index());
}

// The eager optimizer's way in, see walk.h.
extern "C" __attribute__((visibility("default"))) void onepass_cuda_run(Optimizer which, bool variant,
                                                                        const Launch& launch, int64_t groups,
                                                                        int32_t device) {
  run_on(optim_spec(which), variant, launch, groups, device);
}

STABLE_TORCH_LIBRARY_IMPL(onepass, CUDA, m) {
  m.impl("adam_", TORCH_BOX((&adam<kAdam, optim_step>)));
  m.impl("adamw_", TORCH_BOX((&adam<kAdamW, optim_step>)));
}

}  // namespace onepass
