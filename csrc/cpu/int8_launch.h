// The 8-bit matrix product on torch's threads: ../common/int8_driver.h. Same bits for any number of them.
#pragma once
#include "../common/int8_driver.h"

namespace onepass {

int64_t threads_for(const Int8Call& call);  // that a product of this size is worth

// weight: [n, k], contiguous. Returns false where it holds -128, which no kernel can turn round.
bool int8_pack(const int8_t* weight, const PackedShape& shape, uint8_t* packed);
void int8_unpack(const uint8_t* packed, int8_t* weight);

// The yardstick of the benchmarks: products of a tile and a panel that stay in the first cache, as often as
// that. Returns how many numbers were multiplied and added.
int64_t int8_probe(int64_t times);

}  // namespace onepass
