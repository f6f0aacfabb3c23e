// The CUDA room of quantization and of the 8-bit product, emulated, under NumPy. Arrays come dense; results
// are given as arrays to write to.
#include "arrays.h"
#include "cuda/int8_launch.h"
#include "cuda/quant_launch.h"

// --- quantization -----------------------------------------------------------------------------------------
static QuantCall quant_call(const py::array& real, const py::array& whole, const py::array& scale,
                            const MaybeArray& zero_point, const std::vector<int64_t>& groups) {
  QuantCall call;
  call.groups = {groups[0], groups[1], groups[2]};
  call.dtype = dtype_of(real);
  call.is_signed = py::isinstance<py::array_t<int8_t>>(whole);
  call.real = data_of(real);
  call.whole = data_of(whole);
  call.scale = data_of<float>(scale);
  call.zero_point = data_of<int32_t>(zero_point);
  return call;
}

static void quantize(const py::array& input, const py::array& values, const py::array& scales,
                     const MaybeArray& zero_points, const std::vector<int64_t>& groups, bool given,
                     int32_t bits) {
  QuantCall call = quant_call(input, values, scales, zero_points, groups);
  Scratch scratch(cuda::quant_scratch(call));
  call.scratch = scratch.data();
  cuda::quantize(call, given, Levels::make(call.is_signed, bits), kQueue);
  wait_for_stream();
}
static void dequantize(const py::array& input, const py::array& scale, const MaybeArray& zero_point,
                       const std::vector<int64_t>& groups, const py::array& results) {
  cuda::dequantize(quant_call(results, input, scale, zero_point, groups), kQueue);
  wait_for_stream();
}

// --- products ---------------------------------------------------------------------------------------------
static Gate gate_of(const std::optional<std::string>& act) {
  if (!act) return Gate::kNone;
  return *act == "relu" ? Gate::kRelu : *act == "gelu" ? Gate::kGelu : Gate::kSilu;
}

// What every product has. input: [m, k], whole or real.
static Int8Call call_of(const py::array& input, const py::array& weight, const MaybeArray& weight_scale,
                        const MaybeArray& bias, const std::optional<std::string>& act,
                        const py::array& results) {
  Int8Call call;
  call.m = input.shape(0);
  call.shape = {weight.shape(0), weight.shape(1)};
  call.weight = data_of<const uint8_t>(weight);
  call.x = data_of(input);
  call.x_is_real = input.itemsize() > 1;
  call.x_is_signed = py::isinstance<py::array_t<int8_t>>(input);
  call.x_dtype = dtype_of(input);
  call.w_scale = data_of<float>(weight_scale);
  call.bias = data_of<float>(bias);
  call.gate = gate_of(act);
  call.y = data_of(results);
  call.y_dtype = dtype_of(results);
  return call;
}

// Real input is quantized.
static void int8_mm(const py::array& input, const py::array& weight, const MaybeArray& input_scale,
                    const MaybeArray& weight_scale, const MaybeArray& input_zero_point,
                    const MaybeArray& bias, const std::optional<std::string>& act, const py::array& results,
                    bool symmetric, int32_t bits, const MaybeArray& output_scale,
                    const MaybeArray& output_zero_point) {
  Int8Call call = call_of(input, weight, weight_scale, bias, act, results);
  call.symmetric = symmetric;
  call.bits = bits;
  call.x_scale = data_of<float>(input_scale);
  call.x_zero = data_of<int32_t>(input_zero_point);
  call.raw = py::isinstance<py::array_t<int32_t>>(results);
  call.y_scale = data_of<float>(output_scale);
  call.y_zero = data_of<int32_t>(output_zero_point);
  Scratch scratch(cuda::int8_scratch(call));
  call.scratch = scratch.data();
  cuda::int8_mm(call, kQueue);
  wait_for_stream();
}

// Real input stays as it is.
static void int8_weight_only_mm(const py::array& input, const py::array& weight,
                                const py::array& weight_scale, const MaybeArray& bias,
                                const std::optional<std::string>& act, const py::array& results) {
  cuda::int8_weight_only_mm(call_of(input, weight, weight_scale, bias, act, results), kQueue);
  wait_for_stream();
}

static int cut_of(int64_t m, int64_t n, int64_t multiprocessors) {
  Int8Call call;
  call.m = m;
  call.shape = {n, 1};
  return static_cast<int>(cuda::int8_cut(call, multiprocessors));
}

PYBIND11_MODULE(MODULE_NAME, m) {
  m.def("quantize", &quantize);
  m.def("dequantize", &dequantize);
  m.def("int8_mm", &int8_mm);
  m.def("int8_weight_only_mm", &int8_weight_only_mm);
  m.def("cut", &cut_of);
}
