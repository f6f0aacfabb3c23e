#include "walk.h"

#include "common/torch_view.h"
#include "cpu/launch.h"
#include "grad.h"

namespace onepass {

static py::str interned(const std::string& name) {
  PyObject* s = PyUnicode_InternFromString(name.c_str());
  if (!s) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(s);
}

static PyObject* keep(std::vector<py::object>& owned, py::handle object) {
  owned.push_back(py::reinterpret_borrow<py::object>(object));
  return object.ptr();
}

OptimPlan::OptimPlan(const std::string& op, bool variant, py::list param_groups, std::vector<int64_t> served,
                     py::dict state, const std::vector<std::string>& state_names)
    : spec_(optim_spec(op)),
      variant_(variant),
      states_(spec_.states[variant]),
      param_groups_(param_groups),
      state_(state) {
  if (static_cast<int>(state_names.size()) != states_) fail(op, ": a plan needs ", states_, " state names");
  std::vector<py::str> names;
  for (const std::string& name : state_names) names.push_back(interned(name));
  names.push_back(interned("step"));

  for (auto [key, value] : state) state_items_.emplace_back(keep(owned_, key), keep(owned_, value));
  for (size_t k = 0; k < served.size(); ++k) {
    py::dict group = param_groups[served[k]];
    served_.emplace_back(served[k], keep(owned_, group));
    for (py::handle param : group["params"]) {
      params_.push_back(keep(owned_, param));
      Entry& entry = entries_.emplace_back();
      entry.tensors[0].impl = reinterpret_cast<const void*>(param.attr("_cdata").cast<uintptr_t>());
      known_.emplace_back().row.group = static_cast<int32_t>(k);
    }
  }
  for (size_t i = 0; i < entries_.size(); ++i)
    if (state.contains(py::handle(params_[i]))) know(i, state[py::handle(params_[i])], names);
}

// Everything about a parameter and its states that a step need not work out again.
void OptimPlan::know(size_t i, const py::dict& values, const std::vector<py::str>& names) {
  static const py::object& hold =
      *new py::object(py::module_::import("torch").attr("ops").attr("onepass").attr("_hold"));
  Entry& entry = entries_[i];
  Known& known = known_[i];
  py::list tensors;
  tensors.append(py::handle(params_[i]));
  for (const py::str& name : names) tensors.append(values[name]);
  hold(tensors, reinterpret_cast<int64_t>(&known.held));

  View views[kMaxStreams];
  for (int s = 0; s < kState + states_; ++s) views[s] = view_of(known.held[s < kState ? 0 : s - 1]);
  const View step = view_of(known.held.back());
  check_row(spec_, variant_, static_cast<int64_t>(i), views, known.row);
  check_step(spec_, static_cast<int64_t>(i), step);
  known.layout = layout_of(views, kState + states_);
  known.row.lie(known.layout);
  known.row.step = step.data;
  known.row.step_dtype = step.dtype;

  for (int k = 0; k <= states_; ++k)
    entry.tensors[k].impl = *reinterpret_cast<void* const*>(known.held[k].get());
  entry.tensors[kStep].impl = *reinterpret_cast<void* const*>(known.held.back().get());
  entry.state = keep(owned_, values);
  entry.values = static_cast<int32_t>(values_.size());
  entry.value_count = static_cast<int32_t>(values.size());
  for (auto item : values) values_.push_back(keep(owned_, item.second));
  entry.shape = static_cast<int32_t>(shapes_.size());
  entry.dim = views[kParam].dim;
  shapes_.insert(shapes_.end(), views[kParam].sizes, views[kParam].sizes + entry.dim);
  shapes_.insert(shapes_.end(), views[kParam].strides, views[kParam].strides + entry.dim);
}

View OptimPlan::shape_of(const Entry& entry) const {
  View view;
  view.dim = entry.dim;
  view.sizes = shapes_.data() + entry.shape;
  view.strides = view.sizes + entry.dim;
  return view;
}

bool OptimPlan::groups_as_built() const {
  static const py::str& params_name = *new py::str(interned("params"));
  size_t i = 0;
  for (const auto& [index, group] : served_) {
    if (index >= PyList_GET_SIZE(param_groups_.ptr())) return false;
    if (PyList_GET_ITEM(param_groups_.ptr(), index) != group) return false;
    PyObject* params = PyDict_GetItem(group, params_name.ptr());
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

// Memory that moved may have been freed, or lie otherwise: whoever builds the plan looks closer.
bool OptimPlan::as_built(const Entry& entry, const Row& row) const {
  if (!entry.state || PyDict_GET_SIZE(entry.state) != entry.value_count) return false;
  Py_ssize_t position = 0;
  PyObject* value;
  for (int k = 0; k < entry.value_count; ++k)
    if (!PyDict_Next(entry.state, &position, nullptr, &value) || value != values_[entry.values + k])
      return false;

  if (!at(row.data[kParam], entry.tensors[0].handle())) return false;
  for (int s = 0; s < states_; ++s)
    if (!at(row.data[kState + s], entry.tensors[1 + s].handle())) return false;
  if (!at(row.step, entry.tensors[kStep].handle())) return false;
  View now;
  if (!read_shape(entry.tensors[0].handle(), now)) return false;
  const View known = shape_of(entry);
  return same_sizes(now, known) && same_strides(now, known);
}

bool OptimPlan::gather_row(size_t i) {
  Entry& entry = entries_[i];
  const AtenTensorHandle grad = grad_of()(entry.tensors[0].impl);
  bool defined = false;
  if (aoti_torch_is_defined(grad, &defined)) return false;
  if (defined != (entry.slot >= 0)) {
    entry.slot = defined ? 0 : -1;
    relist_ = true;
  }
  if (!defined) return true;

  Row& row = relist_ ? known_[i].row : launch_.rows[entry.slot];
  if (!as_built(entry, row)) return false;
  View view, param = shape_of(entry);
  param.dtype = row.dtype[kParam];
  if (!view_of(grad, view)) return false;
  check_stream(spec_, kGrad, static_cast<int64_t>(i), view, param);
  row.data[kGrad] = view.data;
  row.t = read_step(row.step, row.step_dtype) + 1;
  if (row.box || !same_strides(view, param)) {
    View views[kMaxStreams];
    for (int s = 0; s < kState + states_; ++s) views[s] = view_of(known_[i].held[s < kState ? 0 : s - 1]);
    views[kGrad] = view;
    known_[i].unlike = layout_of(views, kState + states_);
    row.lie(known_[i].unlike);
  }
  return true;
}

void OptimPlan::list_rows() {
  launch_.clear();
  touched_ = py::list();
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].slot < 0) continue;
    entries_[i].slot = static_cast<int32_t>(size());
    launch_.add(known_[i].row);
    touched_.append(py::handle(params_[i]));
  }
  relist_ = false;
}

