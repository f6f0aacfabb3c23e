#include "quant_launch.h"

#include "quant.h"

namespace onepass::cuda {

int64_t quant_scratch(const QuantCall& call) {
  return is_whole(call.groups) ? parts_of(call.groups.numel()) * static_cast<int64_t>(sizeof(Extent)) : 0;
}

static QuantWork work_of(const QuantCall& call) {
  const auto is_aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  QuantWork work{};
  work.call = call;
  work.aligned = is_aligned(call.real) && is_aligned(call.whole);
  return work;
}

void quantize(const QuantCall& call, bool given, const Levels& levels, Queue queue) {
  if (call.groups.count() == 0) return;
  QuantWork work = work_of(call);
  work.levels = levels;
  work.given = given;
  if (is_whole(call.groups)) {
    work.parts = parts_of(call.groups.numel());
    work.extents = static_cast<Extent*>(call.scratch);
    if (!given) start_extents(work, queue.stream);
    start_quantize_whole(work, queue.stream);
  } else {
    start_quantize_groups(work, queue.stream);
  }
  ok(cudaGetLastError(), "quantize");
}

void dequantize(const QuantCall& call, Queue queue) {
  if (call.groups.numel() == 0) return;
  start_dequantize(work_of(call), queue.stream);
  ok(cudaGetLastError(), "dequantize");
}

}  // namespace onepass::cuda
