// The product of real numbers and 8-bit weights on torch's threads. Same bits for any number of them.
#pragma once
#include "../common/int8.h"

namespace onepass {

void int8_weight_only_mm(const Int8Call& call);  // x is real

}  // namespace onepass
