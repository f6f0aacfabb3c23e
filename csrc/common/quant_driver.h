// What runs quantization on a device: csrc/cpu/quant_launch.cpp, or, in onepass._cuda, csrc/quant_cuda.cpp.
// The ops of csrc/bind_quant.cpp call what they are linked with.
#pragma once
#include "quant.h"

namespace onepass {

// Bytes of memory on the device that quantize wants besides a call's tensors: call.scratch points to them.
int64_t quant_scratch(const QuantCall& call);

// Finds the grid of each group and puts its elements there; given: scale and zero_point say where it is.
void quantize(const QuantCall& call, bool given, bool symmetric, const Levels& levels);

void dequantize(const QuantCall& call);

}  // namespace onepass
