#include "walk.h"

#include "common/torch_view.h"
#include "cpu/launch.h"
#include "tensor_object.h"

namespace onepass {

// Python objects used at every step. Loaded with the module: a static of a function would be made under a
// lock, while an import gives up the GIL, and two threads could wait for each other.
static struct {
  PyObject *params, *step, *hold;
  size_t impl_offset;
  GradOf grad_of;
  IsNeg is_neg;
  BumpVersion bump_version;
} python;

static PyObject* interned(const char* text) {
  PyObject* s = PyUnicode_InternFromString(text);
  if (!s) throw py::error_already_set();
  return s;
}

void load_python_objects() {
  python.params = interned("params");
  python.step = interned("step");
  python.hold =
      py::object(py::module_::import("torch").attr("ops").attr("onepass").attr("_hold")).release().ptr();
  python.impl_offset = find_impl_offset(py::module_::import("torch").attr("empty")(0));
  python.grad_of = find_grad_of();
  python.is_neg = find_is_neg();
  python.bump_version = find_bump_version();
}

bool has_plan() { return python.grad_of && python.is_neg && python.bump_version && python.impl_offset; }

static CudaDriver cuda_driver{};
void use_cuda_driver(const CudaDriver& driver) { cuda_driver = driver; }

static PyObject* keep(std::vector<py::object>& owned, py::handle object) {
  owned.push_back(py::reinterpret_borrow<py::object>(object));
  return object.ptr();
}

OptimPlan::OptimPlan(const std::string& op, int variant, py::list param_groups, std::vector<int64_t> served,
                     py::dict state, const std::vector<std::string>& state_names, bool with_ema, bool counts,
                     std::optional<int32_t> cuda)
    : spec_(optim_spec(op)),
      variant_(variant),
      counts_(counts),
      states_(spec_.states(variant) + with_ema),
      cuda_(cuda),
      param_groups_(param_groups),
      state_(state) {
  if (cuda && !cuda_driver.step) fail(op, ": a plan on CUDA needs onepass._cuda");
  if (static_cast<int>(state_names.size()) != states_) fail(op, ": a plan needs ", states_, " state names");
  std::vector<py::str> names(state_names.begin(), state_names.end());
  if (counts) names.push_back(py::reinterpret_borrow<py::str>(python.step));
  launch_.ema = with_ema;

  for (auto [key, value] : state) state_items_.emplace_back(keep(owned_, key), keep(owned_, value));
  for (size_t k = 0; k < served.size(); ++k) {
    py::dict group = param_groups[served[k]];
    served_.emplace_back(served[k], keep(owned_, group));
    for (py::handle param : group["params"]) {
      params_.push_back(keep(owned_, param));
      Entry& entry = entries_.emplace_back();
      entry.tensors[0].impl = impl_of(param);
      known_.emplace_back().row.group = static_cast<int32_t>(k);
    }
  }
  for (size_t i = 0; i < entries_.size(); ++i)
    if (stateless()) {
      know(i, py::dict(), names);
    } else if (state.contains(py::handle(params_[i]))) {
      const py::dict values = state[py::handle(params_[i])];
      if (!values.empty()) know(i, values, names);  // optimizer.state makes an empty one for whoever looks
    }
}

// Everything about a parameter and its states that a step need not work out again.
void OptimPlan::know(size_t i, const py::dict& values, const std::vector<py::str>& names) {
  Entry& entry = entries_[i];
  Known& known = known_[i];
  py::list tensors;
  tensors.append(py::handle(params_[i]));
  for (const py::str& name : names) tensors.append(values[name]);
  py::handle(python.hold)(tensors, reinterpret_cast<int64_t>(&known.held));

  View views[kMaxStreams];
  for (int s = 0; s < kState + states_; ++s) views[s] = view_of(known.held[s < kState ? 0 : s - 1]);
  check_row(spec_, variant_, kState + states_, static_cast<int64_t>(i), views, known.row);
  known.layout = layout_of(views, kState + states_);
  known.row.lie(known.layout);
  for (int k = 0; k <= states_; ++k)
    entry.tensors[k].impl = *reinterpret_cast<void* const*>(known.held[k].get());
  if (counts_) {
    const View step = view_of(known.held.back());
    check_step(spec_, static_cast<int64_t>(i), step, views[kParam]);
    known.row.step = step.data;
    known.row.step_dtype = step.dtype;
    entry.tensors[kStep].impl = *reinterpret_cast<void* const*>(known.held.back().get());
  }
  known.held.erase(known.held.begin());  // the parameter's object holds it, and may come to hold another
  entry.state = keep(owned_, values);
  entry.values = static_cast<int32_t>(values_.size());
  entry.value_count = static_cast<int32_t>(values.size());
  for (auto item : values) values_.push_back(keep(owned_, item.second));
  entry.shape = static_cast<int32_t>(shapes_.size());
  entry.dim = views[kParam].dim;
  for (int k = 0; k <= states_; ++k) {
    const View& view = views[k == 0 ? kParam : kState + k - 1];
    shapes_.insert(shapes_.end(), view.sizes, view.sizes + entry.dim);
    shapes_.insert(shapes_.end(), view.strides, view.strides + entry.dim);
  }
}

View OptimPlan::shape_of(const Entry& entry, int tensor) const {
  View view;
  view.dim = entry.dim;
  view.sizes = shapes_.data() + entry.shape + tensor * 2 * entry.dim;
  view.strides = view.sizes + entry.dim;
  return view;
}

bool OptimPlan::groups_as_built() const {
  size_t i = 0;
  for (const auto& [index, group] : served_) {
    if (index >= PyList_GET_SIZE(param_groups_.ptr())) return false;
    if (PyList_GET_ITEM(param_groups_.ptr(), index) != group) return false;
    PyObject* params = PyDict_GetItem(group, python.params);
    if (!params || !PyList_Check(params)) return false;
    const Py_ssize_t count = PyList_GET_SIZE(params);
    if (i + count > params_.size()) return false;
    for (Py_ssize_t k = 0; k < count; ++k, ++i)
      if (PyList_GET_ITEM(params, k) != params_[i]) return false;
  }
  return i == params_.size();
}

// The same objects in the same order: cheaper than looking each up, and sees every replacement.
bool OptimPlan::state_as_built() const {
  if (PyDict_GET_SIZE(state_.ptr()) != static_cast<Py_ssize_t>(state_items_.size())) return false;
  Py_ssize_t position = 0;
  PyObject *key, *value;
  for (const auto& [known_key, known_value] : state_items_)
    if (!PyDict_Next(state_.ptr(), &position, &key, &value) || key != known_key || value != known_value)
      return false;
  return true;
}

static bool at(const void* known, AtenTensorHandle tensor) {
  void* data = nullptr;
  return aoti_torch_get_data_ptr(tensor, &data) == AOTI_TORCH_SUCCESS && data == known;
}

bool OptimPlan::values_as_built(const Entry& entry) const {
  if (PyDict_GET_SIZE(entry.state) != entry.value_count) return false;
  Py_ssize_t position = 0;
  PyObject* value;
  for (int k = 0; k < entry.value_count; ++k)
    if (!PyDict_Next(entry.state, &position, nullptr, &value) || value != values_[entry.values + k])
      return false;
  return true;
}

// Memory that moved may have been freed, or lie otherwise: whoever builds the plan looks closer.
bool OptimPlan::as_built(size_t i, const Row& row) const {
  const Entry& entry = entries_[i];
  if (!entry.state) return false;
  if (!stateless() && !values_as_built(entry)) return false;
  if (!at(row.data[kParam], entry.tensors[0].handle())) return false;
  if (row.step && !at(row.step, entry.tensors[kStep].handle())) return false;
  for (int s = 0; s < states_; ++s)
    if (!at(row.data[kState + s], entry.tensors[1 + s].handle())) return false;
  // With fewer than two dimensions a state cannot lie otherwise in the same memory.
  const int shaped = entry.dim > 1 ? 1 + states_ : 1;
  for (int k = 0; k < shaped; ++k) {
    View now;
    if (!read_shape(entry.tensors[k].handle(), now) || !same_sizes(now, shape_of(entry, k)) ||
        !same_strides(now, shape_of(entry, k)))
      return false;
  }
  return true;
}

// Does the gradient fit its parameter? If not, whoever builds the plan says why.
bool OptimPlan::fits(const View& grad, const View& param, const Row& row) const {
  const bool summed = grad.dtype == DType::kFloat32 && is_half(row.dtype[kParam]);
  return grad.on_cpu == !cuda_ && grad.device_index == cuda_.value_or(0) &&
         (grad.dtype == row.dtype[kParam] || summed) && same_sizes(grad, param) && has_storage(grad);
}

// A gradient that is written has one address an element.
bool OptimPlan::writable(const View& grad) const {
  return launch_.grads_after == GradsAfter::kKept || !overlaps_itself(grad);
}

// Is the tensor behind the parameter's object still the one we know? (torch.utils.swap_tensors)
bool OptimPlan::same_tensor(size_t i) const {
  return pointer_at(params_[i], python.impl_offset) == entries_[i].tensors[0].impl;
}

bool OptimPlan::gather_row(size_t i) {
  Entry& entry = entries_[i];
  if (!same_tensor(i)) return false;
  const AtenTensorHandle grad = python.grad_of(entry.tensors[0].impl);
  bool defined = false;
  if (aoti_torch_is_defined(grad, &defined)) return false;
  if (defined != (entry.slot >= 0)) {
    entry.slot = defined ? 0 : -1;
    relist_ = true;
  }
  if (!defined) return true;

  Row& row = relist_ ? known_[i].row : launch_.rows[entry.slot];
  View view;
  const View param = shape_of(entry, 0);
  if (!as_built(i, row) || python.is_neg(grad) || !view_of(grad, view) || !fits(view, param, row) ||
      !writable(view))
    return false;
  row.data[kGrad] = view.data;
  row.dtype[kGrad] = view.dtype;
  if (!cuda_) row.t = read_step(row) + 1;
  if (row.box || !same_strides(view, param)) {
    View views[kMaxStreams];
    views[kGrad] = view;
    for (int k = 0; k <= states_; ++k) views[k == 0 ? kParam : kState + k - 1] = shape_of(entry, k);
    known_[i].unlike = layout_of(views, kState + states_);
    row.lie(known_[i].unlike);
  }
  return true;
}

void OptimPlan::list_rows() {
  launch_.clear();
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].slot < 0) continue;
    entries_[i].slot = static_cast<int32_t>(size());
    launch_.add(known_[i].row);
  }
  relist_ = false;
}

