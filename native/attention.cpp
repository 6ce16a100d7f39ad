// Attention over the pages of a sequence: online softmax in float32, all query heads of a KV head together.
//
// Tokens that stand one after the other share what they read: a chunk of keys and values becomes floats once for them
// all. Positions are taken in chunks that begin at multiples of kChunk, a chunk's scores in vectors of neighbouring
// positions, and chunks in spans of kSpan positions, each with a softmax of its own, which are folded together in their
// order. So each score and each output element is summed in one order, whatever the page size, the batch, and the
// number of threads.

#include <algorithm>
#include <type_traits>

#include "ahead.h"
#include "variant.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t kHeads = 4;  // query heads of a KV head done at a time
#ifdef __AVX512F__
constexpr bool kManyRegisters = true;  // 32, enough for the sums of kHeads times kVectors vectors
#else
constexpr bool kManyRegisters = false;
#endif

// --- scores ----------------------------------------------------------------------------------------------------------

// scores[h * kVectors + v] = q[h] . keys of a vector of positions, for N heads and V vectors. `key[v]` is the first
// feature of the first position, the next feature is `stride` further.
template <int N, int V, typename T, F (*load_items)(const T*)>
static inline void dot_keys(const float* q, int64_t dim, const T* const* key, int64_t stride, F* scores, Ahead& ahead) {
  F total[N][V];
  OCTAVO_EACH(h, N)
    OCTAVO_EACH(v, V) total[h][v] = splat(0.0f);
  ahead.spread(dim);
  for (int64_t d = 0; d < dim; d++) {
    ahead.some();
    F one[N];
    OCTAVO_EACH(h, N) one[h] = splat(q[h * dim + d]);
    OCTAVO_EACH(v, V) {
      F k = load_items(key[v] + d * stride);
      OCTAVO_KEEP(k);
      OCTAVO_EACH(h, N) total[h][v] = fma(one[h], k, total[h][v]);
    }
  }
  OCTAVO_EACH(h, N)
    OCTAVO_EACH(v, V) scores[h * kVectors + v] = total[h][v];
}

// As many vectors at a time as leave room for their sums in the registers.
template <int N, typename T, F (*load_items)(const T*)>
static inline void all_keys(const float* q, int64_t dim, const T* const* key, int64_t vectors, int64_t stride,
                            F* scores, Ahead& ahead) {
  int64_t v = 0;
  if ((N < kHeads || kManyRegisters) && vectors == kVectors)
    return dot_keys<N, kVectors, T, load_items>(q, dim, key, stride, scores, ahead);
  for (; v + 2 <= vectors; v += 2) dot_keys<N, 2, T, load_items>(q, dim, key + v, stride, scores + v, ahead);
  if (v < vectors) dot_keys<N, 1, T, load_items>(q, dim, key + v, stride, scores + v, ahead);
}

template <typename T, F (*load_items)(const T*)>
static void chunk_scores(int64_t heads, const float* q, int64_t dim, const T* const* key, int64_t vectors,
                         int64_t stride, F* scores, Ahead& ahead) {
  switch (heads) {
    case 1: return all_keys<1, T, load_items>(q, dim, key, vectors, stride, scores, ahead);
    case 2: return all_keys<2, T, load_items>(q, dim, key, vectors, stride, scores, ahead);
    case 3: return all_keys<3, T, load_items>(q, dim, key, vectors, stride, scores, ahead);
    default: return all_keys<4, T, load_items>(q, dim, key, vectors, stride, scores, ahead);
  }
}

// --- values ----------------------------------------------------------------------------------------------------------

struct Running {                                  // the softmax so far, of each head
  alignas(64) float total[kHeads * kMaxHeadDim];  // [head][padded_dim]: heads far apart would share few sets of a cache
  float most[kHeads];
  float weight[kHeads];

  float* of(const KvLayer& kv, int64_t head) { return total + head * kv.padded_dim(); }
};

// total[h] = total[h] * rescale[h] + sum over positions of weight[h][p] * value[p], for N heads and V vectors of
// features.
template <int N, int V, KvType type>
static inline void add_values(const typename Item<type>::Type* const* value, int64_t count, int64_t feature,
                              int64_t padded, const float (*weight)[kChunk], const float* rescale, Running& running,
                              Ahead& ahead) {
  F total[N][V];
  OCTAVO_EACH(h, N)
    OCTAVO_EACH(v, V) total[h][v] = load(running.total + h * padded + feature + kLanes * v) * splat(rescale[h]);
  ahead.spread(count);
  for (int64_t p = 0; p < count; p++) {
    ahead.some();
    F one[N];
    OCTAVO_EACH(h, N) one[h] = splat(weight[h][p]);
    OCTAVO_EACH(v, V) {
      F x = Item<type>::load_items(value[p] + feature + kLanes * v);
      OCTAVO_KEEP(x);
      OCTAVO_EACH(h, N) total[h][v] = fma(one[h], x, total[h][v]);
    }
  }
  OCTAVO_EACH(h, N)
    OCTAVO_EACH(v, V) store(running.total + h * padded + feature + kLanes * v, total[h][v]);
}

