// Streams as lazy as CUDA allows: what is queued runs when somebody waits for it, and not before. So a
// staging buffer that is overwritten too early, or a result that is read too early, gives wrong values every
// time.
#pragma once
#include "core.h"

namespace emulator {

using Work = std::function<void()>;

void queue(cudaStream_t stream, Work work);
size_t queued(cudaStream_t stream);            // how much was ever queued
void drain(cudaStream_t stream, size_t upto);  // runs the first `upto` of it; throws what a kernel throws
bool done(cudaStream_t stream, size_t upto);
void drain(cudaStream_t stream);
void drain_all();
void set_blocking(cudaStream_t stream, bool blocking);  // whether it keeps order with the null stream

// What the tests ask for.
struct Counts {
  int64_t launches = 0, copies = 0, copied_bytes = 0;
};
extern Counts counts;

void check_launch(const Config& config, const char* name);  // throws where a GPU would refuse it

}  // namespace emulator
