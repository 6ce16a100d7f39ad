// Products of quantised weights and activations: blocks of some tiles times some rows, summed in registers.
//
// Included by the kernels alone, inside the namespace of one instruction set. Read the assembly after a change: no
// stack traffic belongs in these loops.

#pragma once

#include <type_traits>

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

static OCTAVO_INLINE void put(const Output& out, int64_t row, int64_t feature, F value, const float* bias) {
  if (bias) value += load(bias + feature);
  if (out.residual) value += load(out.residual + row * out.residual_stride + feature);
  store(out.y + row * out.y_stride + feature, value);
}

// Four bytes, or two shorts, in every lane.
static OCTAVO_INLINE I broadcast(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return splat(x);
}

// total[lane] += a[2 * lane] * b[2 * lane] + a[2 * lane + 1] * b[2 * lane + 1], all of 16 bits.
static OCTAVO_INLINE I add_pairs(I total, I a, I b) {
#if defined(__AVX512VNNI__)
  return (I)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return total + (I)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)  // which has no other multiplication into 32 bits
  const auto times = [](I4 x, I4 y) { return (I4)_mm_madd_epi16((__m128i)x, (__m128i)y); };
  return total + I{times(a.low, b.low), times(a.high, b.high)};
#else
  return total + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

#ifdef __AVX512VNNI__

// total[lane] += the sum over j of w[4 * lane + j] * x[4 * lane + j], w without a sign.
static OCTAVO_INLINE I add_products(I total, I w, I x) {
  return (I)_mm512_dpbusd_epi32((__m512i)total, (__m512i)w, (__m512i)x);
}

static OCTAVO_INLINE I end_products(I total) { return total; }

// total += part * factor, part within 16 bits. Of the factor's two halves the upper is zero.
static OCTAVO_INLINE I add_times(I total, I part, I factor) { return add_pairs(total, part, factor); }

#else

// total += w[2 * i] * x[2 * i] + w[2 * i + 1] * x[2 * i + 1] in 16 bits, w without a sign and at most 15: eight such
// sums fit.
static OCTAVO_INLINE I add_products(I total, I w, I x) {
#ifdef __AVX2__
  const S more = (S)_mm256_maddubs_epi16((__m256i)w, (__m256i)x);
#else
  const S more = ((S)w & 0xff) * (S)((S)((S)x << 8) >> 8) + ((S)w >> 8) * ((S)x >> 8);
#endif
  return (I)((S)total + more);
}

// The two sums of a lane together.
static OCTAVO_INLINE I end_products(I total) {
#ifdef __AVX2__
  return (I)_mm256_madd_epi16((__m256i)total, _mm256_set1_epi16(1));
#else
  return ((total << 16) >> 16) + (total >> 16);
#endif
}

// total += both sums of a lane, times a factor.
static OCTAVO_INLINE I add_times(I total, I part, I factor) {
#ifdef __SSE2__
  return add_pairs(total, part, factor);
#else
  return total + (((part << 16) >> 16) + (part >> 16)) * factor;
#endif
}

#endif

// multiply(i, k, low, high) for every i of a block: the weights of inputs k to k + 3 and k + 8 to k + 11 in bytes.
template <int T, typename Multiply>
static OCTAVO_INLINE void each_group(const uint8_t* const* w, Multiply multiply) {
  OCTAVO_STEPS(i, 4) {
    I low[T], high[T];
    OCTAVO_EACH(t, T) {
      I both = load_bits(w[t] + i * sizeof both);
      OCTAVO_KEEP(both);  // one load, not one for each half
      low[t] = both & 0x0f0f0f0f, high[t] = (both >> 4) & 0x0f0f0f0f;
    }
    multiply(i, 16 * (i / 2) + 4 * (i % 2), low, high);
  }
}

// part[t] += w[t] * x, or instead of it.
template <int T>
static OCTAVO_INLINE void add_each(I* part, const I* w, const int8_t* x, bool first) {
  const I same = broadcast(x);
  OCTAVO_EACH(t, T) {
    part[t] = add_products(first ? I{} : part[t], w[t], same);
    OCTAVO_KEEP(part[t]);
  }
}

// One activation after the other is loaded: registers have no room for more.
template <int M, int T>
static OCTAVO_INLINE void dot_block(const uint8_t* const* w, const Activations8* x, I (*result)[M]) {
  each_group<T>(w, [&](int i, int k, const I* low, const I* high) OCTAVO_INLINE_LAMBDA {
    OCTAVO_EACH(m, M) {
      I part[T];
      add_each<T>(part, low, x[m].q + k, true);
      add_each<T>(part, high, x[m].q + k + 8, false);
      const I factor = broadcast(x[m].factors + i);
      OCTAVO_EACH(t, T) {
        result[t][m] = add_times(i == 0 ? I{} : result[t][m], part[t], factor);
        OCTAVO_KEEP(result[t][m]);
      }
    }
  });
}

