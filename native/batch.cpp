#include "batch.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace nb = nanobind;

namespace octavo {

namespace {

template <typename T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("a step needs ") + what);
}

// An attribute, whose name is looked up among interned strings once.
class Attribute {
 public:
  explicit Attribute(const char* name) : name_(name), key_(PyUnicode_InternFromString(name)) {}

  nb::object of(nb::handle object) const {
    PyObject* value = PyObject_GetAttr(object.ptr(), key_);
    if (!value) throw nb::python_error();
    return nb::steal(value);
  }

  // Without a copy: the array is kept alive by the object that has it.
  template <typename T>
  Array<T> array_of(nb::handle object) const {
    Array<T> array;
    if (!nb::try_cast(of(object), array, false))
      throw std::invalid_argument(std::string("a step needs ") + name_ + " as a contiguous array of the right type");
    return array;
  }

 private:
  const char* name_;
  PyObject* key_;
};

struct Attributes {
  Attribute tokens{"tokens"}, positions{"positions"}, slots{"slots"}, query_starts{"query_starts"},
      page_table{"page_table"}, table_rows{"table_rows"}, copies{"copies"}, logits{"logits"}, rows{"rows"},
      seeds{"seeds"}, temperature{"temperature"}, top_k{"top_k"}, top_p{"top_p"}, typical_p{"typical_p"},
      min_p{"min_p"}, num_logprobs{"num_logprobs"}, penalties{"penalties"}, biases{"biases"}, masks{"masks"},
      mask_of_row{"mask_of_row"}, repetition{"repetition"}, frequency{"frequency"}, presence{"presence"},
      starts{"starts"}, ids{"ids"}, counts{"counts"}, values{"values"}, logprobs{"logprobs"}, top_tokens{"top_tokens"},
      top_logprobs{"top_logprobs"};
};

// What is used as an index comes from requests: an id outside of the vocabulary must be an error, not a stray write.
void check_ids(const int32_t* ids, int64_t count, int64_t vocab) {
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocab)
      throw std::out_of_range("token id " + std::to_string(ids[i]) + " is not in the vocabulary");
}

// Reads the arrays of one batch. What it points to lives as long as the batch and the result.
class Reader {
 public:
  Reader(const Attributes& names, nb::handle batch, nb::handle result, int64_t vocab)
      : a_(names), batch_(batch), result_(result), logits_(names.logits.of(batch)), vocab_(vocab) {}

  void read(Step& step) {
    step.tokens = size(step.ids = data<int32_t>(a_.tokens, batch_));
    step.positions = data<int32_t>(a_.positions, batch_, step.tokens, "one position per token");
    step.slots = data<int64_t>(a_.slots, batch_, step.tokens, "one slot per token");
    step.sequences = size(step.table_rows = data<int32_t>(a_.table_rows, batch_));
    step.query_starts =
        data<int32_t>(a_.query_starts, batch_, step.sequences + 1, "one start more than there are sequences");
    step.page_table = matrix<const int32_t>(a_.page_table, batch_, step.table_width);
    int64_t pair = 0;
    step.copies = matrix<const int32_t>(a_.copies, batch_, pair);
    step.num_copies = rows_;
    require(pair == 2, "pairs of pages to copy");
    read_rows(step);
    read_sampling(step.sampling);
  }

 private:
  template <typename T>
  const T* data(const Attribute& name, nb::handle object) {
    const Array<const T> array = name.array_of<const T>(object);
    require(array.ndim() == 1, "vectors");
    size_ = static_cast<int64_t>(array.size());
    return array.data();
  }
  template <typename T>
  const T* data(const Attribute& name, nb::handle object, int64_t wanted, const char* what) {
    const T* result = data<T>(name, object);
    require(size_ == wanted, what);
    return result;
  }
  template <typename T>
  T* matrix(const Attribute& name, nb::handle object, int64_t& columns) {
    const Array<T> array = name.array_of<T>(object);
    require(array.ndim() == 2, "matrices of pages, copies, masks and results");
    rows_ = static_cast<int64_t>(array.shape(0)), columns = static_cast<int64_t>(array.shape(1));
    return array.data();
  }
  int64_t size(const void*) const { return size_; }  // of the vector read last

  template <typename T>
  const T* per_row(const Attribute& name, nb::handle object) {
    return data<T>(name, object, count_, "as many of everything as rows of logits");
  }

  // Hidden states are projected once, however many rows of logits are sampled from them.
  void read_rows(Step& step) {
    const int32_t* rows = data<int32_t>(a_.rows, logits_);
    count_ = size_;
    check_rows(rows, step.tokens);
    step.rows = rows, step.logit_rows = count_;
    logit_rows_.resize(count_);
    std::iota(logit_rows_.begin(), logit_rows_.end(), 0);
    if (std::is_sorted(rows, rows + count_, std::less_equal<int32_t>()))
      return;  // as always, unless prompts are scored
    distinct_.assign(rows, rows + count_);
    std::sort(distinct_.begin(), distinct_.end());
    distinct_.erase(std::unique(distinct_.begin(), distinct_.end()), distinct_.end());
    for (int64_t i = 0; i < count_; i++)
      logit_rows_[i] = std::lower_bound(distinct_.begin(), distinct_.end(), rows[i]) - distinct_.begin();
    step.rows = distinct_.data(), step.logit_rows = static_cast<int64_t>(distinct_.size());
  }
  void check_rows(const int32_t* rows, int64_t tokens) const {
    for (int64_t i = 0; i < count_; i++) require(rows[i] >= 0 && rows[i] < tokens, "rows of logits among its tokens");
  }