template <int N, int V, KvType type>
static inline void add_all_values(const typename Item<type>::Type* const* value, int64_t count, int64_t padded,
                                  const float (*weight)[kChunk], const float* rescale, Running& running, Ahead& ahead) {
  int64_t feature = 0;
  for (; feature + kLanes * V <= padded; feature += kLanes * V)
    add_values<N, V, type>(value, count, feature, padded, weight, rescale, running, ahead);
  for (; feature < padded; feature += kLanes)
    add_values<N, 1, type>(value, count, feature, padded, weight, rescale, running, ahead);
}

// --- chunks ----------------------------------------------------------------------------------------------------------

template <typename T>
struct Chunk {
  const T* key[kVectors];  // of a vector of positions each; the next feature is `stride` further
  int64_t stride;
  const T* value[kChunk];
};

struct Scales {  // of kI8
  alignas(64) float key[kChunk], value[kChunk];
};

struct Floats {                                  // a chunk as floats
  alignas(64) float keys[kMaxHeadDim * kChunk];  // [head_dim][kChunk]
  alignas(
      64) float values[kChunk * kMaxHeadDim];  // [kChunk][padded_dim]: rows far apart would share few sets of a cache
};

// Positions [from, to) of the chunk. Whole vectors of keys are read: what is beyond the positions is masked later.
template <KvType type>
static void find_chunk(const KvLayer& kv, const int32_t* page_row, int64_t kv_head, int64_t chunk, int64_t from,
                       int64_t to, Chunk<typename Item<type>::Type>& found, Scales& scales) {
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
                          int64_t to, const Chunk<typename Item<type>::Type>& stored, Floats& floats,
                          Chunk<float>& found) {
  typedef typename Item<type>::Type T;
  const int64_t size = kv.page_size;
  if (size % kLanes == 0) {
    for (int64_t v = 0; v * kLanes < to - chunk; v++)
      for (int64_t d = 0; d < kv.head_dim; d++)
        store(floats.keys + d * kChunk + v * kLanes, Item<type>::load_items(stored.key[v] + d * size));
  } else {  // a vector of positions may lie in several pages
    std::memset(floats.keys, 0, sizeof(float) * kChunk * kv.head_dim);
    for (int64_t p = from; p < to; p++) {
      const T* key = page_of<T>(kv, page_row[p / size], kv_head).keys + p % size;
      for (int64_t d = 0; d < kv.head_dim; d++) {
        const T item[kLanes] = {key[d * size]};
        floats.keys[d * kChunk + p - chunk] = Item<type>::load_items(item)[0];
      }
    }
  }
  for (int64_t p = from - chunk; p < to - chunk; p++)
    for (int64_t d = 0; d < kv.padded_dim(); d += kLanes)
      store(floats.values + p * kv.padded_dim() + d, Item<type>::load_items(stored.value[p] + d));
  found.stride = kChunk;
  for (int64_t v = 0; v < kVectors; v++) found.key[v] = floats.keys + v * kLanes;
  for (int64_t p = 0; p < kChunk; p++) found.value[p] = floats.values + p * kv.padded_dim();
}

// --- attention -------------------------------------------------------------------------------------------------------

struct Reads {  // the next chunk's keys while the scores of this one are computed, then its values
  Ahead keys, values;
};

