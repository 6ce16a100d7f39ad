// A plan: a model's graph as a flat list of operations over an arena, run by a team of threads.

#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "sampling.h"
#include "threads.h"

namespace octavo {

// Some columns of a buffer, from `column` on. A slice is a value, not a copy.
struct Value {
  int32_t buffer = -1;  // -1: there is no such value
  int32_t column = 0;
  int64_t width = 0;
  int64_t own = -1;  // where a thread's own memory has it, in floats; -1: it is always where all threads see it

  bool exists() const { return buffer >= 0; }
};

enum class OpKind : int32_t {
  kEmbed,
  kLinear,
  kGatedLinear,
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
  // weights takes no x: it multiplies the records that were left for it.
  Value x = {}, y = {}, out = {};
  int32_t index = 0;      // weight, layer or rotary table
  int32_t reader = -1;    // the weight that the result is quantised for, -1: none
  int32_t records = 0;    // which of the two sets of records a linear reads; a gated one leaves its result in the other
  int64_t residuals = 0;  // of a row of the records that it reads or, where it quantises, leaves
  Function function = Function::kSilu;  // of an activation or a gated linear
  float factor = 0.0f;                  // epsilon or scale
  bool by_position = false;             // embedding
  bool selected = false;                // its rows are those of the logits
  int64_t length = 0;                   // of a norm's run
  const float* weight = nullptr;
  const float* bias = nullptr;

  bool is_linear() const { return kind == OpKind::kLinear || kind == OpKind::kGatedLinear; }
  bool is_row_wise() const { return !is_linear() && kind != OpKind::kAttention; }
};

// One step's work; see octavo.backends.protocol.Batch.
struct Step {
  int64_t tokens, sequences, logit_rows, table_width, num_copies;
  const int32_t *ids, *positions, *query_starts, *page_table, *table_rows, *copies, *rows;
  const int64_t* slots;
  Sampling sampling;  // of the rows of logits
  // Called once before sampling, on the thread that runs the step, while the others sleep; null: nothing to wait for.
  const std::function<void()>* before_sampling;
};

struct RotaryTable {
  int64_t half;
  const float *cosine, *sine;  // [positions][half]
};

// Memory on a cache line's boundary that grows to what was once asked of it; its content is lost then.
class Arena {
 public:
  // Throws std::bad_alloc; the arena is empty then, and may be asked again.
  void reserve(int64_t bytes) {
    if (bytes <= size_) return;
    const int64_t size = (bytes + 63) / 64 * 64;
    data_.reset();
    size_ = 0;
    data_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, size)));
    if (!data_) throw std::bad_alloc();
    size_ = size;
  }
  uint8_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t[], Free> data_;
  int64_t size_ = 0;
};

// Whose memory a phase's values and records are in.
enum class Memory {
  kShared,  // the plan's, where every thread computes a part
  kOwn,     // the thread's, where every thread computes everything for itself
};

class Plan {
 public:
  Plan(const Kernels& kernels, int threads) : kernels_(kernels), team_(threads), workers_(threads) {
    for (int index = 0; index < threads; index++) workers_[index].index = index;
  }

  // What operations work on; each is named by the number that it is given here. Buffers have the rows of a step's
  // tokens or, `selected`, those of its logits; who builds a plan may use one again once its values are read.
  int32_t add_buffer(int64_t width, bool selected);
  int32_t add_weight(const Weight& weight);
  int32_t add_layer(const KvLayer& layer);
  int32_t add_rotary(const RotaryTable& table);

  // One method for each kind of operation, in the order they are to run in (build.cpp). They throw
  // std::invalid_argument for what does not fit together.
  void embed(Value out, int32_t weight, bool by_position);
  void linear_float(Value x, Value out, int32_t weight, Value residual);
  // Multiplies what was quantised for it: `gated`, by a gated linear.
  void linear_quantised(Value out, int32_t weight, Value residual, bool gated);
  // Its result is quantised for the weight `reader`.
  void linear_gated(int32_t weight, Function function, int32_t reader, bool selected);
  void rms_norm(Value x, Value out, const float* weight, int64_t length, float epsilon);
  void layer_norm(Value x, Value out, const float* weight, const float* bias, float epsilon);
  void rope(Value x, Value out, int32_t rotary);
  void store_kv(Value keys, Value values, int32_t layer);
  void attention(Value x, Value out, int32_t layer, int32_t reader);  // reader -1: its result is not quantised
  void activation(Value x, Value out, Function function, Value gate);
  void add(Value x, Value y, Value out);
  void multiply(Value x, Value y, Value out);
  void scale(Value x, Value out, float factor);
  void select_rows(Value x, Value out);
  void quantise(Value x, int32_t reader);
  void finish();  // after the last one

  void run(const Step& step);

  int64_t tile() const { return kernels_.lanes; }  // output features of a weight's tile
  int64_t vocab() const { return ops_.back().out.width; }

