// The CUDA room of the 8-bit product's gradients, emulated, under NumPy. Arrays come dense; results are given
// as arrays to write to, empty ones where they are not wanted. What is left in scratch is returned.
#include "arrays.h"
#include "cuda/int8_backward.h"
#include "cuda/int8_backward_launch.h"

static py::array_t<uint8_t> int8_mm_bwd(const py::array& grad_output, const py::array& input,
                                        const py::array& weight, const MaybeArray& input_scale,
                                        const MaybeArray& weight_scale, const MaybeArray& input_zero_point,
                                        std::optional<int64_t> seed, const py::array& grad_input,
                                        const py::array& grad_weight) {
  Int8Backward call;
  call.m = input.shape(0);
  call.n = weight.shape(0);
  call.k = input.shape(1);
  call.g = data_of(grad_output);
  call.g_dtype = dtype_of(grad_output);
  call.x = data_of(input);
  call.x_is_signed = py::isinstance<py::array_t<int8_t>>(input);
  call.x_scale = data_of<float>(input_scale);
  call.x_zero = data_of<int32_t>(input_zero_point);
  call.weight = data_of<int8_t>(weight);
  call.w_scale = data_of<float>(weight_scale);
  call.by_chance = seed.has_value();
  call.seed = static_cast<uint64_t>(seed.value_or(0));
  call.grad_input = data_of(grad_input);
  call.grad_weight = data_of(grad_weight);
  call.dtype = dtype_of(grad_input);
  const int64_t bytes = cuda::int8_mm_bwd_scratch(call);
  Scratch scratch(bytes);
  call.scratch = scratch.data();
  cuda::int8_mm_bwd(call, kQueue);
  wait_for_stream();
  return py::array_t<uint8_t>(bytes, static_cast<const uint8_t*>(scratch.data()));
}

static int cut_of(int64_t lines, int64_t outputs, int64_t multiprocessors) {
  return static_cast<int>(cuda::largest_tiles(lines, outputs, multiprocessors));
}

PYBIND11_MODULE(MODULE_NAME, m) {
  m.def("int8_mm_bwd", &int8_mm_bwd);
  m.def("cut", &cut_of);
}
