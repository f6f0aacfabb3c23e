// The storage types. This is the place to add one: its name, its size and what one element is worth.
#pragma once
#include <cstdint>
#include <cstring>

namespace onepass {

enum class DType : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16, kOther };

inline const char* name_of(DType t) {
  constexpr const char* names[] = {"torch.float32", "torch.float64", "torch.bfloat16", "torch.float16",
                                   "a dtype that is not served"};
  return names[static_cast<int>(t)];
}

inline int64_t size_of(DType t) {
  constexpr int64_t sizes[] = {4, 8, 2, 2, 0};
  return sizes[static_cast<int>(t)];
}

inline bool is_half(DType t) { return t == DType::kBFloat16 || t == DType::kFloat16; }

}  // namespace onepass
