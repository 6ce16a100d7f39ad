// Attention over the pages of a sequence: online softmax in float32, all query heads of a KV head together.
//
// Tokens that stand one after the other share what they read: a chunk of keys and values becomes floats once for them all.
// Positions are taken in chunks that begin at multiples of kChunk, a chunk's scores in vectors of eight positions; each
// score and each output element is summed in one order, whatever the page size and the batch.

#include <algorithm>

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

// --- chunks ------------------------------------------------------------------------------------------------------------

template <typename T>
struct Chunk {
  const T* key[kVectors];  // of eight positions each; the next feature is `stride` further
  int64_t stride;
  const T* value[kChunk];
};

struct Scales {  // of kI8
  alignas(32) float key[kChunk], value[kChunk];
};

struct Floats {  // a chunk as floats
  alignas(32) float keys[kMaxHeadDim][kChunk];
  alignas(32) float values[kChunk][kMaxHeadDim];
};

// Positions [from, to) of the chunk. Whole vectors of keys are read: what is beyond the positions is masked later.
template <KvType type>
static void find_chunk(const KvLayer& kv, const int32_t* page_row, int64_t kv_head, int64_t chunk, int64_t from, int64_t to,
                       Chunk<typename Item<type>::Type>& found, Scales& scales) {
  typedef typename Item<type>::Type T;
  const int64_t size = kv.page_size;
  for (int64_t p = from; p < to;) {
    const Page<T> page = page_of<T>(kv, page_row[p / size], kv_head);
    const int64_t end = to < (p / size + 1) * size ? to : (p / size + 1) * size;
    for (int64_t at = p % size; p < end; p++, at++) {
      found.value[p - chunk] = page.values + at * kv.padded_dim();
      if (type == KvType::kI8) {
        scales.key[p - chunk] = page.key_scales[at];
        scales.value[p - chunk] = page.value_scales[at];
      }
    }
  }
  found.stride = size;
  if (size % kLanes == 0)
    for (int64_t p = chunk; p < to; p += kLanes)
      found.key[(p - chunk) / kLanes] = page_of<T>(kv, page_row[p / size], kv_head).keys + p % size;
}

template <KvType type>
static void convert_chunk(const KvLayer& kv, const int32_t* page_row, int64_t kv_head, int64_t chunk, int64_t from,
                          int64_t to, const Chunk<typename Item<type>::Type>& stored, Floats& floats, Chunk<float>& found) {
  typedef typename Item<type>::Type T;
  const int64_t size = kv.page_size;
  if (size % kLanes == 0) {
    for (int64_t v = 0; v * kLanes < to - chunk; v++)
      for (int64_t d = 0; d < kv.head_dim; d++)
        store(floats.keys[d] + v * kLanes, Item<type>::load8(stored.key[v] + d * size));
  } else {  // a vector of positions may lie in several pages
    std::memset(floats.keys, 0, sizeof floats.keys[0] * kv.head_dim);
    for (int64_t p = from; p < to; p++) {
      const T* key = page_of<T>(kv, page_row[p / size], kv_head).keys + p % size;
      for (int64_t d = 0; d < kv.head_dim; d++) {
        const T item[kLanes] = {key[d * size]};
        floats.keys[d][p - chunk] = Item<type>::load8(item)[0];
      }
    }
  }
  for (int64_t p = from - chunk; p < to - chunk; p++)
    for (int64_t d = 0; d < kv.padded_dim(); d += kLanes)
      store(floats.values[p] + d, Item<type>::load8(stored.value[p] + d));
  found.stride = kChunk;
  for (int64_t v = 0; v < kVectors; v++) found.key[v] = floats.keys[0] + v * kLanes;
  for (int64_t p = 0; p < kChunk; p++) found.value[p] = floats.values[p];
}

// --- attention ---------------------------------------------------------------------------------------------------------

