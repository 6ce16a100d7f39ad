// Linears: quantised weights times quantised activations, and float weights times floats.

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

// Keeps the compiler from reordering the sums of a loop until every accumulator is spilled (GCC does: 35 GOP/s for 58).
#if defined(__AVX2__)
#define OCTAVO_KEEP(v) asm("" : "+x"(v))
#else
#define OCTAVO_KEEP(v)
#endif

static inline void put(const Output& out, int64_t row, int64_t feature, F8 value, const float* bias) {
  if (bias) value += load(bias + feature);
  if (out.residual) value += load(out.residual + row * out.residual_stride + feature);
  store(out.y + row * out.y_stride + feature, value);
}

// --- integer dot products of one block: the eight lanes of a tile, M rows ----------------------------------------------

#if defined(__AVX2__) && !defined(__AVX512VNNI__)

// Eight sums of two products, each at most 2 * 15 * 127, fit into 16 bits.
template <int M>
static inline void dot_u4(const uint8_t* w, const Activations8* x, I8* result) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i total[M];
  OCTAVO_EACH(i, 4) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * i));
    const __m256i low = _mm256_and_si256(both, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    const int k = 4 * (i / 2) + i % 2;
    OCTAVO_EACH(m, M) {
      const __m256i a = _mm256_maddubs_epi16(low, *reinterpret_cast<const __m256i*>(x[m].q[k]));
      const __m256i b = _mm256_maddubs_epi16(high, *reinterpret_cast<const __m256i*>(x[m].q[k + 2]));
      total[m] = i == 0 ? _mm256_add_epi16(a, b) : _mm256_add_epi16(_mm256_add_epi16(total[m], a), b);
      OCTAVO_KEEP(total[m]);
    }
  }
  OCTAVO_EACH(m, M) result[m] = (I8)_mm256_madd_epi16(total[m], _mm256_set1_epi16(1));
}

#else

typedef int32_t I16 __attribute__((vector_size(64)));

// sum[lane] += w[4 * lane + j] * x[4 * lane + j]: one instruction of AVX-512 VNNI, plain C++ elsewhere.
static inline I16 add_products(I16 total, I16 w, const void* x) {
#ifdef __AVX512VNNI__
  return (I16)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, _mm512_load_si512(x));
#else
  uint8_t a[64];
  std::memcpy(a, &w, 64);
  const int8_t* b = static_cast<const int8_t*>(x);
  for (int lane = 0; lane < 16; lane++)
    for (int j = 0; j < 4; j++) total[lane] += a[4 * lane + j] * b[4 * lane + j];
  return total;
#endif
}

// Sixteen lanes: eight of the tile for one four of inputs, the same eight for the next four.
template <int M>
static inline void dot_u4(const uint8_t* w, const Activations8* x, I8* result) {
  I16 total[M] = {};
  OCTAVO_EACH(i, 2) {
    I16 both;
    std::memcpy(&both, w + 64 * i, 64);
    const I16 low = both & 0x0f0f0f0f, high = (both >> 4) & 0x0f0f0f0f;
    OCTAVO_EACH(m, M) {
      total[m] = add_products(total[m], low, x[m].q[4 * i]);
      total[m] = add_products(total[m], high, x[m].q[4 * i + 2]);
    }
  }
  OCTAVO_EACH(m, M)
    result[m] = __builtin_shufflevector(total[m], total[m], 0, 1, 2, 3, 4, 5, 6, 7) +
                __builtin_shufflevector(total[m], total[m], 8, 9, 10, 11, 12, 13, 14, 15);
}

#endif

// Half a block of kS8, 16 inputs: 8 bits times 16.
template <int M>
static inline void dot_s8(const uint8_t* w, const Activations16* x, int half, I8* result) {
#ifdef __AVX2__
  __m256i total[M];
  OCTAVO_EACH(i, 8) {
    const __m256i weight = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16 * i)));
    OCTAVO_EACH(m, M) {
      int32_t pair;
      std::memcpy(&pair, x[m].q + 16 * half + 2 * i, 4);
      const __m256i both = _mm256_set1_epi32(pair);
#ifdef __AVX512VNNI__
      total[m] = _mm256_dpwssd_epi32(i == 0 ? _mm256_setzero_si256() : total[m], weight, both);
#else
      const __m256i products = _mm256_madd_epi16(weight, both);
      total[m] = i == 0 ? products : _mm256_add_epi32(total[m], products);
#endif
      OCTAVO_KEEP(total[m]);
    }
  }
  OCTAVO_EACH(m, M) result[m] = (I8)total[m];
