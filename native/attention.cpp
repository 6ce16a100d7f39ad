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

struct Queries {  // some heads of a token, side by side
  const float* q;
  int64_t heads, dim;
};

template <typename T>
struct Keys {  // vectors of positions: the first feature of each, the next one is `stride` further
  const T* const* key;
  int64_t vectors, stride;
};

// As many vectors at a time as leave room for their sums in the registers.
template <int N, typename T, F (*load_items)(const T*)>
static inline void all_keys(Queries in, Keys<T> keys, F* scores, Ahead& ahead) {
  if ((N < kHeads || kManyRegisters) && keys.vectors == kVectors)
    return dot_keys<N, kVectors, T, load_items>(in.q, in.dim, keys.key, keys.stride, scores, ahead);
  int64_t v = 0;
  for (; v + 2 <= keys.vectors; v += 2)
    dot_keys<N, 2, T, load_items>(in.q, in.dim, keys.key + v, keys.stride, scores + v, ahead);
  if (v < keys.vectors) dot_keys<N, 1, T, load_items>(in.q, in.dim, keys.key + v, keys.stride, scores + v, ahead);
}

// By itself: within a larger function what `ahead` counts with would leave the registers.
template <typename T, F (*load_items)(const T*)>
static __attribute__((noinline)) void chunk_scores(Queries in, Keys<T> keys, F* scores, Ahead& ahead) {
  switch (in.heads) {
    case 1: return all_keys<1, T, load_items>(in, keys, scores, ahead);
    case 2: return all_keys<2, T, load_items>(in, keys, scores, ahead);
    case 3: return all_keys<3, T, load_items>(in, keys, scores, ahead);
    default: return all_keys<4, T, load_items>(in, keys, scores, ahead);
  }
}

// --- values ----------------------------------------------------------------------------------------------------------

struct Partial {         // what some positions came to for one head
  float* total;          // [padded_dim], values by their weights
  float &most, &weight;  // the largest score, and the sum of the weights exp(score - most)
};

struct Running {                                  // the softmax so far, of each head
  alignas(64) float total[kHeads * kMaxHeadDim];  // [head][padded_dim]: heads far apart would share few sets of a cache
  float most[kHeads];
  float weight[kHeads];

  Partial of(const KvLayer& kv, int64_t head) { return {total + head * kv.padded_dim(), most[head], weight[head]}; }
};

template <typename T>
struct Values {  // of some positions, with their weights for each head
  const T* const* value;
  int64_t count, padded;
  const float (*weight)[kChunk];
  const float* rescale;  // what there is of a head is multiplied by
};