// Hints, in two stages: the objects whose addresses the entry holds, then what those point to. The second
// stage guesses where a TensorImpl keeps its storage; a wrong guess costs time and nothing else.
constexpr size_t kObjectsAhead = 8, kMemoryAhead = 4, kStorageOffset = 16;

static void fetch(const void* start, int bytes) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(start) + at);
}

static const void* pointer_at(const void* start, size_t offset) {
  return *reinterpret_cast<const void* const*>(static_cast<const char*>(start) + offset);
}

void OptimPlan::fetch_objects(const Entry& entry) const {
  fetch(entry.tensors[0].impl, 192);
  for (const BorrowedTensor& t : entry.tensors) {
    fetch(t.impl, 1);
    fetch(static_cast<const char*>(t.impl) + 128, 1);
  }
  fetch(entry.state, 1);
}

void OptimPlan::fetch_memory(const Entry& entry) const {
  for (const BorrowedTensor& t : entry.tensors)
    if (t.impl) fetch(pointer_at(t.impl, kStorageOffset), 1);
  if (entry.slot < 0 || !entry.state) return;
  fetch(launch_.rows[entry.slot].step, 1);
  fetch(reinterpret_cast<const PyDictObject*>(entry.state)->ma_keys, 128);
  fetch(pointer_at(grad_of()(entry.tensors[0].impl), 0), 192);
}

bool OptimPlan::gather(const std::vector<double>& hyper) {
  if (hyper.size() != served_.size() * spec_.columns)
    fail(spec_.op, ": hyper has ", hyper.size(), " values, expected ", spec_.columns, " for each of ",
         served_.size(), " groups");
  for (size_t g = 0; g < served_.size(); ++g)
    spec_.check(spec_, hyper.data() + g * spec_.columns, served_[g].first);
  hyper_ = hyper;
  if (!groups_as_built() || !state_as_built()) return false;
  do {
    if (relist_) list_rows();
    const size_t count = entries_.size();
    for (size_t i = 0; i < count; ++i) {
      if (i + kObjectsAhead < count) fetch_objects(entries_[i + kObjectsAhead]);
      if (!relist_ && i + kMemoryAhead < count) fetch_memory(entries_[i + kMemoryAhead]);
      if (!gather_row(i)) return false;
    }
  } while (relist_);
  return true;
}

void OptimPlan::run(double inv_scale) {
  if (launch_.rows.empty()) return;
  // A kernel writes behind autograd's back: say so, that a backward through the old values raises.
  static const py::object& increment_version =
      *new py::object(py::module_::import("torch.autograd.graph").attr("increment_version"));
  increment_version(touched_);
  launch_.hyper = hyper_.data();
  launch_.hyper_columns = spec_.columns;
  launch_.inv_scale = inv_scale;
  py::gil_scoped_release unlocked;
  onepass::run(launch_, current_isa().kernels->optim[spec_.kernel][variant_]);
}

}  // namespace onepass
