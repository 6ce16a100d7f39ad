#include "plan.h"

#include <algorithm>
#include <cstring>

namespace octavo {

constexpr int64_t kFewTokens = 4;           // for each thread: with fewer, one alone is shared by its heads and spans
constexpr int64_t kFetchBytes = 16 * 1024;  // of a weight, while something else is computed

void Plan::reserve(const Step& step) {
  for (Buffer& buffer : buffers_)
    buffer.arena.reserve((buffer.selected ? step.logit_rows : step.tokens) * buffer.width * sizeof(float));
  int64_t widest = 0;
  for (const Weight& weight : weights_) widest = std::max(widest, weight.in);
  const int64_t panels = (std::max(step.tokens, step.logit_rows) + kPanel - 1) / kPanel;
  for (Arena& records : records_) records.reserve(panels * kPanel * (widest / kBlock + 1) * kMaxActivationBytes);
  for (Worker& worker : workers_) {
    worker.floats.reserve(own_floats_ * sizeof(float));
    worker.records.reserve(kPanel * (widest / kBlock + 1) * kMaxActivationBytes);
  }
  neighbours_.clear();
  for (int64_t s = 0; s < step.sequences; s++)
    for (int64_t row = step.query_starts[s]; row < step.query_starts[s + 1]; row += kMaxAttendRows) {
      const int64_t count = std::min<int64_t>(kMaxAttendRows, step.query_starts[s + 1] - row);
      neighbours_.push_back({row, count, s, count > 1 ? 1 : step.positions[row] / kSpan + 1, num_spans()});
    }
  if (static_cast<int64_t>(neighbours_.size()) < kFewTokens * team_.size)
    for (const KvLayer& layer : layers_)
      parts_.reserve(num_spans() * layer.heads * layer.part_floats() * sizeof(float));
}

template <bool backwards, typename Body>
void Plan::share(const Worker& worker, int64_t count, int64_t piece, Body body) {
  for (int turn = 0; turn < team_.size; turn++) {
    const int owner = (worker.index + turn) % team_.size;
    std::atomic<int64_t>& taken = workers_[owner].taken[worker.phase % 2];
    const int64_t begin = share_begin(owner, count), end = share_begin(owner + 1, count);
    for (;;) {
      const int64_t first = begin + taken.fetch_add(piece, std::memory_order_relaxed);
      if (first >= end) break;
      const int64_t last = std::min(first + piece, end);
      backwards ? body(begin + end - last, begin + end - first) : body(first, last);
    }
  }
}

void Plan::meet(Worker& worker) {
  team_.barrier.wait();
  enter_phase(worker);
}

void Plan::enter_phase(Worker& worker) {
  worker.phase++;
  worker.taken[(worker.phase + 1) % 2].store(0, std::memory_order_relaxed);  // nobody is in that phase any more
}

void Plan::run(const Step& step) {
  reserve(step);
  preparation_.store(kWaiting, std::memory_order_relaxed);
  try {
    team_.run([&](int index) { work(step, workers_[index]); });
  } catch (...) {
    for (Worker& worker : workers_) worker.reset();  // threads have stopped at different phases
    throw;
  }
}

// Whether there is something to sample with. On the thread that runs the step this throws what the caller's function
// does.
bool Plan::prepare_sampling(const Step& step, const Worker& worker) {
  if (worker.index == 0) {
    const auto tell = [this](uint32_t outcome) {
      preparation_.store(outcome, std::memory_order_release);
      preparation_.notify_all();
    };
    try {
      (*step.before_sampling)();
    } catch (...) {
      tell(kFailed);
      throw;
    }
    tell(kPrepared);
  }
  preparation_.wait(kWaiting, std::memory_order_acquire);
  return preparation_.load(std::memory_order_relaxed) == kPrepared;
}

// Asks for the weights that this thread begins with when `phase` is a linear: the hardware follows only a stream that
// has begun.
OCTAVO_INLINE void Plan::fetch_weight(const Worker& worker, size_t phase) const {
  if (phase >= phases_.size() || !ops_[phases_[phase].first].is_linear()) return;
  const Weight& weight = weights_[ops_[phases_[phase].first].index];
  const int64_t pair = weight.tile_bytes() * 2, first = share_begin(worker.index, weight.pairs());
  fetch_lines(weight.data + first * pair, std::min<int64_t>(pair, kFetchBytes));
}

void Plan::work(const Step& step, Worker& worker) {
  enter_phase(worker);
  if (step.num_copies > 0) {
    copy_pages(step, worker);
    meet(worker);
  }
  Memory memory = Memory::kShared;
  for (size_t phase = 0; phase < phases_.size(); phase++) {
    const Phase& current = phases_[phase];
    const Op& op = ops_[current.first];
    if (op.kind == OpKind::kLinear) {
      run_linear(op, memory, step, worker);
    } else if (op.kind == OpKind::kGatedLinear) {
      run_gated(op, memory, step, worker);
    } else if (op.kind == OpKind::kAttention) {
      run_attention(op, step, worker);
    } else {
      memory = current.memory(rows(op, step));
      fetch_weight(worker, phase + 1);
      run_rows(current, memory, step, worker);
      if (memory == Memory::kOwn) continue;  // with the linear, which takes what this thread computed
    }
    meet(worker);
    memory = Memory::kShared;
  }
  if (step.before_sampling && !prepare_sampling(step, worker)) return;
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

void Plan::run_rows(const Phase& phase, Memory memory, const Step& step, Worker& worker) {
  const auto run_some = [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      fetch_slots(phase, step, row + 1);
      for (int64_t index = phase.first; index < phase.last; index++) run_row(ops_[index], memory, step, row, worker);
    }
  };
  const int64_t count = rows(ops_[phase.first], step);
  if (memory == Memory::kOwn)
    run_some(0, count);
  else
    share(worker, count, count >= 4 * kPanel * team_.size ? kPanel : 1, run_some);
}

// Asks for the memory that a row's keys and values will be written to, unless the row before it writes there as well.
void Plan::fetch_slots(const Phase& phase, const Step& step, int64_t row) const {
  if (phase.stores < 0 || row >= step.tokens) return;
  const KvLayer& layer = layers_[ops_[phase.stores].index];
  if (step.slots[row] / layer.page_size != step.slots[row - 1] / layer.page_size)
    kernels_.fetch_slot(layer, step.slots[row]);
}

void Plan::run_row(const Op& op, Memory memory, const Step& step, int64_t row, Worker& worker) {
  float* out = op.out.exists() ? at(op.out, row, memory, worker) : nullptr;
  const float* x = op.x.exists() && op.kind != OpKind::kSelect ? at(op.x, row, memory, worker) : nullptr;
  const float* y = op.y.exists() ? at(op.y, row, memory, worker) : nullptr;
  const int64_t width = op.out.width;
  switch (op.kind) {
    case OpKind::kEmbed:
      return kernels_.unpack_row(weights_[op.index], op.by_position ? step.positions[row] : step.ids[row], width, out);
    case OpKind::kRmsNorm: return kernels_.rms_norm(x, op.weight, op.factor, width / op.length, op.length, out);
    case OpKind::kLayerNorm: return kernels_.layer_norm(x, op.weight, op.bias, op.factor, width, out);
    case OpKind::kRope: {
      const RotaryTable& table = rotary_[op.index];
      const int64_t offset = step.positions[row] * table.half;
      return kernels_.rope(x, table.cosine + offset, table.sine + offset, width / (2 * table.half), table.half, out);
    }
    case OpKind::kActivation: return kernels_.activate(op.function, x, y, width, out);
    case OpKind::kAdd:
      for (int64_t i = 0; i < width; i++) out[i] = x[i] + y[i];
      return;
    case OpKind::kMultiply:
      for (int64_t i = 0; i < width; i++) out[i] = x[i] * y[i];
      return;
    case OpKind::kScale:
      for (int64_t i = 0; i < width; i++) out[i] = x[i] * op.factor;
      return;
    case OpKind::kSelect: std::memcpy(out, at(op.x, step.rows[row]), 4 * width); return;
    case OpKind::kQuantise: return kernels_.quantise(records(op, op.reader, memory, worker), x, op.x.width, row, 0);
    case OpKind::kStoreKv: return kernels_.store_kv(layers_[op.index], x, y, step.slots[row]);
    case OpKind::kLinear:
    case OpKind::kGatedLinear:
    case OpKind::kAttention: return;
  }
}

void Plan::run_linear(const Op& op, Memory memory, const Step& step, Worker& worker) {
  const int64_t count = rows(op, step);
  if (count == 0) return;
  const Weight& weight = weights_[op.index];
  const bool adds = op.y.exists();
  const Output out{at(op.out, 0), stride(op.out), adds ? at(op.y, 0) : nullptr, adds ? stride(op.y) : 0};
  share(worker, weight.pairs(), count > kPanel ? 1 : 4, [&](int64_t pair, int64_t end) {
    const Range tiles{2 * pair, std::min(2 * end, weight.tiles())};
    if (weight.quantised())
      kernels_.linear_quantised(weight, records(op, op.index, memory, worker), count, out, tiles);
    else
      kernels_.linear_float(weight, at(op.x, 0), stride(op.x), count, out, tiles);
  });
}

void Plan::run_gated(const Op& op, Memory memory, const Step& step, Worker& worker) {
  const int64_t count = rows(op, step);
  if (count == 0) return;
  const Records x = records(op, op.index, memory, worker);
  const Records out = shared_records(op.reader, 1 - op.records);
  share(worker, out.blocks, 1, [&](int64_t first, int64_t last) {
    kernels_.linear_gated(weights_[op.index], x, count, op.function, out, {first, last});
  });
}

Tokens Plan::tokens_of(const Op& op, const Step& step, const Neighbours& some) {
  return {step.page_table + step.table_rows[some.sequence] * step.table_width,
          step.positions[some.row],
          some.count,
          at(op.x, some.row),
          stride(op.x),
          at(op.out, some.row),
          stride(op.out)};
}

// KV heads [head, head + heads) of what attention came to, for the linear that reads it.
void Plan::quantise_heads(const Op& op, const Neighbours& some, int64_t head, int64_t heads) {
  if (op.reader < 0) return;
  const int64_t features = layers_[op.index].group() * layers_[op.index].head_dim, column = head * features;
  for (int64_t row = some.row; row < some.row + some.count; row++)
    kernels_.quantise(shared_records(op.reader, 0), at(op.out, row) + column, heads * features, row, column / kBlock);
}

void Plan::run_attention(const Op& op, const Step& step, Worker& worker) {
  const KvLayer& layer = layers_[op.index];
  const int64_t some = static_cast<int64_t>(neighbours_.size());
  const bool few = some < kFewTokens * team_.size;
  if (few && layer.window == 0 && num_spans() > some) return run_spans(op, step, worker);
  // A sequence's KV heads lie side by side in its pages: one thread reads them, where there are tokens for all.
  const int64_t heads = few ? 1 : layer.kv_heads, parts = layer.kv_heads / heads;
  // The last tokens of a prompt take longest, and nobody should wait for them.
  share<true>(worker, some * parts, 1, [&](int64_t item, int64_t) {
    const int64_t head = item % parts * heads, next = std::max<int64_t>(item - 1, 0);
    const Tokens then = tokens_of(op, step, neighbours_[next / parts]);
    kernels_.attend(layer, tokens_of(op, step, neighbours_[item / parts]), head, head + heads,
                    item > 0 ? &then : nullptr, next % parts * heads);
    quantise_heads(op, neighbours_[item / parts], head, heads);
  });
}

// Long contexts of few tokens: spans of positions on any thread, then their sums in order.
void Plan::run_spans(const Op& op, const Step& step, Worker& worker) {
  const KvLayer& layer = layers_[op.index];
  const int64_t heads = layer.kv_heads, part = layer.group() * layer.part_floats();
  float* parts = reinterpret_cast<float*>(parts_.data());  // [span][KV head]
  share<true>(worker, num_spans() * heads, 1, [&](int64_t item, int64_t) {
    const int64_t span = item / heads, head = item % heads;
    const auto after = std::upper_bound(neighbours_.begin(), neighbours_.end(), span,
                                        [](int64_t a, const Neighbours& b) { return a < b.first_span; });
    const Neighbours& some = *(after - 1);
    const Tokens tokens = tokens_of(op, step, some);
    if (some.spans > 1) return kernels_.attend_span(layer, tokens, head, span - some.first_span, parts + item * part);
    kernels_.attend(layer, tokens, head, head + 1, nullptr, 0);
    quantise_heads(op, some, head, 1);
  });
  meet(worker);
  share(worker, static_cast<int64_t>(neighbours_.size()) * heads, 1, [&](int64_t item, int64_t) {
    const Neighbours& some = neighbours_[item / heads];
    const int64_t head = item % heads;
    if (some.spans == 1) return;
    kernels_.fold_spans(layer, tokens_of(op, step, some), head, parts + (some.first_span * heads + head) * part,
                        some.spans, heads * part);
    quantise_heads(op, some, head, 1);
  });
}

}  // namespace octavo
