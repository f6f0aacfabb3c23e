// The CUDA room of fake quantization, emulated, under NumPy. Arrays come dense; results are given as arrays
// to write to.
#include "arrays.h"
#include "cuda/fake_quant_launch.h"

struct Settings {
  std::vector<int64_t> groups;  // rows, columns, size
  bool symmetric;
  int32_t bits;
};

static FakeQuantCall call_of(const py::array& real, const Settings& settings) {
  FakeQuantCall call;
  call.groups = {settings.groups[0], settings.groups[1], settings.groups[2]};
  call.dtype = dtype_of(real);
  call.is_signed = settings.symmetric;
  call.levels = Levels::make(settings.symmetric, settings.bits);
  return call;
}

static void forward(const py::array& input, const py::array& output, const py::array& mask,
                    const py::array& scales, const MaybeArray& zero_points, bool given,
                    const Settings& settings) {
  FakeQuantCall call = call_of(input, settings);
  call.real = data_of(input);
  call.output = data_of(output);
  call.mask = data_of<uint8_t>(mask);
  call.scale = data_of<float>(scales);
  call.zero_point = data_of<int32_t>(zero_points);
  Scratch scratch(cuda::fake_quantize_scratch(call, given));
  call.scratch = scratch.data();
  cuda::fake_quantize(call, given, kQueue);
  wait_for_stream();
}

// grad_scale: only with input and scale.
static void backward(const py::array& grad_output, const py::array& mask, const MaybeArray& input,
                     const MaybeArray& scale, const MaybeArray& zero_point, const py::array& grad_input,
                     const MaybeArray& grad_scale, const Settings& settings) {
  FakeQuantCall call = call_of(grad_output, settings);
  call.grad_output = data_of(grad_output);
  call.mask = data_of<uint8_t>(mask);
  call.real = data_of(input);
  call.scale = data_of<float>(scale);
  call.zero_point = data_of<int32_t>(zero_point);
  call.grad_input = data_of(grad_input);
  call.grad_scale = data_of<float>(grad_scale);
  Scratch scratch(cuda::fake_quantize_backward_scratch(call));
  call.scratch = scratch.data();
  cuda::fake_quantize_backward(call, kQueue);
  wait_for_stream();
}

PYBIND11_MODULE(MODULE_NAME, m) {
  py::class_<Settings>(m, "Settings").def(py::init<std::vector<int64_t>, bool, int32_t>());
  m.def("forward", &forward);
  m.def("backward", &backward);
}
