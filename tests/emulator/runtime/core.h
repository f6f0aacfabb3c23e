// What translated kernels call. Everything that touches another CUDA thread's state lives behind these
// functions, in a library built without sanitizers: they shall judge the kernel, not the emulator.
#pragma once
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define EMULATOR_API __attribute__((visibility("default")))
// As a last parameter: where the kernel called from.
#define EMULATOR_WHERE ::emulator::Where where = {__builtin_FILE(), __builtin_LINE()}

namespace emulator {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxStaticShared = 48 * 1024;

// Behind what the plain mode allocates lies a guard, whose change is noticed. The sanitizers do better
// without.
#if defined(EMULATOR_PLAIN)
constexpr size_t kGuard = 256;
#else
constexpr size_t kGuard = 0;
#endif
constexpr int kGuardByte = 0xA5;
bool guard_changed(const void* end);

struct Where {
  const char* file;
  int line;
};

// Where the running CUDA thread is: what threadIdx and its like read.
struct Here {
  uint3 thread, block;
  dim3 block_size, grid_size;
  int lane;
  dim3 block_in_cluster, cluster_size;
  unsigned block_rank;  // in the cluster
};
extern EMULATOR_API Here here;

// Ends the launch: the synchronising call throws a std::runtime_error with this text.
[[noreturn]] EMULATOR_API void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
EMULATOR_API void check_aligned(const void* p, size_t bytes, const char* what, Where where);

EMULATOR_API void block_barrier(const char* what, Where where);
enum class Vote { kOr, kAnd, kCount };
EMULATOR_API int block_vote(const char* what, Vote vote, bool mine, Where where);
EMULATOR_API void grid_barrier(Where where);

EMULATOR_API void need_clusters(Where where);  // fails on a device that has none
EMULATOR_API void cluster_arrive(const char* what, Where where);
EMULATOR_API void cluster_wait(const char* what, Where where);
EMULATOR_API void* map_shared(const void* p, unsigned rank, Where where);  // the same place in that block
EMULATOR_API unsigned shared_rank(const void* p, Where where);             // whose shared memory it is

// One lane's part in a warp operation, which is done once all lanes of `mask` are at the same call.
struct WarpCall {
  enum Kind { kSync, kShuffle, kGather };
  Kind kind;
  const char* what;
  unsigned mask;
  Where where;
  const void* in = nullptr;  // this lane's contribution
  void* out = nullptr;  // kShuffle: that of lane `source`; kGather: those of all 32, zero outside the mask
  size_t bytes = 0;
  int source = -1;
};
EMULATOR_API void warp_call(WarpCall& call);

EMULATOR_API void* shared_memory(const void* key, size_t bytes, size_t align, const char* name);
EMULATOR_API void* dynamic_shared_memory();

// A __shared__ variable. `Tag` is a lambda of its own at each declaration and template instantiation.
template <class T, size_t align, class Tag>
T& shared(const char* name, Tag) {
  static char key;
  return *static_cast<T*>(shared_memory(&key, sizeof(T), align ? align : alignof(T), name));
}

// An atomic publishes what its thread did before a fence, and a fence after it observes what others
// published.
EMULATOR_API void fence();
EMULATOR_API bool fenced();
EMULATOR_API void note_atomic(void* p);
extern EMULATOR_API int64_t loaded_bytes, stored_bytes;  // by loads and stores with cache hints

EMULATOR_API void async_copy(void* to, const void* from, size_t bytes, size_t zeros, Where where);
EMULATOR_API void async_commit();
EMULATOR_API void async_wait(size_t groups_left);

struct Config {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
  dim3 cluster{1, 1, 1};  // in blocks
  bool cooperative = false;
  bool clustered = false;        // the launch has a cluster dimension, be it of one block
  const void* kernel = nullptr;  // where the launch knows it
};
inline Config config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t stream = nullptr) {
  return {grid, block, shared, stream};
}

EMULATOR_API Config config_of(const cudaLaunchConfig_t& asked, const void* kernel);

// Queues a kernel on its stream. Throws where a GPU would refuse the launch.
EMULATOR_API void enqueue(const Config& config, const char* name, std::function<void()> body);

// kernel<<<...>>>(args...): arguments are evaluated and copied now, read when the kernel runs.
template <class Kernel, class... Args>
void launch(const Config& config, const char* name, Kernel kernel, const Args&... args) {
  enqueue(config, name, [kernel, stored = std::tuple<std::decay_t<const Args>...>(args...)]() mutable {
    std::apply(kernel, stored);
  });
}

}  // namespace emulator
