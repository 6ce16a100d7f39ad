#include "plan.h"

#include <algorithm>
#include <cstring>

namespace octavo {

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
    phases_.push_back(Phase{index, index + 1, false});
  ops_.push_back(op);
}

bool Plan::is_dead_after(int32_t buffer, int64_t op) const {
  for (int64_t i = op + 1; i < static_cast<int64_t>(ops_.size()); i++) {
    if (ops_[i].x.buffer == buffer || ops_[i].y.buffer == buffer) return false;
    if (ops_[i].out.buffer == buffer) return true;
  }
  return true;
}

void Plan::finish() {
  for (Phase& phase : phases_) {
    if (ops_[phase.last - 1].kind != OpKind::kQuantise) continue;
    const int32_t result = ops_[phase.last].out.buffer;  // of the linear, which a faster thread may already write
    phase.alone = true;
    for (int64_t i = phase.first; i < phase.last; i++) {
      const Op& op = ops_[i];
      const bool survives = op.out.buffer >= 0 && !is_dead_after(op.out.buffer, phase.last - 1);
      const bool is_overtaken = op.x.buffer == result || op.y.buffer == result;
      if (op.kind == OpKind::kStoreKv || survives || is_overtaken) phase.alone = false;
    }
    if (!phase.alone) continue;
    std::vector<int64_t> own(buffers_.size(), -1);
    int64_t floats = 0;
    for (int64_t i = phase.first; i < phase.last; i++) {
      Op& op = ops_[i];
      if (op.x.buffer >= 0) op.x.own = own[op.x.buffer];
      if (op.y.buffer >= 0) op.y.own = own[op.y.buffer];
      if (op.out.buffer < 0) continue;
      op.out.own = own[op.out.buffer] = floats;
      floats += buffers_[op.out.buffer].width;
    }
    own_floats_ = std::max(own_floats_, floats);
  }
}

void Plan::reserve(const Step& step) {
  for (Buffer& buffer : buffers_)
    buffer.arena.reserve((buffer.selected ? step.logit_rows : step.tokens) * buffer.width * sizeof(float));
  int64_t widest = 0;
  for (const Weight& weight : weights_) widest = std::max(widest, weight.in);
  const int64_t panels = (std::max(step.tokens, step.logit_rows) + kPanel - 1) / kPanel;
  constexpr int64_t record = std::max(sizeof(Activations8), sizeof(Activations16));
  activations_.reserve(panels * kPanel * (widest / kBlock + 1) * record);
  for (Worker& worker : workers_) {
    worker.floats.reserve(own_floats_ * sizeof(float));
    worker.activations.reserve(kPanel * (widest / kBlock + 1) * record);
  }
  neighbours_.clear();
  for (int64_t s = 0; s < step.sequences; s++)
    for (int64_t row = step.query_starts[s]; row < step.query_starts[s + 1]; row += kMaxAttendRows)
      neighbours_.push_back({row, std::min<int64_t>(kMaxAttendRows, step.query_starts[s + 1] - row), s});
  const int64_t counters = static_cast<int64_t>(phases_.size()) + 2;
  if (counters > num_counters_) {
    counters_.reset(new std::atomic<int64_t>[counters]);
    num_counters_ = counters;
  }
  for (int64_t i = 0; i < num_counters_; i++) counters_[i].store(0, std::memory_order_relaxed);
}

template <typename Body>
void Plan::share(const Worker& worker, int64_t count, int64_t piece, Body body) {
  std::atomic<int64_t>& next = counters_[worker.phase];
  for (;;) {
    const int64_t first = next.fetch_add(piece, std::memory_order_relaxed);
    if (first >= count) return;
    body(first, std::min(first + piece, count));
  }
}

void Plan::meet(Worker& worker) {
  team_.barrier.wait();
  worker.phase++;
}

void Plan::run(const Step& step) {
  reserve(step);
  team_.run([&](int index) { work(step, workers_[index]); });
}