// Hints, in three stages: the objects whose addresses the entry holds, then what leads to the gradient, then
// the memory. They guess where a TensorImpl keeps its storage and what autograd knows of it; a wrong guess
// costs time and nothing else.
constexpr size_t kObjectsAhead = 8, kAutogradAhead = 6, kMemoryAhead = 4;
constexpr size_t kStorageOffset = 16, kAutogradOffset = 24;

static void fetch(const void* start, int bytes) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(start) + at);
}

void OptimPlan::fetch_objects(size_t i) const {
  const Entry& entry = entries_[i];
  fetch(params_[i], 1);
  fetch(entry.state, 1);
  fetch(entry.tensors[0].impl, 192);
  for (const BorrowedTensor& t : entry.tensors) {
    if (!t.impl) continue;  // a hint about address 0 walks the page tables, in vain
    fetch(t.impl, 1);
    fetch(static_cast<const char*>(t.impl) + 128, 1);
  }
}

void OptimPlan::fetch_autograd(size_t i) const {
  if (same_tensor(i)) fetch(pointer_at(entries_[i].tensors[0].impl, kAutogradOffset), 64);
}

void OptimPlan::fetch_memory(size_t i) const {
  const Entry& entry = entries_[i];
  if (entry.slot < 0 || !entry.state || !same_tensor(i)) return;
  for (const BorrowedTensor& t : entry.tensors)
    if (t.impl) fetch(pointer_at(t.impl, kStorageOffset), 1);
  if (counts_) fetch(launch_.rows[entry.slot].step, 1);
  fetch(reinterpret_cast<const PyDictObject*>(entry.state)->ma_keys, 128);
  fetch(pointer_at(python.grad_of(entry.tensors[0].impl), 0), 192);
}

