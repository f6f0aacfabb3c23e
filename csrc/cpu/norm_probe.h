// The yardsticks of the benchmarks of normalizations: what memory gives to whoever does next to nothing with
// it, read and written in the way that was found to be the fastest here (docs/measured-facts.md).
#pragma once
#include "norm_memory.h"

namespace onepass::ONEPASS_ISA {

constexpr int64_t kProbeBlock = 512;  // elements of a strand in its turn

// Calls body(from, to) for blocks of n elements, in turn from so many places; the rest comes last.
template <int kStrands, class Body>
inline void for_each_probe_block(int64_t n, const Body& body) {
  const int64_t strand = n / kStrands / kProbeBlock * kProbeBlock;
  for (int64_t i = 0; i < strand; i += kProbeBlock)
    for (int k = 0; k < kStrands; ++k) body(k * strand + i, k * strand + i + kProbeBlock);
  if (kStrands * strand < n) body(kStrands * strand, n);
}

// Reads a, and b where there is one; returns what makes the compiler do it. n: in whole vectors.
inline float read_probe(const float* a, const float* b, int64_t n) {
  Vector<float> s[2] = {};
  for_each_probe_block<4>(n, [&](int64_t from, int64_t end) {
    for (int64_t i = from; i < end; i += kLanes<float>) {
      s[0] += load_vector(a + i);
      if (b) s[1] += load_vector(b + i);
    }
  });
  return sum_of<float>(s[0] + s[1]);
}

// to = a, or a + b. past: past the caches. n: in whole vectors.
inline void copy_probe(const float* a, const float* b, float* to, int64_t n, bool past) {
  for_each_probe_block<2>(n, [&](int64_t from, int64_t end) {
    for (int64_t i = from; i < end; i += kLanes<float>) {
      Vector<float> v = load_vector(a + i);
      if (b) v += load_vector(b + i);
      store_vector(to + i, v, past);
    }
  });
}

}  // namespace onepass::ONEPASS_ISA
