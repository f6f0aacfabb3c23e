// What a thread takes at a time where it goes through elements: groups.cuh.
#pragma once

namespace onepass::cuda {

constexpr int kGroup = 8;  // elements; their bits in a mask are a byte

}  // namespace onepass::cuda
