// A CUDA device, made the current one, and torch's current stream on it.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/kept.h"

// Declared here because torch's header of it wants all of CUDA's.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace onepass {

class Current {
 public:
  explicit Current(int32_t device) : guard_(device), queue_{device, nullptr} {
    void* stream = nullptr;
    if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS)
      fail("onepass: torch names no current stream of cuda:", device);
    queue_.stream = static_cast<cudaStream_t>(stream);
  }
  cuda::Queue queue() const { return queue_; }

 private:
  const torch::stable::accelerator::DeviceGuard guard_;
  cuda::Queue queue_;
};

}  // namespace onepass
