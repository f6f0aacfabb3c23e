// Fake quantization on torch's threads. Same bits for any number of them.
#pragma once
#include "../common/quant.h"

namespace onepass {

// Finds the grid of each group, unless it is given, and brings its elements there and back.
void fake_quantize(const FakeQuantCall& call, bool given);

// grad_input, and grad_scale where it is wanted.
void fake_quantize_backward(const FakeQuantCall& call);

}  // namespace onepass
