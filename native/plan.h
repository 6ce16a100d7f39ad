// A plan: a model's graph as a flat list of operations over an arena, run by a team of threads.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "sampling.h"
#include "threads.h"

namespace octavo {

// A matrix in the arena: rows of `stride` floats, of which this value is some columns. A slice is a value, not a copy.
struct Value {
  int32_t buffer;
  int32_t column;
  int64_t own = -1;  // where a thread that works alone keeps it, in floats; -1: where all threads see it
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
  kQuantise,
  kStoreKv,
};

struct Op {
  OpKind kind;
  // Inputs and result. y: gate of an activation, residual of a linear, values of a stored key. A linear with quantised
  // weights takes no x: it multiplies what the last kQuantise left.
  Value x{-1, 0}, y{-1, 0}, out{-1, 0};
  int64_t width = 0;         // features of the result (of x, where there is none)
  int64_t length = 0;        // of a norm's run
  int32_t index = 0;         // weight, layer, rotary table, or activation function
  float factor = 0.0f;       // epsilon or scale
  bool by_position = false;  // embedding
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

// Memory on a cache line's boundary that grows to what was once asked of it; its content is lost then.
class Arena {
 public:
  void reserve(int64_t bytes) {
    if (bytes <= size_) return;
    size_ = (bytes + 63) / 64 * 64;
    data_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, size_)));
    if (!data_) throw std::bad_alloc();
  }
  uint8_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t[], Free> data_;
  int64_t size_ = 0;
};

class Plan {
 public:
  Plan(const Kernels& kernels, int threads) : kernels_(kernels), team_(threads), workers_(threads) {}

  int32_t add_buffer(int64_t width, bool selected);
  int32_t add_weight(const Weight& weight);
  int32_t add_layer(const KvLayer& layer);
  int32_t add_rotary(const RotaryTable& table);
  void add_op(const Op& op);
  void finish();  // after the last op

  void run(const Step& step);

  int threads() const { return team_.size; }
  int64_t tile() const { return kernels_.lanes; }  // output features of a weight's tile
  int64_t vocab() const { return ops_.back().width; }

 private:
  struct Buffer {
    int64_t width;
    bool selected;  // its rows are rows of logits
    Arena arena;
  };
  // Operations [first, last) without a barrier between them: either one, or some that each work on rows by themselves.
  //
  // What `alone` phases compute is read by themselves and the linear after them, nobody else. When there is one row, every
  // thread computes it for itself: less work than a barrier, and than fetching from another core's cache.
  struct Phase {
    int64_t first, last;
    bool alone;
  };
  struct Neighbours {  // tokens of a step that stand one after the other in a sequence
    int64_t row, count, sequence;
  };
  struct Worker {  // a thread's own
    int64_t phase = 0;  // which of a step's phases it is in: all threads go through the same ones, in the same order
    bool alone = false;
    Arena floats, activations;
    Sampler sampler;  // keeps its memory from step to step
  };

  float* at(const Worker& worker, Value value, int64_t row) {
    if (worker.alone && value.own >= 0) return reinterpret_cast<float*>(worker.floats.data()) + value.own + value.column;
    return at(value, row);
  }
  float* at(Value value, int64_t row) {
    const Buffer& buffer = buffers_[value.buffer];
    return reinterpret_cast<float*>(buffer.arena.data()) + row * buffer.width + value.column;
  }
  uint8_t* activations(const Worker& worker) const { return worker.alone ? worker.activations.data() : activations_.data(); }
  int64_t stride(Value value) const { return buffers_[value.buffer].width; }
  bool selected(const Op& op) const { return buffers_[op.out.buffer < 0 ? op.x.buffer : op.out.buffer].selected; }
  int64_t rows(const Op& op, const Step& step) const { return selected(op) ? step.logit_rows : step.tokens; }

  bool is_dead_after(int32_t buffer, int64_t op) const;
  void reserve(const Step& step);
  void work(const Step& step, Worker& worker);
  void run_rows(const Phase& phase, const Step& step, Worker& worker);
  void run_row(const Op& op, const Step& step, int64_t row, Worker& worker);
  void run_linear(const Op& op, const Step& step, Worker& worker);
  void run_attention(const Op& op, const Step& step, Worker& worker);
  void copy_pages(const Step& step, Worker& worker);

  // Calls body(first, last) for pieces of [0, count), each on whichever thread comes first.
  template <typename Body>
  void share(const Worker& worker, int64_t count, int64_t piece, Body body);
  void meet(Worker& worker);

  const Kernels& kernels_;
  Team team_;
  std::vector<Op> ops_;
  std::vector<Buffer> buffers_;
  std::vector<Weight> weights_;
  std::vector<Phase> phases_;
  std::vector<KvLayer> layers_;
  std::vector<RotaryTable> rotary_;

  int64_t own_floats_ = 0;
  std::vector<Worker> workers_;
  Arena activations_;
  std::vector<Neighbours> neighbours_;
  std::unique_ptr<std::atomic<int64_t>[]> counters_;
  int64_t num_counters_ = 0;
};

}  // namespace octavo