#else
  OCTAVO_EACH(m, M) {
    const int16_t* q = x[m].q + 16 * half;
    int32_t total[kTile] = {};
    OCTAVO_EACH(i, 8)
      for (int lane = 0; lane < kTile; lane++)
        for (int j = 0; j < 2; j++)
          total[lane] += static_cast<int8_t>(w[16 * i + 2 * lane + j]) * q[2 * i + j];
    std::memcpy(&result[m], total, sizeof total);
  }
#endif
}

// --- quantised linears -------------------------------------------------------------------------------------------------

template <bool half_scales>
static inline F8 load_scale(const uint8_t* p, int index) {
  if constexpr (half_scales) return load_half(reinterpret_cast<const uint16_t*>(p) + index * kTile);
  return load(reinterpret_cast<const float*>(p) + index * kTile);
}

// Weights come from memory in one long stream, which the hardware follows too late when there is one row to multiply.
static inline void prefetch(const uint8_t* data) {
  constexpr int64_t kAhead = 2048;
  for (int64_t line = 0; line < 192; line += 64) __builtin_prefetch(data + kAhead + line);
}

// Blocks [first, last) of a tile: total[m] += w * x[m]. `x` is the panel's records from `first` on.
template <bool half_scales, int M>
static inline void add_blocks(const Weight& w, const Activations8* x, int64_t tile, int64_t first, int64_t last, F8* total) {
  const int64_t bytes = w.block_bytes();
  const uint8_t* data = w.data + (tile * w.blocks() + first) * bytes;
  for (int64_t b = first; b < last; b++, data += bytes, x += kPanel) {
    if (M < kPanel) prefetch(data);
    I8 dot[M];
    dot_u4<M>(data, x, dot);
    const F8 scale = load_scale<half_scales>(data + 128, 0), minimum = load_scale<half_scales>(data + 128, 1);
    OCTAVO_EACH(m, M) {
      total[m] = fma(__builtin_convertvector(dot[m], F8), scale * *reinterpret_cast<const F8*>(x[m].scale), total[m]);
      total[m] = fma(minimum, *reinterpret_cast<const F8*>(x[m].sum), total[m]);
    }
  }
}

template <bool half_scales, int M>
static inline void add_blocks(const Weight& w, const Activations16* x, int64_t tile, int64_t first, int64_t last, F8* total) {
  const int64_t bytes = w.block_bytes();
  const int groups = static_cast<int>(kBlock / w.group);
  const uint8_t* data = w.data + (tile * w.blocks() + first) * bytes;
  for (int64_t b = first; b < last; b++, data += bytes, x += kPanel) {
    if (M < kPanel) prefetch(data), prefetch(data + 128);
    I8 front[M], back[M];
    dot_s8<M>(data, x, 0, front);
    dot_s8<M>(data + 128, x, 1, back);
    const uint8_t* scales = data + 256;
    const F8 scale = load_scale<half_scales>(scales, 0);
    if (groups == 1) {
      OCTAVO_EACH(m, M)
        total[m] = fma(__builtin_convertvector(front[m] + back[m], F8), scale * load(x[m].scale), total[m]);
    } else {
      const F8 other = load_scale<half_scales>(scales, 1);
      OCTAVO_EACH(m, M) {
        total[m] = fma(__builtin_convertvector(front[m], F8), scale * load(x[m].scale), total[m]);
        total[m] = fma(__builtin_convertvector(back[m], F8), other * load(x[m].scale), total[m]);
      }
    }
    if (w.minima) {
      const F8 minimum = load_scale<half_scales>(scales, groups);
      OCTAVO_EACH(m, M) total[m] = fma(minimum, load(x[m].sum), total[m]);
    }
  }
}

// Wide inputs are taken in chunks of blocks whose activations stay in the L1 cache while some tiles are gone through.
constexpr int64_t kChunkBytes = 24 * 1024;
constexpr int64_t kChunkTiles = 16;

