// Linears: quantised weights times quantised activations, and float weights times floats.

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

// Keeps the compiler from reordering the sums of a loop until every accumulator is spilled (GCC does: 35 GOP/s for 58).
#if defined(__AVX512F__)
#define OCTAVO_KEEP(v) asm("" : "+v"(v))
#elif defined(__AVX2__)
#define OCTAVO_KEEP(v) asm("" : "+x"(v))
#else
#define OCTAVO_KEEP(v)
#endif

static inline void put(const Output& out, int64_t row, int64_t feature, F value, const float* bias) {
  if (bias) value += load(bias + feature);
  if (out.residual) value += load(out.residual + row * out.residual_stride + feature);
  store(out.y + row * out.y_stride + feature, value);
}

// --- integer dot products of one block: the lanes of T tiles, M rows ---------------------------------------------------

// Four bytes, or two shorts, in every lane.
static inline I broadcast(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return splat(x);
}

static inline I load_bytes(const uint8_t* p) {
  I v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

#if defined(__AVX2__) && !defined(__AVX512VNNI__)

// 16-bit sums: eight of two products, each at most 2 * 15 * 127, fit.
static inline I add_u4(I total, I low, I high, I a, I b, bool first) {
  const __m256i x = _mm256_maddubs_epi16((__m256i)low, (__m256i)a), y = _mm256_maddubs_epi16((__m256i)high, (__m256i)b);
  return (I)(first ? _mm256_add_epi16(x, y) : _mm256_add_epi16(_mm256_add_epi16((__m256i)total, x), y));
}

static inline I end_u4(I total) { return (I)_mm256_madd_epi16((__m256i)total, _mm256_set1_epi16(1)); }

#else

// total[lane] += the sum over j of w[4 * lane + j] * x[4 * lane + j]: one instruction of AVX-512 VNNI.
static inline I add_products(I total, I w, I x) {
#ifdef __AVX512VNNI__
  return (I)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, (__m512i)x);
#else
  uint8_t a[sizeof w];
  int8_t b[sizeof x];
  std::memcpy(a, &w, sizeof w);
  std::memcpy(b, &x, sizeof x);
  for (int lane = 0; lane < kLanes; lane++)
    for (int j = 0; j < 4; j++) total[lane] += a[4 * lane + j] * b[4 * lane + j];
  return total;
#endif
}

static inline I add_u4(I total, I low, I high, I a, I b, bool first) {
  return add_products(add_products(first ? I{} : total, low, a), high, b);
}

static inline I end_u4(I total) { return total; }

#endif

template <int M, int T>
static inline void dot_block(const uint8_t* const* w, const Activations8* x, I (*result)[M]) {
  OCTAVO_EACH(i, 4) {
    const int k = 16 * (i / 2) + 4 * (i % 2);
    I low[T], high[T];
    OCTAVO_EACH(t, T) {
      I both = load_bytes(w[t] + i * sizeof both);
      OCTAVO_KEEP(both);  // one load, not one for each half
      low[t] = both & 0x0f0f0f0f, high[t] = (both >> 4) & 0x0f0f0f0f;
    }
    OCTAVO_EACH(m, M) {
      const I a = broadcast(x[m].q + k), b = broadcast(x[m].q + k + 8);
      OCTAVO_EACH(t, T) {
        result[t][m] = add_u4(result[t][m], low[t], high[t], a, b, i == 0);
        OCTAVO_KEEP(result[t][m]);
      }
    }
  }
  OCTAVO_EACH(t, T)
    OCTAVO_EACH(m, M) result[t][m] = end_u4(result[t][m]);
}

// total[lane] += w[2 * lane] * x[2 * lane] + w[2 * lane + 1] * x[2 * lane + 1], of 8 bits and of 16.
static inline I load_shorts(const uint8_t* w) {
#if defined(__AVX512F__)
  return (I)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
#elif defined(__AVX2__)
  return (I)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
#else
  int16_t shorts[2 * kLanes];
  for (int i = 0; i < 2 * kLanes; i++) shorts[i] = static_cast<int8_t>(w[i]);
  I v;
  std::memcpy(&v, shorts, sizeof v);
  return v;
#endif
}

