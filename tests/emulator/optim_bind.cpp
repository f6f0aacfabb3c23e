// The optimizers' CUDA room, emulated, under NumPy: an op's lists as arrays, updated in place. A bfloat16
// array is one of uint16, which NumPy has. wait: for the stream; without, what was given is to live on.
#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <deque>

#include "common/optim_args.h"
#include "cuda/launch.h"

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

template <class T>
static const T* data_of(const std::optional<py::array_t<T>>& a) {
  return a ? a->data() : nullptr;
}

static void wait_for_stream() {
  if (cudaStreamSynchronize(nullptr) != cudaSuccess) throw std::runtime_error("the stream failed");
}

// lists: parameters, gradients, states and, with_ema, averages of weights, in the order of the op. steps:
// empty where nobody counts. hyper: a row a group.
static void step(const std::string& op, int variant, const std::vector<Arrays>& lists, bool with_ema,
                 const Arrays& steps, const py::array_t<double, py::array::c_style>& hyper,
                 const std::vector<int32_t>& groups, const std::optional<py::array_t<float>>& grad_scale,
                 const std::optional<py::array_t<float>>& found_inf,
                 const std::optional<py::array_t<double>>& stats, int grads_after, bool hyper_on_device,
                 bool wait) {
  const OptimSpec& spec = optim_spec(op);
  const int streams = static_cast<int>(lists.size());
  Shapes shapes;
  std::deque<Layout> layouts;
  Launch launch;
  launch.clear();
  launch.grads_after = static_cast<GradsAfter>(grads_after);
  launch.ema = with_ema;
  for (size_t i = 0; i < lists[0].size(); ++i) {
    const int64_t at = static_cast<int64_t>(i);
    View views[kMaxStreams];
    for (int s = 0; s < streams; ++s) views[s] = view_of(lists[s][i], shapes);
    Row row{};
    check_row(spec, variant, streams, at, views, row);
    check_written(spec, launch.grads_after, at, views[kGrad]);
    if (!steps.empty()) {
      const View counter = view_of(steps[i], shapes);
      check_step(spec, at, counter, views[kParam]);
      row.step = counter.data;
      row.step_dtype = counter.dtype;
    }
    row.lie(layouts.emplace_back(layout_of(views, streams)));
    row.group = groups[i];
    launch.add(row);
  }
  launch.hyper = hyper.data();
  launch.hyper_columns = spec.columns;
  launch.hyper_on_device = hyper_on_device;
  launch.grad_scale = data_of(grad_scale);
  launch.found_inf = data_of(found_inf);
  launch.stats = data_of(stats);
  cuda::step(launch, spec.kernel, variant, hyper.shape(0), {0, nullptr});
  if (wait) wait_for_stream();
}

// Rows that have no other stream than a gradient.
static Launch grads_launch(const Arrays& grads, Shapes& shapes, std::deque<Layout>& layouts) {
  Launch launch;
  launch.clear();
  for (const py::array& grad : grads) {
    const View view = view_of(grad, shapes), views[] = {view, view};
    Row row{};
    row.data[kParam] = row.data[kGrad] = view.data;
    row.dtype[kParam] = row.dtype[kGrad] = view.dtype;
    row.lie(layouts.emplace_back(layout_of(views, 2)));
    launch.add(row);
  }
  return launch;
}

// How: cuda::grad_stats, or cuda::unscale_grads.
template <auto kHow>
static py::array_t<double> measure(const Arrays& grads, const std::optional<py::array_t<float>>& grad_scale) {
  Shapes shapes;
  std::deque<Layout> layouts;
  Launch launch = grads_launch(grads, shapes, layouts);
  launch.grad_scale = data_of(grad_scale);
  py::array_t<double> stats(2);
  kHow(launch, stats.mutable_data(), {0, nullptr});
  wait_for_stream();
  return stats;
}

static void accumulate(const Arrays& sums, const Arrays& grads,
                       const std::optional<py::array_t<float>>& inv_scale) {
  Shapes shapes;
  std::deque<Layout> layouts;
  Launch launch;
  launch.clear();
  for (size_t i = 0; i < sums.size(); ++i) {
    const View views[] = {view_of(sums[i], shapes), view_of(grads[i], shapes)};
    Row row{};
    for (int s : {kParam, kGrad}) {
      row.data[s] = views[s].data;
      row.dtype[s] = views[s].dtype;
    }
    row.lie(layouts.emplace_back(layout_of(views, 2)));
    launch.add(row);
  }
  cuda::accumulate(launch, data_of(inv_scale), {0, nullptr});
  wait_for_stream();
}

static void update_scale(py::array_t<float> scale, py::array_t<int32_t> growth_tracker,
                         py::array_t<int64_t> skipped, const std::vector<py::array_t<float>>& found_infs,
                         double growth_factor, double backoff_factor, int64_t growth_interval,
                         int64_t hysteresis, double min_scale, double max_scale) {
  cuda::ScaleArgs args{{growth_factor, backoff_factor, min_scale, max_scale, growth_interval, hysteresis},
                       scale.mutable_data(),
                       growth_tracker.mutable_data(),
                       skipped.mutable_data(),
                       static_cast<int32_t>(found_infs.size()),
                       {}};
  for (size_t i = 0; i < found_infs.size(); ++i) args.found_infs[i] = found_infs[i].data();
  cuda::update_scale(args, {0, nullptr});
  wait_for_stream();
}

static void clip_grads(const Arrays& grads, const py::array_t<double>& stats, double max_norm) {
  Shapes shapes;
  std::deque<Layout> layouts;
  cuda::clip_grads(grads_launch(grads, shapes, layouts), stats.data(), max_norm, {0, nullptr});
  wait_for_stream();
}

static std::vector<int64_t> first_tiles(const std::vector<int64_t>& numels) {
  std::vector<Row> rows(numels.size());
  std::vector<const Row*> listed;
  for (size_t i = 0; i < numels.size(); ++i) {
    rows[i].numel = numels[i];
    listed.push_back(&rows[i]);
  }
  const cuda::Image image = cuda::step_image(Launch{}, listed, 4, 0);
  const auto* out = reinterpret_cast<const cuda::DeviceRow*>(image.bytes.data() + image.rows);
  std::vector<int64_t> first;
  for (size_t i = 0; i < numels.size(); ++i) first.push_back(out[i].first_tile);
  first.push_back(image.tiles);
  return first;
}

PYBIND11_MODULE(MODULE_NAME, m) {
  m.def("step", &step, py::arg("op"), py::arg("variant"), py::arg("lists"), py::arg("with_ema"),
        py::arg("steps"), py::arg("hyper"), py::arg("groups"), py::arg("grad_scale") = std::nullopt,
        py::arg("found_inf") = std::nullopt, py::arg("stats") = std::nullopt, py::arg("grads_after") = 0,
        py::arg("hyper_on_device") = false, py::arg("wait") = true);
  m.def("grad_stats", &measure<cuda::grad_stats>, py::arg("grads"), py::arg("grad_scale") = std::nullopt);
  m.def("unscale_", &measure<cuda::unscale_grads>, py::arg("grads"), py::arg("grad_scale"));
  m.def("accumulate_", &accumulate, py::arg("sums"), py::arg("grads"), py::arg("inv_scale") = std::nullopt);
  m.def("update_scale_", &update_scale);
  m.def("clip_grads_", &clip_grads, py::arg("grads"), py::arg("stats"), py::arg("max_norm"));
  m.def("first_tiles", &first_tiles, "Where each row's tiles start in a launch, and their number");
}
