// One kernel for each emulated function whose result the tests know.
#include <cooperative_groups.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

using Lanes = std::vector<int>;

template <class T>
static T* device_copy(const std::vector<T>& from) {
  void* p = nullptr;
  (void)cudaMalloc(&p, from.size() * sizeof(T));
  (void)cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice);
  return static_cast<T*>(p);
}
template <class T>
static std::vector<T> host_copy(T* from, size_t n) {
  std::vector<T> to(n);
  (void)cudaMemcpy(to.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost);
  (void)cudaFree(from);
  return to;
}

// Every lane's value is its number.
__global__ void shuffle_kernel(int* out, int kind, int by, int width) {
  const int t = threadIdx.x;
  if (kind == 0) out[t] = __shfl_sync(0xffffffffu, t, by, width);
  if (kind == 1) out[t] = __shfl_up_sync(0xffffffffu, t, by, width);
  if (kind == 2) out[t] = __shfl_down_sync(0xffffffffu, t, by, width);
  if (kind == 3) out[t] = __shfl_xor_sync(0xffffffffu, t, by, width);
}
static Lanes shuffle(int kind, int by, int width) {
  int* out = device_copy(Lanes(32));
  shuffle_kernel<<<1, 32>>>(out, kind, by, width);
  return host_copy(out, 32);
}

__global__ void votes_kernel(unsigned* out, unsigned mask) {
  const int t = threadIdx.x;
  if (!(mask >> t & 1)) return;
  const unsigned ballot = __ballot_sync(mask, t % 3 == 0);
  const unsigned any = __any_sync(mask, t == 5), all = __all_sync(mask, t < 40);
  const unsigned sum = __reduce_add_sync(mask, static_cast<unsigned>(t)), most = __reduce_max_sync(mask, t);
  const unsigned results[] = {ballot, any, all, sum, most};
  for (int i = 0; i < 5; ++i) out[t * 5 + i] = results[i];
}
static std::vector<unsigned> votes(unsigned mask) {
  unsigned* out = device_copy(std::vector<unsigned>(32 * 5));
  votes_kernel<<<1, 32>>>(out, mask);
  return host_copy(out, 32 * 5);
}

__global__ void block_votes_kernel(int* out, int limit) {
  const int t = threadIdx.x;
  const int count = __syncthreads_count(t < limit);
  const int any = __syncthreads_or(t < limit), all = __syncthreads_and(t < limit);
  out[t] = count * 4 + any * 2 + all;
}
static Lanes block_votes(int limit) {
  int* out = device_copy(Lanes(70));
  block_votes_kernel<<<1, 70>>>(out, limit);
  return host_copy(out, 70);
}

// a: 16 x 32, b: 32 x 8 by columns, c: 16 x 8; registers as a kernel loads them.
__global__ void mma_kernel(int* d, const int8_t* a, const int8_t* b, const int* c) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  unsigned ra[4], rb[2];
  for (int i = 0; i < 4; ++i)
    ra[i] = *reinterpret_cast<const unsigned*>(a + (g + i % 2 * 8) * 32 + t * 4 + i / 2 * 16);
  for (int i = 0; i < 2; ++i) rb[i] = *reinterpret_cast<const unsigned*>(b + g * 32 + t * 4 + i * 16);
  int rc[4], rd[4];
  const auto at = [&](int i) { return (g + i / 2 * 8) * 8 + t * 2 + i % 2; };
  for (int i = 0; i < 4; ++i) rc[i] = c[at(i)];
  emulator::mma_m16n8k32_s8(rd, ra, rb, rc);
  for (int i = 0; i < 4; ++i) d[at(i)] = rd[i];
}
static std::vector<int> mma(const std::vector<int8_t>& a, const std::vector<int8_t>& b,
                            const std::vector<int>& c) {
  int* d = device_copy(std::vector<int>(16 * 8));
  mma_kernel<<<1, 32>>>(d, device_copy(a), device_copy(b), device_copy(c));
  return host_copy(d, 16 * 8);
}