static inline I add_pairs(I total, I w, I x) {
#if defined(__AVX512VNNI__)
  return (I)_mm512_dpwssd_epi32((__m512i)total, (__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
  return total + (I)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else
  int16_t a[2 * kLanes], b[2 * kLanes];
  std::memcpy(a, &w, sizeof w);
  std::memcpy(b, &x, sizeof x);
  for (int lane = 0; lane < kLanes; lane++) total[lane] += a[2 * lane] * b[2 * lane] + a[2 * lane + 1] * b[2 * lane + 1];
  return total;
#endif
}

// Half a block of kS8, 16 inputs.
template <int M, int T>
static inline void dot_half(const uint8_t* const* w, const Activations16* x, int half, I (*result)[M]) {
  OCTAVO_EACH(i, 8) {
    I weight[T];
    OCTAVO_EACH(t, T) weight[t] = load_shorts(w[t] + 2 * kLanes * (8 * half + i));
    OCTAVO_EACH(m, M) {
      const I pair = broadcast(x[m].q + 16 * half + 2 * i);
      OCTAVO_EACH(t, T) {
        result[t][m] = add_pairs(i == 0 ? I{} : result[t][m], weight[t], pair);
        OCTAVO_KEEP(result[t][m]);
      }
    }
  }
}

// --- quantised linears -------------------------------------------------------------------------------------------------

template <bool half_scales>
static inline F load_scale(const uint8_t* p, int index) {
  if constexpr (half_scales) return load_half(reinterpret_cast<const uint16_t*>(p) + index * kLanes);
  return load(reinterpret_cast<const float*>(p) + index * kLanes);
}

static inline void prefetch(const uint8_t* data, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(data + line);
}

// T tiles' records of the block that comes next.
template <int T>
struct Streams {
  const uint8_t* data[T];
  int64_t bytes;  // of a record

  Streams(const Weight& w, int64_t tile, int64_t block) : bytes(w.block_bytes()) {
    for (int t = 0; t < T; t++) data[t] = w.data + ((tile + t) * w.blocks() + block) * bytes;
  }
  void next() {
    OCTAVO_EACH(t, T) data[t] += bytes;
  }
  // Weights come from memory in long streams, which the hardware follows too late when there are few rows to multiply.
  void fetch_ahead() const {
    constexpr int64_t kAhead = 2048;
    OCTAVO_EACH(t, T) prefetch(data[t] + kAhead, bytes);
  }
};

// Blocks [first, last) of T tiles: total[t][m] += w * x[m]. `x` is the panel's records from `first` on.
template <bool half_scales, int M, int T>
static inline void add_blocks(const Weight& w, const Activations8* x, int64_t tile, int64_t first, int64_t last,
                              F (*total)[M]) {
  Streams<T> w_ahead(w, tile, first);
  for (int64_t b = first; b < last; b++, w_ahead.next(), x += kPanel) {
    if (M < kPanel) w_ahead.fetch_ahead();
    I dot[T][M];
    dot_block<M, T>(w_ahead.data, x, dot);
    F scale[T], minimum[T];
    OCTAVO_EACH(t, T) {
      const uint8_t* scales = w_ahead.data[t] + kLanes * kBlock / 2;
      scale[t] = load_scale<half_scales>(scales, 0), minimum[t] = load_scale<half_scales>(scales, 1);
    }
    OCTAVO_EACH(m, M) {
      const F x_scale = splat(x[m].scale), x_sum = splat(x[m].sum);
      OCTAVO_EACH(t, T) {
        total[t][m] = fma(__builtin_convertvector(dot[t][m], F), scale[t] * x_scale, total[t][m]);
        total[t][m] = fma(minimum[t], x_sum, total[t][m]);
      }
    }
  }
}

template <bool half_scales, int M, int T>
static inline void add_blocks(const Weight& w, const Activations16* x, int64_t tile, int64_t first, int64_t last,
                              F (*total)[M]) {
  const int groups = static_cast<int>(kBlock / w.group);
  Streams<T> w_ahead(w, tile, first);
  for (int64_t b = first; b < last; b++, w_ahead.next(), x += kPanel) {
    if (M < kPanel) w_ahead.fetch_ahead();
    I front[T][M], back[T][M];
    dot_half<M, T>(w_ahead.data, x, 0, front);
    if (groups == 1) {
      dot_half<M, T>(w_ahead.data, x, 1, back);
      OCTAVO_EACH(t, T) {
        const F scale = load_scale<half_scales>(w_ahead.data[t] + kLanes * kBlock, 0);
        OCTAVO_EACH(m, M)
          total[t][m] = fma(__builtin_convertvector(front[t][m] + back[t][m], F), scale * splat(x[m].scale), total[t][m]);
      }
    } else {
      OCTAVO_EACH(t, T) {
        const F scale = load_scale<half_scales>(w_ahead.data[t] + kLanes * kBlock, 0);
        OCTAVO_EACH(m, M)
          total[t][m] = fma(__builtin_convertvector(front[t][m], F), scale * splat(x[m].scale), total[t][m]);
      }
      dot_half<M, T>(w_ahead.data, x, 1, back);
      OCTAVO_EACH(t, T) {
        const F scale = load_scale<half_scales>(w_ahead.data[t] + kLanes * kBlock, 1);
        OCTAVO_EACH(m, M)
          total[t][m] = fma(__builtin_convertvector(back[t][m], F), scale * splat(x[m].scale), total[t][m]);
      }
    }
    if (w.minima) OCTAVO_EACH(t, T) {
        const F minimum = load_scale<half_scales>(w_ahead.data[t] + kLanes * kBlock, groups);
        OCTAVO_EACH(m, M) total[t][m] = fma(minimum, splat(x[m].sum), total[t][m]);
      }
  }
}

// Tiles that are multiplied at a time, M rows each: their sums and products stay in registers.
template <int M>
constexpr int kTiles = kLanes == 16 || M <= 2 ? 2 : 1;

// Blocks [from, to) of T tiles from `tile` on. Before the last block, sums stand where the results will.
template <bool half_scales, int M, int T, typename Record>
static inline void multiply(const Weight& w, const Record* x, int64_t row, const Output& out, int64_t tile, int64_t from,
                            int64_t to) {
  float* y = out.y + row * out.y_stride + tile * kLanes;
  F total[T][M];
  OCTAVO_EACH(t, T)
    OCTAVO_EACH(m, M) total[t][m] = from == 0 ? splat(0.0f) : load(y + m * out.y_stride + t * kLanes);
  add_blocks<half_scales, M, T>(w, x + from * kPanel, tile, from, to, total);
  OCTAVO_EACH(t, T)
    OCTAVO_EACH(m, M) {
      if (to == w.blocks())
        put(out, row + m, (tile + t) * kLanes, total[t][m], w.bias);
      else
        store(y + m * out.y_stride + t * kLanes, total[t][m]);
    }
}

template <bool half_scales, int M, typename Record>
static void quantised_panel(const Weight& w, const Record* activations, int64_t row, const Output& out, int64_t tile,
                            int64_t tiles, int64_t from, int64_t to) {
  constexpr int T = kTiles<M>;
  const Record* x = activations + row * w.blocks();
  if (tiles == T) return multiply<half_scales, M, T>(w, x, row, out, tile, from, to);
  for (int64_t t = 0; t < tiles; t++) multiply<half_scales, M, 1>(w, x, row, out, tile + t, from, to);
}

// The rows that are left when no panel is full any more.
template <bool half_scales, int M, typename Record>
static void quantised_rest(int64_t rows, const Weight& w, const Record* activations, int64_t row, const Output& out,
                           int64_t tile, int64_t tiles, int64_t from, int64_t to) {
  if (rows == M) return quantised_panel<half_scales, M>(w, activations, row, out, tile, tiles, from, to);
  if constexpr (M > 1) quantised_rest<half_scales, M - 1>(rows, w, activations, row, out, tile, tiles, from, to);
}

// With many rows, so many blocks of some tiles at a time that they stay in the L1 cache while all rows pass by.
constexpr int64_t kChunkBlocks = 32;

template <bool half_scales, typename Record>
static void quantised_panels(const Weight& w, const Record* activations, int64_t rows, const Output& out, int64_t first,
                             int64_t last) {
  const int64_t blocks = w.blocks(), chunks = rows > kPanel ? (blocks + kChunkBlocks - 1) / kChunkBlocks : 1;
  constexpr int64_t kMost = kTiles<kPanel> > kTiles<1> ? kTiles<kPanel> : kTiles<1>;
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t from = blocks * chunk / chunks, to = blocks * (chunk + 1) / chunks;
    for (int64_t tile = first; tile < last; tile += kMost) {
      const int64_t tiles = last - tile < kMost ? last - tile : kMost;
      // While these tiles are multiplied, the next ones come from memory, a part with every panel.
      const int64_t bytes = chunks == 1 ? kMost * blocks * w.block_bytes() : 0;
      const uint8_t* next = w.data + (tile + kMost) * blocks * w.block_bytes();
      int64_t row = 0;
      for (; row + kPanel <= rows; row += kPanel) {
        if (rows >= 2 * kPanel) prefetch(next + bytes * row / rows / 64 * 64, bytes * kPanel / rows);
        quantised_panel<half_scales, kPanel>(w, activations, row, out, tile, tiles, from, to);
      }
      quantised_rest<half_scales, kPanel - 1>(rows - row, w, activations, row, out, tile, tiles, from, to);
    }
  }
}

void linear_quantised(const Weight& w, const void* activations, int64_t rows, const Output& out, int64_t first,
                      int64_t last) {
  const auto go = [&](const auto* records) {
    if (w.half_scales)
      quantised_panels<true>(w, records, rows, out, first, last);
    else
      quantised_panels<false>(w, records, rows, out, first, last);
  };
  if (w.kind == WeightKind::kU4)
    go(static_cast<const Activations8*>(activations));
  else
    go(static_cast<const Activations16*>(activations));
}

// --- float linears -----------------------------------------------------------------------------------------------------

template <WeightKind kind>
static inline F load_weight(const uint8_t* data, int64_t element) {
  if constexpr (kind == WeightKind::kF32) return load(reinterpret_cast<const float*>(data) + element);
  if constexpr (kind == WeightKind::kF16) return load_half(reinterpret_cast<const uint16_t*>(data) + element);
  return load_bfloat(reinterpret_cast<const uint16_t*>(data) + element);
}

// M rows and T tiles at once: M * T sums that do not wait for each other.
template <WeightKind kind, int M, int T>
static void float_rows(const Weight& w, const float* x, int64_t x_stride, int64_t row, int64_t tile, const Output& out) {
  F total[M][T];
  OCTAVO_EACH(m, M)
    OCTAVO_EACH(t, T) total[m][t] = splat(0.0f);
  const int64_t size = w.in * kLanes, start = tile * size;
  const float* rows = x + row * x_stride;
  for (int64_t k = 0; k < w.in; k++) {
    F weight[T];
    OCTAVO_EACH(t, T) weight[t] = load_weight<kind>(w.data, start + t * size + k * kLanes);
    OCTAVO_EACH(m, M)
      OCTAVO_EACH(t, T) {
        total[m][t] = fma(weight[t], splat(rows[m * x_stride + k]), total[m][t]);
        OCTAVO_KEEP(total[m][t]);
      }
  }
  OCTAVO_EACH(m, M)
    OCTAVO_EACH(t, T) put(out, row + m, (tile + t) * kLanes, total[m][t], w.bias);
}

template <WeightKind kind, int M, int T>
static void float_panel(const Weight& w, const float* x, int64_t x_stride, int64_t row, const Output& out, int64_t first,
                        int64_t last) {
  int64_t tile = first;
  for (; tile + T <= last; tile += T) float_rows<kind, M, T>(w, x, x_stride, row, tile, out);
  for (; tile < last; tile++) float_rows<kind, M, 1>(w, x, x_stride, row, tile, out);
}

template <WeightKind kind>
static void float_panels(const Weight& w, const float* x, int64_t x_stride, int64_t rows, const Output& out,
                         int64_t first, int64_t last) {
  int64_t row = 0;
  if (kLanes == 16)  // enough registers
    for (; row + 8 <= rows; row += 8) float_panel<kind, 8, 2>(w, x, x_stride, row, out, first, last);
  for (; row + 4 <= rows; row += 4) float_panel<kind, 4, 2>(w, x, x_stride, row, out, first, last);
  switch (rows - row) {
    case 3: return float_panel<kind, 3, 2>(w, x, x_stride, row, out, first, last);
    case 2: return float_panel<kind, 2, 4>(w, x, x_stride, row, out, first, last);
    case 1: return float_panel<kind, 1, 8>(w, x, x_stride, row, out, first, last);
    default: return;
  }
}

void linear_float(const Weight& w, const float* x, int64_t x_stride, int64_t rows, const Output& out, int64_t first,
                  int64_t last) {
  switch (w.kind) {
    case WeightKind::kF16: return float_panels<WeightKind::kF16>(w, x, x_stride, rows, out, first, last);
    case WeightKind::kBF16: return float_panels<WeightKind::kBF16>(w, x, x_stride, rows, out, first, last);
    default: return float_panels<WeightKind::kF32>(w, x, x_stride, rows, out, first, last);
  }
}

// --- rows of a matrix as floats ----------------------------------------------------------------------------------------

void unpack_row(const Weight& w, int64_t row, int64_t width, float* y) {
  const int64_t tile = row / kLanes, lane = row % kLanes;
  if (!w.quantised()) {
    for (int64_t k = 0; k < width; k++) {
      const int64_t element = (tile * w.in + k) * kLanes + lane;
      if (w.kind == WeightKind::kF32) {
        std::memcpy(&y[k], w.data + 4 * element, 4);
      } else {
        uint16_t half;
        std::memcpy(&half, w.data + 2 * element, 2);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        if (w.kind == WeightKind::kF16)
          y[k] = half_to_float(half);
        else
          std::memcpy(&y[k], &bits, 4);
      }
    }
    return;
  }
  const int groups = static_cast<int>(kBlock / w.group);
  for (int64_t k = 0; k < width; k++) {
    const uint8_t* data = w.data + (tile * w.blocks() + k / kBlock) * w.block_bytes();
    const uint8_t* scales = data + w.integer_bytes();
    const int offset = static_cast<int>(k % kBlock);
    const auto scale = [&](int index) {
      return (w.half_scales ? load_scale<true>(scales, index) : load_scale<false>(scales, index))[lane];
    };
    float q;
    if (w.kind == WeightKind::kU4) {
      const int i = offset / 16 * 2 + offset % 8 / 4;
      const uint8_t both = data[4 * (kLanes * i + lane) + offset % 4];
      q = static_cast<float>(offset % 16 < 8 ? both & 15 : both >> 4);
    } else {
      q = static_cast<float>(static_cast<int8_t>(data[2 * (kLanes * (offset / 2) + lane) + offset % 2]));
    }
    y[k] = scale(offset / w.group) * q + (w.minima ? scale(groups) : 0.0f);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
