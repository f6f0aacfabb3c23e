// A bug is a piece of host code with a kernel, and `fixed`: what tells the bug from its correct twin.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// Device memory of one run. On the emulator the host may write it directly.
class Case {
 public:
  explicit Case(bool fixed) : fixed(fixed) {}
  ~Case() {
    for (void* p : allocated_) (void)cudaFree(p);
  }

  const bool fixed;

  float* out(size_t n) {
    out_ = floats(n);
    size_ = n;
    for (size_t i = 0; i < n; ++i) out_[i] = 0;
    return out_;
  }
  // 0, 1, 2, ...
  float* iota(size_t n) {
    float* p = floats(n);
    for (size_t i = 0; i < n; ++i) p[i] = static_cast<float>(i);
    return p;
  }
  unsigned* zeros(size_t n) {
    auto* p = reinterpret_cast<unsigned*>(floats(n));
    for (size_t i = 0; i < n; ++i) p[i] = 0;
    return p;
  }
  float* floats(size_t n) {
    void* p = nullptr;
    (void)cudaMalloc(&p, n * sizeof(float));
    allocated_.push_back(p);
    return static_cast<float*>(p);
  }
  void free(void* p) {
    std::erase(allocated_, p);
    (void)cudaFree(p);
  }

  std::vector<float> results() const { return {out_, out_ + size_}; }

 private:
  std::vector<void*> allocated_;
  float* out_ = nullptr;
  size_t size_ = 0;
};

struct Bug {
  std::string name, wrong;
  std::function<void(Case&)> run;
};

inline std::vector<Bug>& bugs() {
  static std::vector<Bug> all;
  return all;
}

struct AddBug {
  AddBug(const char* name, const char* wrong, void (*run)(Case&)) { bugs().push_back({name, wrong, run}); }
};

// BUG(name, "what is wrong") { host code with a Case c }
#define BUG(name, wrong)                                     \
  static void run_##name(Case& c);                           \
  static const AddBug add_##name(#name, wrong, &run_##name); \
  static void run_##name(Case& c)
