// The Python module: arrays in, a plan that runs steps with the GIL released. Whoever passes an array keeps it alive.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "batch.h"
#include "ceilings.h"
#include "plan.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

template <typename T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

namespace {

std::vector<const Kernels*> all_kernels() {
  return {
#ifdef OCTAVO_X86
      &avx512vnni_kernels(),
      &avx2_kernels(),
#endif
      &portable_kernels(),
  };
}

const Kernels& find_kernels(const std::string& isa) {
  for (const Kernels* kernels : all_kernels())
    if (isa == kernels->name && kernels->supported()) return *kernels;
  std::string known;
  for (const Kernels* kernels : all_kernels()) {
    if (isa == kernels->name) throw std::invalid_argument("this machine lacks instructions of " + isa);
    known += (known.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::invalid_argument("there are no kernels for " + isa + "; there are: " + known);
}

// The instruction sets this machine has kernels for, the fastest first.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : all_kernels())
    if (kernels->supported()) names.push_back(kernels->name);
  return names;
}

Value value(std::pair<int32_t, int32_t> v) { return Value{v.first, v.second, -1}; }

}  // namespace

using Pair = std::pair<int32_t, int32_t>;

NB_MODULE(_native, m) {
  m.def("instruction_sets", &instruction_sets);
  m.def("check_instruction_set", [](const std::string& isa) { find_kernels(isa); }, "isa"_a);
  m.def("tile", [](const std::string& isa) { return find_kernels(isa).lanes; }, "isa"_a);
  m.def(
      "measure_ceilings",
      [](const std::string& isa, int threads) {
        const Kernels& kernels = find_kernels(isa);
        nb::gil_scoped_release release;
        const Ceilings ceilings = measure_ceilings(kernels, threads);
        return std::make_tuple(ceilings.bytes_per_second, ceilings.float_operations_per_second,
                               ceilings.integer_operations_per_second);
      },
      "isa"_a, "threads"_a);
  m.def(
      "page_bytes",
      [](int64_t kv_heads, int64_t head_dim, int64_t page_size, int32_t type) {
        return KvLayer{kv_heads, kv_heads, head_dim, page_size, 0, 1.0f, static_cast<KvType>(type), nullptr}
            .page_bytes();
      },
      "kv_heads"_a, "head_dim"_a, "page_size"_a, "kv_type"_a);

  nb::class_<Plan>(m, "Plan")
      .def(
          "__init__",
          [](Plan* plan, const std::string& isa, int threads) { new (plan) Plan(find_kernels(isa), threads); }, "isa"_a,
          "threads"_a)
      .def_prop_ro("threads", &Plan::threads)
      .def_prop_ro("tile", &Plan::tile)
      .def("add_buffer", &Plan::add_buffer, "width"_a, "selected"_a)
      .def(
          "add_weight",
          [](Plan& plan, int32_t kind, int32_t group, bool half_scales, bool minima, bool precise, int64_t out,
             int64_t in, Array<const uint8_t> data, std::optional<Array<const float>> bias) {
            const Weight weight{
                static_cast<WeightKind>(kind), group, half_scales, minima, precise, out, in, plan.tile(), data.data(),
                bias ? bias->data() : nullptr};
            return plan.add_weight(weight);
          },
          "kind"_a, "group"_a, "half_scales"_a, "minima"_a, "precise"_a, "out"_a, "in_"_a, "data"_a,
          "bias"_a = nb::none())
      .def(
          "add_layer",
          [](Plan& plan, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t page_size, int64_t window,
             float scale, int32_t type, Array<uint8_t> pages) {
            return plan.add_layer(
                KvLayer{heads, kv_heads, head_dim, page_size, window, scale, static_cast<KvType>(type), pages.data()});
          },
          "heads"_a, "kv_heads"_a, "head_dim"_a, "page_size"_a, "window"_a, "scale"_a, "kv_type"_a, "pages"_a)
      .def(
          "add_rotary",
          [](Plan& plan, int64_t half, Array<const float> cosine, Array<const float> sine) {
            return plan.add_rotary(RotaryTable{half, cosine.data(), sine.data()});
          },
          "half"_a, "cosine"_a, "sine"_a)
      .def(
          "add_op",
          [](Plan& plan, int32_t kind, bool selected, Pair x, Pair y, Pair out, int64_t width, int64_t length,
             int32_t index, int32_t function, int32_t reader, int32_t records, float factor, bool by_position,
             std::optional<Array<const float>> weight, std::optional<Array<const float>> bias) {
            Op op;
            op.kind = static_cast<OpKind>(kind), op.selected = selected;
            op.x = value(x), op.y = value(y), op.out = value(out);
            op.width = width, op.length = length, op.index = index, op.function = function;
            op.reader = reader, op.records = records, op.factor = factor, op.by_position = by_position;
            op.weight = weight ? weight->data() : nullptr;
            op.bias = bias ? bias->data() : nullptr;
            plan.add_op(op);
          },
          "kind"_a, "selected"_a, "x"_a, "y"_a, "out"_a, "width"_a, "length"_a, "index"_a, "function"_a, "reader"_a,
          "records"_a, "factor"_a, "by_position"_a, "weight"_a = nb::none(), "bias"_a = nb::none())
      .def("finish", &Plan::finish)
      .def("run", &run_batch, "batch"_a, "result"_a, "masks_written"_a = nb::none());
}