// A lane's bytes are taken by twos, as numbers of 16 bits: the inputs of in_pairs.
template <int M, int T>
static OCTAVO_INLINE void dot_block(const uint8_t* const* w, const Activations16* x, I (*result)[M]) {
  const I mask = splat(0x000f000f);
  OCTAVO_STEPS(i, 4) {
    I both[T];
    OCTAVO_EACH(t, T) {
      both[t] = load_bits(w[t] + i * sizeof(I));
      OCTAVO_KEEP(both[t]);
    }
    OCTAVO_STEPS(odd, 2) {
      I low[T], high[T];
      OCTAVO_EACH(t, T) low[t] = (both[t] >> 8 * odd) & mask, high[t] = (both[t] >> (8 * odd + 4)) & mask;
      const auto add = [&](int index, const I* weight, bool first) OCTAVO_INLINE_LAMBDA {
        OCTAVO_EACH(m, M) {
          const I pair = broadcast(x[m].q + index);
          OCTAVO_EACH(t, T) {
            result[t][m] = add_pairs(first ? I{} : result[t][m], weight[t], pair);
            OCTAVO_KEEP(result[t][m]);
          }
        }
      };
      add(8 * i + 4 * odd, low, i == 0 && odd == 0);
      add(8 * i + 4 * odd + 2, high, false);
    }
  }
}

// Bytes as numbers of 16 bits.
static OCTAVO_INLINE I load_shorts(const uint8_t* w) {
#if defined(__AVX512F__)
  return (I)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
#elif defined(__AVX2__)
  return (I)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
#else
  const int8_t* bytes = reinterpret_cast<const int8_t*>(w);
  return (I)S{raised(bytes) >> 8, raised(bytes + kLanes) >> 8};
#endif
}

// Half a block of kS8, 16 inputs: the second one is added to the first.
template <int M, int T>
static OCTAVO_INLINE void dot_half(const uint8_t* const* w, const Activations16* x, int half, I (*result)[M]) {
  OCTAVO_STEPS(i, 8) {
    I weight[T];
    OCTAVO_EACH(t, T) weight[t] = load_shorts(w[t] + 2 * kLanes * (8 * half + i));
    OCTAVO_EACH(m, M) {
      const I pair = broadcast(x[m].q + 16 * half + 2 * i);
      OCTAVO_EACH(t, T) {
        result[t][m] = add_pairs(i == 0 && half == 0 ? I{} : result[t][m], weight[t], pair);
        OCTAVO_KEEP(result[t][m]);
      }
    }
  }
}

template <bool half_scales>
static OCTAVO_INLINE F load_scale(const uint8_t* p, int index) {
  if constexpr (half_scales) return load_half(reinterpret_cast<const uint16_t*>(p) + index * kLanes);
  return load(reinterpret_cast<const float*>(p) + index * kLanes);
}

// A panel of rows and some tiles of a kind, each `apart` tiles after the one before.
template <WeightKind kind, typename Record>
struct Factors {
  const Weight& weight;
  const Record* panel;
  const Residual8* residuals;  // of its rows
  int64_t num_residuals;       // of each of them
  int64_t tile, apart;
  bool few;  // there is no other panel: weights are then read faster than the hardware follows by itself
};

// The records of T tiles, block after block.
template <int T>
struct Tiles {
  const uint8_t* data[T];  // of the block
  int64_t bytes;           // of a record

  template <WeightKind kind, typename Record>
  OCTAVO_INLINE explicit Tiles(const Factors<kind, Record>& in) : bytes(in.weight.block_bytes()) {
    for (int t = 0; t < T; t++) data[t] = in.weight.data + (in.tile + t * in.apart) * in.weight.tile_bytes();
  }
  OCTAVO_INLINE void next() {
    OCTAVO_EACH(t, T) data[t] += bytes;
  }
  template <bool half_scales>
  OCTAVO_INLINE F scale(int t, int64_t integer_bytes, int index) const {
    return load_scale<half_scales>(data[t] + integer_bytes, index);
  }
  OCTAVO_INLINE void fetch_ahead() const {
    constexpr int64_t kAhead = 2048;
    OCTAVO_EACH(t, T) fetch_lines(data[t] + kAhead, bytes);
  }
};

