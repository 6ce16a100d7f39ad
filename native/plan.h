// A plan: a model's graph as a flat list of operations over an arena, run by a team of threads.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "sampling.h"
#include "threads.h"

namespace octavo {

// A matrix in the arena: rows of `stride` floats, of which this value is some columns. A slice is a value, not a copy.
struct Value {
  int32_t buffer;
  int32_t column;
};

enum class OpKind : int32_t {
  kEmbed,
  kLinear,
  kRmsNorm,
  kLayerNorm,
  kRope,
  kAttention,
  kActivation,
  kAdd,
  kMultiply,
  kScale,
  kSelect,
};

struct Op {
  OpKind kind;
  Value x{-1, 0}, y{-1, 0}, z{-1, 0}, out{-1, 0};  // inputs (z: values of an attention, residual of a linear), result
  int64_t width = 0;                               // features of the result
  int64_t length = 0;                              // of a norm's run, of half a rotary head
  int32_t index = 0;                               // weight, layer, rotary table, or activation function
  float factor = 0.0f;                             // epsilon or scale
  bool by_position = false;                        // embedding
  bool precise = false;                            // linear: activations of twice 8 bits
  const float* weight = nullptr;
  const float* bias = nullptr;
};

// One step's work; see octavo.backends.protocol.Batch.
struct Step {
  int64_t tokens, sequences, logit_rows, table_width, num_copies;
  const int32_t *ids, *positions, *query_starts, *page_table, *table_rows, *copies, *rows;
  const int64_t* slots;
  Sampling sampling;  // of the rows of logits
};

struct RotaryTable {
  int64_t half;
  const float *cosine, *sine;  // [positions][half]
};

class Plan {
 public:
  Plan(const Kernels& kernels, int threads) : kernels_(kernels), team_(threads) {}

  int32_t add_buffer(int64_t width, bool selected);
  int32_t add_weight(const Weight& weight);
  int32_t add_layer(const AttentionShape& shape, const Pages& pages);
  int32_t add_rotary(const RotaryTable& table);
  void add_op(const Op& op) { ops_.push_back(op); }

  void run(const Step& step);

  int threads() const { return team_.size; }
  int64_t vocab() const { return ops_.back().width; }

 private:
  struct Buffer {
    int64_t width;
    bool selected;  // its rows are rows of logits
    std::unique_ptr<float[]> data;
    int64_t capacity = 0;  // rows
  };

  float* at(Value value, int64_t row) {
    const Buffer& buffer = buffers_[value.buffer];
    return buffer.data.get() + row * buffer.width + value.column;
  }
  int64_t stride(Value value) const { return buffers_[value.buffer].width; }
  int64_t rows(const Op& op, const Step& step) const {
    return buffers_[op.out.buffer].selected ? step.logit_rows : step.tokens;
  }

  void reserve(const Step& step);
  void work(const Step& step);
  void run_op(const Op& op, const Step& step);
  void run_linear(const Op& op, const Step& step);
  void run_attention(const Op& op, const Step& step);
  void copy_pages(const Step& step);

  // Calls body(first, last) for pieces of [0, count), each on whichever thread comes first.
  template <typename Body>
  void share(int64_t count, int64_t piece, Body body);
  void meet();

  const Kernels& kernels_;
  Team team_;
  std::vector<Op> ops_;
  std::vector<Buffer> buffers_;
  std::vector<Weight> weights_;
  std::vector<AttentionShape> shapes_;
  std::vector<Pages> pages_;
  std::vector<RotaryTable> rotary_;

  std::vector<int8_t> quantised_;
  std::vector<float> scales_, sums_, rests_;
  std::vector<int32_t> sequence_of_token_;
  std::unique_ptr<std::atomic<int64_t>[]> counters_;
  int64_t num_counters_ = 0;
};

}  // namespace octavo
