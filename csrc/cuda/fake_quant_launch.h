// Fake quantization on a CUDA device: what ../common/fake_quant_driver.h says, put into a stream of the
// current device and not waited for. Throws where the runtime refuses a launch.
//
// Forward is one launch; two where grids are to be found of a whole tensor that is more than a block's, or of
// groups that begin within a byte of the mask. Backward is one; two where the sum over a group is in parts.
#pragma once
#include "../common/quant.h"
#include "kept.h"

namespace onepass::cuda {

int64_t fake_quantize_scratch(const FakeQuantCall& call, bool given);
int64_t fake_quantize_backward_scratch(const FakeQuantCall& call);

void fake_quantize(const FakeQuantCall& call, bool given, Queue queue);
void fake_quantize_backward(const FakeQuantCall& call, Queue queue);

}  // namespace onepass::cuda
