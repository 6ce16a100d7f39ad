// The kernels, written once; compiled per instruction set with OCTAVO_ISA naming the result.
//
// Vectors are the compiler's generic ones (8 floats), so that everything but the integer dot products is plain C++ and
// becomes AVX2, SSE2 or NEON as the flags say.

#include "kernels.h"

#include <cmath>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace octavo {
namespace OCTAVO_ISA {

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef float F8u __attribute__((vector_size(32), aligned(4)));  // unaligned loads and stores

static inline F8 load(const float* p) { return *reinterpret_cast<const F8u*>(p); }
static inline void store(float* p, F8 v) { *reinterpret_cast<F8u*>(p) = v; }
static inline F8 splat(float x) { return F8{x, x, x, x, x, x, x, x}; }

// a * b + c, rounded once where the machine can.
static inline F8 fma(F8 a, F8 b, F8 c) {
#ifdef __FMA__
  return (F8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

static inline float sum(F8 v) {  // always in this order
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

static inline float half_to_float(uint16_t h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  float f;
  std::memcpy(&f, &magnitude, 4);
  f *= 0x1p112f;  // also right for subnormals
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((h & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  bits |= static_cast<uint32_t>(h & 0x8000u) << 16;
  std::memcpy(&f, &bits, 4);
  return f;
}

static inline uint16_t float_to_half(float f) {  // to nearest even; too large becomes infinite
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u) return sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u);
  if (bits < 0x38800000u) {
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;  // the rounding of this addition is that of a subnormal half
    std::memcpy(&bits, &magnitude, 4);
    return sign | static_cast<uint16_t>(bits - 0x3f000000u);
  }
  return sign | static_cast<uint16_t>((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13);
}

static inline F8 load_half(const uint16_t* p) {
#ifdef __F16C__
  return (F8)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  F8 v;
  for (int i = 0; i < 8; i++) v[i] = half_to_float(p[i]);
  return v;
#endif
}

static inline F8 load_bfloat(const uint16_t* p) {
  I8 bits;
  for (int i = 0; i < 8; i++) bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return (F8)bits;
}

// exp(x), relative error below 2e-7; 0 for x < -87.
static inline F8 exp8(F8 x) {
  const F8 low = splat(-87.0f), high = splat(88.0f);
  const I8 vanishes = x < low;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const F8 magic = splat(12582912.0f);  // adding 1.5 * 2^23 rounds to the nearest integer
  const F8 n = (x * splat(1.44269504f) + magic) - magic;
  F8 r = x - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  F8 p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  const I8 exponent = (__builtin_convertvector(n, I8) + 127) << 23;
  const F8 result = p * (F8)exponent;
  return (F8)((I8)result & ~vanishes);
}

// --- linears ---------------------------------------------------------------------------------------------------------

struct Output {
  float* y;
  int64_t y_stride;
  const float* residual;
  int64_t residual_stride;

  void put(int64_t row, int64_t feature, F8 value, const float* bias) const {
    if (bias) value += load(bias + feature);
    if (residual) value += load(residual + row * residual_stride + feature);
    store(y + row * y_stride + feature, value);
  }
};

#ifdef __AVX2__
static inline __m256i splat4(const int8_t* p) {  // four activations, to every lane
  int32_t v;
  std::memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
#endif

// Sums of products of one block: kU4. Eight products of at most 2 * 15 * 127 fit into 16 bits.
template <int M>
static inline void dot_u4(const uint8_t* w, const int8_t* const* q, I8* result) {
#ifdef __AVX2__
  const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i total[M];
  for (int i = 0; i < 4; i++) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * i));
    const __m256i low = _mm256_and_si256(both, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    for (int m = 0; m < M; m++) {
      const __m256i a = _mm256_maddubs_epi16(low, splat4(q[m] + 8 * i));
      const __m256i b = _mm256_maddubs_epi16(high, splat4(q[m] + 8 * i + 4));
      total[m] = i == 0 ? _mm256_add_epi16(a, b) : _mm256_add_epi16(_mm256_add_epi16(total[m], a), b);
    }
  }
  for (int m = 0; m < M; m++) result[m] = (I8)_mm256_madd_epi16(total[m], ones);
#else
  for (int m = 0; m < M; m++) {
    int32_t total[kTile] = {};
    for (int i = 0; i < 4; i++)
      for (int lane = 0; lane < kTile; lane++)
        for (int j = 0; j < 4; j++) {
          const int32_t both = w[32 * i + 4 * lane + j];
          total[lane] += (both & 15) * q[m][8 * i + j] + (both >> 4) * q[m][8 * i + 4 + j];
        }
    std::memcpy(&result[m], total, sizeof total);
  }
#endif
}

// Sums of products of half a block: kS8, 16 inputs.
template <int M>
static inline void dot_s8(const uint8_t* w, const int8_t* const* q, I8* result) {
#ifdef __AVX2__
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total[M];
  for (int i = 0; i < 4; i++) {
    const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * i));
    const __m256i magnitude = _mm256_abs_epi8(weight);
    for (int m = 0; m < M; m++) {
      const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(splat4(q[m] + 4 * i), weight));
      const __m256i quads = _mm256_madd_epi16(pairs, ones);
      total[m] = i == 0 ? quads : _mm256_add_epi32(total[m], quads);
    }
  }
  for (int m = 0; m < M; m++) result[m] = (I8)total[m];
#else
  for (int m = 0; m < M; m++) {
    int32_t total[kTile] = {};
    for (int i = 0; i < 4; i++)
      for (int lane = 0; lane < kTile; lane++)
        for (int j = 0; j < 4; j++)
          total[lane] += static_cast<int8_t>(w[32 * i + 4 * lane + j]) * q[m][4 * i + j];
    std::memcpy(&result[m], total, sizeof total);
  }
#endif
}

template <WeightKind kind, int M>
static void quantised_rows(const Weight& w, const Quantised& x, int64_t row, int64_t tile, const Output& out) {
  constexpr int64_t bytes = kind == WeightKind::kU4 ? 128 : 256;
  const int64_t blocks = w.blocks(), groups = kBlock / w.group;
  const uint8_t* data = w.data + tile * blocks * bytes;
  const float* scales = w.scales + tile * blocks * groups * kTile;
  const float* minima = w.minima ? w.minima + tile * blocks * groups * kTile : nullptr;
  const int8_t* q[M];
  const float *x_scales[M], *x_sums[M];
  F8 total[M];
  for (int m = 0; m < M; m++) {
    q[m] = x.q + (row + m) * w.in;
    x_scales[m] = x.scales + (row + m) * blocks;
    x_sums[m] = x.sums + (row + m) * blocks * 2;
    total[m] = splat(0.0f);
  }
  for (int64_t b = 0; b < blocks; b++) {
    I8 first[M], second[M];
    if constexpr (kind == WeightKind::kU4) {
      dot_u4<M>(data, q, first);
    } else {
      dot_s8<M>(data, q, first);
      const int8_t* rest[M];
      for (int m = 0; m < M; m++) rest[m] = q[m] + 16;
      dot_s8<M>(data + 128, rest, second);
    }
    if (groups == 1) {
      const F8 scale = load(scales);
      for (int m = 0; m < M; m++) {
        I8 dot = first[m];
        if constexpr (kind == WeightKind::kS8) dot += second[m];
        total[m] = fma(__builtin_convertvector(dot, F8), scale * splat(x_scales[m][b]), total[m]);
      }
      if (minima)
        for (int m = 0; m < M; m++)
          total[m] = fma(load(minima), splat(x_sums[m][2 * b] + x_sums[m][2 * b + 1]), total[m]);
    } else if constexpr (kind == WeightKind::kS8) {
      for (int m = 0; m < M; m++) {
        total[m] = fma(__builtin_convertvector(first[m], F8), load(scales) * splat(x_scales[m][b]), total[m]);
        total[m] = fma(__builtin_convertvector(second[m], F8), load(scales + kTile) * splat(x_scales[m][b]), total[m]);
        if (minima) {
          total[m] = fma(load(minima), splat(x_sums[m][2 * b]), total[m]);
          total[m] = fma(load(minima + kTile), splat(x_sums[m][2 * b + 1]), total[m]);
        }
      }
    }
    data += bytes;
    scales += groups * kTile;
    if (minima) minima += groups * kTile;
    for (int m = 0; m < M; m++) q[m] += kBlock;
  }
  for (int m = 0; m < M; m++) out.put(row + m, tile * kTile, total[m], w.bias);
}

template <WeightKind kind>
static void quantised_tiles(const Weight& w, const Quantised& x, int64_t rows, const Output& out, int64_t first,
                            int64_t last) {
  for (int64_t tile = first; tile < last; tile++) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) quantised_rows<kind, 4>(w, x, row, tile, out);
    switch (rows - row) {
      case 3: quantised_rows<kind, 3>(w, x, row, tile, out); break;
      case 2: quantised_rows<kind, 2>(w, x, row, tile, out); break;
      case 1: quantised_rows<kind, 1>(w, x, row, tile, out); break;
      default: break;
    }
  }
}

