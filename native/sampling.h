// Tokens and log-probabilities from rows of logits.
//
// The meaning is that of octavo.backends.reference.sampling: penalties, biases and masks, then temperature, min_p,
// top_k, top_p, typical_p; one uniform number per (seed, position), turned into a token by the inverse of the
// cumulative distribution in order of token ids. Weights are exact to 2e-12 of themselves and summed in double, so that
// the token can differ from the reference's only where a number is about that close to a bound of its interval. A row's
// result is a pure function of the row: threads and neighbours change nothing.

#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace octavo {

// See octavo.backends.protocol: as a target, draw the token; as a token, why there is none.
constexpr int32_t kSample = -1, kNotFinite = -2, kNothingAllowed = -3;

// The tokens of row i are [starts[i], starts[i + 1]) of ids; null starts: no row has any.
struct Penalties {
  const float *repetition, *frequency, *presence;  // [count]
  const int32_t *starts, *ids, *counts;
};
struct Biases {
  const int32_t *starts, *ids;
  const float* values;
};

// Bit t of row of_row[i] says whether row i may draw token t; -1: it may draw any. Null of_row: no row has a mask.
struct Masks {
  const uint32_t* bits;  // [][words]
  int64_t words;
  const int32_t* of_row;
};

// Which rows of logits to sample and how; see octavo.backends.protocol.LogitRows. Several may share their logits.
struct Sampling {
  int64_t count, num_top;  // num_top: width of what is reported of the most probable tokens
  const int64_t *logit_rows, *positions;
  const uint64_t* seeds;
  const float *temperature, *top_p, *typical_p, *min_p;
  const int32_t *top_k, *num_logprobs;
  Penalties penalties;
  Biases biases;
  Masks masks;
  int32_t* tokens;  // the targets before, the tokens after
  float* logprobs;
  int32_t* top_tokens;  // [count][num_top]
  float* top_logprobs;

  bool changes(int64_t row) const {  // its logits, before a token is drawn
    return (penalties.starts && penalties.starts[row] < penalties.starts[row + 1]) ||
           (biases.starts && biases.starts[row] < biases.starts[row + 1]) || (masks.of_row && masks.of_row[row] >= 0);
  }
};

// Samples one row at a time; keeps its memory from row to row, so that each thread has its own.
class Sampler {
 public:
  // Row `row` of `sampling`, whose logits are logits[0, vocab).
  void sample(const Kernels& kernels, const float* logits, int64_t vocab, const Sampling& sampling, int64_t row);

 private:
  void look_at(const float* logits);
  int32_t choose(const Sampling& sampling, int64_t row);
  void adjust(const Sampling& sampling, int64_t row);
  int32_t best() const;
  int32_t draw(const Sampling& sampling, int64_t row);
  int32_t draw_from_all(double number) const;
  int32_t draw_from_candidates(double number) const;
  double weigh_all(double factor);
  void weigh_candidates(double factor);
  float cut_of_best(int64_t count);
  void gather(float cut);
  void keep_typical(double mass);
  template <typename Measure>
  void keep_best(double limit, Measure measure);
  template <typename Rank, typename Measure>
  void keep_first(double limit, Rank rank, Measure measure);
  template <typename Keep>
  void keep_if(Keep keep);
  void score(const float* logits, int32_t token, int64_t count, float* logprob, int32_t* top_tokens,
             float* top_logprobs);

  const Kernels* kernels_ = nullptr;
  const float* logits_ = nullptr;  // what is looked at: the row, or `adjusted_`
  int64_t vocab_ = 0;
  float highest_ = 0.0f;             // of these logits, nan if any is
  double factor_ = 0.0;              // a weight is 2 ** ((logit - highest) * factor)
  std::vector<float> maxima_;        // of every run of kRun logits
  std::vector<double> run_weights_;  // of every run
  std::vector<float> adjusted_;

  // The candidates, `count_` of them in order of their ids. `order_` is for searches among them.
  int64_t count_ = 0;
  std::vector<int32_t> ids_, order_;
  std::vector<float> values_;
  std::vector<double> weights_;
};

}  // namespace octavo
