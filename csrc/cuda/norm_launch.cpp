#include "norm_launch.h"

#include "counters.h"
#include "norm_plan.h"

namespace onepass::cuda {

static int64_t bytes_of_table(const NormCall& call) {
  const int64_t each = call.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  return (5 * call.shape.channels * each + 15) / 16 * 16;
}

// For any of the plans that a call may have.
int64_t norm_scratch(const NormCall& call) {
  const int64_t parts =
      std::max(norm_plan(call.shape).parts, whole_plan(call, true, Device(call.device)).parts);
  return bytes_of_table(call) + 2 * parts * call.shape.channels * static_cast<int64_t>(sizeof(double));
}

static bool is_aligned(const NormCall& call) {
  const void* const all[] = {call.x, call.residual, call.y, call.dy, call.dx, call.dresidual};
  return std::all_of(std::begin(all), std::end(all),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

// One call: what its kernels are given, and where they run.
struct NormRun {
  NormWork work{};
  Queue queue;
  const NormKernels& kernels;

  NormRun(const NormCall& call, Settle settle, Queue queue)
      : queue(queue), kernels(norm_kernels(call.dtype)) {
    work.call = call;
    work.plan = norm_plan(call.shape);
    work.aligned = is_aligned(call);
    work.settle = settle;
    work.table = call.scratch;
    work.sums = reinterpret_cast<double*>(static_cast<char*>(call.scratch) + bytes_of_table(call));
  }

  void start(NormKernels::Start kernel) {
    if (work.plan.parts > 1) work.counters = counters_of(queue, work.plan.units);
    kernel(work, queue.stream);
    ok(cudaGetLastError(), "batch_norm");
  }
  // What settles channels. Of no elements there are no sums; channels have their results all the same.
  void settle(NormKernels::Start sums, NormKernels::Start given) {
    if (work.call.shape.channels == 0) return;
    start(work.call.shape.numel() == 0 ? given : sums);
  }
  // Both passes in one launch, if the device has the room. Its blocks would count a batch while others still
  // ask how many there were: such averages take two launches.
  bool is_whole(NormKernels::Start kernel) {
    const NormPlan plan = whole_plan(work.call, work.aligned, Device(queue.device));
    if (!plan.kept || work.running.average) return false;
    work.plan = plan;
    start(kernel);
    return true;
  }
};

void norm_forward(const NormCall& call, const RunningStats& running, double eps, Queue queue) {
  NormRun run(call, Settle::kForward, queue);
  run.work.running = running;
  run.work.eps = eps;
  if (run.is_whole(run.kernels.whole)) return;
  run.settle(run.kernels.moments, run.kernels.given);
  run.start(run.kernels.apply);
}

void norm_given(const NormCall& call, const ChannelVector& mean, const ChannelVector& variance, double eps,
                Queue queue) {
  NormRun run(call, Settle::kForward, queue);
  run.work.eps = eps;
  run.work.mean = mean;
  run.work.variance = variance;
  run.settle(run.kernels.given, run.kernels.given);
  run.start(run.kernels.apply);
}

void norm_backward(const NormCall& call, const ChannelVector& dweight, const ChannelVector& dbias,
                   Queue queue) {
  NormRun run(call, Settle::kBackward, queue);
  run.work.dweight = dweight;
  run.work.dbias = dbias;
  if (!call.given && run.is_whole(run.kernels.grad_whole)) return;
  const bool sums = !call.given || dweight.data || dbias.data;
  run.settle(sums ? run.kernels.grad_sums : run.kernels.grad_given, run.kernels.grad_given);
  run.start(run.kernels.grad_apply);
}

// --- in halves --------------------------------------------------------------------------------------------
void norm_moments(const NormCall& call, void* moments, Queue queue) {
  NormRun run(call, Settle::kMoments, queue);
  run.work.out = moments;
  run.settle(run.kernels.moments, run.kernels.given);
}

void norm_apply(const NormCall& call, const void* moments, int64_t processes, const RunningStats& running,
                double eps, Queue queue) {
  NormRun run(call, Settle::kForward, queue);
  run.work.running = running;
  run.work.eps = eps;
  run.work.came = moments;
  run.work.processes = processes;
  run.settle(run.kernels.given, run.kernels.given);
  run.start(run.kernels.apply);
}

void norm_grad_sums(const NormCall& call, void* sums, const ChannelVector& dweight,
                    const ChannelVector& dbias, Queue queue) {
  NormRun run(call, Settle::kGradSums, queue);
  run.work.out = sums;
  run.work.dweight = dweight;
  run.work.dbias = dbias;
  run.settle(run.kernels.grad_sums, run.kernels.grad_given);
}

void norm_grad_apply(const NormCall& call, const void* sums, Queue queue) {
  NormRun run(call, Settle::kBackward, queue);
  run.work.came = sums;
  run.settle(run.kernels.grad_given, run.kernels.grad_given);
  run.start(run.kernels.grad_apply);
}

}  // namespace onepass::cuda
