// Fake quantization on CUDA for torch: on its current stream.
#include "common/fake_quant_driver.h"
#include "cuda/fake_quant_launch.h"
#include "current.h"

namespace onepass {

int64_t fake_quantize_scratch(const FakeQuantCall& call, bool given) {
  return cuda::fake_quantize_scratch(call, given);
}
int64_t fake_quantize_backward_scratch(const FakeQuantCall& call) {
  return cuda::fake_quantize_backward_scratch(call);
}

void fake_quantize(const FakeQuantCall& call, bool given) {
  const Current current(call.device);
  cuda::fake_quantize(call, given, current.queue());
}

void fake_quantize_backward(const FakeQuantCall& call) {
  const Current current(call.device);
  cuda::fake_quantize_backward(call, current.queue());
}

}  // namespace onepass
