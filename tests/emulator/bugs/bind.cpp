#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bug.h"

static std::vector<std::pair<std::string, std::string>> table() {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const Bug& bug : bugs()) rows.emplace_back(bug.name, bug.wrong);
  return rows;
}

static std::vector<float> run(const std::string& name, bool fixed) {
  for (const Bug& bug : bugs()) {
    if (bug.name != name) continue;
    Case c(fixed);
    bug.run(c);
    if (cudaDeviceSynchronize() != cudaSuccess) throw std::runtime_error("a launch failed");
    return c.results();
  }
  throw std::runtime_error("no bug " + name);
}

PYBIND11_MODULE(MODULE_NAME, m) {
  m.def("table", &table);
  m.def("run", &run);
}
