// Included before every translated file: CUDA's device side as C++.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "core.h"
#include "kernel_api.h"

// CUDA's own types and host arithmetic for them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __managed__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __forceinline__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __managed__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __align__(n) alignas(n)

// No macros: cudaLaunchConfig_t has members of these names.
static constexpr const uint3 &threadIdx = emulator::here.thread, &blockIdx = emulator::here.block;
static constexpr const dim3 &blockDim = emulator::here.block_size, &gridDim = emulator::here.grid_size;
constexpr int warpSize = emulator::kWarp;

inline void __syncthreads(EMULATOR_WHERE) { emulator::block_barrier("__syncthreads", where); }
inline int __syncthreads_or(int p, EMULATOR_WHERE) {
  return emulator::block_vote("__syncthreads_or", emulator::Vote::kOr, p != 0, where);
}
inline int __syncthreads_and(int p, EMULATOR_WHERE) {
  return emulator::block_vote("__syncthreads_and", emulator::Vote::kAnd, p != 0, where);
}
inline int __syncthreads_count(int p, EMULATOR_WHERE) {
  return emulator::block_vote("__syncthreads_count", emulator::Vote::kCount, p != 0, where);
}
[[noreturn]] inline void __trap() { emulator::fail("__trap"); }

#include "arithmetic.h"
#include "device_memory.h"
#include "device_warp.h"
