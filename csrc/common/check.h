// Errors that name what was wrong: op, argument, index, what came, what is wanted.
// Whoever checks does so before the first write.
#pragma once
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace onepass {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// "adamw_: grads[3]", put together only when something is wrong.
struct Argument {
  const char* op;
  const char* name;
  int64_t index;
};

inline std::ostream& operator<<(std::ostream& out, const Argument& a) {
  return out << a.op << ": " << a.name << "[" << a.index << "]";
}

}  // namespace onepass
