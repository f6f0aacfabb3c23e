#include "walk.h"

#include "cpu/launch.h"
#include "dlpack.h"

namespace onepass {

static PyObject* interned(const char* name) {
  PyObject* s = PyUnicode_InternFromString(name);
  if (!s) throw py::error_already_set();
  return s;
}

OptimPlan::OptimPlan(const std::string& op, bool variant, py::list param_groups, std::vector<int64_t> served,
                     py::dict state, const std::vector<std::string>& state_names)
    : spec_(optim_spec(op)),
      variant_(variant),
      states_(spec_.states[variant]),
      param_groups_(param_groups),
      state_(state) {
  if (static_cast<int>(state_names.size()) != states_) fail(op, ": a plan needs ", states_, " state names");
  for (const std::string& name : state_names) names_.push_back(py::reinterpret_steal<py::str>(interned(name.c_str())));
  names_.push_back(py::reinterpret_steal<py::str>(interned("step")));
  for (auto item : state) state_items_.emplace_back(py::reinterpret_borrow<py::object>(item.first),
                                                    py::reinterpret_borrow<py::object>(item.second));
  for (size_t k = 0; k < served.size(); ++k) {
    py::dict group = param_groups[served[k]];
    served_.emplace_back(served[k], group);
    for (py::handle param : group["params"]) {
      Entry entry;
      entry.param = py::reinterpret_borrow<py::object>(param);
      entry.group = static_cast<int32_t>(k);
      if (state.contains(param)) {
        py::dict values = state[param];
        entry.state = values;
        for (const py::str& name : names_)
          entry.values.push_back(values.contains(name) ? values[name].cast<py::object>() : py::none());
      }
      entries_.push_back(std::move(entry));
    }
  }
}

bool OptimPlan::groups_as_built() const {
  static PyObject* const params_name = interned("params");
  size_t i = 0;
  for (const auto& [index, group] : served_) {
    if (index >= PyList_GET_SIZE(param_groups_.ptr())) return false;
    if (PyList_GET_ITEM(param_groups_.ptr(), index) != group.ptr()) return false;
    PyObject* params = PyDict_GetItem(group.ptr(), params_name);
    if (!params || !PyList_Check(params)) return false;
    const Py_ssize_t count = PyList_GET_SIZE(params);
    if (i + count > entries_.size()) return false;
    for (Py_ssize_t k = 0; k < count; ++k, ++i)
      if (PyList_GET_ITEM(params, k) != entries_[i].param.ptr()) return false;
  }
  return i == entries_.size();
}

bool OptimPlan::state_as_built() const {
  if (PyDict_Size(state_.ptr()) != static_cast<Py_ssize_t>(state_items_.size())) return false;
  Py_ssize_t position = 0;
  PyObject *key, *value;
  for (const auto& [known_key, known_value] : state_items_) {
    if (!PyDict_Next(state_.ptr(), &position, &key, &value)) return false;
    if (key != known_key.ptr() || value != known_value.ptr()) return false;
  }
  return true;
}

// The common case, compared without working anything out: all streams laid out as the parameter was.
bool OptimPlan::as_known(const Entry& entry, const View* views) const {
  if (!entry.known || !entry.layout.flat) return false;
  View param;
  param.dim = static_cast<int32_t>(entry.sizes.size());
  param.sizes = entry.sizes.data();
  param.strides = entry.strides.data();
  for (int s = 0; s < kState + states_; ++s)
    if (views[s].dtype != entry.row.dtype[s] || views[s].device_type != 1 || !same_sizes(param, views[s]) ||
        !same_strides(param, views[s]))
      return false;
  return reinterpret_cast<uintptr_t>(views[kGrad].data) >= 65536 || entry.layout.numel == 0;
}

bool OptimPlan::gather_row(Entry& entry, int64_t index) {
  static PyObject* const grad_name = interned("grad");
  const TensorReader& reader = TensorReader::get();
  const py::object grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(entry.param.ptr(), grad_name));
  if (!grad) throw py::error_already_set();
  if (grad.is_none()) return true;
  if (!entry.state) return false;

  View views[kMaxStreams], step;
  if (!reader.view(entry.param.ptr(), views[kParam]) || !reader.view(grad.ptr(), views[kGrad])) return false;
  for (int s = 0; s <= states_; ++s) {
    PyObject* value = PyDict_GetItem(entry.state.ptr(), names_[s].ptr());
    if (value != entry.values[s].ptr()) return false;
    if (!reader.view(value, s < states_ ? views[kState + s] : step)) return false;
  }

  Row& row = entry.row;
  if (!as_known(entry, views)) {
    check_row(spec_, variant_, index, views, row);
    check_step(spec_, index, step);
    entry.layout = layout_of(views, kState + states_);
    entry.sizes.assign(views[kParam].sizes, views[kParam].sizes + views[kParam].dim);
    entry.strides.assign(views[kParam].strides, views[kParam].strides + views[kParam].dim);
    if (!entry.known) {
      entry.data.clear();
      for (int s = 0; s < kState + states_; ++s) entry.data.push_back(s == kGrad ? step.data : views[s].data);
      entry.known = true;
    }
  }
  // Memory that moved may have been freed; whoever builds the plan looks at the storage.
  for (int s = 0; s < kState + states_; ++s)
    if (entry.data[s] != (s == kGrad ? step.data : views[s].data)) return false;

  row.data[kGrad] = views[kGrad].data;
  row.layout = &entry.layout;
  row.group = entry.group;
  row.step = step.data;
  row.step_dtype = step.dtype;
  row.t = read_step(step) + 1;
  launch_.add(row);
  touched_.push_back(entry.param.ptr());
  return true;
}

bool OptimPlan::gather(const std::vector<double>& hyper) {
  if (hyper.size() != served_.size() * spec_.columns)
    fail(spec_.op, ": hyper has ", hyper.size(), " values, expected ", spec_.columns, " for each of ", served_.size(),
         " groups");
  for (size_t g = 0; g < served_.size(); ++g) spec_.check(spec_, hyper.data() + g * spec_.columns, served_[g].first);
  hyper_ = hyper;
  launch_.clear();
  touched_.clear();
  if (!groups_as_built() || !state_as_built()) return false;
  for (size_t i = 0; i < entries_.size(); ++i)
    if (!gather_row(entries_[i], static_cast<int64_t>(i))) return false;
  return true;
}

// A kernel writes behind autograd's back: say so, that a backward through the old value raises.
static void bump_versions(const std::vector<PyObject*>& tensors) {
  static const py::object& bump =
      *new py::object(py::module_::import("torch.autograd.graph").attr("increment_version"));
  py::list list(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    Py_INCREF(tensors[i]);
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), tensors[i]);
  }
  bump(list);
}

void OptimPlan::run(double inv_scale) {
  if (launch_.rows.empty()) return;
  launch_.hyper = hyper_.data();
  launch_.hyper_columns = spec_.columns;
  launch_.inv_scale = inv_scale;
  {
    py::gil_scoped_release unlocked;
    onepass::run(launch_, current_isa().kernels->optim[spec_.kernel][variant_]);
  }
  bump_versions(touched_);
}

}  // namespace onepass
