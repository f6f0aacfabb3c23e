// What runs fake quantization on a device: csrc/cpu/fake_quant_launch.cpp, or, in onepass._cuda,
// csrc/fake_quant_cuda.cpp. The ops of csrc/bind_fake_quant.cpp call what they are linked with.
#pragma once
#include "quant.h"

namespace onepass {

// Bytes of memory on the device that each wants besides a call's tensors: call.scratch points to them.
int64_t fake_quantize_scratch(const FakeQuantCall& call, bool given);
int64_t fake_quantize_backward_scratch(const FakeQuantCall& call);

// Finds the grid of each group, unless it is given, and brings its elements there and back.
void fake_quantize(const FakeQuantCall& call, bool given);

// grad_input, and grad_scale where it is wanted.
void fake_quantize_backward(const FakeQuantCall& call);

}  // namespace onepass