void Plan::work(const Step& step, Worker& worker) {
  worker.phase = 0;
  if (step.num_copies > 0) {
    copy_pages(step, worker);
    meet(worker);
  }
  for (const Phase& current : phases_) {
    const Op& op = ops_[current.first];
    if (op.kind == OpKind::kLinear) {
      run_linear(op, step, worker);
    } else if (op.kind == OpKind::kAttention) {
      run_attention(op, step, worker);
    } else {
      worker.alone = current.alone && rows(op, step) == 1;
      run_rows(current, step, worker);
      if (worker.alone) continue;  // with the linear, which takes what this thread computed
    }
    meet(worker);
    worker.alone = false;
  }
  const Value logits = ops_.back().out;
  share(worker, step.sampling.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
      worker.sampler.sample(kernels_, at(logits, step.sampling.logit_rows[row]), vocab(), step.sampling, row);
  });
}

void Plan::copy_pages(const Step& step, Worker& worker) {
  share(worker, static_cast<int64_t>(layers_.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t layer = first; layer < last; layer++) {
      uint8_t* pages = layers_[layer].pages;
      const int64_t bytes = layers_[layer].page_bytes();
      for (int64_t i = 0; i < step.num_copies; i++)
        std::memcpy(pages + step.copies[2 * i + 1] * bytes, pages + step.copies[2 * i] * bytes, bytes);
    }
  });
}

void Plan::run_rows(const Phase& phase, const Step& step, Worker& worker) {
  const auto run_some = [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
      for (int64_t index = phase.first; index < phase.last; index++) run_row(ops_[index], step, row, worker);
  };
  const int64_t count = rows(ops_[phase.first], step);
  if (worker.alone)
    run_some(0, count);
  else
    share(worker, count, count >= 4 * kPanel * team_.size ? kPanel : 1, run_some);
}

void Plan::run_row(const Op& op, const Step& step, int64_t row, Worker& worker) {
  float* out = op.out.buffer < 0 ? nullptr : at(worker, op.out, row);
  const float* x = op.x.buffer < 0 || op.kind == OpKind::kSelect ? nullptr : at(worker, op.x, row);
  const float* y = op.y.buffer < 0 ? nullptr : at(worker, op.y, row);
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
      return kernels_.quantise(weight.kind, x, op.width, weight.in, row, activations(worker));
    }
    case OpKind::kStoreKv:
      return kernels_.store_kv(layers_[op.index], x, y, step.slots[row]);
    case OpKind::kLinear:
    case OpKind::kAttention:
      return;
  }
}

void Plan::run_linear(const Op& op, const Step& step, Worker& worker) {
  const int64_t count = rows(op, step);
  if (count == 0) return;
  const Weight& weight = weights_[op.index];
  const bool adds = op.y.buffer >= 0;
  const Output out{at(op.out, 0), stride(op.out), adds ? at(op.y, 0) : nullptr, adds ? stride(op.y) : 0};
  // As many pieces for every thread, of whole pairs of tiles.
  const int64_t pairs = (weight.tiles() + 1) / 2;
  const int64_t pieces = std::min<int64_t>(pairs, team_.size * std::max<int64_t>(4, pairs / (8 * team_.size)));
  share(worker, pieces, 1, [&](int64_t piece, int64_t) {
    const int64_t first = 2 * (pairs * piece / pieces), last = std::min(weight.tiles(), 2 * (pairs * (piece + 1) / pieces));
    if (weight.quantised())
      kernels_.linear_quantised(weight, activations(worker), count, out, first, last);
    else
      kernels_.linear_float(weight, at(op.x, 0), stride(op.x), count, out, first, last);
  });
}

void Plan::run_attention(const Op& op, const Step& step, Worker& worker) {
  const KvLayer& layer = layers_[op.index];
  const int64_t some = static_cast<int64_t>(neighbours_.size());
  // A sequence's KV heads lie side by side in its pages: one thread reads them, where there are tokens for all.
  const int64_t heads = some >= 4 * team_.size ? layer.kv_heads : 1, parts = layer.kv_heads / heads;
  share(worker, some * parts, 1, [&](int64_t first, int64_t) {
    // From the end: the last tokens of a prompt take longest, and nobody should wait for them.
    const int64_t item = some * parts - 1 - first, head = item % parts * heads;
    const Neighbours& tokens = neighbours_[item / parts];
    kernels_.attend(layer,
                    {step.page_table + step.table_rows[tokens.sequence] * step.table_width, step.positions[tokens.row],
                     tokens.count, at(op.x, tokens.row), stride(op.x), at(op.out, tokens.row), stride(op.out)},
                    head, head + heads);
  });
}

}  // namespace octavo