// The same with registers as they are, lane by lane: a, four each; b, two; d, four.
__global__ void mma_registers_kernel(int* d, const unsigned* a, const unsigned* b) {
  const int lane = threadIdx.x;
  const unsigned ra[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  const unsigned rb[2] = {b[2 * lane], b[2 * lane + 1]};
  const int zero[4] = {};
  int rd[4];
  emulator::mma_m16n8k32_s8(rd, ra, rb, zero);
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = rd[i];
}
static std::vector<int> mma_registers(const std::vector<unsigned>& a, const std::vector<unsigned>& b) {
  int* d = device_copy(std::vector<int>(32 * 4));
  mma_registers_kernel<<<1, 32>>>(d, device_copy(a), device_copy(b));
  return host_copy(d, 32 * 4);
}

// Of halves: registers as they are, lane by lane, and c and d in float.
template <class S>
__global__ void mma_halves_kernel(float* d, const unsigned* a, const unsigned* b, const float* c) {
  const int lane = threadIdx.x;
  const unsigned ra[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  const unsigned rb[2] = {b[2 * lane], b[2 * lane + 1]};
  const float rc[4] = {c[4 * lane], c[4 * lane + 1], c[4 * lane + 2], c[4 * lane + 3]};
  float rd[4];
  emulator::mma_m16n8k16<S>(rd, ra, rb, rc);
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = rd[i];
}
static std::vector<float> mma_halves(const std::vector<unsigned>& a, const std::vector<unsigned>& b,
                                     const std::vector<float>& c, bool bfloat) {
  float* d = device_copy(std::vector<float>(32 * 4));
  if (bfloat)
    mma_halves_kernel<__nv_bfloat16><<<1, 32>>>(d, device_copy(a), device_copy(b), device_copy(c));
  else
    mma_halves_kernel<__half><<<1, 32>>>(d, device_copy(a), device_copy(b), device_copy(c));
  return host_copy(d, 32 * 4);
}

// rows: where in memory, in bytes, the row begins that a lane names.
__global__ void ldmatrix_kernel(unsigned* out, const uint8_t* memory, const int* rows) {
  unsigned registers[4];
  emulator::ldmatrix_x4(registers, memory + rows[threadIdx.x]);
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = registers[i];
}
static std::vector<unsigned> ldmatrix(const std::vector<uint8_t>& memory, const std::vector<int>& rows) {
  unsigned* out = device_copy(std::vector<unsigned>(32 * 4));
  ldmatrix_kernel<<<1, 32>>>(out, device_copy(memory), device_copy(rows));
  return host_copy(out, 32 * 4);
}

__global__ void convert_kernel(float* x, int n, bool bfloat) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n)
    x[i] = bfloat ? __bfloat162float(__float2bfloat16_rn(x[i])) : __half2float(__float2half_rn(x[i]));
}
static std::vector<float> convert(const std::vector<float>& from, bool bfloat) {
  float* x = device_copy(from);
  const int n = static_cast<int>(from.size());
  convert_kernel<<<(n + 127) / 128, 128>>>(x, n, bfloat);
  return host_copy(x, from.size());
}

// All threads of two blocks change one word each way.
__global__ void atomics_kernel(unsigned* x, float* sum, unsigned* seen) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  seen[i] = atomicAdd(&x[0], 2u);
  atomicMax(&x[1], i);
  atomicMin(&x[2], i + 7);
  atomicOr(&x[3], 1u << i % 32);
  atomicAnd(&x[4], ~(1u << i % 8));
  atomicInc(&x[5], 4u);
  if (i == 3) atomicExch(&x[6], 99u);
  atomicCAS(&x[7], i, i + 1);
  atomicAdd(sum, 0.5f);
}
static std::pair<std::vector<unsigned>, float> atomics() {
  unsigned* x = device_copy(std::vector<unsigned>{0, 0, 1000, 0, ~0u, 0, 0, 0});
  unsigned* seen = device_copy(std::vector<unsigned>(64));
  float* sum = device_copy(std::vector<float>(1));
  atomics_kernel<<<2, 32>>>(x, sum, seen);
  std::vector<unsigned> results = host_copy(x, 8), tickets = host_copy(seen, 64);
  std::sort(tickets.begin(), tickets.end());
  for (unsigned i = 0; i < 64; ++i)
    if (tickets[i] != 2 * i) throw std::runtime_error("two threads saw one value");
  return {results, host_copy(sum, 1)[0]};
}

// 32 KB by value, read in place, through a template and a cooperative barrier.
template <int n>
struct Large {
  int values[n];
};
template <int n>
__global__ void __launch_bounds__(64) large_kernel(const __grid_constant__ Large<n> large, int* out) {
  __shared__ Large<2> pair[2], other;
  const int t = threadIdx.x;
  if (t < 2) pair[t].values[1] = other.values[t] = large.values[n - 1 - t];
  cooperative_groups::this_grid().sync();
  if (t < 2) out[blockIdx.x * 2 + t] = pair[1 - t].values[1] + other.values[t];
}
static Lanes large() {
  static Large<8000> values;
  for (int i = 0; i < 8000; ++i) values.values[i] = i;
  int* out = device_copy(Lanes(6));
  void* args[] = {&values, &out};
  (void)cudaLaunchCooperativeKernel(large_kernel<8000>, 3, 64, args);
  values = {};  // the launch has its copy
  return host_copy(out, 6);
}

// Which thread came first, second, ...
__global__ void order_kernel(int* out, unsigned* count) {
  out[atomicAdd(count, 1u)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}
static Lanes order() {
  int* out = device_copy(Lanes(12));
  order_kernel<<<3, 4>>>(out, device_copy(std::vector<unsigned>(1)));
  return host_copy(out, 12);
}

PYBIND11_MODULE(MODULE_NAME, m) {
  m.def("shuffle", &shuffle);
  m.def("votes", &votes);
  m.def("block_votes", &block_votes);
  m.def("mma", &mma);
  m.def("mma_registers", &mma_registers);
  m.def("mma_halves", &mma_halves);
  m.def("ldmatrix", &ldmatrix);
  m.def("dp4a", [](int a, int b, int c) { return __dp4a(a, b, c); });
  m.def("byte_perm", &__byte_perm);
  m.def("convert", &convert);
  m.def("atomics", &atomics);
  m.def("large", &large);
  m.def("order", &order);
}