static void linear_quantised(const Weight& w, const Quantised& x, int64_t rows, float* y, int64_t y_stride,
                             const float* residual, int64_t residual_stride, int64_t first, int64_t last) {
  const Output out{y, y_stride, residual, residual_stride};
  if (w.kind == WeightKind::kU4)
    quantised_tiles<WeightKind::kU4>(w, x, rows, out, first, last);
  else
    quantised_tiles<WeightKind::kS8>(w, x, rows, out, first, last);
}

template <WeightKind kind>
static inline F8 load_weight(const uint8_t* data, int64_t element) {
  if constexpr (kind == WeightKind::kF32) return load(reinterpret_cast<const float*>(data) + element);
  if constexpr (kind == WeightKind::kF16) return load_half(reinterpret_cast<const uint16_t*>(data) + element);
  return load_bfloat(reinterpret_cast<const uint16_t*>(data) + element);
}

// Even and odd inputs are summed apart, for two chains of additions instead of one, and added at the end.
template <WeightKind kind, int M>
static void float_rows(const Weight& w, const float* x, int64_t x_stride, int64_t row, int64_t tile, const Output& out) {
  F8 even[M], odd[M];
  for (int m = 0; m < M; m++) even[m] = odd[m] = splat(0.0f);
  const int64_t start = tile * w.in * kTile;
  const float* rows = x + row * x_stride;
  int64_t k = 0;
  for (; k + 2 <= w.in; k += 2) {
    const F8 a = load_weight<kind>(w.data, start + k * kTile), b = load_weight<kind>(w.data, start + (k + 1) * kTile);
    for (int m = 0; m < M; m++) {
      even[m] = fma(a, splat(rows[m * x_stride + k]), even[m]);
      odd[m] = fma(b, splat(rows[m * x_stride + k + 1]), odd[m]);
    }
  }
  if (k < w.in)
    for (int m = 0; m < M; m++)
      even[m] = fma(load_weight<kind>(w.data, start + k * kTile), splat(rows[m * x_stride + k]), even[m]);
  for (int m = 0; m < M; m++) out.put(row + m, tile * kTile, even[m] + odd[m], w.bias);
}