// One token's heads over positions [from, to) of the chunk. `scales`: null where values need none.
template <KvType type>
static void attend_chunk(const KvLayer& kv, const Chunk<typename Item<type>::Type>& in, const Scales* scales,
                         int64_t chunk, int64_t from, int64_t to, int64_t heads, const float* q, Running& running,
                         Reads& reads) {
  const int64_t padded = kv.padded_dim(), vectors = (to - chunk + kLanes - 1) / kLanes;
  F scores[kHeads * kVectors];
  chunk_scores<typename Item<type>::Type, Item<type>::load_items>(heads, q, kv.head_dim, in.key, vectors, in.stride,
                                                                  scores, reads.keys);
  alignas(64) float weight[kHeads][kChunk];
  float rescale[kHeads];
  for (int64_t h = 0; h < heads; h++) {
    float* s = weight[h];
    for (int64_t v = 0; v < vectors; v++) {
      F score = scores[h * kVectors + v] * splat(kv.scale);
      if (scales) score *= load(scales->key + kLanes * v);
      store(s + kLanes * v, score);
    }
    for (int64_t p = chunk; p < from; p++) s[p - chunk] = -INFINITY;
    for (int64_t i = to - chunk; i < kChunk; i++) s[i] = -INFINITY;
    F most = load(s);
    for (int64_t v = 1; v < kVectors; v++) most = larger(most, load(s + kLanes * v));
    const float chunk_most = largest(most);
    const float peak = chunk_most > running.most[h] ? chunk_most : running.most[h];
    rescale[h] = running.most[h] == -INFINITY ? 0.0f : exp_of(splat(running.most[h] - peak))[0];
    F e[kVectors], sums = splat(0.0f);
    OCTAVO_EACH(v, kVectors) e[v] = load(s + kLanes * v) - splat(peak);
    exp_of<kVectors>(e, e);
    OCTAVO_EACH(v, kVectors) {
      store(s + kLanes * v, e[v]);
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
    case 1: return add_all_values<1, 8, type>(value, count, padded, weight, rescale, running, reads.values);
    case 2: return add_all_values<2, 4, type>(value, count, padded, weight, rescale, running, reads.values);
    case 3: return add_all_values<3, 4, type>(value, count, padded, weight, rescale, running, reads.values);
    default:
      return add_all_values<4, kManyRegisters ? 4 : 2, type>(value, count, padded, weight, rescale, running,
                                                             reads.values);
  }
}

static inline int64_t begin_of(const KvLayer& kv, int64_t position) {  // of what a token sees
  return kv.window && position >= kv.window ? position - kv.window + 1 : 0;
}

// What two spans of positions came to, the second one after the first: `total` has `count` features.
static void fold(float* total, float& most, float& weight, const float* other, float other_most, float other_weight,
                 int64_t count) {
  if (other_weight == 0.0f) return;
  if (weight == 0.0f) {
    std::memcpy(total, other, sizeof(float) * count);
    most = other_most, weight = other_weight;
    return;
  }
  const float peak = other_most > most ? other_most : most;
  const F factor = exp_of(splat(most - peak)), other_factor = exp_of(splat(other_most - peak));
  for (int64_t i = 0; i < count; i += kLanes)
    store(total + i, fma(load(other + i), other_factor, load(total + i) * factor));
  weight = weight * factor[0] + other_weight * other_factor[0];
  most = peak;
}

static inline int64_t heads_from(const KvLayer& kv, int64_t head) { return std::min(kv.group() - head, kHeads); }

// The heads of KV head `kv_head` from `head` of its group on, over the positions of one span, for every token.
// `end`: of the positions that are read, in this span and after it. `next`: what is read then.
template <KvType type>
static void attend_span_heads(const KvLayer& kv, const Tokens& tokens, int64_t kv_head, int64_t head, int64_t span,
                              int64_t end, const Work& next, Running* running) {
  typedef typename Item<type>::Type T;
  static thread_local Floats floats;  // too large for some systems' stacks
  const int64_t heads = heads_from(kv, head);
  const float* q = tokens.queries + (kv_head * kv.group() + head) * kv.head_dim;
  const auto begin = [&](int64_t row) { return begin_of(kv, tokens.position + row); };
  for (int64_t row = 0; row < tokens.rows; row++)
    for (int64_t h = 0; h < heads; h++) {
      std::memset(running[row].of(kv, h), 0, sizeof(float) * kv.padded_dim());
      running[row].most[h] = -INFINITY;
      running[row].weight[h] = 0.0f;
    }
  // Alone, a token converts what it reads in registers, where vectors of positions lie within a page.
  const bool converts = tokens.rows > 1 || kv.page_size % kLanes != 0;
  Reads reads;
  Scales scales = {};
  const Scales* used = type == KvType::kI8 ? &scales : nullptr;
  const int64_t start = std::max(begin(0) / kChunk * kChunk, span * kSpan), stop = std::min(end, (span + 1) * kSpan);
  for (int64_t chunk = start; chunk < stop; chunk += kChunk) {
    const int64_t from = std::max(chunk, begin(0)), to = std::min(chunk + kChunk, end);
    Chunk<T> stored;
    find_chunk<type>(kv, tokens.page_row, kv_head, chunk, from, to, stored, scales);
    if (!converts) {
      const Work ahead = chunk + kChunk < end ? Work{tokens.page_row, kv_head, chunk + kChunk, end} : next;
      reads.keys.begin<T>(true, kv, ahead);
      reads.values.begin<T>(false, kv, ahead);
      attend_chunk<type>(kv, stored, used, chunk, from, to, heads, q, running[0], reads);
      continue;
    }
    Chunk<float> converted;
    convert_chunk<type>(kv, tokens.page_row, kv_head, chunk, from, to, stored, floats, converted);
    for (int64_t row = 0; row < tokens.rows; row++) {
      const int64_t first = std::max(chunk, begin(row)), last = std::min(to, tokens.position + row + 1);
      if (first < last)
        attend_chunk<KvType::kF32>(kv, converted, used, chunk, first, last, heads, q + row * tokens.query_stride,
                                   running[row], reads);
    }
  }
}

// go(kind of the KV, as a constant)
template <typename Go>
static inline void choose(KvType type, Go go) {
  switch (type) {
    case KvType::kF32: return go(std::integral_constant<KvType, KvType::kF32>());
    case KvType::kF16: return go(std::integral_constant<KvType, KvType::kF16>());
    case KvType::kI8: return go(std::integral_constant<KvType, KvType::kI8>());
  }
}

static void write_output(const KvLayer& kv, const Tokens& tokens, int64_t row, int64_t head, const float* total,
                         float weight) {
  float* out = tokens.output + row * tokens.output_stride + head * kv.head_dim;
  for (int64_t i = 0; i < kv.head_dim; i++) out[i] = total[i] / weight;
}

void attend(const KvLayer& kv, const Tokens& tokens, int64_t first, int64_t last, const Tokens* then,
            int64_t then_first) {
  static thread_local Running whole[kMaxAttendRows], running[kMaxAttendRows];
  const auto work = [&](const Tokens& some, int64_t kv_head) {
    return Work{some.page_row, kv_head, begin_of(kv, some.position), some.position + some.rows};
  };
  const int64_t end = tokens.position + tokens.rows;
  const int64_t first_span = begin_of(kv, tokens.position) / kSpan, last_span = (end - 1) / kSpan;
  for (int64_t kv_head = first; kv_head < last; kv_head++)
    for (int64_t head = 0; head < kv.group(); head += kHeads) {
      const bool ends = head + kHeads >= kv.group();
      const Work next = !ends                ? work(tokens, kv_head)
                        : kv_head + 1 < last ? work(tokens, kv_head + 1)
                        : then               ? work(*then, then_first)
                                             : Work{tokens.page_row, 0, 0, 0};
      const int64_t heads = heads_from(kv, head);
      for (int64_t span = first_span; span <= last_span; span++) {
        choose(kv.type, [&](auto type) {
          attend_span_heads<type>(kv, tokens, kv_head, head, span, end, next, span == first_span ? whole : running);
        });
        if (span > first_span)
          for (int64_t row = 0; row < tokens.rows; row++)
            for (int64_t h = 0; h < heads; h++)
              fold(whole[row].of(kv, h), whole[row].most[h], whole[row].weight[h], running[row].of(kv, h),
                   running[row].most[h], running[row].weight[h], kv.padded_dim());
      }
      for (int64_t row = 0; row < tokens.rows; row++)
        for (int64_t h = 0; h < heads; h++)
          write_output(kv, tokens, row, kv_head * kv.group() + head + h, whole[row].of(kv, h), whole[row].weight[h]);
    }
}

void attend_span(const KvLayer& kv, const Tokens& token, int64_t kv_head, int64_t span, float* part) {
  static thread_local Running running[1];
  const int64_t end = std::min(token.position + 1, (span + 1) * kSpan);
  for (int64_t head = 0; head < kv.group(); head += kHeads) {
    choose(kv.type, [&](auto type) {
      attend_span_heads<type>(kv, token, kv_head, head, span, end, Work{token.page_row, 0, 0, 0}, running);
    });
    for (int64_t h = 0; h < heads_from(kv, head); h++, part += kv.part_floats()) {
      std::memcpy(part, running[0].of(kv, h), sizeof(float) * kv.padded_dim());
      part[kv.padded_dim()] = running[0].most[h], part[kv.padded_dim() + 1] = running[0].weight[h];
    }
  }
}

void fold_spans(const KvLayer& kv, const Tokens& token, int64_t kv_head, float* parts, int64_t spans, int64_t stride) {
  const int64_t count = kv.padded_dim();
  for (int64_t h = 0; h < kv.group(); h++, parts += kv.part_floats()) {
    for (int64_t span = 1; span < spans; span++) {
      const float* other = parts + span * stride;
      fold(parts, parts[count], parts[count + 1], other, other[count], other[count + 1], count);
    }
    write_output(kv, token, 0, kv_head * kv.group() + h, parts, parts[count + 1]);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