// One token's heads over positions [from, to) of the chunk. `scales`: null where values need none.
template <KvType type>
static void attend_chunk(const KvLayer& kv, const Chunk<typename Item<type>::Type>& in, const Scales* scales, int64_t chunk,
                         int64_t from, int64_t to, int64_t heads, const float* q, Running& running) {
  const int64_t padded = kv.padded_dim(), vectors = (to - chunk + kLanes - 1) / kLanes;
  F8 scores[kHeads * kVectors];
  chunk_scores<typename Item<type>::Type, Item<type>::load8>(heads, q, kv.head_dim, in.key, vectors, in.stride, scores);
  alignas(32) float weight[kHeads][kChunk];
  float rescale[kHeads];
  for (int64_t h = 0; h < heads; h++) {
    float* s = weight[h];
    for (int64_t v = 0; v < vectors; v++) {
      F8 score = scores[h * kVectors + v] * splat(kv.scale);
      if (scales) score *= load(scales->key + 8 * v);
      store(s + 8 * v, score);
    }
    for (int64_t p = chunk; p < from; p++) s[p - chunk] = -INFINITY;
    for (int64_t i = to - chunk; i < kChunk; i++) s[i] = -INFINITY;
    F8 most = max8(max8(load(s), load(s + 8)), max8(load(s + 16), load(s + 24)));
    const float chunk_most = largest(most);
    const float peak = chunk_most > running.most[h] ? chunk_most : running.most[h];
    rescale[h] = running.most[h] == -INFINITY ? 0.0f : exp8(splat(running.most[h] - peak))[0];
    F8 e[kVectors], sums = splat(0.0f);
    OCTAVO_EACH(v, kVectors) e[v] = load(s + 8 * v) - splat(peak);
    exp8<kVectors>(e, e);
    OCTAVO_EACH(v, kVectors) {
      store(s + 8 * v, e[v]);
      sums += e[v];
    }
    running.weight[h] = running.weight[h] * rescale[h] + sum(sums);
    running.most[h] = peak;
    if (scales)
      for (int64_t i = from - chunk; i < to - chunk; i++) s[i] *= scales->value[i];
    if (from != chunk) std::memmove(s, s + (from - chunk), sizeof(float) * (to - from));
  }
  const auto* value = in.value + (from - chunk);
  const int64_t count = to - from;
  switch (heads) {
    case 1: return add_all_values<1, 8, type>(value, count, padded, weight, rescale, running);
    case 2: return add_all_values<2, 4, type>(value, count, padded, weight, rescale, running);
    case 3: return add_all_values<3, 4, type>(value, count, padded, weight, rescale, running);
    default: return add_all_values<4, 2, type>(value, count, padded, weight, rescale, running);
  }
}

template <KvType type>
static void attend_heads(const KvLayer& kv, const int32_t* page_row, int64_t position, int64_t rows, int64_t kv_head,
                         int64_t heads, const float* q, int64_t q_stride, float* output, int64_t output_stride) {
  // Too large for some systems' stacks.
  static thread_local Floats floats;
  static thread_local Running running[kMaxAttendRows];
  const int64_t dim = kv.head_dim, end = position + rows;
  const auto begin = [&](int64_t row) {
    return kv.window && position + row >= kv.window ? position + row - kv.window + 1 : 0;
  };
  for (int64_t row = 0; row < rows; row++)
    for (int64_t h = 0; h < heads; h++) {
      std::memset(running[row].total[h], 0, sizeof(float) * kv.padded_dim());
      running[row].most[h] = -INFINITY;
      running[row].weight[h] = 0.0f;
    }
  // Alone, a token converts what it reads in registers, where vectors of positions lie within a page.
  const bool converts = rows > 1 || kv.page_size % kLanes != 0;
  Scales scales = {};
  const Scales* used = type == KvType::kI8 ? &scales : nullptr;
  for (int64_t chunk = begin(0) / kChunk * kChunk; chunk < end; chunk += kChunk) {
    const int64_t from = std::max(chunk, begin(0)), to = std::min(chunk + kChunk, end);
    Chunk<typename Item<type>::Type> stored;
    find_chunk<type>(kv, page_row, kv_head, chunk, from, to, stored, scales);
    if (!converts) {
      attend_chunk<type>(kv, stored, used, chunk, from, to, heads, q, running[0]);
      continue;
    }
    Chunk<float> converted;
    convert_chunk<type>(kv, page_row, kv_head, chunk, from, to, stored, floats, converted);
    for (int64_t row = 0; row < rows; row++) {
      const int64_t first = std::max(chunk, begin(row)), last = std::min(to, position + row + 1);
      if (first < last)
        attend_chunk<KvType::kF32>(kv, converted, used, chunk, first, last, heads, q + row * q_stride, running[row]);
    }
  }
  for (int64_t row = 0; row < rows; row++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t i = 0; i < dim; i++)
        output[row * output_stride + h * dim + i] = running[row].total[h][i] / running[row].weight[h];
}

void attend(const KvLayer& kv, const int32_t* page_row, int64_t position, int64_t rows, int64_t kv_head,
            const float* queries, int64_t query_stride, float* output, int64_t output_stride) {
  const int64_t group = kv.heads / kv.kv_heads;
  for (int64_t head = 0; head < group; head += kHeads) {
    const int64_t heads = std::min(group - head, kHeads);
    const float* q = queries + head * kv.head_dim;
    float* out = output + head * kv.head_dim;
    const auto go = [&](auto attend_type) {
      attend_type(kv, page_row, position, rows, kv_head, heads, q, query_stride, out, output_stride);
    };
    switch (kv.type) {
      case KvType::kF32: go(attend_heads<KvType::kF32>); break;
      case KvType::kF16: go(attend_heads<KvType::kF16>); break;
      case KvType::kI8: go(attend_heads<KvType::kI8>); break;
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
