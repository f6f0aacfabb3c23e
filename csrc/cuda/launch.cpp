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
};

// Never destroyed: at exit the runtime may be gone before us.
static std::list<KeptTable>& kept_tables() {
  static auto& tables = *new std::list<KeptTable>;
  return tables;
}
static std::list<DeviceTable>& captured_tables() {
  static auto& tables = *new std::list<DeviceTable>;
  return tables;
}
constexpr size_t kMostTables = 64;

static bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ok(cudaStreamIsCapturing(stream, &status), "capture status");
  return status != cudaStreamCaptureStatusNone;
}

// The most recently used comes first. A captured step has a table of its own for good: replays write it.
static DeviceTable& table_for(const Key& key, cudaStream_t stream) {
  if (is_capturing(stream)) return captured_tables().emplace_back();
  auto& tables = kept_tables();
  const auto found = std::find_if(tables.begin(), tables.end(), [&](auto& kept) { return kept.key == key; });
  if (found != tables.end()) {
    tables.splice(tables.begin(), tables, found);
  } else {
    tables.emplace_front().key = key;
    if (tables.size() > kMostTables) tables.pop_back();
  }
  return tables.front().table;
}

static int multiprocessors(int device) {
  int count = 0;
  ok(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "number of multiprocessors");
  return count;
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
  DeviceTable& table = table_for({device, stream, &spec, variant, dtype, rows[0]->data[kParam]}, stream);
  char* memory = table.hold(image, stream);

  const int64_t resident = static_cast<int64_t>(kernel.blocks_per_multiprocessor()) * multiprocessors(device);
  const int64_t wanted = std::min(image.tiles, resident);
  const unsigned blocks =
      static_cast<unsigned>(std::max<int64_t>(wanted, 1));  // counters advance all the same
  if (rows.size() <= kSmallSlots)
    kernel.small(args_of<kSmallSlots>(launch, rows, image, memory, table.counter()), blocks, stream);
  else
    kernel.large(args_of<kLargeSlots>(launch, rows, image, memory, table.counter()), blocks, stream);
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
