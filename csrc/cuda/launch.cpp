#include "launch.h"

#include <algorithm>
#include <list>
#include <mutex>
#include <tuple>

#include "memory.h"
#include "optim.h"

namespace onepass::cuda {

using Key = std::tuple<int, cudaStream_t, const OptimSpec*, bool, DType, void*>;
struct KeptTable {
  Key key;
  DeviceTable table;
  int64_t resident = 0;  // blocks of its kernel that the device runs at a time; 0: not asked yet
};

// Never destroyed: at exit the runtime may be gone before us.
static std::list<KeptTable>& kept_tables() {
  static auto& tables = *new std::list<KeptTable>;
  return tables;
}
static std::list<KeptTable>& captured_tables() {
  static auto& tables = *new std::list<KeptTable>;
  return tables;
}
constexpr size_t kMostTables = 64;

static bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ok(cudaStreamIsCapturing(stream, &status), "capture status");
  return status != cudaStreamCaptureStatusNone;
}

// The most recently used comes first. A captured step has a table of its own for good: replays write it.
static KeptTable& table_for(const Key& key, cudaStream_t stream) {
  if (is_capturing(stream)) return captured_tables().emplace_back();
  auto& tables = kept_tables();
  const auto found = std::find_if(tables.begin(), tables.end(), [&](auto& kept) { return kept.key == key; });
  if (found != tables.end()) {
    tables.splice(tables.begin(), tables, found);
  } else {
    tables.emplace_front().key = key;
    if (tables.size() > kMostTables) tables.pop_back();
  }
  return tables.front();
}

static int64_t resident_blocks(const OptimKernel& kernel, int device) {
  int multiprocessors = 0, each = 0;
  ok(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
     "number of multiprocessors");
  ok(kernel.occupancy(&each), "blocks on a multiprocessor");
  if (each == 0) fail("onepass: no block of this kernel fits on a multiprocessor of device ", device);
  return static_cast<int64_t>(multiprocessors) * each;
}

template <int kSlots>
static OptimArgs<kSlots> args_of(const Launch& launch, const std::vector<const Row*>& rows,
                                 const Image& image, char* table, unsigned* counter) {
  OptimArgs<kSlots> args;
  args.rows = reinterpret_cast<const DeviceRow*>(table + image.rows);
  args.boxes = reinterpret_cast<const int64_t*>(table + image.boxes);
  args.hyper = launch.hyper_on_device ? launch.hyper : reinterpret_cast<const double*>(table + image.hyper);
  args.grads = nullptr;
  args.grad_scale = launch.grad_scale;
  args.found_inf = launch.found_inf;
  args.blocks_done = counter;
  args.tiles = image.tiles;
  args.count = image.count;
  args.hyper_columns = static_cast<int32_t>(launch.hyper_columns);
  if (rows.size() > kSlots)
    args.grads = reinterpret_cast<const void* const*>(table + image.grads);
  else
    for (size_t i = 0; i < rows.size(); ++i) args.grad[i] = rows[i]->data[kGrad];
  return args;
}

static void run_rows(const OptimSpec& spec, bool variant, const Launch& launch, int64_t groups, int device,
                     cudaStream_t stream, const std::vector<const Row*>& rows) {
  const DType dtype = rows[0]->dtype[kParam];
  const OptimKernel& kernel = optim_kernel(spec.kernel, variant, dtype);
  const Image image = image_of(launch, rows, spec.streams(variant), groups, rows.size() > kLargeSlots);
  KeptTable& kept = table_for({device, stream, &spec, variant, dtype, rows[0]->data[kParam]}, stream);
  if (kept.resident == 0) kept.resident = resident_blocks(kernel, device);
  char* memory = kept.table.hold(image, stream);
  unsigned* counter = kept.table.counter();

  // One block at least: step counters advance also where there is no element.
  const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(image.tiles, 1, kept.resident));
  if (rows.size() <= kSmallSlots)
    kernel.small(args_of<kSmallSlots>(launch, rows, image, memory, counter), blocks, stream);
  else
    kernel.large(args_of<kLargeSlots>(launch, rows, image, memory, counter), blocks, stream);
  ok(cudaGetLastError(), spec.op);
}

void run(const OptimSpec& spec, bool variant, const Launch& launch, int64_t groups, int device,
         cudaStream_t stream) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  std::vector<const Row*> by_dtype[static_cast<int>(DType::kOther)];
  for (const Row& row : launch.rows) by_dtype[static_cast<int>(row.dtype[kParam])].push_back(&row);
  for (const auto& rows : by_dtype)
    if (!rows.empty()) run_rows(spec, variant, launch, groups, device, stream, rows);
}

}  // namespace onepass::cuda
