#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

namespace octavo {

constexpr double kLog2e = 1.4426950408889634;

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): 53 random bits as a number in
// [0, 1), for the 64-bit key `seed` and the counter `position`.
static double uniform(uint64_t seed, uint64_t position) {
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  uint32_t word[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  for (int round = 0; round < 10; round++) {
    const uint64_t first = uint64_t{0xD2511F53} * word[0], second = uint64_t{0xCD9E8D57} * word[2];
    word[0] = static_cast<uint32_t>(second >> 32) ^ word[1] ^ key[0];
    word[1] = static_cast<uint32_t>(second);
    word[2] = static_cast<uint32_t>(first >> 32) ^ word[3] ^ key[1];
    word[3] = static_cast<uint32_t>(first);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{word[0]} << 32 | word[1]) >> 11) * 0x1p-53;
}

// The index at which the running sum of `weights`, begun with `sum`, passes `bound`. Should rounding keep it below, the
// last one that weighs anything.
static int64_t pass(const double* weights, int64_t count, double sum, double bound) {
  int64_t last = count - 1;
  for (int64_t i = 0; i < count; i++) {
    sum += weights[i];
    if (sum > bound) return i;
    if (weights[i] > 0.0) last = i;
  }
  return last;
}

// A value that no logit of weight `share` (of the highest one's) or more is below, whatever was rounded on the way.
static float cut_of_share(float highest, double temperature, double share) {
  const double cut = highest + temperature * std::log(share);
  return static_cast<float>(cut - 1e-6 * (std::fabs(highest) + std::fabs(cut)) - 1e-9 * temperature);
}

void Sampler::sample(const Kernels& kernels, const float* logits, int64_t vocab, const Sampling& sampling,
                     int64_t row) {
  kernels_ = &kernels;
  vocab_ = vocab;
  maxima_.resize((vocab + kRun - 1) / kRun);
  if (static_cast<int64_t>(weights_.size()) < vocab) {  // the last one to grow
    ids_.resize(vocab);
    order_.resize(vocab);
    values_.resize(vocab);
    weights_.resize(vocab);
  }
  int32_t& token = sampling.tokens[row];
  const int64_t count = sampling.num_logprobs[row];
  int32_t* top_tokens = sampling.top_tokens + row * sampling.num_top;
  float* top_logprobs = sampling.top_logprobs + row * sampling.num_top;
  sampling.logprobs[row] = NAN;
  std::fill_n(top_tokens, sampling.num_top, -1);
  std::fill_n(top_logprobs, sampling.num_top, -INFINITY);
  if (token != kSample && count < 0) return;
  look_at(logits);
  if (!std::isfinite(highest_))
    token = kNotFinite;
  else if (token == kSample)
    token = choose(sampling, row);
  if (token >= 0 && count >= 0) score(logits, token, count, &sampling.logprobs[row], top_tokens, top_logprobs);
}

void Sampler::look_at(const float* logits) {
  logits_ = logits;
  highest_ = kernels_->run_maxima(logits, vocab_, maxima_.data());
}

// A token for the row whose logits are looked at.
int32_t Sampler::choose(const Sampling& sampling, int64_t row) {
  if (sampling.changes(row)) {
    adjust(sampling, row);
    if (highest_ == -INFINITY) return kNothingAllowed;
    if (!std::isfinite(highest_)) return kNotFinite;
  }
  if (sampling.temperature[row] == 0.0f) return best();
  return draw(sampling, row);
}

// For every byte, what its bits keep of eight numbers: all of their bits or none.
struct Kept {
  uint32_t of[256][8];
};
static constexpr Kept kKept = [] {
  Kept kept{};
  for (int byte = 0; byte < 256; byte++)
    for (int bit = 0; bit < 8; bit++) kept.of[byte][bit] = byte >> bit & 1 ? ~0u : 0u;
  return kept;
}();