template <bool half_scales, int M, typename Record>
static void quantised_panel(const Weight& w, const Record* activations, int64_t panel, const Output& out, int64_t first,
                            int64_t last) {
  const Record* x = activations + panel * kPanel * w.blocks();
  const int64_t most = kChunkBytes / static_cast<int64_t>(M * sizeof(Record));
  const int64_t chunks = (w.blocks() + most - 1) / most;
  for (int64_t tile = first; tile < last; tile += kChunkTiles) {
    const int64_t tiles = last - tile < kChunkTiles ? last - tile : kChunkTiles;
    F8 sums[kChunkTiles][M];
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const int64_t from = w.blocks() * chunk / chunks, to = w.blocks() * (chunk + 1) / chunks;
      for (int64_t t = 0; t < tiles; t++) {
        F8 total[M];
        OCTAVO_EACH(m, M) total[m] = chunk == 0 ? splat(0.0f) : sums[t][m];
        add_blocks<half_scales, M>(w, x + from * kPanel, tile + t, from, to, total);
        if (chunk + 1 < chunks) {
          OCTAVO_EACH(m, M) sums[t][m] = total[m];
        } else {
          OCTAVO_EACH(m, M) put(out, panel * kPanel + m, (tile + t) * kTile, total[m], w.bias);
        }
      }
    }
  }
}

template <bool half_scales, typename Record>
static void quantised_panels(const Weight& w, const Record* activations, int64_t rows, const Output& out, int64_t first,
                             int64_t last) {
  int64_t panel = 0;
  for (; (panel + 1) * kPanel <= rows; panel++)
    quantised_panel<half_scales, 4>(w, activations, panel, out, first, last);
  switch (rows - panel * kPanel) {
    case 3: return quantised_panel<half_scales, 3>(w, activations, panel, out, first, last);
    case 2: return quantised_panel<half_scales, 2>(w, activations, panel, out, first, last);
    case 1: return quantised_panel<half_scales, 1>(w, activations, panel, out, first, last);
    default: return;
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
static inline F8 load_weight(const uint8_t* data, int64_t element) {
  if constexpr (kind == WeightKind::kF32) return load(reinterpret_cast<const float*>(data) + element);
  if constexpr (kind == WeightKind::kF16) return load_half(reinterpret_cast<const uint16_t*>(data) + element);
  return load_bfloat(reinterpret_cast<const uint16_t*>(data) + element);
}

// M rows and T tiles at once: M * T sums that do not wait for each other.
template <WeightKind kind, int M, int T>
static void float_rows(const Weight& w, const float* x, int64_t x_stride, int64_t row, int64_t tile, const Output& out) {
  F8 total[M][T];
  OCTAVO_EACH(m, M)
    OCTAVO_EACH(t, T) total[m][t] = splat(0.0f);
  const int64_t size = w.in * kTile, start = tile * size;
  const float* rows = x + row * x_stride;
  for (int64_t k = 0; k < w.in; k++) {
    F8 weight[T];
    OCTAVO_EACH(t, T) weight[t] = load_weight<kind>(w.data, start + t * size + k * kTile);
    OCTAVO_EACH(m, M)
      OCTAVO_EACH(t, T) {
        total[m][t] = fma(weight[t], splat(rows[m * x_stride + k]), total[m][t]);
        OCTAVO_KEEP(total[m][t]);
      }
  }
  OCTAVO_EACH(m, M)
    OCTAVO_EACH(t, T) put(out, row + m, (tile + t) * kTile, total[m][t], w.bias);
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
  const int64_t tile = row / kTile, lane = row % kTile;
  if (!w.quantised()) {
    for (int64_t k = 0; k < width; k++) {
      const int64_t element = (tile * w.in + k) * kTile + lane;
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
      const uint8_t both = data[32 * i + 4 * lane + offset % 4];
      q = static_cast<float>(offset % 16 < 8 ? both & 15 : both >> 4);
    } else {
      q = static_cast<float>(static_cast<int8_t>(data[16 * (offset / 2) + 2 * lane + offset % 2]));
    }
    y[k] = scale(offset / w.group) * q + (w.minima ? scale(groups) : 0.0f);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
