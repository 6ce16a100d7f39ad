// Keys and values in a page, and how vectors of them become floats. Included by the kernels alone.

#pragma once

#include "kernels.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

template <KvType type>
struct Item;
template <>
struct Item<KvType::kF32> {
  typedef float Type;
  static F load_items(const float* p) { return load(p); }
};
template <>
struct Item<KvType::kF16> {
  typedef uint16_t Type;
  static F load_items(const uint16_t* p) { return load_half(p); }
};
template <>
struct Item<KvType::kI8> {
  typedef int8_t Type;
  static F load_items(const int8_t* p) { return load_byte(p); }
};

template <typename T>
struct Page {
  T *keys, *values;  // of one KV head
  float *key_scales, *value_scales;
};

template <typename T>
static inline Page<T> page_of(const KvLayer& kv, int64_t page, int64_t kv_head) {
  uint8_t* base = kv.pages + page * kv.page_bytes();
  uint8_t* scales = base + kv.key_bytes() + kv.value_bytes();
  return {reinterpret_cast<T*>(base) + kv_head * kv.head_dim * kv.page_size,
          reinterpret_cast<T*>(base + kv.key_bytes()) + kv_head * kv.page_size * kv.padded_dim(),
          reinterpret_cast<float*>(scales) + kv_head * kv.page_size,
          reinterpret_cast<float*>(scales + kv.scale_bytes()) + kv_head * kv.page_size};
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