// Makes minus infinity of the logits whose bits are not set. Without branches where a word has both: which tokens a
// grammar allows is nothing that can be guessed.
static void forbid(float* logits, int64_t vocab, const uint32_t* bits) {
  constexpr float kNever = -INFINITY;
  for (int64_t first = 0; first < vocab; first += 32) {
    const uint32_t word = bits[first / 32];
    const int64_t count = std::min<int64_t>(32, vocab - first);
    if (word == ~0u) continue;
    if (word == 0u) {
      std::fill_n(logits + first, count, kNever);
      continue;
    }
    if (count < 32) {
      for (int64_t i = 0; i < count; i++)
        if (!(word >> i & 1)) logits[first + i] = kNever;
      continue;
    }
    for (int byte = 0; byte < 4; byte++) {
      const uint32_t* kept = kKept.of[word >> (8 * byte) & 255];
      uint32_t numbers[8], never;
      std::memcpy(numbers, logits + first + 8 * byte, sizeof numbers);
      std::memcpy(&never, &kNever, sizeof never);
      for (int i = 0; i < 8; i++) numbers[i] = (numbers[i] & kept[i]) | (never & ~kept[i]);
      std::memcpy(logits + first + 8 * byte, numbers, sizeof numbers);
    }
  }
}

// The arithmetic is the reference's, operation for operation, so that greedy tokens are the same.
void Sampler::adjust(const Sampling& sampling, int64_t row) {
  adjusted_.assign(logits_, logits_ + vocab_);
  if (const Penalties& some = sampling.penalties; some.starts) {
    const float repetition = some.repetition[row], frequency = some.frequency[row], presence = some.presence[row];
    for (int32_t i = some.starts[row]; i < some.starts[row + 1]; i++) {
      float& x = adjusted_[some.ids[i]];
      if (repetition != 1.0f) x = x > 0.0f ? x / repetition : x * repetition;
      if (some.counts[i] <= 0) continue;
      x -= frequency * static_cast<float>(some.counts[i]);
      x -= presence;
    }
  }
  if (const Biases& some = sampling.biases; some.starts)
    for (int32_t i = some.starts[row]; i < some.starts[row + 1]; i++) adjusted_[some.ids[i]] += some.values[i];
  if (const Masks& some = sampling.masks; some.of_row && some.of_row[row] >= 0)
    forbid(adjusted_.data(), vocab_, some.bits + some.of_row[row] * some.words);
  look_at(adjusted_.data());
}

// The lowest id of the highest logit.
int32_t Sampler::best() const {
  const int64_t run = std::find(maxima_.begin(), maxima_.end(), highest_) - maxima_.begin();
  return static_cast<int32_t>(std::find(logits_ + run * kRun, logits_ + vocab_, highest_) - logits_);
}

int32_t Sampler::draw(const Sampling& sampling, int64_t row) {
  const double number = uniform(sampling.seeds[row], static_cast<uint64_t>(sampling.positions[row]));
  const float temperature = sampling.temperature[row], top_p = sampling.top_p[row], min_p = sampling.min_p[row];
  const int32_t top_k = sampling.top_k[row];
  const bool few = (0 < top_k && top_k < vocab_), heavy = min_p > 0.0f, nucleus = top_p < 1.0f;
  const bool typical = sampling.typical_p[row] < 1.0f;
  const double factor = kLog2e / static_cast<double>(temperature), p = top_p;
  double total = 0.0;
  // min_p and top_k each keep the best so many, so that their order does not matter.
  if (few || heavy) {
    float cut = -INFINITY;
    if (few) cut = cut_of_best(top_k);
    if (heavy) cut = std::max(cut, cut_of_share(highest_, temperature, min_p));
    gather(cut);
    if (few) keep_best(top_k, [](int32_t) { return 1.0; });
  } else if (nucleus || !typical) {
    total = weigh_all(factor);
    if (!nucleus) return draw_from_all(number);
    // Tokens below (1 - p) / n of the mass cannot reach the nucleus: all together they weigh less than 1 - p.
    gather(cut_of_share(highest_, temperature, total * (1.0 - p) / static_cast<double>(vocab_)));
  } else
    gather(-INFINITY);
  weigh_candidates(factor);
  if (heavy) keep_if([&](int64_t i) { return weights_[i] >= static_cast<double>(min_p); });
  if (count_ == 0) return kNothingAllowed;
  if (nucleus) {
    if (few || heavy) total = std::accumulate(weights_.begin(), weights_.begin() + count_, 0.0);
    keep_best(p * total, [this](int32_t i) { return weights_[i]; });
  }
  if (typical) keep_typical(sampling.typical_p[row]);
  return draw_from_candidates(number);
}

