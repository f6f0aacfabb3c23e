// The yardsticks of the benchmarks of normalizations: what memory gives to whoever does next to nothing with
// it, read and written in the way that was found to be the fastest here (docs/measured-facts.md).
#pragma once
#include "norm_memory.h"

namespace onepass::ONEPASS_ISA {

constexpr int64_t kProbeBlock = 512;  // elements of a strand in its turn

// Calls body(at) for blocks of n elements, in turn from so many places.
template <int kStrands, class Body>
inline void for_each_probe_block(int64_t n, const Body& body) {
  const int64_t strand = n / kStrands / kProbeBlock * kProbeBlock;
  for (int64_t i = 0; i < strand; i += kProbeBlock)
    for (int k = 0; k < kStrands; ++k) body(k * strand + i);
}

// Reads a, and b where there is one; returns what makes the compiler do it.
inline float read_probe(const float* a, const float* b, int64_t n) {
  Vector<float> s[2] = {};
  for_each_probe_block<4>(n, [&](int64_t at) {
    for (int64_t i = at; i < at + kProbeBlock; i += kLanes<float>) {
      s[0] += load_vector(a + i);
      if (b) s[1] += load_vector(b + i);
    }
  });
  return sum_of<float>(s[0] + s[1]);
}

// to = a, or a + b. past: past the caches.
inline void copy_probe(const float* a, const float* b, float* to, int64_t n, bool past) {
  for_each_probe_block<2>(n, [&](int64_t at) {
    for (int64_t i = at; i < at + kProbeBlock; i += kLanes<float>) {
      Vector<float> v = load_vector(a + i);
      if (b) v += load_vector(b + i);
      store_vector(to + i, v, past);
    }
  });
}

}  // namespace onepass::ONEPASS_ISA
