// Quantization on a CUDA device: what ../common/quant_driver.h says, put into a stream of the current device
// and not waited for. One launch; two where a whole tensor is one group, whose grid is not given. Throws
// where the runtime refuses one.
#pragma once
#include "../common/quant.h"
#include "kept.h"

namespace onepass::cuda {

int64_t quant_scratch(const QuantCall& call);

void quantize(const QuantCall& call, bool given, const Levels& levels, Queue queue);
void dequantize(const QuantCall& call, Queue queue);

}  // namespace onepass::cuda
