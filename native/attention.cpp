// Attention of one token over the pages of its sequence: online softmax in float32, all query heads of a KV head together.
//
// Positions are taken in chunks that begin at multiples of kChunk, a chunk's scores in vectors of eight positions; each
// score and each output element is summed in one order, whatever the page size and the batch.

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t kChunk = 32;  // positions between two rescalings of the softmax
constexpr int64_t kLanes = 8;   // positions in a vector
constexpr int64_t kVectors = kChunk / kLanes;
constexpr int64_t kHeads = 4;   // query heads of a KV head done at a time

template <KvType type>
struct Item;
template <>
struct Item<KvType::kF32> {
  typedef float Type;
  static F8 load8(const float* p) { return load(p); }
};
template <>
struct Item<KvType::kF16> {
  typedef uint16_t Type;
  static F8 load8(const uint16_t* p) { return load_half(p); }
};
template <>
struct Item<KvType::kI8> {
  typedef int8_t Type;
  static F8 load8(const int8_t* p) { return load_byte(p); }
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

// --- writing -----------------------------------------------------------------------------------------------------------

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

// --- scores ------------------------------------------------------------------------------------------------------------

// scores[h * kVectors + v] = q[h] . keys of eight positions, for N heads and V vectors of positions. `key[v]` is the first
// feature of the first position, the next feature is `stride` further.
template <int N, int V, typename T, F8 (*load8)(const T*)>
static inline void dot_keys(const float* q, int64_t dim, const T* const* key, int64_t stride, F8* scores) {
  F8 total[N][V];
  OCTAVO_EACH(h, N)
    OCTAVO_EACH(v, V) total[h][v] = splat(0.0f);
  for (int64_t d = 0; d < dim; d++) {
    F8 one[N];
    OCTAVO_EACH(h, N) one[h] = splat(q[h * dim + d]);
    OCTAVO_EACH(v, V) {
      const F8 k = load8(key[v] + d * stride);
      OCTAVO_EACH(h, N) total[h][v] = fma(one[h], k, total[h][v]);
    }
  }
  OCTAVO_EACH(h, N)
    OCTAVO_EACH(v, V) scores[h * kVectors + v] = total[h][v];
}

// As many vectors at a time as leave room for their sums in sixteen registers.
template <int N, typename T, F8 (*load8)(const T*)>
static inline void all_keys(const float* q, int64_t dim, const T* const* key, int64_t vectors, int64_t stride, F8* scores) {
  int64_t v = 0;
  if (N < kHeads && vectors == kVectors) return dot_keys<N, kVectors, T, load8>(q, dim, key, stride, scores);
  for (; v + 2 <= vectors; v += 2) dot_keys<N, 2, T, load8>(q, dim, key + v, stride, scores + v);
  if (v < vectors) dot_keys<N, 1, T, load8>(q, dim, key + v, stride, scores + v);
}

template <typename T, F8 (*load8)(const T*)>
static void chunk_scores(int64_t heads, const float* q, int64_t dim, const T* const* key, int64_t vectors, int64_t stride,
                         F8* scores) {
  switch (heads) {
    case 1: return all_keys<1, T, load8>(q, dim, key, vectors, stride, scores);
    case 2: return all_keys<2, T, load8>(q, dim, key, vectors, stride, scores);
    case 3: return all_keys<3, T, load8>(q, dim, key, vectors, stride, scores);
    default: return all_keys<4, T, load8>(q, dim, key, vectors, stride, scores);
  }
}

static inline F8 load_float(const float* p) { return load(p); }

// --- values ------------------------------------------------------------------------------------------------------------

struct Running {  // the softmax so far, of each head
  alignas(32) float total[kHeads][kMaxHeadDim];
  float most[kHeads];
  float weight[kHeads];
};

// total[h] = total[h] * rescale[h] + sum over positions of weight[h][p] * value[p], for N heads and V vectors of features.
template <int N, int V, KvType type>
static inline void add_values(const typename Item<type>::Type* const* value, int64_t count, int64_t feature,
                              const float (*weight)[kChunk], const float* rescale, Running& running) {
  F8 total[N][V];
  OCTAVO_EACH(h, N)
    OCTAVO_EACH(v, V) total[h][v] = load(running.total[h] + feature + 8 * v) * splat(rescale[h]);
  for (int64_t p = 0; p < count; p++) {
    F8 one[N];
    OCTAVO_EACH(h, N) one[h] = splat(weight[h][p]);
    OCTAVO_EACH(v, V) {
      const F8 x = Item<type>::load8(value[p] + feature + 8 * v);
      OCTAVO_EACH(h, N) total[h][v] = fma(one[h], x, total[h][v]);
    }
  }
  OCTAVO_EACH(h, N)
    OCTAVO_EACH(v, V) store(running.total[h] + feature + 8 * v, total[h][v]);
}

template <int N, int V, KvType type>
static inline void add_all_values(const typename Item<type>::Type* const* value, int64_t count, int64_t padded,
                                  const float (*weight)[kChunk], const float* rescale, Running& running) {
  int64_t feature = 0;
  for (; feature + 8 * V <= padded; feature += 8 * V)
    add_values<N, V, type>(value, count, feature, weight, rescale, running);
  for (; feature < padded; feature += 8) add_values<N, 1, type>(value, count, feature, weight, rescale, running);
}

// --- attention ---------------------------------------------------------------------------------------------------------

template <KvType type>
static void attend_heads(const KvLayer& kv, const int32_t* page_row, int64_t position, int64_t kv_head, int64_t heads,
                         const float* q, float* output) {
  typedef typename Item<type>::Type T;
  const int64_t dim = kv.head_dim, padded = kv.padded_dim(), size = kv.page_size;
  const int64_t begin = kv.window && position >= kv.window ? position - kv.window + 1 : 0;
  // A vector of positions lies within a page where the page size allows it; else it is gathered.
  const bool together = size % kLanes == 0;
  Running running;
  for (int64_t h = 0; h < heads; h++) {
    std::memset(running.total[h], 0, sizeof(float) * padded);
    running.most[h] = -INFINITY;
    running.weight[h] = 0.0f;
  }
  for (int64_t chunk = begin / kChunk * kChunk; chunk <= position; chunk += kChunk) {
    const int64_t from = chunk < begin ? begin : chunk;
    const int64_t to = chunk + kChunk <= position ? chunk + kChunk : position + 1;
    const int64_t vectors = (to - chunk + kLanes - 1) / kLanes;
    F8 scores[kHeads * kVectors];
    const T* value[kChunk];
    alignas(32) float key_scale[kChunk] = {}, value_scale[kChunk] = {};
    for (int64_t p = from; p < to;) {
      const Page<T> page = page_of<T>(kv, page_row[p / size], kv_head);
      const int64_t end = to < (p / size + 1) * size ? to : (p / size + 1) * size;
      for (int64_t at = p % size; p < end; p++, at++) {
        value[p - from] = page.values + at * padded;
        if (type == KvType::kI8) {
          key_scale[p - chunk] = page.key_scales[at];
          value_scale[p - from] = page.value_scales[at];
        }
      }
    }
    if (together) {
      const T* key[kVectors];
      for (int64_t v = 0; v < vectors; v++) {
        const int64_t p = chunk + v * kLanes;
        key[v] = page_of<T>(kv, page_row[p / size], kv_head).keys + p % size;
      }
      chunk_scores<T, Item<type>::load8>(heads, q, dim, key, vectors, size, scores);
    } else {
      alignas(32) float gathered[kMaxHeadDim][kLanes] = {};
      for (int64_t v = 0; v < vectors; v++) {
        for (int64_t p = chunk + v * kLanes; p < to && p < chunk + (v + 1) * kLanes; p++) {
          if (p < from) continue;
          const T* one = page_of<T>(kv, page_row[p / size], kv_head).keys + p % size;
          for (int64_t d = 0; d < dim; d++) {
            T item[kLanes] = {one[d * size]};
            gathered[d][p % kLanes] = Item<type>::load8(item)[0];
          }
        }
        const float* key = gathered[0];
        chunk_scores<float, load_float>(heads, q, dim, &key, 1, kLanes, scores + v);
      }
    }
    alignas(32) float weight[kHeads][kChunk];
    float rescale[kHeads];
    for (int64_t h = 0; h < heads; h++) {
      float* s = weight[h];
      for (int64_t v = 0; v < vectors; v++) {
        F8 score = scores[h * kVectors + v] * splat(kv.scale);
        if (type == KvType::kI8) score *= load(key_scale + 8 * v);
        store(s + 8 * v, score);
      }
      for (int64_t p = chunk; p < from; p++) s[p - chunk] = -INFINITY;
      for (int64_t i = to - chunk; i < kChunk; i++) s[i] = -INFINITY;
      F8 most = max8(max8(load(s), load(s + 8)), max8(load(s + 16), load(s + 24)));
      const float chunk_most = largest(most);
      const float peak = chunk_most > running.most[h] ? chunk_most : running.most[h];
      rescale[h] = running.most[h] == -INFINITY ? 0.0f : exp8(splat(running.most[h] - peak))[0];
      F8 sums = splat(0.0f);
      for (int64_t i = 0; i < kChunk; i += 8) {
        const F8 e = exp8(load(s + i) - splat(peak));
        store(s + i, e);
        sums += e;
      }
      running.weight[h] = running.weight[h] * rescale[h] + sum(sums);
      running.most[h] = peak;
      if (from != chunk) std::memmove(s, s + (from - chunk), sizeof(float) * (to - from));
      if (type == KvType::kI8)
        for (int64_t i = 0; i < to - from; i++) s[i] *= value_scale[i];
    }
    const int64_t count = to - from;
    switch (heads) {
      case 1: add_all_values<1, 8, type>(value, count, padded, weight, rescale, running); break;
      case 2: add_all_values<2, 4, type>(value, count, padded, weight, rescale, running); break;
      case 3: add_all_values<3, 4, type>(value, count, padded, weight, rescale, running); break;
      default: add_all_values<4, 2, type>(value, count, padded, weight, rescale, running); break;
    }
  }
  for (int64_t h = 0; h < heads; h++)
    for (int64_t i = 0; i < dim; i++) output[h * dim + i] = running.total[h][i] / running.weight[h];
}

void attend(const KvLayer& kv, const int32_t* page_row, int64_t position, int64_t kv_head, const float* queries,
            float* output) {
  const int64_t group = kv.heads / kv.kv_heads;
  for (int64_t head = 0; head < group; head += kHeads) {
    const int64_t heads = group - head < kHeads ? group - head : kHeads;
    const float* q = queries + head * kv.head_dim;
    float* out = output + head * kv.head_dim;
    switch (kv.type) {
      case KvType::kF32: attend_heads<KvType::kF32>(kv, page_row, position, kv_head, heads, q, out); break;
      case KvType::kF16: attend_heads<KvType::kF16>(kv, page_row, position, kv_head, heads, q, out); break;
      case KvType::kI8: attend_heads<KvType::kI8>(kv, page_row, position, kv_head, heads, q, out); break;
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