 private:
  struct Buffer {
    int64_t width;
    bool selected;  // its rows are rows of logits
    Arena arena;
  };
  // Operations [first, last) without a barrier between them: either one, or some that each work on rows by themselves.
  //
  // What private phases compute is read by themselves and the linear after them, nobody else. When there is one row,
  // every thread computes it for itself, in its own memory: less work than a barrier, and than fetching from another
  // core's cache.
  struct Phase {
    int64_t first, last;
    int64_t stores;  // the operation among them that stores keys and values, -1: none
    bool is_private;

    Memory memory(int64_t rows) const { return is_private && rows == 1 ? Memory::kOwn : Memory::kShared; }
  };
  struct Neighbours {  // tokens of a step that stand one after the other in a sequence
    int64_t row, count, sequence;
    int64_t spans, first_span;  // of a token alone, all before it counted; 1 of several tokens
  };
  struct Worker {  // a thread's own
    int index = 0;
    int64_t phase = 0;  // how often it met the others: all threads go through the same phases, in the same order
    // How much of its share of a phase is taken, by itself or by others. Phases take turns: one counter is in use, the
    // other one ready for the next phase.
    alignas(64) std::atomic<int64_t> taken[2] = {0, 0};
    Arena floats, records;
    Sampler sampler;  // keeps its memory from step to step

    void reset() {
      phase = 0;
      for (std::atomic<int64_t>& count : taken) count.store(0, std::memory_order_relaxed);
    }
  };

  float* at(const Value& value, int64_t row) {
    const Buffer& buffer = buffers_[value.buffer];
    return reinterpret_cast<float*>(buffer.arena.data()) + row * buffer.width + value.column;
  }
  float* at(const Value& value, int64_t row, Memory memory, const Worker& worker) {
    if (memory == Memory::kShared || value.own < 0) return at(value, row);
    return reinterpret_cast<float*>(worker.floats.data()) + value.own + value.column;
  }
  // Activations quantised for `weight`, in set 0 or 1 of the shared records: without residuals, which need whole rows.
  Records shared_records(int32_t weight, int32_t set) const {
    return {weights_[weight].activations(), weights_[weight].blocks(), 0, records_[set].data()};
  }
  // What `op` quantises for `weight` or reads, shared or a thread's own.
  Records records(const Op& op, int32_t weight, Memory memory, const Worker& worker) const {
    Records records = shared_records(weight, op.records);
    records.residuals = op.residuals;
    if (memory == Memory::kOwn) records.data = worker.records.data();
    return records;
  }
  int64_t stride(const Value& value) const { return buffers_[value.buffer].width; }
  int64_t rows(const Op& op, const Step& step) const { return op.selected ? step.logit_rows : step.tokens; }

  void add_op(Op op);
  bool is_selected(const Value& value) const { return buffers_.at(value.buffer).selected; }
  bool is_dead_after(int32_t buffer, int64_t op) const;
  void reserve(const Step& step);
  void work(const Step& step, Worker& worker);
  void run_rows(const Phase& phase, Memory memory, const Step& step, Worker& worker);
  void run_row(const Op& op, Memory memory, const Step& step, int64_t row, Worker& worker);
  // `memory`: where the phase before left what they read.
  void run_linear(const Op& op, Memory memory, const Step& step, Worker& worker);
  void run_gated(const Op& op, Memory memory, const Step& step, Worker& worker);
  void run_attention(const Op& op, const Step& step, Worker& worker);
  void run_spans(const Op& op, const Step& step, Worker& worker);
  Tokens tokens_of(const Op& op, const Step& step, const Neighbours& some);
  void quantise_heads(const Op& op, const Neighbours& some, int64_t head, int64_t heads);
  int64_t num_spans() const {
    return neighbours_.empty() ? 0 : neighbours_.back().first_span + neighbours_.back().spans;
  }
  void copy_pages(const Step& step, Worker& worker);
  bool prepare_sampling(const Step& step, const Worker& worker);

  // Calls body(first, last) for pieces of [0, count). Every thread has an even share, neighbouring pieces that it takes
  // in their order, or from the last one on; who is done early goes on with the shares of others.
  template <bool backwards = false, typename Body>
  void share(const Worker& worker, int64_t count, int64_t piece, Body body);
  int64_t share_begin(int thread, int64_t count) const { return count * thread / team_.size; }
  void meet(Worker& worker);
  void enter_phase(Worker& worker);
  void fetch_weight(const Worker& worker, size_t phase) const;
  void fetch_slots(const Phase& phase, const Step& step, int64_t row) const;

  const Kernels& kernels_;
  Team team_;
  std::vector<Op> ops_;
  std::vector<Buffer> buffers_;
  std::vector<Weight> weights_;
  std::vector<Phase> phases_;
  std::vector<KvLayer> layers_;
  std::vector<RotaryTable> rotary_;

  int64_t residuals_ = 0;  // while the plan is put together: of a row of what set 0 of the records has last been left
  int64_t own_floats_ = 0;
  std::vector<Worker> workers_;
  Arena records_[2];
  Arena parts_;  // what spans of positions came to
  enum : uint32_t { kWaiting, kPrepared, kFailed };
  std::atomic<uint32_t> preparation_{kWaiting};  // of sampling
  std::vector<Neighbours> neighbours_;
};

}  // namespace octavo