void OptimPlan::read_hypers(const py::list& hypers) {
  hyper_.clear();
  for (py::handle row : hypers) {
    const size_t start = hyper_.size();
    for (py::handle value : py::reinterpret_borrow<py::list>(row)) {
      const double number = PyFloat_AsDouble(value.ptr());
      if (number == -1.0 && PyErr_Occurred()) throw py::error_already_set();
      hyper_.push_back(number);
    }
    const int64_t count = static_cast<int64_t>(hyper_.size() - start);
    const int64_t group = static_cast<int64_t>(start) / spec_.columns;
    if (count != spec_.columns)
      fail(spec_.op, ": hyper[", group, "] has ", count, " values, expected ", spec_.columns);
    check_hyper_row(spec_, hyper_.data() + start, group);
  }
  if (hypers.size() != served_.size())
    fail(spec_.op, ": hyper has ", hypers.size(), " rows, expected ", served_.size());
}

// Flat: what runs for each tensor lies in one place, whatever else is in the file. As functions it took 20 to
// 40 ns a tensor more, by how they happened to lie.
__attribute__((flatten)) bool OptimPlan::gather_rows() {
  const size_t count = entries_.size();
  for (size_t i = 0; i < count; ++i) {
    if (i + kObjectsAhead < count) fetch_objects(i + kObjectsAhead);
    if (i + kAutogradAhead < count) fetch_autograd(i + kAutogradAhead);
    if (!relist_ && i + kMemoryAhead < count) fetch_memory(i + kMemoryAhead);
    if (!gather_row(i)) return false;
  }
  return true;
}

