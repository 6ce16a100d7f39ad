#include "plan.h"

#include <algorithm>
#include <cstring>

namespace octavo {

// Which of a step's phases this thread is in: all threads go through the same ones, in the same order.
static thread_local int64_t phase;

static thread_local Sampler sampler;  // keeps its memory from step to step

int32_t Plan::add_buffer(int64_t width, bool selected) {
  buffers_.push_back(Buffer{width, selected, nullptr});
  return static_cast<int32_t>(buffers_.size()) - 1;
}

int32_t Plan::add_weight(const Weight& weight) {
  weights_.push_back(weight);
  return static_cast<int32_t>(weights_.size()) - 1;
}

int32_t Plan::add_layer(const AttentionShape& shape, const Pages& pages) {
  shapes_.push_back(shape);
  pages_.push_back(pages);
  return static_cast<int32_t>(shapes_.size()) - 1;
}

int32_t Plan::add_rotary(const RotaryTable& table) {
  rotary_.push_back(table);
  return static_cast<int32_t>(rotary_.size()) - 1;
}

void Plan::reserve(const Step& step) {
  for (Buffer& buffer : buffers_) {
    const int64_t rows = buffer.selected ? step.logit_rows : step.tokens;
    if (rows > buffer.capacity) {
      buffer.capacity = rows;
      buffer.data.reset(new float[rows * buffer.width]);
    }
  }
  int64_t widest = 0;
  for (const Weight& weight : weights_) widest = std::max(widest, weight.in);
  const int64_t most = std::max(step.tokens, step.logit_rows);
  if (static_cast<int64_t>(rests_.size()) < most * widest) {
    quantised_.resize(2 * most * widest);
    rests_.resize(most * widest);
    scales_.resize(2 * most * (widest / kBlock + 1));
    sums_.resize(4 * most * (widest / kBlock + 1));
  }
  sequence_of_token_.resize(step.tokens);
  for (int64_t s = 0; s < step.sequences; s++)
    std::fill(sequence_of_token_.begin() + step.query_starts[s], sequence_of_token_.begin() + step.query_starts[s + 1],
              static_cast<int32_t>(s));
  const int64_t phases = 2 * static_cast<int64_t>(ops_.size()) + 2;
  if (phases > num_counters_) {
    counters_.reset(new std::atomic<int64_t>[phases]);
    num_counters_ = phases;
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
  copy_pages(step);
  meet();
  for (const Op& op : ops_) {
    run_op(op, step);
    meet();
  }
  const Value logits = ops_.back().out;
  share(step.sampling.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
      sampler.sample(kernels_, at(logits, step.sampling.logit_rows[row]), vocab(), step.sampling, row);
  });
}

void Plan::copy_pages(const Step& step) {
  share(static_cast<int64_t>(pages_.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t layer = first; layer < last; layer++) {
      const AttentionShape& shape = shapes_[layer];
      const int64_t page = shape.page_size * shape.kv_heads * shape.head_dim;
      for (int64_t i = 0; i < step.num_copies; i++) {
        const int64_t from = step.copies[2 * i], to = step.copies[2 * i + 1];
        std::memcpy(pages_[layer].keys + to * page, pages_[layer].keys + from * page, 2 * page);
        std::memcpy(pages_[layer].values + to * page, pages_[layer].values + from * page, 2 * page);
      }
    }
  });
}

void Plan::run_op(const Op& op, const Step& step) {
  if (op.kind == OpKind::kLinear) return run_linear(op, step);
  if (op.kind == OpKind::kAttention) return run_attention(op, step);
  const int64_t count = rows(op, step);
  // Pieces of about 4,000 elements: enough work to be worth fetching.
  const int64_t piece = std::max<int64_t>(1, 4096 / op.width);
  share(count, piece, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      float* out = at(op.out, row);
      switch (op.kind) {
        case OpKind::kEmbed:
          kernels_.unpack_row(weights_[op.index], op.by_position ? step.positions[row] : step.ids[row], op.width, out);
          break;
        case OpKind::kRmsNorm:
          kernels_.rms_norm(at(op.x, row), op.weight, op.factor, op.width / op.length, op.length, out);
          break;
        case OpKind::kLayerNorm:
          kernels_.layer_norm(at(op.x, row), op.weight, op.bias, op.factor, op.width, out);
          break;
        case OpKind::kRope: {
          const RotaryTable& table = rotary_[op.index];
          const int64_t offset = step.positions[row] * table.half;
          kernels_.rope(at(op.x, row), table.cosine + offset, table.sine + offset, op.width / (2 * table.half), table.half,
                        out);
          break;
        }
        case OpKind::kActivation:
          kernels_.activate(op.index, at(op.x, row), op.width, out);
          break;
        case OpKind::kAdd: {
          const float *x = at(op.x, row), *y = at(op.y, row);
          for (int64_t i = 0; i < op.width; i++) out[i] = x[i] + y[i];
          break;
        }
        case OpKind::kMultiply: {
          const float *x = at(op.x, row), *y = at(op.y, row);
          for (int64_t i = 0; i < op.width; i++) out[i] = x[i] * y[i];
          break;
        }
        case OpKind::kScale: {
          const float* x = at(op.x, row);
          for (int64_t i = 0; i < op.width; i++) out[i] = x[i] * op.factor;
          break;
        }
        case OpKind::kSelect:
          std::memcpy(out, at(op.x, step.rows[row]), 4 * op.width);
          break;
        default:
          break;
      }
    }
  });
}

