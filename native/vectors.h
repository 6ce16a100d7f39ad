// Vectors of eight floats, and what every kernel needs of them.
//
// The types are the compiler's generic ones, so that everything but the integer dot products is plain C++ and becomes
// AVX2, SSE2 or NEON as the flags say. Included by the kernels alone, inside the namespace of one instruction set.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

// A loop over an array of vectors that is to live in registers: GCC keeps in memory what it does not unroll early.
#define OCTAVO_EACH(index, count) _Pragma("GCC unroll 16") for (int index = 0; index < count; index++)

namespace octavo {
namespace OCTAVO_ISA {

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef float F4 __attribute__((vector_size(16)));  // half of one: cheaper to reduce than the whole
typedef int32_t I4 __attribute__((vector_size(16)));
typedef float F8u __attribute__((vector_size(32), aligned(4)));  // unaligned loads and stores

static inline F8 load(const float* p) { return *reinterpret_cast<const F8u*>(p); }
static inline void store(float* p, F8 v) { *reinterpret_cast<F8u*>(p) = v; }
static inline void store(void* p, I8 v) { std::memcpy(p, &v, sizeof v); }
static inline F8 splat(float x) { return F8{x, x, x, x, x, x, x, x}; }
static inline I8 splat(int32_t x) { return I8{x, x, x, x, x, x, x, x}; }

// a * b + c, rounded once where the machine can.
static inline F8 fma(F8 a, F8 b, F8 c) {
#ifdef __FMA__
  return (F8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

static inline F8 max8(F8 a, F8 b) { return a > b ? a : b; }
static inline I8 max8(I8 a, I8 b) { return a > b ? a : b; }

static inline F4 low_half(F8 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }

static inline F4 high_half(F8 v) {
#ifdef __AVX2__
  return (F4)_mm256_extractf128_ps((__m256)v, 1);  // GCC would take a permutation of the whole vector
#else
  return __builtin_shufflevector(v, v, 4, 5, 6, 7);
#endif
}

static inline float sum(F8 v) {  // always in this order
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

static inline float largest(F8 v) {
  F4 low = low_half(v), high = high_half(v);
  low = low > high ? low : high;
  high = __builtin_shufflevector(low, low, 2, 3, 0, 1);
  low = low > high ? low : high;
  return low[0] > low[1] ? low[0] : low[1];
}

static inline int32_t largest(I8 v) {
  I4 low = (I4)low_half((F8)v), high = (I4)high_half((F8)v);
  low = low > high ? low : high;
  high = __builtin_shufflevector(low, low, 2, 3, 0, 1);
  low = low > high ? low : high;
  return low[0] > low[1] ? low[0] : low[1];
}

static inline int32_t sum(I8 v) {
  I4 half = (I4)low_half((F8)v) + (I4)high_half((F8)v);
  half += __builtin_shufflevector(half, half, 2, 3, 0, 1);
  return half[0] + half[1];
}

// 32 integers that fit, as bytes in their order.
static inline void to_bytes(const I8* x, void* y) {
#ifdef __AVX2__
  const __m256i low = _mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]), high = _mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing goes by halves of a vector
  _mm256_storeu_si256(static_cast<__m256i*>(y), _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
#else
  for (int i = 0; i < 32; i++) static_cast<int8_t*>(y)[i] = static_cast<int8_t>(x[i / 8][i % 8]);
#endif
}

// 32 integers that fit, as shorts in their order.
static inline void to_shorts(const I8* x, int16_t* y) {
#ifdef __AVX2__
  for (int i = 0; i < 2; i++)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 16 * i),
                        _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)x[2 * i], (__m256i)x[2 * i + 1]), 0xd8));
#else
  for (int i = 0; i < 32; i++) y[i] = static_cast<int16_t>(x[i / 8][i % 8]);
#endif
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

static inline void to_half(const float* x, int64_t count, uint16_t* y) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), _mm256_cvtps_ph((__m256)load(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; i++) y[i] = float_to_half(x[i]);
}

static inline F8 load_bfloat(const uint16_t* p) {
#ifdef __AVX2__
  return (F8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
  I8 bits;
  for (int i = 0; i < 8; i++) bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return (F8)bits;
#endif
}

static inline F8 load_byte(const int8_t* p) {
#ifdef __AVX2__
  return (F8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  F8 v;
  for (int i = 0; i < 8; i++) v[i] = p[i];
  return v;
#endif
}

// To the nearest integer, for |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction, and the integer in the low bits.
static inline I8 nearest(F8 x) {
  const F8 magic = splat(12582912.0f);
  return (I8)(x + magic) - (I8)magic;
}

// y = exp(x), relative error below 2e-7; 0 for x < -87. V vectors side by side: each is a long chain of operations.
template <int V>
static inline void exp8(const F8* x, F8* y) {
  const F8 low = splat(-87.0f), high = splat(88.0f), magic = splat(12582912.0f);
  F8 within[V], shifted[V], r[V], p[V];
  OCTAVO_EACH(v, V) within[v] = x[v] < low ? low : x[v];
  OCTAVO_EACH(v, V) within[v] = within[v] > high ? high : within[v];
  OCTAVO_EACH(v, V) shifted[v] = within[v] * splat(1.44269504f) + magic;
  OCTAVO_EACH(v, V) r[v] = fma(shifted[v] - magic, splat(-0.693359375f), within[v]);
  OCTAVO_EACH(v, V) r[v] = fma(shifted[v] - magic, splat(2.12194440e-4f), r[v]);
  OCTAVO_EACH(v, V) p[v] = fma(splat(1.9875691500e-4f), r[v], splat(1.3981999507e-3f));
  OCTAVO_EACH(v, V) p[v] = fma(p[v], r[v], splat(8.3334519073e-3f));
  OCTAVO_EACH(v, V) p[v] = fma(p[v], r[v], splat(4.1665795894e-2f));
  OCTAVO_EACH(v, V) p[v] = fma(p[v], r[v], splat(1.6666665459e-1f));
  OCTAVO_EACH(v, V) p[v] = fma(p[v], r[v], splat(5.0000001201e-1f));
  OCTAVO_EACH(v, V) p[v] = fma(p[v], r[v] * r[v], r[v] + splat(1.0f));
  OCTAVO_EACH(v, V) {
    const F8 result = p[v] * (F8)(((I8)shifted[v] - (I8)magic + 127) << 23);
    y[v] = (F8)((I8)result & ~(x[v] < low));
  }
}

static inline F8 exp8(F8 x) {
  F8 y;
  exp8<1>(&x, &y);
  return y;
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