// sum[t][m] += what residuals add to it.
template <bool half_scales, int M, int T>
static OCTAVO_INLINE void add_residuals(const Factors<WeightKind::kU4, Activations8>& in, F (*sum)[M]) {
  const Tiles<T> tiles(in);
  const int64_t block_bytes = tiles.bytes, count = in.num_residuals;
  for (const Residual8 *residuals = in.residuals, *end = residuals + count; residuals < end; residuals++) {
    OCTAVO_EACH(m, M) {
      const Residual8& x = residuals[m * count];
      const int64_t block = (x.group >> 2) * block_bytes, part = (x.group & 3) * sizeof(I);
      const I a = broadcast(x.q), b = broadcast(x.q + 4);
      OCTAVO_EACH(t, T) {
        const uint8_t* data = tiles.data[t] + block;
        const I both = load_bits(data + part), low = both & 0x0f0f0f0f, high = (both >> 4) & 0x0f0f0f0f;
        const I dot = end_products(add_products(add_products(I{}, low, a), high, b));
        const F scale = load_scale<half_scales>(data + kLanes * kBlock / 2, 0) * splat(x.scale);
        sum[t][m] = fma(to_float(dot), scale, sum[t][m]);
        OCTAVO_KEEP(sum[t][m]);
      }
    }
  }
}

// total[t][m] = tile t * row m, for M rows of the panel. Compiled once for all that multiply: it is most of their code.
template <bool half_scales, int M, int T, typename Record>
static __attribute__((noinline)) void multiply(const Factors<WeightKind::kU4, Record>& in, F (*total)[M]) {
  constexpr int64_t kIntegerBytes = kLanes * kBlock / 2;
  F sum[T][M];
  OCTAVO_EACH(t, T)
    OCTAVO_EACH(m, M) sum[t][m] = splat(0.0f);
  const Record* x = in.panel;
  Tiles<T> at(in);
  for (int64_t b = in.weight.blocks(); b > 0; b--, at.next(), x += kPanel) {
    if (in.few) at.fetch_ahead();
    I dot[T][M];
    dot_block<M, T>(at.data, x, dot);
    F scale[T], minimum[T];
    OCTAVO_EACH(t, T) {
      scale[t] = at.template scale<half_scales>(t, kIntegerBytes, 0);
      minimum[t] = at.template scale<half_scales>(t, kIntegerBytes, 1);
    }
    OCTAVO_EACH(m, M) {
      const F x_scale = splat(x[m].scale), x_sum = splat(x[m].sum);
      OCTAVO_EACH(t, T) {
        sum[t][m] = fma(to_float(dot[t][m]), scale[t] * x_scale, sum[t][m]);
        sum[t][m] = fma(minimum[t], x_sum, sum[t][m]);
      }
    }
  }
  if constexpr (std::is_same_v<Record, Activations8>) add_residuals<half_scales, M, T>(in, sum);
  OCTAVO_EACH(t, T)
    OCTAVO_EACH(m, M) total[t][m] = sum[t][m];
}

template <bool half_scales, int M, int T>
static __attribute__((noinline)) void multiply(const Factors<WeightKind::kS8, Activations16>& in, F (*total)[M]) {
  constexpr int64_t kIntegerBytes = kLanes * kBlock;
  F sum[T][M];
  OCTAVO_EACH(t, T)
    OCTAVO_EACH(m, M) sum[t][m] = splat(0.0f);
  const Activations16* x = in.panel;
  const bool halves = in.weight.group != kBlock;  // each half of a block has a scale
  Tiles<T> at(in);
  for (int64_t b = in.weight.blocks(); b > 0; b--, at.next(), x += kPanel) {
    if (in.few) at.fetch_ahead();
    I dot[T][M];
    dot_half<M, T>(at.data, x, 0, dot);
    if (halves)
      OCTAVO_EACH(t, T) {
        const F scale = at.template scale<half_scales>(t, kIntegerBytes, 0);
        OCTAVO_EACH(m, M) {
          sum[t][m] = fma(to_float(dot[t][m]), scale * splat(x[m].scale), sum[t][m]);
          dot[t][m] = I{};
        }
      }
    dot_half<M, T>(at.data, x, 1, dot);
    OCTAVO_EACH(t, T) {
      const F scale = at.template scale<half_scales>(t, kIntegerBytes, halves);
      OCTAVO_EACH(m, M) sum[t][m] = fma(to_float(dot[t][m]), scale * splat(x[m].scale), sum[t][m]);
    }
    if (in.weight.minima)
      OCTAVO_EACH(t, T) {
        const F minimum = at.template scale<half_scales>(t, kIntegerBytes, halves + 1);
        OCTAVO_EACH(m, M) sum[t][m] = fma(minimum, splat(x[m].sum), sum[t][m]);
      }
  }
  OCTAVO_EACH(t, T)
    OCTAVO_EACH(m, M) total[t][m] = sum[t][m];
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
