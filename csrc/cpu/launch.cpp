#include "launch.h"

#include "../common/optim_args.h"
#include "../rules/step.h"
#include "parallel.h"

namespace onepass {

// Elements whose squares are summed by one thread, whatever their number: the sums are the same then.
constexpr int64_t kElementsPerSum = 524'288;

// Calls body(from, to) for as many equal pieces of a launch as there are threads worth starting.
template <class Body>
static void in_pieces(const Launch& launch, const Body& body) {
  const int64_t pieces = pieces_of(launch.numel());
  in_parallel(pieces,
              [&](int64_t k) { body(cut(launch.begin, pieces, k), cut(launch.begin, pieces, k + 1)); });
}

static void rescale(const Launch& launch, double factor, bool zero) {
  const auto kernel = current_isa().kernels->scale_grads;
  in_pieces(launch, [&](Cut from, Cut to) { kernel(launch, factor, zero, from, to); });
}

void step(const Launch& launch, Optimizer which, int variant) {
  if (found_inf(launch)) {
    if (launch.grads_after == GradsAfter::kZeroed) rescale(launch, 0.0, true);
    return;
  }
  const OptimKernel kernel = current_isa().kernels->optim[which][variant];
  in_pieces(launch, [&](Cut from, Cut to) { kernel(launch, from, to); });
}

void scale_grads(const Launch& launch, double factor) {
  if (factor != 1.0) rescale(launch, factor, false);
}

static double inv_scale_of(const Launch& launch) {
  return launch.grad_scale ? 1.0 / *launch.grad_scale : 1.0;
}

// kernel(from, to): the sums of a piece.
template <class Kernel>
static void measure(const Launch& launch, double* stats, const Kernel& kernel) {
  const int64_t count = launch.numel() / kElementsPerSum + 1;
  static thread_local std::vector<GradSum> sums;  // grows to the largest list that this thread has met
  sums.resize(count);
  GradSum* const out = sums.data();
  in_parallel(count, [&](int64_t k) {
    const int64_t piece = count - 1 - k;
    out[piece] = kernel(cut(launch.begin, count, piece), cut(launch.begin, count, piece + 1));
  });
  GradSum all;
  for (const GradSum& sum : sums) all.merge(sum);
  stats[0] = all.norm(inv_scale_of(launch));
  stats[1] = all.finite() ? 0.0 : 1.0;
}

void grad_stats(const Launch& launch, double* stats) {
  const auto kernel = current_isa().kernels->sum_grads;
  measure(launch, stats, [&](Cut from, Cut to) { return kernel(launch, from, to); });
}

void unscale_grads(const Launch& launch, double* stats) {
  const auto kernel = current_isa().kernels->unscale_grads;
  const double factor = inv_scale_of(launch);
  measure(launch, stats, [&](Cut from, Cut to) { return kernel(launch, factor, from, to); });
}

void accumulate(const Launch& launch, double inv_scale) {
  const auto kernel = current_isa().kernels->accumulate;
  in_pieces(launch, [&](Cut from, Cut to) { kernel(launch, inv_scale, from, to); });
}

}  // namespace onepass