// --- all tokens ------------------------------------------------------------------------------------------------------

// Weighs all tokens and keeps the sum of every run; returns the sum of all.
double Sampler::weigh_all(double factor) {
  factor_ = factor;
  run_weights_.resize(maxima_.size());
  double total = 0.0, weights[kRun];
  for (int64_t first = 0; first < vocab_; first += kRun) {
    const int64_t count = std::min<int64_t>(kRun, vocab_ - first);
    const double sum = kernels_->exponentials(logits_ + first, count, highest_, factor, weights);
    run_weights_[first / kRun] = sum;
    total += sum;
  }
  return total;
}

// First to the run, then to the token: the weights of that run alone are computed again.
int32_t Sampler::draw_from_all(double number) const {
  const int64_t runs = static_cast<int64_t>(run_weights_.size());
  const double bound = number * std::accumulate(run_weights_.begin(), run_weights_.end(), 0.0);
  const int64_t run = pass(run_weights_.data(), runs, 0.0, bound);
  const double sum = std::accumulate(run_weights_.begin(), run_weights_.begin() + run, 0.0);
  const int64_t first = run * kRun, count = std::min<int64_t>(kRun, vocab_ - first);
  double weights[kRun];
  kernels_->exponentials(logits_ + first, count, highest_, factor_, weights);
  return static_cast<int32_t>(first + pass(weights, count, sum, bound));
}

// --- candidates ------------------------------------------------------------------------------------------------------

// A value that at least `count` logits reach: the count-th highest maximum of a run.
float Sampler::cut_of_best(int64_t count) {
  const int64_t runs = static_cast<int64_t>(maxima_.size());
  if (count > runs) return -INFINITY;
  std::copy(maxima_.begin(), maxima_.end(), values_.begin());
  std::nth_element(values_.begin(), values_.begin() + count - 1, values_.begin() + runs, std::greater<float>());
  return values_[count - 1];
}

// The logits of at least `cut`; runs that have none are passed over.
void Sampler::gather(float cut) {
  count_ = 0;
  for (int64_t first = 0; first < vocab_; first += kRun) {
    if (maxima_[first / kRun] < cut) continue;
    for (int64_t i = first; i < std::min<int64_t>(first + kRun, vocab_); i++) {
      ids_[count_] = static_cast<int32_t>(i);
      values_[count_] = logits_[i];
      count_ += logits_[i] >= cut;  // no branch: it would often be guessed wrong
    }
  }
}

void Sampler::weigh_candidates(double factor) {
  kernels_->exponentials(values_.data(), count_, highest_, factor, weights_.data());
}

template <typename Keep>
void Sampler::keep_if(Keep keep) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count_; i++)
    if (keep(i)) {
      ids_[kept] = ids_[i];
      values_[kept] = values_[i];
      weights_[kept] = weights_[i];
      kept++;
    }
  count_ = kept;
}

// Higher logits first.
template <typename Measure>
void Sampler::keep_best(double limit, Measure measure) {
  keep_first(limit, [this](int64_t i) { return -values_[i]; }, measure);
}

// Those of a share `mass` of all weights whose surprise is nearest to the expected one, which is where their logit is
// nearest to the expected logit (Meister et al., "Locally typical sampling", 2023).
void Sampler::keep_typical(double mass) {
  keep_if([this](int64_t i) { return weights_[i] > 0.0; });
  double total = 0.0, sum = 0.0;
  for (int64_t i = 0; i < count_; i++) {
    total += weights_[i];
    sum += weights_[i] * (static_cast<double>(values_[i]) - highest_);
  }
  const double expected = highest_ + sum / total;
  keep_first(
      mass * total, [this, expected](int64_t i) { return std::fabs(values_[i] - expected); },
      [this](int32_t i) { return weights_[i]; });
}

