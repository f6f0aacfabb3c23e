// Quantization on torch's threads. Same bits for any number of them.
#pragma once
#include "../common/quant.h"

namespace onepass {

// Finds the grid of each group and puts its elements there; given: scale and zero_point say where it is.
void quantize(const QuantCall& call, bool given, bool symmetric, const Levels& levels);

void dequantize(const QuantCall& call);

}  // namespace onepass