void Plan::run_linear(const Op& op, const Step& step) {
  const Weight& weight = weights_[op.index];
  const int64_t count = rows(op, step);
  const float* residual = op.z.buffer < 0 ? nullptr : at(op.z, 0);
  const int64_t residual_stride = op.z.buffer < 0 ? 0 : stride(op.z);
  const bool quantised = weight.kind == WeightKind::kU4 || weight.kind == WeightKind::kS8;
  const int64_t blocks = weight.blocks();
  const int64_t passes = quantised && op.precise ? 2 : 1;
  if (quantised) {
    share(count, 4, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; row++) {
        int8_t* q = quantised_.data() + row * weight.in;
        float *scales = scales_.data() + row * blocks, *sums = sums_.data() + 2 * row * blocks;
        kernels_.quantise(at(op.x, row), op.length, weight.in, q, scales, sums);
        if (passes == 1) continue;
        // What rounding took away, rounded in turn: together about 15 bits.
        float* rest = rests_.data() + row * weight.in;
        for (int64_t i = 0; i < op.length; i++)
          rest[i] = at(op.x, row)[i] - scales[i / kBlock] * static_cast<float>(q[i]);
        kernels_.quantise(rest, op.length, weight.in, q + count * weight.in, scales + count * blocks,
                          sums + 2 * count * blocks);
      }
    });
    meet();
  }
  if (count == 0) return;
  const Quantised x{quantised_.data(), scales_.data(), sums_.data()};
  const Quantised rest{x.q + count * weight.in, x.scales + count * blocks, x.sums + 2 * count * blocks};
  const int64_t tiles = weight.tiles();
  const int64_t piece = std::max<int64_t>(1, std::min<int64_t>(16, tiles / (4 * team_.size)));
  share(tiles, piece, [&](int64_t first, int64_t last) {
    if (quantised) {
      kernels_.linear_quantised(weight, x, count, at(op.out, 0), stride(op.out), residual, residual_stride, first, last);
      if (passes == 2) {
        Weight unbiased = weight;
        unbiased.bias = nullptr;
        kernels_.linear_quantised(unbiased, rest, count, at(op.out, 0), stride(op.out), at(op.out, 0), stride(op.out),
                                  first, last);
      }
    } else
      kernels_.linear_float(weight, at(op.x, 0), stride(op.x), count, at(op.out, 0), stride(op.out), residual,
                            residual_stride, first, last);
  });
}

void Plan::run_attention(const Op& op, const Step& step) {
  const AttentionShape& shape = shapes_[op.index];
  const Pages& pages = pages_[op.index];
  const int64_t width = shape.kv_heads * shape.head_dim, group = shape.heads / shape.kv_heads;
  share(step.tokens, 8, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      kernels_.to_half(at(op.y, row), width, pages.keys + step.slots[row] * width);
      kernels_.to_half(at(op.z, row), width, pages.values + step.slots[row] * width);
    }
  });
  meet();
  share(step.tokens * shape.kv_heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; item++) {
      const int64_t row = item / shape.kv_heads, kv_head = item % shape.kv_heads;
      const int64_t sequence = sequence_of_token_[row];
      const int64_t offset = kv_head * group * shape.head_dim;
      kernels_.attend(shape, pages, step.page_table + step.table_rows[sequence] * step.table_width, step.positions[row],
                      kv_head, at(op.x, row) + offset, at(op.out, row) + offset);
    }
  });
}

}  // namespace octavo
