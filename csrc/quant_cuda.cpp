// Quantization on CUDA for torch: on its current stream.
#include "common/quant_driver.h"
#include "cuda/quant_launch.h"
#include "current.h"

namespace onepass {

int64_t quant_scratch(const QuantCall& call) { return cuda::quant_scratch(call); }

void quantize(const QuantCall& call, bool given, bool, const Levels& levels) {
  const Current current(call.device);
  cuda::quantize(call, given, levels, current.queue());
}

void dequantize(const QuantCall& call) {
  const Current current(call.device);
  cuda::dequantize(call, current.queue());
}

}  // namespace onepass
