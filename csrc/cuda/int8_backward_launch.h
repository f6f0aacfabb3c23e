// The gradients of the 8-bit product on a CUDA device: what ../common/int8_driver.h says, put into a stream
// of the current device and not waited for. Two launches for each gradient. Throws where the runtime refuses
// one.
//
// Memory contract, for each gradient: g is read twice, the second time from a cache, and left as a byte an
// element; the other factor is read once and left turned; then they are multiplied. Both are in scratch,
// where the second gradient's take the place of the first one's.
#pragma once
#include "../common/int8_backward.h"
#include "int8.h"
#include "kept.h"

namespace onepass::cuda {

int64_t int8_mm_bwd_scratch(const Int8Backward& call);

void int8_mm_bwd(const Int8Backward& call, Queue queue);

}  // namespace onepass::cuda
