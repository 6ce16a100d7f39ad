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

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("a step needs ") + what);
}

Value value(std::pair<int32_t, int32_t> v) { return Value{v.first, v.second, -1}; }

// The row, then the fields of octavo.backends.protocol.Adjustment.
using RowAdjustment = std::tuple<int64_t, std::optional<Array<const bool>>, std::optional<Array<const int32_t>>, float,
                                 float, float, std::optional<Array<const int32_t>>, std::optional<Array<const float>>,
                                 std::optional<Array<const int32_t>>>;

template <typename T>
const T* data_or_null(const std::optional<Array<const T>>& array) {
  return array ? array->data() : nullptr;
}

// What is used as an index comes from requests: an id outside of the vocabulary must be an error, not a stray write.
void check_ids(const int32_t* ids, int64_t count, int64_t vocab) {
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocab)
      throw std::out_of_range("token id " + std::to_string(ids[i]) + " is not in the vocabulary");
}

Adjustment adjustment(const RowAdjustment& row, int64_t vocab) {
  const auto& [_, seen, counts, repetition, frequency, presence, bias_ids, bias_values, banned_ids] = row;
  Adjustment result{};
  result.prompt_seen = data_or_null(seen), result.output_counts = data_or_null(counts);
  result.repetition = repetition, result.frequency = frequency, result.presence = presence;
  if (bias_ids && bias_values) {
    result.num_biases = static_cast<int64_t>(bias_ids->size());
    result.bias_ids = bias_ids->data(), result.bias_values = bias_values->data();
  }
  if (banned_ids) {
    result.num_banned = static_cast<int64_t>(banned_ids->size());
    result.banned_ids = banned_ids->data();
  }
  check_ids(result.bias_ids, result.num_biases, vocab);
  check_ids(result.banned_ids, result.num_banned, vocab);
  return result;
}

void check_rows(const Sampling& sampling, int64_t vocab) {
  for (int64_t row = 0; row < sampling.count; row++) {
    if (sampling.tokens[row] != kSample) check_ids(sampling.tokens + row, 1, vocab);
    if (sampling.num_logprobs[row] > vocab)
      throw std::invalid_argument("more log-probabilities are wanted than there are tokens");
  }
}

void check_results(const Sampling& sampling) {
  for (int64_t row = 0; row < sampling.count; row++)
    if (sampling.tokens[row] == kSample)
      throw std::domain_error("the logits of row " + std::to_string(row) + " are no distribution: not finite");
}

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
      .def(
          "run",
          [](Plan& plan, Array<const int32_t> tokens, Array<const int32_t> positions, Array<const int64_t> slots,
             Array<const int32_t> query_starts, Array<const int32_t> page_table, Array<const int32_t> table_rows,
             Array<const int32_t> copies, Array<const int32_t> rows, Array<const int64_t> logit_rows,
             Array<const int64_t> sample_positions, Array<const uint64_t> seeds, Array<const float> temperature,
             Array<const int32_t> top_k, Array<const float> top_p, Array<const float> min_p,
             Array<const int32_t> num_logprobs, const std::vector<RowAdjustment>& row_adjustments,
             Array<int32_t> sampled, Array<float> logprobs, Array<int32_t> top_tokens, Array<float> top_logprobs) {
            require(positions.size() == tokens.size() && slots.size() == tokens.size(),
                    "one position and slot per token");
            require(query_starts.size() == table_rows.size() + 1, "one start more than there are sequences");
            require(page_table.ndim() == 2 && top_tokens.ndim() == 2, "matrices of pages and of top tokens");
            require(copies.ndim() == 2 && copies.shape(1) == 2, "pairs of pages to copy");
            for (size_t size :
                 {logit_rows.size(), sample_positions.size(), seeds.size(), temperature.size(), top_k.size(),
                  top_p.size(), min_p.size(), num_logprobs.size(), logprobs.size(), top_tokens.shape(0)})
              require(size == sampled.size(), "as many of everything as rows to sample");
            Step step{};
            step.tokens = static_cast<int64_t>(tokens.size());
            step.sequences = static_cast<int64_t>(table_rows.size());
            step.logit_rows = static_cast<int64_t>(rows.size());
            step.table_width = static_cast<int64_t>(page_table.shape(1));
            step.num_copies = static_cast<int64_t>(copies.shape(0));
            step.ids = tokens.data(), step.positions = positions.data(), step.slots = slots.data();
            step.query_starts = query_starts.data(), step.page_table = page_table.data();
            step.table_rows = table_rows.data(), step.copies = copies.data(), step.rows = rows.data();

            Sampling& sampling = step.sampling;
            sampling.count = static_cast<int64_t>(sampled.size());
            sampling.num_top = static_cast<int64_t>(top_tokens.shape(1));
            sampling.logit_rows = logit_rows.data(), sampling.positions = sample_positions.data();
            sampling.seeds = seeds.data(), sampling.temperature = temperature.data();
            sampling.top_k = top_k.data(), sampling.top_p = top_p.data(), sampling.min_p = min_p.data();
            sampling.num_logprobs = num_logprobs.data(), sampling.tokens = sampled.data();
            sampling.logprobs = logprobs.data();
            sampling.top_tokens = top_tokens.data(), sampling.top_logprobs = top_logprobs.data();
            check_rows(sampling, plan.vocab());
            std::vector<Adjustment> adjustments;
            std::vector<const Adjustment*> adjustment_of_row;
            if (!row_adjustments.empty()) {
              adjustments.reserve(row_adjustments.size());
              adjustment_of_row.resize(sampled.size());
              for (const RowAdjustment& row : row_adjustments) {
                adjustments.push_back(adjustment(row, plan.vocab()));
                adjustment_of_row.at(std::get<0>(row)) = &adjustments.back();
              }
              sampling.adjustments = adjustment_of_row.data();
            }

            nb::gil_scoped_release release;
            plan.run(step);
            check_results(sampling);
          },
          "tokens"_a, "positions"_a, "slots"_a, "query_starts"_a, "page_table"_a, "table_rows"_a, "copies"_a, "rows"_a,
          "logit_rows"_a, "sample_positions"_a, "seeds"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
          "num_logprobs"_a, "adjustments"_a, "sampled"_a.noconvert(), "logprobs"_a.noconvert(),
          "top_tokens"_a.noconvert(), "top_logprobs"_a.noconvert());
}
