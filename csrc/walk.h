// The eager optimizer's way in: a plan that walks param_groups itself and hands the same rows to the same
// driver as the dispatcher op, at a fraction of the cost per tensor.
#pragma once
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "common/optim_args.h"
#include "cuda_driver.h"

namespace onepass {

namespace py = pybind11;

void load_python_objects();  // once, with the module
bool has_plan();             // can this torch be read as OptimPlan reads it?

void use_cuda_driver(const CudaDriver& driver);

// One optimizer op over the groups `served` of param_groups, all of whose parameters are on one device: the
// CPU, or CUDA device number `cuda`.
//
// gather() re-reads what may have moved since the last step: each parameter's memory and gradient, each
// state and step counter. It returns false where something is not as the plan knows it (a parameter, state or
// group was added, removed or replaced; a parameter or state has other memory or another layout; a gradient
// has no memory of its own): the plan has to be built anew, or the dispatcher op to be taken, and whoever
// does so names what is wrong with a tensor. It throws where hyper is wrong. Either way nothing has been
// written. Then grad_stats() measures the gradients, where that is wanted, and run() does the step. hypers:
// for each served group a row of the op's hyperparameters, anything that is a number.
//
// With many small tensors a step is bound by cache misses on torch's own objects, some thirty lines a
// parameter. So what is read at every step is kept small and together, and what lies behind it is fetched a
// few parameters ahead.
class OptimPlan {
 public:
  // param_groups and state are the optimizer's own; state_names name the rule's states in state[p].
  // with_ema: the last of them is the average of weights. counts: states have a step counter, too.
  OptimPlan(const std::string& op, int variant, py::list param_groups, std::vector<int64_t> served,
            py::dict state, const std::vector<std::string>& state_names, bool with_ema, bool counts,
            std::optional<int32_t> cuda);
  // grads_after: what the step is to leave in the gradients, see plan.h.
  bool gather(const py::list& hypers, int grads_after);
  // Addresses of one float32 element each on the plan's device, 0 where there is none; of stats, of the two
  // float64 elements that grad_stats writes.
  void grad_stats(uintptr_t grad_scale, uintptr_t stats);
  void run(uintptr_t grad_scale, uintptr_t found_inf, uintptr_t stats);
  int64_t size() const { return static_cast<int64_t>(launch_.rows.size()); }

 private:
  // An at::Tensor is one pointer, to its TensorImpl; the address of one is what the stable ABI calls a
  // handle. Kept in the entry itself, beside each other. The parameter's object owns the one,
  // known_.held the others.
  struct BorrowedTensor {
    const void* impl = nullptr;
    AtenTensorHandle handle() const {
      return reinterpret_cast<AtenTensorHandle>(const_cast<BorrowedTensor*>(this));
    }
  };
  enum { kStep = kMaxStreams - 1 };  // index in Entry::tensors: parameter, states and average, step counter

  // What a step reads of one parameter.
  struct Entry {
    BorrowedTensor tensors[kStep + 1];
    PyObject* state = nullptr;  // state[param]; null where it had none: then no gradient may come
    int32_t values = 0;         // where the objects of that dict start in values_, and how many they are
    int32_t value_count = 0;
    int32_t shape = 0;  // where sizes and strides of the parameter, then of each state, start in shapes_
    int32_t dim = 0;
    int32_t slot = -1;  // its row in the launch, -1 where it had no gradient
  };

  // What is read only when something is new.
  struct Known {
    Row row{};
    Layout layout;                            // with a gradient that lies like the parameter
    Layout unlike;                            // with this step's gradient, where it does not
    std::vector<torch::stable::Tensor> held;  // states and step counter
  };

  void know(size_t i, const py::dict& values, const std::vector<py::str>& names);
  void list_rows();
  void read_hypers(const py::list& hypers);
  bool groups_as_built() const;
  bool stateless() const { return states_ == 0 && !counts_; }
  bool state_as_built() const;
  bool values_as_built(const Entry& entry) const;
  bool as_built(size_t i, const Row& row) const;
  bool gather_row(size_t i);
  bool gather_rows();
  bool writable(const View& grad) const;
  void bump_versions() const;
  bool same_tensor(size_t i) const;
  void fetch_objects(size_t i) const;
  void fetch_autograd(size_t i) const;
  void fetch_memory(size_t i) const;
  View shape_of(const Entry& entry, int tensor) const;
  bool fits(const View& grad, const View& param, const Row& row) const;

  const OptimSpec& spec_;
  const int variant_;
  const bool counts_;
  const int states_;  // the average of weights among them
  const std::optional<int32_t> cuda_;
  py::list param_groups_;
  py::dict state_;
  std::vector<py::object> owned_;                      // keeps what is compared by address alive
  std::vector<std::pair<int64_t, PyObject*>> served_;  // index in param_groups, the group
  std::vector<std::pair<PyObject*, PyObject*>> state_items_;
  std::vector<PyObject*> params_;
  std::vector<Entry> entries_;
  std::vector<Known> known_;
  std::vector<PyObject*> values_;
  std::vector<int64_t> shapes_;
  std::vector<double> hyper_;
  Launch launch_;
  bool relist_ = true;  // a parameter got its first gradient, or lost it
};

}  // namespace onepass
