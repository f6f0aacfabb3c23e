// Gradients of the 8-bit product on torch's threads. Same bits for any number of them.
//
// Memory contract, for each gradient: g is read once and left as a byte an element, the other factor is read
// once and turned into panels; then they are multiplied, as int8_mm does. What is kept in between grows to
// the largest call that a thread has made: a byte an element of g and of the other factor. Sums beyond
// kMaxDepth also go through float32 rows of the result.
#pragma once
#include "../common/int8_backward.h"

namespace onepass {

void int8_mm_bwd(const Int8Backward& call);

}  // namespace onepass
