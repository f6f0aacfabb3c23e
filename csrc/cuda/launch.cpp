#include "launch.h"

#include <map>

#include "grads.h"
#include "optim.h"

namespace onepass::cuda {

// Tells the kernel where the rows are, and their gradients.
template <class DeviceRow, int kSlots>
static void fill(Work<DeviceRow, kSlots>& work, const Rows& rows, const Image& image, char* table) {
  work.rows = reinterpret_cast<const DeviceRow*>(table + image.rows);
  work.boxes = reinterpret_cast<const int64_t*>(table + image.boxes);
  work.grads = nullptr;
  work.tiles = image.tiles;
  work.count = static_cast<int32_t>(rows.size());
  if (rows.size() > kSlots)
    work.grads = reinterpret_cast<void* const*>(table + image.grads);
  else
    for (size_t i = 0; i < rows.size(); ++i) work.grad[i] = rows[i]->data[kGrad];
}

// One block at least: a result is written, and step counters advance, also where there is no element.
static unsigned blocks_for(const Image& image, int64_t most) {
  return static_cast<unsigned>(std::clamp<int64_t>(image.tiles, 1, most));
}

// --- steps ------------------------------------------------------------------------------------------------
static int64_t resident_blocks(const OptimKernel& kernel, int device) {
  int multiprocessors = 0, each = 0;
  ok(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
     "number of multiprocessors");
  ok(kernel.occupancy(&each), "blocks on a multiprocessor");
  if (each == 0) fail("onepass: no block of this kernel fits on a multiprocessor of device ", device);
  return static_cast<int64_t>(multiprocessors) * each;
}

template <int kSlots>
static OptimArgs<kSlots> args_of(const Launch& launch, const Rows& rows, const Image& image, char* table,
                                 unsigned* counter) {
  OptimArgs<kSlots> args;
  args.hyper = launch.hyper_on_device ? launch.hyper : reinterpret_cast<const double*>(table + image.hyper);
  args.grad_scale = launch.grad_scale;
  args.found_inf = launch.found_inf;
  args.stats = launch.stats;
  args.blocks_done = counter;
  args.hyper_columns = static_cast<int32_t>(launch.hyper_columns);
  args.grads_after = launch.grads_after;
  args.ema = launch.ema;
  args.counts = rows[0]->step != nullptr;
  fill(args.work, rows, image, table);
  return args;
}

static void step_rows(const Launch& launch, const OptimSpec& spec, int variant, int64_t groups, Queue queue,
                      const Rows& rows, const OptimKernel& kernel) {
  const Image image = step_image(launch, rows, kState + spec.states(variant) + launch.ema, groups);
  KeptTable& kept = table_for({queue, &kernel, rows[0]->data[kParam]});
  if (kept.resident == 0) kept.resident = resident_blocks(kernel, queue.device);
  char* table = kept.table.hold(image, queue.stream);
  unsigned* counter = kept.table.counter();
  const unsigned blocks = blocks_for(image, kept.resident);
  if (kernel.small && rows.size() <= kSmallSlots)
    kernel.small(args_of<kSmallSlots>(launch, rows, image, table, counter), blocks, queue.stream);
  else
    kernel.large(args_of<kLargeSlots>(launch, rows, image, table, counter), blocks, queue.stream);
  ok(cudaGetLastError(), spec.op);
}

void step(const Launch& launch, Optimizer which, int variant, int64_t groups, Queue queue) {
  const OptimSpec& spec = optim_spec(which);
  if (which >= kOnEveryDevice) fail(spec.op, ": has no CUDA kernel");
  std::map<const OptimKernel*, Rows> by_kernel;
  for (const Row& row : launch.rows) {
    const DType states = spec.states(variant) ? row.dtype[kState] : DType::kOther;
    by_kernel[&optim_kernel(which, variant, row.dtype[kParam], states)].push_back(&row);
  }
  const std::lock_guard lock(tables_mutex());
  for (const auto& [kernel, rows] : by_kernel) step_rows(launch, spec, variant, groups, queue, rows, *kernel);
}

// --- gradients alone --------------------------------------------------------------------------------------
// Where the first parameter lies, if the launch has parameters.
static const void* first_param(const Launch& launch) {
  if (launch.rows.empty() || launch.rows[0].data[kParam] == launch.rows[0].data[kGrad]) return nullptr;
  return launch.rows[0].data[kParam];
}

// complete(args, table): what the kernel wants besides its rows.
template <template <int> class Args, class Complete>
static void run_grads(const GradsKernel<Args>& kernel, const char* op, const Launch& launch, Queue queue,
                      Image (*image_of)(const Rows&), const Complete& complete) {
  Rows rows;
  for (const Row& row : launch.rows) rows.push_back(&row);
  const Image image = image_of(rows);
  const std::lock_guard lock(tables_mutex());
  DeviceTable& table = table_for({queue, &kernel, first_param(launch)}).table;
  char* const memory = table.hold(image, queue.stream);
  const auto start = [&](auto args, auto run) {
    fill(args.work, rows, image, memory);
    complete(args, table);
    run(args, blocks_for(image, kSumBlocks), queue.stream);
  };
  if (rows.size() <= kSmallSlots)
    start(Args<kSmallSlots>{}, kernel.small);
  else
    start(Args<kLargeSlots>{}, kernel.large);
  ok(cudaGetLastError(), op);
}

static void measure(const GradsKernel<StatsArgs>& kernel, const char* op, const Launch& launch, double* stats,
                    Queue queue) {
  run_grads(kernel, op, launch, queue, grads_image, [&](auto& args, DeviceTable& table) {
    args.grad_scale = launch.grad_scale;
    args.sums = table.sums();
    args.blocks_done = table.counter();
    args.stats = stats;
  });
}

void grad_stats(const Launch& launch, double* stats, Queue queue) {
  measure(sum_kernel, "grad_stats", launch, stats, queue);
}

void unscale_grads(const Launch& launch, double* stats, Queue queue) {
  measure(unscale_kernel, "unscale_", launch, stats, queue);
}

void clip_grads(const Launch& launch, const double* stats, double max_norm, Queue queue) {
  run_grads(clip_kernel, "clip_grads_", launch, queue, grads_image, [&](auto& args, DeviceTable&) {
    args.stats = stats;
    args.max_norm = max_norm;
  });
}

void accumulate(const Launch& launch, const float* inv_scale, Queue queue) {
  if (launch.rows.empty()) return;
  run_grads(accumulate_kernel, "accumulate_", launch, queue, sums_image,
            [&](auto& args, DeviceTable&) { args.inv_scale = inv_scale; });
}

// --- the loss scale ---------------------------------------------------------------------------------------
void update_scale(const ScaleArgs& args, Queue queue) {
  start_update_scale(args, queue.stream);
  ok(cudaGetLastError(), "update_scale_");
}

}  // namespace onepass::cuda