template <WeightKind kind>
static void float_tiles(const Weight& w, const float* x, int64_t x_stride, int64_t rows, const Output& out,
                        int64_t first, int64_t last) {
  for (int64_t tile = first; tile < last; tile++) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) float_rows<kind, 4>(w, x, x_stride, row, tile, out);
    for (; row < rows; row++) float_rows<kind, 1>(w, x, x_stride, row, tile, out);
  }
}

static void linear_float(const Weight& w, const float* x, int64_t x_stride, int64_t rows, float* y, int64_t y_stride,
                         const float* residual, int64_t residual_stride, int64_t first, int64_t last) {
  const Output out{y, y_stride, residual, residual_stride};
  switch (w.kind) {
    case WeightKind::kF16: return float_tiles<WeightKind::kF16>(w, x, x_stride, rows, out, first, last);
    case WeightKind::kBF16: return float_tiles<WeightKind::kBF16>(w, x, x_stride, rows, out, first, last);
    default: return float_tiles<WeightKind::kF32>(w, x, x_stride, rows, out, first, last);
  }
}

static void quantise(const float* x, int64_t width, int64_t in, int8_t* q, float* scales, float* sums) {
  for (int64_t b = 0; b < in / kBlock; b++) {
    float block[kBlock] = {};
    const int64_t present = width - b * kBlock;
    if (present > 0) std::memcpy(block, x + b * kBlock, sizeof(float) * (present < kBlock ? present : kBlock));
    float largest = 0.0f;
    for (int i = 0; i < kBlock; i++) largest = std::fmax(largest, std::fabs(block[i]));
    const float scale = largest / 127.0f, inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int32_t half_sums[2] = {0, 0};
    for (int i = 0; i < kBlock; i++) {
      const float magic = 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
      const int32_t v = static_cast<int32_t>((block[i] * inverse + magic) - magic);
      q[b * kBlock + i] = static_cast<int8_t>(v);
      half_sums[i / 16] += v;
    }
    scales[b] = scale;
    sums[2 * b] = scale * static_cast<float>(half_sums[0]);
    sums[2 * b + 1] = scale * static_cast<float>(half_sums[1]);
  }
}

