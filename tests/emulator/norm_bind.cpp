// The normalizations' CUDA room, emulated, under NumPy. Images come as they lie in memory, dense; results are
// given as arrays to write to, empty where there is none. A bfloat16 array is one of uint16, which NumPy has.
#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/norm_args.h"
#include "cuda/norm_launch.h"
#include "cuda/norm_plan.h"

namespace py = pybind11;
using namespace onepass;

using MaybeArray = std::optional<py::array>;

static DType dtype_of(const py::array& a) {
  if (py::isinstance<py::array_t<float>>(a)) return DType::kFloat32;
  if (py::isinstance<py::array_t<double>>(a)) return DType::kFloat64;
  if (py::isinstance<py::array_t<uint16_t>>(a)) return DType::kBFloat16;
  return DType::kFloat16;
}
static void* data_of(const MaybeArray& a) { return a && a->size() ? const_cast<void*>(a->data()) : nullptr; }

static ChannelVector vector_of(const MaybeArray& a) {
  if (!a || a->size() == 0) return {};
  return {const_cast<void*>(a->data()), a->strides(0) / a->itemsize(), dtype_of(*a)};
}

// What all calls have; the rest is null.
struct Arguments {
  const py::dict& given;
  NormCall call;
  std::vector<double> scratch;

  explicit Arguments(const py::dict& given) : given(given) {
    const auto x = array("input").value();
    View v;
    std::vector<int64_t> sizes, strides;
    for (py::ssize_t d = 0; d < x.ndim(); ++d) {
      sizes.push_back(x.shape(d));
      strides.push_back(x.strides(d) / x.itemsize());
    }
    v.sizes = sizes.data();
    v.strides = strides.data();
    v.dim = static_cast<int32_t>(x.ndim());
    call.shape = norm_shape(v);
    call.dtype = dtype_of(x);
    call.x = x.data();
    if (const auto act = get<std::optional<std::string>>("act")) call.act = activation_of("emulated", *act);
    call.negative_slope = get<std::optional<double>>("negative_slope").value_or(0);
    call.residual = data_of(array("residual"));
    call.y = data_of(array("output"));
    call.dy = data_of(array("grad_output"));
    call.dx = data_of(array("grad_input"));
    call.dresidual = data_of(array("grad_residual"));
    call.mask = static_cast<uint8_t*>(data_of(array("mask")));
    call.stats = data_of(array("stats"));
    call.weight = vector("weight");
    call.bias = vector("bias");
    if (given.contains("training")) call.given = !get<bool>("training");
    scratch.resize(cuda::norm_scratch(call) / sizeof(double) + 1, std::nan(""));
    call.scratch = scratch.data();
  }
  template <class T>
  T get(const char* name) const {
    return given.contains(name) ? given[name].cast<T>() : T{};
  }
  MaybeArray array(const char* name) const { return get<MaybeArray>(name); }
  ChannelVector vector(const char* name) const { return vector_of(array(name)); }
  RunningStats running() const {
    const auto momentum = get<std::optional<double>>("momentum");
    return {vector("running_mean"), vector("running_var"),
            static_cast<int64_t*>(data_of(array("num_batches_tracked"))), !momentum, momentum.value_or(0)};
  }
  double eps() const { return get<double>("eps"); }
};

constexpr cuda::Queue kQueue{0, nullptr};

static void wait_for_stream() {
  if (cudaStreamSynchronize(nullptr) != cudaSuccess) throw std::runtime_error("the stream failed");
}

static void forward(const py::dict& given) {
  const Arguments a(given);
  cuda::norm_forward(a.call, a.running(), a.eps(), kQueue);
  wait_for_stream();
}
static void eval(const py::dict& given) {
  const Arguments a(given);
  cuda::norm_given(a.call, a.vector("running_mean"), a.vector("running_var"), a.eps(), kQueue);
  wait_for_stream();
}
static void backward(const py::dict& given) {
  const Arguments a(given);
  cuda::norm_backward(a.call, a.vector("grad_weight"), a.vector("grad_bias"), kQueue);
  wait_for_stream();
}
static void stats(const py::dict& given) {
  const Arguments a(given);
  cuda::norm_moments(a.call, data_of(a.array("moments")), kQueue);
  wait_for_stream();
}
static void apply(const py::dict& given) {
  const Arguments a(given);
  const py::array moments = a.array("moments").value();
  const int64_t processes = moments.size() / (3 * a.call.shape.channels + 1);
  cuda::norm_apply(a.call, moments.data(), processes, a.running(), a.eps(), kQueue);
  wait_for_stream();
}
static void bwd_stats(const py::dict& given) {
  const Arguments a(given);
  cuda::norm_grad_sums(a.call, data_of(a.array("sums")), a.vector("grad_weight"), a.vector("grad_bias"),
                       kQueue);
  wait_for_stream();
}
static void bwd_apply(const py::dict& given) {
  const Arguments a(given);
  cuda::norm_grad_apply(a.call, data_of(a.array("sums")), kQueue);
  wait_for_stream();
}

// How a shape is cut up: in two launches, or in one where that fits.
static py::dict plan(int64_t images, int64_t channels, int64_t pixels, bool channels_last, bool bf16,
                     bool grads, bool whole) {
  NormCall call;
  call.shape = {images, channels, pixels, channels_last};
  call.dtype = bf16 ? DType::kBFloat16 : DType::kFloat32;
  if (grads) call.dy = &call;  // there is one
  const cuda::NormPlan p =
      whole ? cuda::whole_plan(call, true, cuda::Device(0)) : cuda::norm_plan(call.shape);
  py::dict out;
  out["units"] = p.units;
  out["parts"] = p.parts;
  out["at_once"] = p.at_once;
  out["width"] = p.width;
  out["kept"] = p.kept;
  out["stride"] = p.stride;
  out["fixed"] = p.fixed;
  return out;
}

PYBIND11_MODULE(MODULE_NAME, m) {
  m.def("batch_norm_fwd", &forward);
  m.def("batch_norm_eval", &eval);
  m.def("batch_norm_bwd", &backward);
  m.def("batch_norm_stats", &stats);
  m.def("batch_norm_apply", &apply);
  m.def("batch_norm_bwd_stats", &bwd_stats);
  m.def("batch_norm_bwd_apply", &bwd_apply);
  m.def("plan", &plan, py::arg("images"), py::arg("channels"), py::arg("pixels"), py::arg("channels_last"),
        py::arg("bf16") = false, py::arg("grads") = false, py::arg("whole") = false);
}
