#include "fake_quant_launch.h"

#include "fake_quant.h"

namespace onepass::cuda {

// Of the sum over a group: one, but where it is more than a block should go through on its own.
static int64_t parts_of_sum(const Groups& groups) {
  const int64_t longest = groups.length(0);
  return longest > kBlockWhole ? parts_of(longest) : 1;
}

int64_t fake_quantize_scratch(const FakeQuantCall& call, bool given) {
  const bool in_parts = !given && is_whole(call.groups);
  return in_parts ? parts_of(call.groups.numel()) * static_cast<int64_t>(sizeof(Extent)) : 0;
}
int64_t fake_quantize_backward_scratch(const FakeQuantCall& call) {
  const int64_t parts = call.grad_scale ? parts_of_sum(call.groups) : 1;
  return parts > 1 ? call.groups.count() * parts * static_cast<int64_t>(sizeof(double)) : 0;
}

static FakeQuantWork work_of(const FakeQuantCall& call) {
  const Groups& groups = call.groups;
  const bool of_one_row = groups.rows == 1, of_one_group = groups.of_row() == 1;
  FakeQuantWork work{};
  work.call = call;
  work.on_bytes = (of_one_row || groups.columns % kGroup == 0) && (of_one_group || groups.size % kGroup == 0);
  work.aligned = true;
  for (const void* p : {static_cast<const void*>(call.real), static_cast<const void*>(call.output),
                        call.grad_output, static_cast<const void*>(call.grad_input)})
    work.aligned = work.aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;  // null is
  return work;
}

// --- forward ----------------------------------------------------------------------------------------------
static void find_extents(const FakeQuantWork& work, Queue queue) {
  QuantWork found{};
  found.call = work.call;
  found.aligned = work.aligned;
  found.parts = work.parts;
  found.extents = work.extents;
  start_extents(found, queue.stream);
}

static void put_whole(FakeQuantWork& work, bool given, Queue queue) {
  work.given = given;
  work.parts = parts_of(work.call.groups.numel());
  work.extents = static_cast<Extent*>(work.call.scratch);
  if (!given) find_extents(work, queue);
  start_put_whole(work, queue.stream);
}

void fake_quantize(const FakeQuantCall& call, bool given, Queue queue) {
  const Groups& groups = call.groups;
  if (groups.count() == 0 || (given && groups.numel() == 0)) return;
  FakeQuantWork work = work_of(call);
  if (given ? groups.count() == 1 : is_whole(groups)) {
    put_whole(work, given, queue);
  } else {
    if (!given) start_grids_of_groups(work, queue.stream);
    if (groups.numel() > 0 && (given || !work.on_bytes)) start_put_all(work, queue.stream);
  }
  ok(cudaGetLastError(), "fake_quant_fwd");
}

// --- backward ---------------------------------------------------------------------------------------------
static void find_grads(FakeQuantWork& work, Queue queue) {
  work.parts = parts_of_sum(work.call.groups);
  work.sums = work.parts > 1 ? static_cast<double*>(work.call.scratch) : nullptr;
  start_grads_of_groups(work, queue.stream);
  if (work.sums) start_sums_of_parts(work, queue.stream);
}

void fake_quantize_backward(const FakeQuantCall& call, Queue queue) {
  const bool learned = call.grad_scale != nullptr;
  if ((learned ? call.groups.count() : call.groups.numel()) == 0) return;
  FakeQuantWork work = work_of(call);
  if (learned)
    find_grads(work, queue);
  else
    start_pass_all(work, queue.stream);
  ok(cudaGetLastError(), "fake_quant_bwd");
}

}  // namespace onepass::cuda
