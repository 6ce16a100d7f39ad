#include "plan.h"

#include <algorithm>
#include <cstring>

namespace octavo {

// Which of a step's phases this thread is in: all threads go through the same ones, in the same order.
static thread_local int64_t phase;

static thread_local Sampler sampler;  // keeps its memory from step to step

int32_t Plan::add_buffer(int64_t width, bool selected) {
  buffers_.push_back(Buffer{width, selected, Arena()});
  return static_cast<int32_t>(buffers_.size()) - 1;
}

int32_t Plan::add_weight(const Weight& weight) {
  weights_.push_back(weight);
  return static_cast<int32_t>(weights_.size()) - 1;
}

int32_t Plan::add_layer(const KvLayer& layer) {
  layers_.push_back(layer);
  return static_cast<int32_t>(layers_.size()) - 1;
}

int32_t Plan::add_rotary(const RotaryTable& table) {
  rotary_.push_back(table);
  return static_cast<int32_t>(rotary_.size()) - 1;
}

static bool is_row_wise(const Op& op) { return op.kind != OpKind::kLinear && op.kind != OpKind::kAttention; }

void Plan::add_op(const Op& op) {
  const int64_t index = static_cast<int64_t>(ops_.size());
  // Rows may go on together as long as they are the same rows: a selection reads those of other threads.
  const bool joins = !ops_.empty() && is_row_wise(op) && is_row_wise(ops_.back()) && op.kind != OpKind::kSelect &&
                     selected(op) == selected(ops_.back());
  if (joins)
    phases_.back().last = index + 1;
  else
    phases_.push_back(Phase{index, index + 1});
  ops_.push_back(op);
}

void Plan::reserve(const Step& step) {
  for (Buffer& buffer : buffers_)
    buffer.arena.reserve((buffer.selected ? step.logit_rows : step.tokens) * buffer.width * sizeof(float));
  int64_t widest = 0;
  for (const Weight& weight : weights_) widest = std::max(widest, weight.in);
  const int64_t panels = (std::max(step.tokens, step.logit_rows) + kPanel - 1) / kPanel;
  const int64_t record = std::max(sizeof(Activations8), sizeof(Activations16));
  activations_.reserve(panels * kPanel * (widest / kBlock + 1) * record);
  sequence_of_token_.resize(step.tokens);
  for (int64_t s = 0; s < step.sequences; s++)
    std::fill(sequence_of_token_.begin() + step.query_starts[s], sequence_of_token_.begin() + step.query_starts[s + 1],
              static_cast<int32_t>(s));
  const int64_t counters = static_cast<int64_t>(phases_.size()) + 2;
  if (counters > num_counters_) {
    counters_.reset(new std::atomic<int64_t>[counters]);
    num_counters_ = counters;
  }
  for (int64_t i = 0; i < num_counters_; i++) counters_[i].store(0, std::memory_order_relaxed);
}

template <typename Body>
void Plan::share(int64_t count, int64_t piece, Body body) {
  std::atomic<int64_t>& next = counters_[phase];
  for (;;) {
    const int64_t first = next.fetch_add(piece, std::memory_order_relaxed);
    if (first >= count) return;
    body(first, std::min(first + piece, count));
  }
}

void Plan::meet() {
  team_.barrier.wait();
  phase++;
}

void Plan::run(const Step& step) {
  reserve(step);
  team_.run([&] { work(step); });
}

void Plan::work(const Step& step) {
  phase = 0;
  if (step.num_copies > 0) {
    copy_pages(step);
    meet();
  }
  for (const Phase& current : phases_) {
    const Op& op = ops_[current.first];
    if (op.kind == OpKind::kLinear)
      run_linear(op, step);
    else if (op.kind == OpKind::kAttention)
      run_attention(op, step);
    else
      run_rows(current, step);
    meet();
  }
  const Value logits = ops_.back().out;
  share(step.sampling.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
      sampler.sample(kernels_, at(logits, step.sampling.logit_rows[row]), vocab(), step.sampling, row);
  });
}

