// The optimizers' CUDA room, emulated, under NumPy: an op's lists as arrays, updated in place. A bfloat16
// array is one of uint16, which NumPy has.
#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <deque>

#include "common/optim_args.h"
#include "cuda/launch.h"
#include "cuda/table.h"

namespace py = pybind11;
using namespace onepass;

using Arrays = std::vector<py::array>;

static DType dtype_of(const py::array& a) {
  if (py::isinstance<py::array_t<float>>(a)) return DType::kFloat32;
  if (py::isinstance<py::array_t<double>>(a)) return DType::kFloat64;
  if (py::isinstance<py::array_t<uint16_t>>(a)) return DType::kBFloat16;
  if (a.dtype().kind() == 'f' && a.itemsize() == 2) return DType::kFloat16;
  return DType::kOther;
}

// Sizes and strides in elements, which a view only points to. A deque keeps them where they are.
using Shapes = std::deque<std::vector<int64_t>>;

static View view_of(const py::array& a, Shapes& shapes) {
  std::vector<int64_t> sizes, strides;
  for (py::ssize_t d = 0; d < a.ndim(); ++d) {
    sizes.push_back(a.shape(d));
    strides.push_back(a.strides(d) / a.itemsize());
  }
  View v;
  v.data = const_cast<void*>(a.data());
  v.sizes = shapes.emplace_back(std::move(sizes)).data();
  v.strides = shapes.emplace_back(std::move(strides)).data();
  v.dim = static_cast<int32_t>(a.ndim());
  v.dtype = dtype_of(a);
  v.room = INT64_MAX;  // NumPy does not free memory under an array
  return v;
}

static const float* scalar_of(const std::optional<py::array_t<float>>& a) { return a ? a->data() : nullptr; }

// lists: parameters, gradients and states, in the order of the op. hyper: a row a group.
static void step(const std::string& op, bool variant, const std::vector<Arrays>& lists, const Arrays& steps,
                 const py::array_t<double, py::array::c_style>& hyper, const std::vector<int32_t>& groups,
                 const std::optional<py::array_t<float>>& grad_scale,
                 const std::optional<py::array_t<float>>& found_inf, bool hyper_on_device, bool wait) {
  const OptimSpec& spec = optim_spec(op);
  Shapes shapes;
  std::deque<Layout> layouts;
  Launch launch;
  launch.clear();
  for (size_t i = 0; i < lists[0].size(); ++i) {
    View views[kMaxStreams];
    for (int s = 0; s < spec.streams(variant); ++s) views[s] = view_of(lists[s][i], shapes);
    const View counter = view_of(steps[i], shapes);
    Row row{};
    check_row(spec, variant, static_cast<int64_t>(i), views, row);
    check_step(spec, static_cast<int64_t>(i), counter, views[kParam]);
    row.lie(layouts.emplace_back(layout_of(views, spec.streams(variant))));
    row.step = counter.data;
    row.step_dtype = counter.dtype;
    row.group = groups[i];
    launch.add(row);
  }
  launch.hyper = hyper.data();
  launch.hyper_columns = spec.columns;
  launch.hyper_on_device = hyper_on_device;
  launch.grad_scale = scalar_of(grad_scale);
  launch.found_inf = scalar_of(found_inf);
  cuda::run(spec, variant, launch, hyper.shape(0), 0, nullptr);
  if (wait && cudaStreamSynchronize(nullptr) != cudaSuccess) throw std::runtime_error("the stream failed");
}

static std::vector<int64_t> first_tiles(const std::vector<int64_t>& numels) {
  std::vector<Row> rows(numels.size());
  std::vector<const Row*> listed;
  for (size_t i = 0; i < numels.size(); ++i) {
    rows[i].numel = numels[i];
    listed.push_back(&rows[i]);
  }
  const cuda::Image image = cuda::image_of(Launch{}, listed, 4, 0, false);
  const auto* out = reinterpret_cast<const cuda::DeviceRow*>(image.bytes.data() + image.rows);
  std::vector<int64_t> first;
  for (size_t i = 0; i < numels.size(); ++i) first.push_back(out[i].first_tile);
  first.push_back(image.tiles);
  return first;
}

PYBIND11_MODULE(MODULE_NAME, m) {
  m.def("step", &step, py::arg("op"), py::arg("variant"), py::arg("lists"), py::arg("steps"),
        py::arg("hyper"), py::arg("groups"), py::arg("grad_scale") = std::nullopt,
        py::arg("found_inf") = std::nullopt, py::arg("hyper_on_device") = false, py::arg("wait") = true);
  m.def("first_tiles", &first_tiles, "Where each row's tiles start in a launch, and their number");
}