  void read_sampling(Sampling& sampling) {
    sampling.count = count_, sampling.logit_rows = logit_rows_.data();
    sampling.positions = per_row<int64_t>(a_.positions, logits_);
    sampling.seeds = per_row<uint64_t>(a_.seeds, logits_);
    sampling.temperature = per_row<float>(a_.temperature, logits_);
    sampling.top_k = per_row<int32_t>(a_.top_k, logits_);
    sampling.top_p = per_row<float>(a_.top_p, logits_);
    sampling.typical_p = per_row<float>(a_.typical_p, logits_);
    sampling.min_p = per_row<float>(a_.min_p, logits_);
    sampling.num_logprobs = per_row<int32_t>(a_.num_logprobs, logits_);
    const nb::object penalties = a_.penalties.of(logits_), biases = a_.biases.of(logits_), masks = a_.masks.of(logits_);
    if (!penalties.is_none()) read_penalties(penalties, sampling.penalties);
    if (!biases.is_none()) read_biases(biases, sampling.biases);
    if (!masks.is_none()) read_masks(sampling.masks);
    sampling.tokens = const_cast<int32_t*>(per_row<int32_t>(a_.tokens, result_));
    sampling.logprobs = const_cast<float*>(per_row<float>(a_.logprobs, result_));
    sampling.top_tokens = matrix<int32_t>(a_.top_tokens, result_, sampling.num_top);
    require(rows_ == count_, "as many results as rows of logits");
    int64_t columns = 0;
    sampling.top_logprobs = matrix<float>(a_.top_logprobs, result_, columns);
    require(rows_ == count_ && columns == sampling.num_top, "as many log-probabilities as top tokens");
    for (int64_t row = 0; row < count_; row++) {
      if (sampling.tokens[row] != kSample) check_ids(sampling.tokens + row, 1, vocab_);
      require(sampling.num_logprobs[row] <= sampling.num_top, "room for the log-probabilities that are wanted");
      if (sampling.num_logprobs[row] > vocab_)
        throw std::invalid_argument("more log-probabilities are wanted than there are tokens");
    }
  }
  void read_penalties(nb::handle from, Penalties& penalties) {
    penalties.repetition = per_row<float>(a_.repetition, from);
    penalties.frequency = per_row<float>(a_.frequency, from);
    penalties.presence = per_row<float>(a_.presence, from);
    penalties.starts = starts_of(from);
    penalties.ids = ids_of(from, penalties.starts);
    penalties.counts = data<int32_t>(a_.counts, from, size_, "a count for every token");
  }
  void read_biases(nb::handle from, Biases& biases) {
    biases.starts = starts_of(from);
    biases.ids = ids_of(from, biases.starts);
    biases.values = data<float>(a_.values, from, size_, "a value for every token");
  }
  const int32_t* starts_of(nb::handle from) {
    const int32_t* starts = data<int32_t>(a_.starts, from, count_ + 1, "one start more than there are rows of logits");
    require(starts[0] == 0 && std::is_sorted(starts, starts + count_ + 1), "starts that ascend from 0");
    return starts;
  }
  const int32_t* ids_of(nb::handle from, const int32_t* starts) {
    const int32_t* ids = data<int32_t>(a_.ids, from, starts[count_], "as many tokens as its starts say");
    check_ids(ids, size_, vocab_);
    return ids;
  }
  void read_masks(Masks& masks) {
    masks.bits = matrix<const uint32_t>(a_.masks, logits_, masks.words);
    require(masks.words == (vocab_ + 31) / 32, "a bit for every token in a mask");
    const int64_t count = rows_;
    masks.of_row = per_row<int32_t>(a_.mask_of_row, logits_);
    for (int64_t row = 0; row < count_; row++)
      require(masks.of_row[row] >= -1 && masks.of_row[row] < count, "masks that are there");
  }

  const Attributes& a_;
  nb::handle batch_, result_;
  nb::object logits_;
  int64_t vocab_, count_ = 0, size_ = 0, rows_ = 0;
  std::vector<int64_t> logit_rows_;
  std::vector<int32_t> distinct_;
};

}  // namespace

void run_batch(Plan& plan, nb::handle batch, nb::handle result, nb::object masks_written) {
  static const Attributes* const names = new Attributes();
  Reader reader(*names, batch, result, plan.vocab());
  Step step{};
  reader.read(step);
  const std::function<void()> before_sampling = [&] {
    nb::gil_scoped_acquire acquire;
    masks_written();
  };
  if (!masks_written.is_none()) step.before_sampling = &before_sampling;
  nb::gil_scoped_release release;
  plan.run(step);
}

}  // namespace octavo
