// The 8-bit matrix product on a CUDA device: what ../common/int8_driver.h says, put into a stream of the
// current device and not waited for. One launch; and those of quantization before it where x is real. Throws
// where the runtime refuses one.
#pragma once
#include "int8.h"
#include "kept.h"

namespace onepass::cuda {

int64_t int8_scratch(const Int8Call& call);

// How a device with so many multiprocessors goes about it.
Int8Cut int8_cut(const Int8Call& call, int64_t multiprocessors);

void int8_mm(const Int8Call& call, Queue queue);

void int8_weight_only_mm(const Int8Call& call, Queue queue);  // one launch, though x is real

}  // namespace onepass::cuda