// Keeps those candidates before which, in order of their ranks and then of their ids, less than `limit` was
// measured, and the first in any case. Nothing is sorted: equal intervals of ranks are measured to find the one that
// has the last of them, and its candidates are halved, because of a half only the sum is needed.
template <typename Rank, typename Measure>
void Sampler::keep_first(double limit, Rank rank, Measure measure) {
  using Ranked = decltype(rank(0));
  constexpr int kIntervals = 1024;
  Ranked lowest = INFINITY, highest = -INFINITY;
  for (int64_t i = 0; i < count_; i++) {
    const Ranked own = rank(i);
    lowest = std::min(lowest, own);
    if (own > highest && own < INFINITY) highest = own;
  }
  const Ranked scale = lowest < highest ? (kIntervals - 1) / (highest - lowest) : 0;
  const auto interval_of = [&](Ranked own) {  // the last one takes what is infinite
    const Ranked position = (own - lowest) * scale;
    return position < kIntervals - 1 ? static_cast<int>(position) : kIntervals - 1;
  };
  double sums[kIntervals] = {};
  for (int64_t i = 0; i < count_; i++) sums[interval_of(rank(i))] += measure(static_cast<int32_t>(i));
  double measured = 0.0;
  int interval = 0;
  while (interval < kIntervals - 1 && measured + sums[interval] < limit) measured += sums[interval++];

  int64_t first = 0, end = 0;  // of `order_`: the first of them is kept, what is at the end is not
  for (int64_t i = 0; i < count_; i++)
    if (interval_of(rank(i)) == interval) order_[end++] = static_cast<int32_t>(i);
  if (end == 0) return;  // all together measure less
  const auto before = [&](int32_t a, int32_t b) { return rank(a) < rank(b) || (rank(a) == rank(b) && a < b); };
  while (end - first > 1) {
    const int64_t middle = first + (end - first) / 2;
    std::nth_element(order_.begin() + first, order_.begin() + middle, order_.begin() + end, before);
    double sum = measured;
    for (int64_t i = first; i < middle; i++) sum += measure(order_[i]);
    if (sum < limit) {
      first = middle;
      measured = sum;
    } else
      end = middle;
  }
  const int32_t last = order_[first];
  const Ranked bound = rank(last);
  keep_if([&](int64_t i) { return rank(i) < bound || (rank(i) == bound && i <= last); });
}

int32_t Sampler::draw_from_candidates(double number) const {
  const double total = std::accumulate(weights_.begin(), weights_.begin() + count_, 0.0);
  return ids_[pass(weights_.data(), count_, 0.0, number * total)];
}

// --- log-probabilities -----------------------------------------------------------------------------------------------

// Of the raw logits.
void Sampler::score(const float* logits, int32_t token, int64_t count, float* logprob, int32_t* top_tokens,
                    float* top_logprobs) {
  if (logits_ != logits) look_at(logits);
  const double normaliser = highest_ + std::log(weigh_all(kLog2e));
  *logprob = static_cast<float>(logits[token] - normaliser);
  if (count == 0) return;
  gather(cut_of_best(count));
  keep_best(static_cast<double>(count), [](int32_t) { return 1.0; });
  std::iota(order_.begin(), order_.begin() + count, 0);
  std::sort(order_.begin(), order_.begin() + count,
            [this](int32_t a, int32_t b) { return values_[a] > values_[b] || (values_[a] == values_[b] && a < b); });
  for (int64_t i = 0; i < count; i++) {
    top_tokens[i] = ids_[order_[i]];
    top_logprobs[i] = static_cast<float>(values_[order_[i]] - normaliser);
  }
}

}  // namespace octavo
