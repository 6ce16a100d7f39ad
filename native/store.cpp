// A token's keys and values on their way into a page.

#include "pages.h"
#include "variant.h"

namespace octavo {
namespace OCTAVO_ISA {

// Of a head in 8 bits. What is not finite must not become a number: the scale is then NaN.
static inline float scale_of(const float* x, int64_t count) {
  float most = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < count; i++) {
    most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    finite &= std::isfinite(x[i]);
  }
  return finite ? most / 127.0f : NAN;
}

static inline int8_t to_byte(float x, float scale) {
  return static_cast<int8_t>(scale > 1e-35f ? std::nearbyint(x / scale) : 0.0f);
}

void store_kv(const KvLayer& kv, const float* keys, const float* values, int64_t slot) {
  const int64_t page = slot / kv.page_size, at = slot % kv.page_size, dim = kv.head_dim, padded = kv.padded_dim();
  for (int64_t head = 0; head < kv.kv_heads; head++, keys += dim, values += dim) {
    if (kv.type == KvType::kF32) {
      const Page<float> to = page_of<float>(kv, page, head);
      for (int64_t i = 0; i < dim; i++) to.keys[i * kv.page_size + at] = keys[i];
      std::memcpy(to.values + at * padded, values, sizeof(float) * dim);
    } else if (kv.type == KvType::kF16) {
      const Page<uint16_t> to = page_of<uint16_t>(kv, page, head);
      uint16_t halves[kMaxHeadDim];
      to_half(keys, dim, halves);
      for (int64_t i = 0; i < dim; i++) to.keys[i * kv.page_size + at] = halves[i];
      to_half(values, dim, to.values + at * padded);
    } else {
      const Page<int8_t> to = page_of<int8_t>(kv, page, head);
      const float key_scale = scale_of(keys, dim), value_scale = scale_of(values, dim);
      for (int64_t i = 0; i < dim; i++) to.keys[i * kv.page_size + at] = to_byte(keys[i], key_scale);
      for (int64_t i = 0; i < dim; i++) to.values[at * padded + i] = to_byte(values[i], value_scale);
      to.key_scales[at] = key_scale;
      to.value_scales[at] = value_scale;
    }
  }
}

void fetch_slot(const KvLayer& kv, int64_t slot) {
  const int64_t item = kv.item_bytes(), features = kv.kv_heads * kv.head_dim, row = kv.page_size * item;
  const uint8_t* page = kv.pages + slot / kv.page_size * kv.page_bytes();
  // Of every feature one key: in each cache line, where these are larger than a page's row, in the line of the slot.
  const uint8_t* keys = page + slot % kv.page_size * item;
  const int64_t step = row < 64 ? 64 / row : 1;
  for (int64_t feature = 0; feature < features; feature += step) __builtin_prefetch(keys + feature * row, 1);
  const int64_t token = kv.padded_dim() * item;
  const uint8_t* values = page + kv.key_bytes() + slot % kv.page_size * token;
  for (int64_t head = 0; head < kv.kv_heads; head++, values += kv.page_size * token)
    for (int64_t line = 0; line < token; line += 64) __builtin_prefetch(values + line, 1);
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
