// Tokens and log-probabilities from rows of logits.
//
// The meaning is that of octavo.backends.reference.sampling: penalties, bias and bans, then temperature, min_p, top_k,
// top_p; one uniform number per (seed, position), turned into a token by the inverse of the cumulative distribution in
// order of token ids. Weights are exact to 2e-12 of themselves and summed in double, so that the token can differ from
// the reference's only where a number is about that close to a bound of its interval. A row's result is a pure function
// of the row: threads and neighbours change nothing.

#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace octavo {

constexpr int32_t kSample = -1;  // as a target: draw the token; as a token: there was no distribution to draw from

// What changes one row of logits; applied in the order of the fields.
struct Adjustment {
  const bool* prompt_seen;       // [vocab], null: no penalties
  const int32_t* output_counts;  // [vocab], null: no penalties
  float repetition, frequency, presence;
  int64_t num_biases;
  const int32_t* bias_ids;
  const float* bias_values;
  int64_t num_banned;
  const int32_t* banned_ids;
};

// Which rows of logits to sample and how; see octavo.backends.protocol.LogitRows. Several may share their logits.
struct Sampling {
  int64_t count, num_top;  // num_top: width of what is reported of the most probable tokens
  const int64_t *logit_rows, *positions;
  const uint64_t* seeds;
  const float *temperature, *top_p, *min_p;
  const int32_t *top_k, *num_logprobs;
  const Adjustment* const* adjustments;  // [count], null: none; null altogether: no row has any
  int32_t* tokens;                       // the targets before, the tokens after
  float* logprobs;
  int32_t* top_tokens;  // [count][num_top]
  float* top_logprobs;
};

// Samples one row at a time; keeps its memory from row to row, so that each thread has its own.
class Sampler {
 public:
  // Row `row` of `sampling`, whose logits are logits[0, vocab).
  void sample(const Kernels& kernels, const float* logits, int64_t vocab, const Sampling& sampling, int64_t row);

 private:
  void look_at(const float* logits);
  void adjust(const float* logits, const Adjustment& adjustment);
  int32_t best() const;
  int32_t draw(float temperature, int32_t top_k, float top_p, float min_p, double number);
  int32_t draw_from_all(double number) const;
  int32_t draw_from_candidates(double number) const;
  double weigh_all(double factor);
  void weigh_candidates(double factor);
  float cut_of_best(int64_t count);
  void gather(float cut);
  bool before(int32_t a, int32_t b) const;
  template <typename Measure>
  void keep_first(double limit, Measure measure);
  template <typename Keep>
  void keep_if(Keep keep);
  bool score(const float* logits, int32_t token, int64_t count, float* logprob, int32_t* top_tokens,
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