// total[h] = total[h] * rescale[h] + sum over positions of weight[h][p] * value[p], for N heads and V vectors of
// features.
template <int N, int V, KvType type>
static inline void add_values(Values<typename Item<type>::Type> in, int64_t feature, Running& running, Ahead& ahead) {
  const auto [value, count, padded, weight, rescale] = in;
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
static inline void add_all_values(Values<typename Item<type>::Type> in, Running& running, Ahead& ahead) {
  int64_t feature = 0;
  for (; feature + kLanes * V <= in.padded; feature += kLanes * V) add_values<N, V, type>(in, feature, running, ahead);
  for (; feature < in.padded; feature += kLanes) add_values<N, 1, type>(in, feature, running, ahead);
}

// --- chunks ----------------------------------------------------------------------------------------------------------

struct KvHead {  // of a sequence
  const KvLayer& kv;
  const int32_t* page_row;
  int64_t index;

  template <typename T>
  Page<T> page_of_position(int64_t position) const {
    return page_of<T>(kv, page_row[position / kv.page_size], index);
  }
};

struct Positions {  // [from, to) of the chunk that begins at `chunk`
  int64_t chunk, from, to;
};

struct Scales {  // of kI8
  alignas(64) float key[kChunk], value[kChunk];
};

template <typename T>
struct Chunk {
  const T* key[kVectors];  // of a vector of positions each; the next feature is `stride` further
  int64_t stride;
  const T* value[kChunk];
  const Scales* scales;  // null: keys and values need none
};

struct Floats {                                  // a chunk as floats
  alignas(64) float keys[kMaxHeadDim * kChunk];  // [head_dim][kChunk]
  alignas(
      64) float values[kChunk * kMaxHeadDim];  // [kChunk][padded_dim]: rows far apart would share few sets of a cache
};

// Whole vectors of keys are read: what is beyond the positions is masked later.
template <KvType type>
static void find_chunk(const KvHead& head, Positions seen, Chunk<typename Item<type>::Type>& found, Scales& scales) {
  typedef typename Item<type>::Type T;
  const auto [chunk, from, to] = seen;
  const int64_t size = head.kv.page_size, padded = head.kv.padded_dim();
  for (int64_t p = from; p < to;) {
    const Page<T> page = head.page_of_position<T>(p);
    const int64_t end = to < (p / size + 1) * size ? to : (p / size + 1) * size;
    for (int64_t at = p % size; p < end; p++, at++) {
      found.value[p - chunk] = page.values + at * padded;
      if (type == KvType::kI8) {
        scales.key[p - chunk] = page.key_scales[at];
        scales.value[p - chunk] = page.value_scales[at];
      }
    }
  }
  found.stride = size;
  found.scales = type == KvType::kI8 ? &scales : nullptr;
  if (size % kLanes == 0)
    for (int64_t p = chunk; p < to; p += kLanes)
      found.key[(p - chunk) / kLanes] = head.page_of_position<T>(p).keys + p % size;
}

template <KvType type>
static void convert_chunk(const KvHead& head, Positions seen, const Chunk<typename Item<type>::Type>& stored,
                          Floats& floats, Chunk<float>& found) {
  typedef typename Item<type>::Type T;
  const auto [chunk, from, to] = seen;
  const KvLayer& kv = head.kv;
  const int64_t size = kv.page_size;
  if (size % kLanes == 0) {
    for (int64_t v = 0; v * kLanes < to - chunk; v++)
      for (int64_t d = 0; d < kv.head_dim; d++)
        store(floats.keys + d * kChunk + v * kLanes, Item<type>::load_items(stored.key[v] + d * size));
  } else {  // a vector of positions may lie in several pages
    std::memset(floats.keys, 0, sizeof(float) * kChunk * kv.head_dim);
    for (int64_t p = from; p < to; p++) {
      const T* key = head.page_of_position<T>(p).keys + p % size;
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
  found.scales = stored.scales;
  for (int64_t v = 0; v < kVectors; v++) found.key[v] = floats.keys + v * kLanes;
  for (int64_t p = 0; p < kChunk; p++) found.value[p] = floats.values + p * kv.padded_dim();
}

// --- attention -------------------------------------------------------------------------------------------------------

struct Reads {  // the next chunk's keys while the scores of this one are computed, then its values
  Ahead keys, values;
};

// One token's heads over some positions of the chunk.
template <KvType type>
static void attend_chunk(const KvLayer& kv, const Chunk<typename Item<type>::Type>& in, Positions seen, Queries queries,
                         Running& running, Reads& reads) {
  typedef typename Item<type>::Type T;
  const auto [chunk, from, to] = seen;
  const Scales* scales = in.scales;
  const int64_t heads = queries.heads, vectors = (to - chunk + kLanes - 1) / kLanes;
  F scores[kHeads * kVectors];
  chunk_scores<T, Item<type>::load_items>(queries, Keys<T>{in.key, vectors, in.stride}, scores, reads.keys);
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
  const Values<T> values{in.value + (from - chunk), to - from, kv.padded_dim(), weight, rescale};
  switch (heads) {
    case 1: return add_all_values<1, 8, type>(values, running, reads.values);
    case 2: return add_all_values<2, 4, type>(values, running, reads.values);
    case 3: return add_all_values<3, 4, type>(values, running, reads.values);
    default: return add_all_values<4, kManyRegisters ? 4 : 2, type>(values, running, reads.values);
  }
}

static inline int64_t begin_of(const KvLayer& kv, int64_t position) {  // of what a token sees
  return kv.window && position >= kv.window ? position - kv.window + 1 : 0;
}

// Two spans of positions, the second one after the first, become the first: `count` features.
static void fold(const Partial& first, const Partial& second, int64_t count) {
  if (second.weight == 0.0f) return;
  if (first.weight == 0.0f) {
    std::memcpy(first.total, second.total, sizeof(float) * count);
    first.most = second.most, first.weight = second.weight;
    return;
  }
  const float peak = second.most > first.most ? second.most : first.most;
  const F factor = exp_of(splat(first.most - peak)), second_factor = exp_of(splat(second.most - peak));
  for (int64_t i = 0; i < count; i += kLanes)
    store(first.total + i, fma(load(second.total + i), second_factor, load(first.total + i) * factor));
  first.weight = first.weight * factor[0] + second.weight * second_factor[0];
  first.most = peak;
}

struct Heads {  // those of a KV head's group from `head` on that are done at a time, for all tokens
  const KvLayer& kv;
  const Tokens& tokens;
  int64_t kv_head, head;

  int64_t first() const { return kv_head * kv.group() + head; }
  int64_t count() const { return std::min(kv.group() - head, kHeads); }
  Queries of_row(int64_t row) const {
    return {tokens.queries + row * tokens.query_stride + first() * kv.head_dim, count(), kv.head_dim};
  }
};

// Over the positions of one span. `end`: of the positions that are read, in this span and after it. `next`: what is
// read then.
template <KvType type>
static void attend_span_heads(const Heads& heads, int64_t span, int64_t end, const Work& next, Running* running) {
  typedef typename Item<type>::Type T;
  static thread_local Floats floats;  // too large for some systems' stacks
  const KvLayer& kv = heads.kv;
  const Tokens& tokens = heads.tokens;
  const KvHead head{kv, tokens.page_row, heads.kv_head};
  const auto begin = [&](int64_t row) { return begin_of(kv, tokens.position + row); };
  for (int64_t row = 0; row < tokens.rows; row++)
    for (int64_t h = 0; h < heads.count(); h++) {
      const Partial none = running[row].of(kv, h);
      std::memset(none.total, 0, sizeof(float) * kv.padded_dim());
      none.most = -INFINITY;
      none.weight = 0.0f;
    }
  // Alone, a token converts what it reads in registers, where vectors of positions lie within a page.
  const bool converts = tokens.rows > 1 || kv.page_size % kLanes != 0;
  Reads reads;
  Scales scales = {};
  const int64_t start = std::max(begin(0) / kChunk * kChunk, span * kSpan), stop = std::min(end, (span + 1) * kSpan);
  for (int64_t chunk = start; chunk < stop; chunk += kChunk) {
    const Positions all{chunk, std::max(chunk, begin(0)), std::min(chunk + kChunk, end)};
    Chunk<T> stored;
    find_chunk<type>(head, all, stored, scales);
    if (!converts) {
      const Work ahead = chunk + kChunk < end ? Work{tokens.page_row, head.index, chunk + kChunk, end} : next;
      reads.keys.begin<T>(true, kv, ahead);
      reads.values.begin<T>(false, kv, ahead);
      attend_chunk<type>(kv, stored, all, heads.of_row(0), running[0], reads);
      continue;
    }
    Chunk<float> converted;
    convert_chunk<type>(head, all, stored, floats, converted);
    for (int64_t row = 0; row < tokens.rows; row++) {
      const Positions seen{chunk, std::max(chunk, begin(row)), std::min(all.to, tokens.position + row + 1)};
      if (seen.from < seen.to) attend_chunk<KvType::kF32>(kv, converted, seen, heads.of_row(row), running[row], reads);
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

static void write_output(const KvLayer& kv, const Tokens& tokens, int64_t row, int64_t head, const Partial& all) {
  float* out = tokens.output + row * tokens.output_stride + head * kv.head_dim;
  for (int64_t i = 0; i < kv.head_dim; i++) out[i] = all.total[i] / all.weight;
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
      const Heads heads{kv, tokens, kv_head, head};
      for (int64_t span = first_span; span <= last_span; span++) {
        choose(kv.type, [&](auto type) {
          attend_span_heads<type>(heads, span, end, next, span == first_span ? whole : running);
        });
        if (span > first_span)
          for (int64_t row = 0; row < tokens.rows; row++)
            for (int64_t h = 0; h < heads.count(); h++)
              fold(whole[row].of(kv, h), running[row].of(kv, h), kv.padded_dim());
      }
      for (int64_t row = 0; row < tokens.rows; row++)
        for (int64_t h = 0; h < heads.count(); h++)
          write_output(kv, tokens, row, heads.first() + h, whole[row].of(kv, h));
    }
}

// As a part that other threads read.
static inline Partial kept_at(const KvLayer& kv, float* part) {
  return {part, part[kv.padded_dim()], part[kv.padded_dim() + 1]};
}

void attend_span(const KvLayer& kv, const Tokens& token, int64_t kv_head, int64_t span, float* part) {
  static thread_local Running running[1];
  const int64_t end = std::min(token.position + 1, (span + 1) * kSpan);
  for (int64_t head = 0; head < kv.group(); head += kHeads) {
    const Heads heads{kv, token, kv_head, head};
    choose(kv.type,
           [&](auto type) { attend_span_heads<type>(heads, span, end, Work{token.page_row, 0, 0, 0}, running); });
    for (int64_t h = 0; h < heads.count(); h++, part += kv.part_floats()) {
      const Partial found = running[0].of(kv, h), kept = kept_at(kv, part);
      std::memcpy(kept.total, found.total, sizeof(float) * kv.padded_dim());
      kept.most = found.most, kept.weight = found.weight;
    }
  }
}

void fold_spans(const KvLayer& kv, const Tokens& token, int64_t kv_head, float* parts, int64_t spans, int64_t stride) {
  for (int64_t h = 0; h < kv.group(); h++, parts += kv.part_floats()) {
    const Partial all = kept_at(kv, parts);
    for (int64_t span = 1; span < spans; span++) fold(all, kept_at(kv, parts + span * stride), kv.padded_dim());
    write_output(kv, token, 0, kv_head * kv.group() + h, all);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
