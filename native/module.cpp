// The Python module: arrays in, a plan that runs steps with the GIL released. Whoever passes an array keeps it alive.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
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
#ifdef with_kernels_avx512vnni
      &avx512vnni_kernels(),
#endif
#ifdef with_kernels_avx2
      &avx2_kernels(),
#endif
#ifdef with_kernels_portable
      &portable_kernels(),
#endif
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

// What a keyword argument that is None stands for.
Value or_none(const std::optional<Value>& value) { return value.value_or(Value{}); }

void bind_enums(nb::module_& m) {
  nb::enum_<WeightKind>(m, "WeightKind")
      .value("U4", WeightKind::kU4)
      .value("S8", WeightKind::kS8)
      .value("F32", WeightKind::kF32)
      .value("F16", WeightKind::kF16)
      .value("BF16", WeightKind::kBF16);
  nb::enum_<KvType>(m, "KvType")  // by the names of kv_cache_dtype
      .value("fp32", KvType::kF32)
      .value("fp16", KvType::kF16)
      .value("int8", KvType::kI8);
  nb::enum_<Function>(m, "Function")  // by the names of octavo.graph.ops.ActivationFunction
      .value("silu", Function::kSilu)
      .value("gelu", Function::kGelu)
      .value("gelu_tanh", Function::kGeluTanh);
}

void bind_value(nb::module_& m) {
  nb::class_<Value>(m, "Value")
      .def(
          "__init__",
          [](Value* value, int32_t buffer, int64_t width) { new (value) Value{.buffer = buffer, .width = width}; },
          "buffer"_a, "width"_a)
      .def_ro("buffer", &Value::buffer)
      .def(
          "columns",
          [](const Value& value, int32_t start, int32_t stop) {
            if (start < 0 || start > stop || stop > value.width)
              throw std::invalid_argument("columns that a value does not have");
            return Value{.buffer = value.buffer, .column = value.column + start, .width = stop - start};
          },
          "start"_a, "stop"_a);
}

// What operations work on. Whoever passes an array keeps it alive.
void bind_parts(nb::class_<Plan>& plan) {
  plan.def_prop_ro("tile", &Plan::tile)
      .def("add_buffer", &Plan::add_buffer, "width"_a, nb::kw_only(), "selected"_a)
      .def(
          "add_weight",
          [](Plan& plan, WeightKind kind, int32_t group, bool half_scales, bool minima, bool precise, int64_t out,
             int64_t in, const Array<const uint8_t>& data, const std::optional<Array<const float>>& bias) {
            const Weight weight{.kind = kind,
                                .group = group,
                                .half_scales = half_scales,
                                .minima = minima,
                                .precise = precise,
                                .out = out,
                                .in = in,
                                .tile = plan.tile(),
                                .data = data.data(),
                                .bias = bias ? bias->data() : nullptr};
            return plan.add_weight(weight);
          },
          nb::kw_only(), "kind"_a, "group"_a, "half_scales"_a, "minima"_a, "precise"_a, "out"_a, "in_"_a, "data"_a,
          "bias"_a = nb::none())
      .def(
          "add_layer",
          [](Plan& plan, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t page_size, int64_t window,
             float scale, KvType type, const Array<uint8_t>& pages) {
            return plan.add_layer({.heads = heads,
                                   .kv_heads = kv_heads,
                                   .head_dim = head_dim,
                                   .page_size = page_size,
                                   .window = window,
                                   .scale = scale,
                                   .type = type,
                                   .pages = pages.data()});
          },
          nb::kw_only(), "heads"_a, "kv_heads"_a, "head_dim"_a, "page_size"_a, "window"_a, "scale"_a, "kv_type"_a,
          "pages"_a)
      .def(
          "add_rotary",
          [](Plan& plan, const Array<const float>& cosine, const Array<const float>& sine) {
            return plan.add_rotary({static_cast<int64_t>(cosine.shape(1)), cosine.data(), sine.data()});
          },
          nb::kw_only(), "cosine"_a, "sine"_a);
}

