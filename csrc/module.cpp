// The Python module onepass._C: the optimizer plan, the choice of instruction set, and a look inside for
// `onepass info`, the tests and the benchmarks. Loading it also registers the ops of bind.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <torch/csrc/stable/ops.h>

#include "cpu/int8_launch.h"
#include "cpu/launch.h"
#include "cpu/norm_launch.h"
#include "walk.h"

namespace onepass {

static py::dict build_info() {
  py::dict info;
  info["torch"] = ONEPASS_BUILD_TORCH;
  info["compiler"] = __VERSION__;
  return info;
}

static py::list isas() {
  py::list list;
  for (const Isa& isa : built_isas()) list.append(py::make_tuple(isa.name, runs_here(isa), isa.opt_in));
  return list;
}

// Where a launch over tensors of these sizes is cut: [(row, offset)] of each piece's start, and the end.
static std::vector<std::pair<int64_t, int64_t>> cuts(const std::vector<int64_t>& numels, int64_t pieces) {
  std::vector<int64_t> begin{0};
  for (int64_t n : numels) begin.push_back(begin.back() + n);
  std::vector<std::pair<int64_t, int64_t>> out;
  for (int64_t k = 0; k <= pieces; ++k) {
    const Cut c = cut(begin, pieces, k);
    out.emplace_back(c.row, c.offset);
  }
  return out;
}

// One pass of the yardstick kernel over four float32 arrays, on torch's threads.
static void rmw_probe(uintptr_t p, uintptr_t g, uintptr_t m, uintptr_t v, int64_t numel) {
  py::gil_scoped_release unlocked;
  const int64_t pieces = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    const int64_t from = numel / 16 * first / pieces * 16,
                  to = last == pieces ? numel : numel / 16 * last / pieces * 16;
    current_isa().kernels->rmw_probe(reinterpret_cast<float*>(p) + from, reinterpret_cast<float*>(g) + from,
                                     reinterpret_cast<float*>(m) + from, reinterpret_cast<float*>(v) + from,
                                     to - from);
  });
}

PYBIND11_MODULE(_C, m) {
  load_python_objects();
  m.doc() = "Compiled part of onepass; see csrc/module.cpp.";
  m.def("build_info", &build_info);
  m.def("isas", &isas, "[(name, runs on this processor, has to be asked for)], weakest first");
  m.def("isa", [] { return current_isa().name; });
  m.def("use_isa", &use_isa, py::arg("name"));
  m.def("columns", [](const std::string& op) { return optim_spec(op).columns; });
  m.def("cuts", &cuts, py::arg("numels"), py::arg("pieces"));
  m.def("rmw_probe", &rmw_probe);
  m.def("two_read_probe",
        [](uintptr_t a, uintptr_t first, uintptr_t second, uintptr_t to, uintptr_t also, int64_t numel) {
          py::gil_scoped_release unlocked;
          two_read_probe(reinterpret_cast<const float*>(a), reinterpret_cast<const float*>(first),
                         reinterpret_cast<const float*>(second), reinterpret_cast<float*>(to),
                         reinterpret_cast<float*>(also), numel);
        });
  m.def("read_probe", [](uintptr_t a, int64_t numel) {
    py::gil_scoped_release unlocked;
    read_probe(reinterpret_cast<const float*>(a), numel);
  });
  m.def("int8_probe", [](int64_t times) {
    py::gil_scoped_release unlocked;
    return int8_probe(times);
  });
  m.def(
      "use_cuda_driver",
      [](uintptr_t driver) { use_cuda_driver(*reinterpret_cast<const CudaDriver*>(driver)); },
      "The address of onepass_cuda_driver in onepass._cuda");
  m.def("has_plan", &has_plan, "Can OptimPlan be used with this torch?");
  py::class_<OptimPlan>(m, "OptimPlan")
      .def(py::init<const std::string&, int, py::list, std::vector<int64_t>, py::dict,
                    const std::vector<std::string>&, bool, bool, std::optional<int32_t>>(),
           py::arg("op"), py::arg("variant"), py::arg("param_groups"), py::arg("served"), py::arg("state"),
           py::arg("state_names"), py::arg("with_ema") = false, py::arg("counts") = true,
           py::arg("cuda") = std::nullopt)
      .def("gather", &OptimPlan::gather, py::arg("hyper"), py::arg("grads_after") = 0)
      .def("grad_stats", &OptimPlan::grad_stats, py::arg("grad_scale") = 0, py::arg("stats"))
      .def("run", &OptimPlan::run, py::arg("grad_scale") = 0, py::arg("found_inf") = 0, py::arg("stats") = 0)
      .def("__len__", &OptimPlan::size);
}

}  // namespace onepass
