// Normalizations on torch's threads: ../common/norm_driver.h. Same bits for any number of them.
#pragma once
#include "../common/norm_driver.h"

namespace onepass {

// The yardstick of the benchmarks: a is read twice, with it first `first`, then `second`; with the second
// reading `to` and `also` are written. `first`, `second` and `also` may be null.
void two_read_probe(const float* a, const float* first, const float* second, float* to, float* also,
                    int64_t numel);

// The same for whoever only reads.
void read_probe(const float* a, int64_t numel);

}  // namespace onepass