static void unpack_row(const Weight& w, int64_t row, int64_t width, float* y) {
  const int64_t tile = row / kTile, lane = row % kTile, blocks = w.blocks();
  for (int64_t k = 0; k < width; k++) {
    const int64_t b = k / kBlock, offset = k % kBlock;
    switch (w.kind) {
      case WeightKind::kU4:
      case WeightKind::kS8: {
        const int64_t groups = kBlock / w.group;
        const int64_t at = ((tile * blocks + b) * groups + offset / w.group) * kTile + lane;
        float q;
        if (w.kind == WeightKind::kU4) {
          const uint8_t both = w.data[(tile * blocks + b) * 128 + 32 * (offset / 8) + 4 * lane + offset % 4];
          q = static_cast<float>(offset % 8 < 4 ? both & 15 : both >> 4);
        } else {
          const uint8_t byte = w.data[(tile * blocks + b) * 256 + 32 * (offset / 4) + 4 * lane + offset % 4];
          q = static_cast<float>(static_cast<int8_t>(byte));
        }
        y[k] = w.scales[at] * q + (w.minima ? w.minima[at] : 0.0f);
        break;
      }
      default: {
        const int64_t element = (tile * w.in + k) * kTile + lane;
        if (w.kind == WeightKind::kF32)
          y[k] = reinterpret_cast<const float*>(w.data)[element];
        else if (w.kind == WeightKind::kF16)
          y[k] = half_to_float(reinterpret_cast<const uint16_t*>(w.data)[element]);
        else {
          const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(w.data)[element]) << 16;
          std::memcpy(&y[k], &bits, 4);
        }
      }
    }
  }
}

// --- rows ------------------------------------------------------------------------------------------------------------

// sum of x * x (or of x, if `square` is false), always in the same order for the same length
template <bool square>
static float sum_of(const float* x, int64_t length) {
  F8 total = splat(0.0f);
  int64_t i = 0;
  for (; i + 8 <= length; i += 8) {
    const F8 v = load(x + i);
    total = square ? fma(v, v, total) : total + v;
  }
  float result = sum(total);
  for (; i < length; i++) result += square ? x[i] * x[i] : x[i];
  return result;
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t runs, int64_t length, float* y) {
  for (int64_t run = 0; run < runs; run++, x += length, y += length) {
    const float factor = 1.0f / std::sqrt(sum_of<true>(x, length) / static_cast<float>(length) + eps);
    for (int64_t i = 0; i < length; i++) y[i] = x[i] * factor * weight[i];
  }
}

static void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* y) {
  const float mean = sum_of<false>(x, width) / static_cast<float>(width);
  for (int64_t i = 0; i < width; i++) y[i] = x[i] - mean;
  const float factor = 1.0f / std::sqrt(sum_of<true>(y, width) / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i++) y[i] = y[i] * factor * weight[i] + bias[i];
}

static void rope(const float* x, const float* cosine, const float* sine, int64_t heads, int64_t half, float* y) {
  for (int64_t head = 0; head < heads; head++, x += 2 * half, y += 2 * half)
    for (int64_t i = 0; i < half; i++) {
      const float a = x[i], b = x[half + i];
      y[i] = a * cosine[i] - b * sine[i];
      y[half + i] = b * cosine[i] + a * sine[i];
    }
}

static inline F8 activation(int32_t function, F8 x) {
  const F8 one = splat(1.0f);
  if (function == 0) return x / (one + exp8(-x));  // silu
  // tanh(u) = 1 - 2 / (exp(2u) + 1)
  const F8 u = splat(0.7978845608f) * (x + splat(0.044715f) * x * x * x);
  return splat(0.5f) * x * (splat(2.0f) - splat(2.0f) / (exp8(u + u) + one));
}

static void activate(int32_t function, const float* x, int64_t width, float* y) {
  if (function == 1) {  // gelu by the error function
    for (int64_t i = 0; i < width; i++) y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
    return;
  }
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) store(y + i, activation(function, load(x + i)));
  if (i < width) {
    float rest[8] = {};
    std::memcpy(rest, x + i, sizeof(float) * (width - i));
    store(rest, activation(function, load(rest)));
    std::memcpy(y + i, rest, sizeof(float) * (width - i));
  }
}

static void to_half(const float* x, int64_t count, uint16_t* y) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), _mm256_cvtps_ph((__m256)load(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; i++) y[i] = float_to_half(x[i]);
}

// --- attention -------------------------------------------------------------------------------------------------------

