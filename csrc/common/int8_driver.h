// What runs the 8-bit matrix product and its gradients on a device: csrc/cpu/int8_launch.cpp,
// int8_weight_launch.cpp and int8_backward_launch.cpp, or, in onepass._cuda, csrc/int8_cuda.cpp. The ops of
// csrc/bind_int8.cpp, bind_int8_weight.cpp and bind_int8_backward.cpp call what they are linked with.
#pragma once
#include "int8.h"
#include "int8_backward.h"

namespace onepass {

// Bytes of memory on the device that a product wants besides its tensors: call.scratch points to them.
int64_t int8_scratch(const Int8Call& call);

void int8_mm(const Int8Call& call);

void int8_weight_only_mm(const Int8Call& call);  // x is real, and stays so

int64_t int8_mm_bwd_scratch(const Int8Backward& call);

void int8_mm_bwd(const Int8Backward& call);

}  // namespace onepass