void Plan::copy_pages(const Step& step) {
  share(static_cast<int64_t>(layers_.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t layer = first; layer < last; layer++) {
      uint8_t* pages = layers_[layer].pages;
      const int64_t bytes = layers_[layer].page_bytes();
      for (int64_t i = 0; i < step.num_copies; i++)
        std::memcpy(pages + step.copies[2 * i + 1] * bytes, pages + step.copies[2 * i] * bytes, bytes);
    }
  });
}

void Plan::run_rows(const Phase& phase, const Step& step) {
  const int64_t count = rows(ops_[phase.first], step);
  const int64_t piece = count >= 4 * kPanel * team_.size ? kPanel : 1;
  share(count, piece, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
      for (int64_t index = phase.first; index < phase.last; index++) run_row(ops_[index], step, row);
  });
}

void Plan::run_row(const Op& op, const Step& step, int64_t row) {
  float* out = op.out.buffer < 0 ? nullptr : at(op.out, row);
  const float* x = op.x.buffer < 0 || op.kind == OpKind::kSelect ? nullptr : at(op.x, row);
  const float* y = op.y.buffer < 0 ? nullptr : at(op.y, row);
  switch (op.kind) {
    case OpKind::kEmbed:
      return kernels_.unpack_row(weights_[op.index], op.by_position ? step.positions[row] : step.ids[row], op.width, out);
    case OpKind::kRmsNorm:
      return kernels_.rms_norm(x, op.weight, op.factor, op.width / op.length, op.length, out);
    case OpKind::kLayerNorm:
      return kernels_.layer_norm(x, op.weight, op.bias, op.factor, op.width, out);
    case OpKind::kRope: {
      const RotaryTable& table = rotary_[op.index];
      const int64_t offset = step.positions[row] * table.half;
      return kernels_.rope(x, table.cosine + offset, table.sine + offset, op.width / (2 * table.half), table.half, out);
    }
    case OpKind::kActivation:
      return kernels_.activate(op.index, x, y, op.width, out);
    case OpKind::kAdd:
      for (int64_t i = 0; i < op.width; i++) out[i] = x[i] + y[i];
      return;
    case OpKind::kMultiply:
      for (int64_t i = 0; i < op.width; i++) out[i] = x[i] * y[i];
      return;
    case OpKind::kScale:
      for (int64_t i = 0; i < op.width; i++) out[i] = x[i] * op.factor;
      return;
    case OpKind::kSelect:
      std::memcpy(out, at(op.x, step.rows[row]), 4 * op.width);
      return;
    case OpKind::kQuantise: {
      const Weight& weight = weights_[op.index];
      return kernels_.quantise(weight.kind, x, op.width, weight.in, row, activations_.data());
    }
    case OpKind::kStoreKv:
      return kernels_.store_kv(layers_[op.index], x, y, step.slots[row]);
    case OpKind::kLinear:
    case OpKind::kAttention:
      return;
  }
}

void Plan::run_linear(const Op& op, const Step& step) {
  const int64_t count = rows(op, step);
  if (count == 0) return;
  const Weight& weight = weights_[op.index];
  const bool adds = op.y.buffer >= 0;
  const Output out{at(op.out, 0), stride(op.out), adds ? at(op.y, 0) : nullptr, adds ? stride(op.y) : 0};
  const int64_t tiles = weight.tiles();
  const int64_t piece = std::max<int64_t>(1, std::min<int64_t>(16, tiles / (4 * team_.size)));
  share(tiles, piece, [&](int64_t first, int64_t last) {
    if (weight.quantised())
      kernels_.linear_quantised(weight, activations_.data(), count, out, first, last);
    else
      kernels_.linear_float(weight, at(op.x, 0), stride(op.x), count, out, first, last);
  });
}

void Plan::run_attention(const Op& op, const Step& step) {
  const KvLayer& layer = layers_[op.index];
  const int64_t width = layer.heads / layer.kv_heads * layer.head_dim;
  share(step.tokens * layer.kv_heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; item++) {
      const int64_t row = item / layer.kv_heads, kv_head = item % layer.kv_heads;
      const int64_t sequence = sequence_of_token_[row];
      kernels_.attend(layer, step.page_table + step.table_rows[sequence] * step.table_width, step.positions[row], kv_head,
                      at(op.x, row) + kv_head * width, at(op.out, row) + kv_head * width);
    }
  });
}

}  // namespace octavo