constexpr int64_t kChunk = 32;      // positions between two rescalings of the softmax; chunks begin at its multiples
constexpr int64_t kMaxHeads = 16;   // query heads of a KV head done at a time
constexpr int64_t kMaxHeadDim = 512;

static float dot_half(const float* a, const uint16_t* b, int64_t count) {
  F8 total = splat(0.0f);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) total = fma(load(a + i), load_half(b + i), total);
  float result = sum(total);
  for (; i < count; i++) result += a[i] * half_to_float(b[i]);
  return result;
}

static void add_scaled_half(const uint16_t* v, float weight, int64_t count, float* total) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) store(total + i, fma(load_half(v + i), splat(weight), load(total + i)));
  for (; i < count; i++) total[i] += half_to_float(v[i]) * weight;
}

static void attend(const AttentionShape& shape, const Pages& pages, const int32_t* page_row, int64_t position,
                   int64_t kv_head, const float* queries, float* output) {
  const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  const int64_t begin = shape.window && position >= shape.window ? position - shape.window + 1 : 0;
  for (int64_t head = 0; head < group; head += kMaxHeads) {
    const int64_t heads = group - head < kMaxHeads ? group - head : kMaxHeads;
    alignas(32) float total[kMaxHeads][kMaxHeadDim];
    float largest[kMaxHeads], weight_sum[kMaxHeads];
    for (int64_t h = 0; h < heads; h++) {
      std::memset(total[h], 0, sizeof(float) * dim);
      largest[h] = -INFINITY;
      weight_sum[h] = 0.0f;
    }
    const float* q = queries + head * dim;
    for (int64_t chunk = begin / kChunk * kChunk; chunk <= position; chunk += kChunk) {
      const int64_t from = chunk < begin ? begin : chunk;
      const int64_t to = chunk + kChunk <= position ? chunk + kChunk : position + 1;
      alignas(32) float scores[kMaxHeads][kChunk];
      const uint16_t* at[kChunk];
      for (int64_t p = from; p < to; p++) {
        const int64_t slot = static_cast<int64_t>(page_row[p / shape.page_size]) * shape.page_size + p % shape.page_size;
        const int64_t offset = (slot * shape.kv_heads + kv_head) * dim;
        at[p - from] = pages.values + offset;
        for (int64_t h = 0; h < heads; h++)
          scores[h][p - from] = dot_half(q + h * dim, pages.keys + offset, dim) * shape.scale;
      }
      const int64_t count = to - from;
      for (int64_t h = 0; h < heads; h++) {
        float peak = largest[h];
        for (int64_t i = 0; i < count; i++) peak = scores[h][i] > peak ? scores[h][i] : peak;
        for (int64_t i = count; i < kChunk; i++) scores[h][i] = -INFINITY;
        const float rescale = largest[h] == -INFINITY ? 0.0f : exp8(splat(largest[h] - peak))[0];
        F8 sums = splat(0.0f);
        for (int64_t i = 0; i < kChunk; i += 8) {
          const F8 e = exp8(load(scores[h] + i) - splat(peak));
          store(scores[h] + i, e);
          sums += e;
        }
        weight_sum[h] = weight_sum[h] * rescale + sum(sums);
        largest[h] = peak;
        if (rescale != 1.0f)
          for (int64_t i = 0; i < dim; i++) total[h][i] *= rescale;
        for (int64_t i = 0; i < count; i++) add_scaled_half(at[i], scores[h][i], dim, total[h]);
      }
    }
    for (int64_t h = 0; h < heads; h++)
      for (int64_t i = 0; i < dim; i++) output[(head + h) * dim + i] = total[h][i] / weight_sum[h];
  }
}

// --- sampling --------------------------------------------------------------------------------------------------------

static float run_maxima(const float* x, int64_t count, float* maxima) {
  I8 undefined = {};
  float highest = -INFINITY;
  for (int64_t first = 0; first < count; first += kRun, x += kRun) {
    float padded[kRun];
    const float* run = x;
    if (count - first < kRun) {
      for (int i = 0; i < kRun; i++) padded[i] = -INFINITY;
      std::memcpy(padded, x, sizeof(float) * (count - first));
      run = padded;
    }
    F8 even = splat(-INFINITY), odd = even;
    for (int i = 0; i < kRun; i += 16) {
      const F8 a = load(run + i), b = load(run + i + 8);
      even = a > even ? a : even;
      odd = b > odd ? b : odd;
      undefined |= (a != a) | (b != b);
    }
    even = odd > even ? odd : even;
    float most = even[0];
    for (int lane = 1; lane < 8; lane++) most = even[lane] > most ? even[lane] : most;
    maxima[first / kRun] = most;
    highest = most > highest ? most : highest;
  }
  for (int lane = 0; lane < 8; lane++)
    if (undefined[lane]) return NAN;
  return highest;
}