void bind_operations(nb::class_<Plan>& plan) {
  plan.def("embed", &Plan::embed, nb::kw_only(), "out"_a, "weight"_a, "by_position"_a)
      .def(
          "linear_float",
          [](Plan& plan, Value x, Value out, int32_t weight, const std::optional<Value>& residual) {
            plan.linear_float(x, out, weight, or_none(residual));
          },
          "x"_a, nb::kw_only(), "out"_a, "weight"_a, "residual"_a = nb::none())
      .def(
          "linear_quantised",
          [](Plan& plan, Value out, int32_t weight, const std::optional<Value>& residual, bool gated) {
            plan.linear_quantised(out, weight, or_none(residual), gated);
          },
          nb::kw_only(), "out"_a, "weight"_a, "residual"_a = nb::none(), "gated"_a = false)
      .def("linear_gated", &Plan::linear_gated, nb::kw_only(), "weight"_a, "function"_a, "reader"_a, "selected"_a)
      .def(
          "rms_norm",
          [](Plan& plan, Value x, Value out, const Array<const float>& weight, float epsilon) {
            plan.rms_norm(x, out, weight.data(), static_cast<int64_t>(weight.size()), epsilon);
          },
          "x"_a, nb::kw_only(), "out"_a, "weight"_a, "epsilon"_a)
      .def(
          "layer_norm",
          [](Plan& plan, Value x, Value out, const Array<const float>& weight, const Array<const float>& bias,
             float epsilon) { plan.layer_norm(x, out, weight.data(), bias.data(), epsilon); },
          "x"_a, nb::kw_only(), "out"_a, "weight"_a, "bias"_a, "epsilon"_a)
      .def("rope", &Plan::rope, "x"_a, nb::kw_only(), "out"_a, "rotary"_a)
      .def("store_kv", &Plan::store_kv, nb::kw_only(), "keys"_a, "values"_a, "layer"_a)
      .def(
          "attention",
          [](Plan& plan, Value x, Value out, int32_t layer, std::optional<int32_t> reader) {
            plan.attention(x, out, layer, reader.value_or(-1));
          },
          "x"_a, nb::kw_only(), "out"_a, "layer"_a, "reader"_a = nb::none())
      .def(
          "activation",
          [](Plan& plan, Value x, Value out, Function function, const std::optional<Value>& gate) {
            plan.activation(x, out, function, or_none(gate));
          },
          "x"_a, nb::kw_only(), "out"_a, "function"_a, "gate"_a = nb::none())
      .def("add", &Plan::add, "x"_a, "y"_a, nb::kw_only(), "out"_a)
      .def("multiply", &Plan::multiply, "x"_a, "y"_a, nb::kw_only(), "out"_a)
      .def("scale", &Plan::scale, "x"_a, nb::kw_only(), "out"_a, "factor"_a)
      .def("select_rows", &Plan::select_rows, "x"_a, nb::kw_only(), "out"_a)
      .def("quantise", &Plan::quantise, "x"_a, nb::kw_only(), "reader"_a)
      .def("finish", &Plan::finish);
}

}  // namespace

NB_MODULE(_native, m) {
  bind_enums(m);
  bind_value(m);
  m.attr("BLOCK") = kBlock;
  m.attr("MAX_HEAD_DIM") = kMaxHeadDim;
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
      [](int64_t kv_heads, int64_t head_dim, int64_t page_size, KvType type) {
        const KvLayer layer{.heads = kv_heads,
                            .kv_heads = kv_heads,
                            .head_dim = head_dim,
                            .page_size = page_size,
                            .window = 0,
                            .scale = 1.0f,
                            .type = type,
                            .pages = nullptr};
        return layer.page_bytes();
      },
      nb::kw_only(), "kv_heads"_a, "head_dim"_a, "page_size"_a, "kv_type"_a);

  nb::class_<Plan> plan(m, "Plan");
  plan.def(
      "__init__", [](Plan* plan, const std::string& isa, int threads) { new (plan) Plan(find_kernels(isa), threads); },
      "isa"_a, "threads"_a);
  bind_parts(plan);
  bind_operations(plan);
  plan.def("run", &run_batch, "batch"_a, "result"_a, "masks_written"_a = nb::none());
}