bool OptimPlan::gather(const py::list& hypers, int grads_after) {
  read_hypers(hypers);
  launch_.grads_after = static_cast<GradsAfter>(grads_after);
  if (!groups_as_built() || !state_as_built()) return false;
  do {
    if (relist_) list_rows();
    if (!gather_rows()) return false;
  } while (relist_);
  return true;
}

void OptimPlan::grad_stats(uintptr_t grad_scale, uintptr_t stats) {
  launch_.grad_scale = reinterpret_cast<const float*>(grad_scale);
  double* const out = reinterpret_cast<double*>(stats);
  py::gil_scoped_release unlocked;
  if (cuda_)
    cuda_driver.grad_stats(launch_, out, *cuda_);
  else
    onepass::grad_stats(launch_, out);
}

void OptimPlan::run(uintptr_t grad_scale, uintptr_t found_inf, uintptr_t stats) {
  if (launch_.rows.empty()) return;
  launch_.hyper = hyper_.data();
  launch_.hyper_columns = spec_.columns;
  launch_.grad_scale = reinterpret_cast<const float*>(grad_scale);
  launch_.found_inf = reinterpret_cast<const float*>(found_inf);
  launch_.stats = reinterpret_cast<const double*>(stats);
  bump_versions();
  py::gil_scoped_release unlocked;
  if (cuda_)
    cuda_driver.step(spec_.kernel, variant_, launch_, static_cast<int64_t>(served_.size()), *cuda_);
  else
    step(launch_, spec_.kernel, variant_);
}

// A kernel writes behind autograd's back: say so, that a backward through the old values raises. On the CPU
// it is known what will be written; elsewhere whether inf was found is known too late.
void OptimPlan::bump_versions() const {
  const bool skipped = !cuda_ && found_inf(launch_);
  const bool grads =
      launch_.grads_after == GradsAfter::kZeroed || (launch_.grads_after == GradsAfter::kWritten && !skipped);
  for (const Entry& entry : entries_) {
    if (entry.slot < 0) continue;
    if (!skipped) python.bump_version(entry.tensors[0].handle());
    if (grads) python.bump_version(python.grad_of(entry.tensors[0].impl));
  }
}

}  // namespace onepass