typedef float F4u __attribute__((vector_size(16), aligned(4)));
typedef double D4 __attribute__((vector_size(32)));
typedef double D4u __attribute__((vector_size(32), aligned(8)));
typedef int64_t L4 __attribute__((vector_size(32)));

static inline D4 splat(double x) { return D4{x, x, x, x}; }
static inline void store(double* p, D4 v) { *reinterpret_cast<D4u*>(p) = v; }

static inline D4 load_wide(const float* p) {
#ifdef __AVX2__
  return (D4)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  return __builtin_convertvector(*reinterpret_cast<const F4u*>(p), D4);
#endif
}

static inline D4 fma(D4 a, D4 b, D4 c) {
#ifdef __FMA__
  return (D4)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

static inline D4 larger(D4 a, D4 b) {
#ifdef __AVX2__
  return (D4)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}

// 2 ** y for y <= 0. In double: rounding y to a float alone would move cumulative probabilities by about 1e-6.
static inline D4 exp2_4(D4 y) {
  y = larger(y, splat(-1023.0));  // of which the bits below come out as zero
  const D4 shifted = y + splat(6755399441055744.0);  // adding 1.5 * 2^52 rounds, and leaves the integer in the low bits
  const D4 f = y - (shifted - splat(6755399441055744.0));
  D4 p = splat(1.3255224878668817e-06);  // minimax on [-0.5, 0.5], 1 at 0
  p = fma(p, f, splat(1.5310079402249296e-05));
  p = fma(p, f, splat(1.5403455852453838e-04));
  p = fma(p, f, splat(1.3333450568000645e-03));
  p = fma(p, f, splat(9.6181291594025580e-03));
  p = fma(p, f, splat(5.5504109412059330e-02));
  p = fma(p, f, splat(2.4022650695812990e-01));
  p = fma(p, f, splat(6.9314718054593350e-01));
  p = fma(p, f, splat(1.0));
  return (D4)((L4)p + ((L4)shifted << 52));
}

// Even and odd quadruples apart: two chains of operations keep the units busier than one.
static double exponentials(const float* x, int64_t count, float highest, double factor, double* y) {
  const D4 shift = splat(static_cast<double>(highest)), scale = splat(factor);
  D4 even = splat(0.0), odd = even;
  for (int64_t i = 0; i < count; i += 8) {
    const int64_t present = count - i;
    float padded[8];
    const float* from = x + i;
    if (present < 8) {
      for (int lane = 0; lane < 8; lane++) padded[lane] = lane < present ? from[lane] : -INFINITY;
      from = padded;
    }
    const D4 a = exp2_4((load_wide(from) - shift) * scale), b = exp2_4((load_wide(from + 4) - shift) * scale);
    even += a;
    odd += b;
    if (present >= 8) {
      store(y + i, a);
      store(y + i + 4, b);
    } else {
      const double both[8] = {a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]};
      std::memcpy(y + i, both, sizeof(double) * present);
    }
  }
  even += odd;
  return (even[0] + even[2]) + (even[1] + even[3]);
}

static bool supported() {
#ifdef __AVX2__
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return true;
#endif
}

}  // namespace OCTAVO_ISA

#define OCTAVO_JOIN_(a, b) a##b
#define OCTAVO_JOIN(a, b) OCTAVO_JOIN_(a, b)
#define OCTAVO_TEXT_(a) #a
#define OCTAVO_TEXT(a) OCTAVO_TEXT_(a)

const Kernels& OCTAVO_JOIN(OCTAVO_ISA, _kernels)() {
  static const Kernels kernels = {
      OCTAVO_TEXT(OCTAVO_ISA),    OCTAVO_ISA::supported,  OCTAVO_ISA::linear_quantised, OCTAVO_ISA::linear_float,
      OCTAVO_ISA::quantise,       OCTAVO_ISA::unpack_row, OCTAVO_ISA::rms_norm,         OCTAVO_ISA::layer_norm,
      OCTAVO_ISA::rope,           OCTAVO_ISA::activate,   OCTAVO_ISA::to_half,          OCTAVO_ISA::attend,
      OCTAVO_ISA::run_maxima,     OCTAVO_ISA::exponentials,
  };
  return kernels;
}

}  // namespace octavo
