#include "int8_launch.h"

#include "device.h"
#include "quant_launch.h"

namespace onepass::cuda {

// --- x in whole numbers -----------------------------------------------------------------------------------
// Scratch: the numbers, then a scale and a zero_point of each row, then what quantization wants.
static int64_t whole_bytes(const Int8Call& call) { return (call.m * call.shape.k + 15) / 16 * 16; }

static QuantCall quant_call(const Int8Call& call) {
  QuantCall quant;
  quant.groups = {call.m, call.shape.k, std::max<int64_t>(1, call.shape.k)};
  quant.dtype = call.x_dtype;
  quant.is_signed = call.symmetric;
  quant.real = const_cast<void*>(call.x);
  char* const scratch = static_cast<char*>(call.scratch);
  quant.whole = scratch;
  quant.scale = reinterpret_cast<float*>(scratch + whole_bytes(call));
  if (!call.symmetric) quant.zero_point = reinterpret_cast<int32_t*>(quant.scale + call.m);
  quant.scratch = quant.scale + 2 * call.m;
  return quant;
}

int64_t int8_scratch(const Int8Call& call) {
  if (!call.x_is_real) return 0;
  const int64_t of_rows = call.m * static_cast<int64_t>(sizeof(float) + sizeof(int32_t));
  return whole_bytes(call) + of_rows + quant_scratch(quant_call(call));
}

// The same call of whole numbers, which are made in scratch.
static Int8Call quantized(Int8Call call, Queue queue) {
  const QuantCall quant = quant_call(call);
  quantize(quant, false, Levels::make(call.symmetric, call.bits), queue);
  call.x_is_real = false;
  call.x_is_signed = call.symmetric;
  call.x = quant.whole;
  call.x_scale = quant.scale;
  call.x_zero = quant.zero_point;
  return call;
}

// --- the product ------------------------------------------------------------------------------------------
Int8Cut int8_cut(const Int8Call& call, int64_t multiprocessors) {
  return call.m <= kMostInRows ? Int8Cut::kRows : largest_tiles(call.m, call.shape.n, multiprocessors);
}

static Int8Work work_of(const Int8Call& call) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return {call, call.shape.k % 16 == 0 && aligned(call.x) && aligned(call.weight),
          call.shape.n % 8 == 0 && aligned(call.y) && aligned(call.w_scale) && aligned(call.bias)};
}

void int8_mm(const Int8Call& call, Queue queue) {
  if (call.m == 0 || call.shape.n == 0) return;
  const Int8Call whole = call.x_is_real ? quantized(call, queue) : call;
  start_int8(work_of(whole), int8_cut(whole, Device(queue.device).multiprocessors), queue.stream);
  ok(cudaGetLastError(), "int8_mm");
}

void int8_weight_only_mm(const Int8Call& call, Queue queue) {
  if (call.m == 0 || call.shape.n == 0) return;
  start_int8_weight(work_of(call), int8_cut(call, Device(queue.device).multiprocessors), queue.stream);
  ok(cudaGetLastError(), "int8_weight_only_mm");
}

}  // namespace onepass::cuda
