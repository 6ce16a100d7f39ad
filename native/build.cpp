// How a plan is put together: what its operations are, and which of them run without a barrier between them.

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "plan.h"

namespace octavo {

namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

template <typename T>
int32_t append(std::vector<T>& all, std::type_identity_t<T> one) {
  all.push_back(std::move(one));
  return static_cast<int32_t>(all.size()) - 1;
}

}  // namespace

int32_t Plan::add_buffer(int64_t width, bool selected) { return append(buffers_, {width, selected, Arena()}); }
int32_t Plan::add_weight(const Weight& weight) { return append(weights_, weight); }
int32_t Plan::add_layer(const KvLayer& layer) { return append(layers_, layer); }
int32_t Plan::add_rotary(const RotaryTable& table) { return append(rotary_, table); }

// --- operations ------------------------------------------------------------------------------------------------------

void Plan::embed(Value out, int32_t weight, bool by_position) {
  add_op({.kind = OpKind::kEmbed, .out = out, .index = weight, .by_position = by_position});
}

void Plan::linear_float(Value x, Value out, int32_t weight, Value residual) {
  require(!weights_.at(weight).quantised(), "a weight in integers multiplies integers");
  add_op({.kind = OpKind::kLinear, .x = x, .y = residual, .out = out, .index = weight});
}

void Plan::linear_quantised(Value out, int32_t weight, Value residual, bool gated) {
  require(weights_.at(weight).quantised(), "a weight in floats multiplies floats");
  add_op({.kind = OpKind::kLinear,
          .y = residual,
          .out = out,
          .index = weight,
          .records = gated ? 1 : 0,
          .residuals = gated ? 0 : residuals_});
}

void Plan::linear_gated(int32_t weight, Function function, int32_t reader, bool selected) {
  require(weights_.at(weight).quantised() && weights_.at(reader).quantised(), "gates are for weights in integers");
  add_op({.kind = OpKind::kGatedLinear,
          .index = weight,
          .reader = reader,
          .residuals = residuals_,
          .function = function,
          .selected = selected});
}

void Plan::rms_norm(Value x, Value out, const float* weight, int64_t length, float epsilon) {
  require(length > 0 && x.width == out.width && x.width % length == 0, "a norm needs whole runs of its weight");
  add_op({.kind = OpKind::kRmsNorm, .x = x, .out = out, .factor = epsilon, .length = length, .weight = weight});
}

void Plan::layer_norm(Value x, Value out, const float* weight, const float* bias, float epsilon) {
  require(x.width == out.width, "a norm keeps the width");
  add_op({.kind = OpKind::kLayerNorm, .x = x, .out = out, .factor = epsilon, .weight = weight, .bias = bias});
}

void Plan::rope(Value x, Value out, int32_t rotary) {
  require(x.width == out.width && x.width % (2 * rotary_.at(rotary).half) == 0, "heads are turned as a whole");
  add_op({.kind = OpKind::kRope, .x = x, .out = out, .index = rotary});
}

void Plan::store_kv(Value keys, Value values, int32_t layer) {
  const int64_t width = layers_.at(layer).kv_heads * layers_.at(layer).head_dim;
  require(keys.width == width && values.width == width, "keys and values are those of all KV heads");
  add_op({.kind = OpKind::kStoreKv, .x = keys, .y = values, .index = layer});
}

void Plan::attention(Value x, Value out, int32_t layer, int32_t reader) {
  const int64_t width = layers_.at(layer).heads * layers_.at(layer).head_dim;
  require(x.width == width && out.width == width, "queries and results are those of all heads");
  if (reader >= 0) residuals_ = 0;  // it is quantised by heads, and whole rows alone have residuals
  add_op({.kind = OpKind::kAttention, .x = x, .out = out, .index = layer, .reader = reader});
}

void Plan::activation(Value x, Value out, Function function, Value gate) {
  require(x.width == out.width && (!gate.exists() || gate.width == x.width), "an activation keeps the width");
  add_op({.kind = OpKind::kActivation, .x = x, .y = gate, .out = out, .function = function});
}

void Plan::add(Value x, Value y, Value out) {
  require(x.width == out.width && y.width == out.width, "a sum is of equal widths");
  add_op({.kind = OpKind::kAdd, .x = x, .y = y, .out = out});
}

void Plan::multiply(Value x, Value y, Value out) {
  require(x.width == out.width && y.width == out.width, "a product is of equal widths");
  add_op({.kind = OpKind::kMultiply, .x = x, .y = y, .out = out});
}

void Plan::scale(Value x, Value out, float factor) {
  require(x.width == out.width, "scaling keeps the width");
  add_op({.kind = OpKind::kScale, .x = x, .out = out, .factor = factor});
}

void Plan::select_rows(Value x, Value out) {
  require(x.width == out.width && is_selected(out), "selected rows are those of the logits");
  add_op({.kind = OpKind::kSelect, .x = x, .out = out});
}

void Plan::quantise(Value x, int32_t reader) {
  require(weights_.at(reader).quantised(), "a weight in floats multiplies floats");
  const Weight& weight = weights_[reader];
  residuals_ = weight.activations() == ActivationKind::k8 ? residuals_of(weight.blocks()) : 0;
  add_op({.kind = OpKind::kQuantise, .x = x, .reader = reader, .residuals = residuals_});
}

// --- phases ----------------------------------------------------------------------------------------------------------

void Plan::add_op(Op op) {
  const int64_t index = static_cast<int64_t>(ops_.size());
  // A gated linear has neither: what it reads and leaves are records.
  if (op.out.exists())
    op.selected = is_selected(op.out);
  else if (op.x.exists())
    op.selected = is_selected(op.x);
  // Rows may go on together as long as they are the same rows: a selection reads those of other threads.
  const bool joins = !ops_.empty() && op.is_row_wise() && ops_.back().is_row_wise() && op.kind != OpKind::kSelect &&
                     op.selected == ops_.back().selected;
  if (joins)
    phases_.back().last = index + 1;
  else
    phases_.push_back(Phase{index, index + 1, -1, false});
  if (op.kind == OpKind::kStoreKv) phases_.back().stores = index;
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
  require(!ops_.empty() && ops_.back().out.exists(), "a plan ends with logits");
  for (Phase& phase : phases_) {
    if (ops_[phase.last - 1].kind != OpKind::kQuantise) continue;
    const int32_t result = ops_[phase.last].out.buffer;  // of the linear, which a faster thread may already write
    phase.is_private = true;
    for (int64_t i = phase.first; i < phase.last; i++) {
      const Op& op = ops_[i];
      const bool survives = op.out.exists() && !is_dead_after(op.out.buffer, phase.last - 1);
      const bool is_overtaken = result >= 0 && (op.x.buffer == result || op.y.buffer == result);
      if (op.kind == OpKind::kStoreKv || survives || is_overtaken) phase.is_private = false;
    }
    if (!phase.is_private) continue;
    std::vector<int64_t> own(buffers_.size(), -1);
    int64_t floats = 0;
    for (int64_t i = phase.first; i < phase.last; i++) {
      Op& op = ops_[i];
      if (op.x.exists()) op.x.own = own[op.x.buffer];
      if (op.y.exists()) op.y.own = own[op.y.buffer];
      if (!op.out.exists()) continue;
      op.out.own = own[op.out.buffer] = floats;
      floats += buffers_[op.out.buffer].width;
    }
    own_floats_ = std::max(own_floats_, floats);
  }
}

}  // namespace octavo
