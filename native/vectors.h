// Vectors of floats, and what every kernel needs of them.
//
// The types are the compiler's generic ones, so that everything but the integer dot products is plain C++ and becomes
// AVX-512, AVX2, SSE2 or NEON as the flags say. Included by the kernels alone, inside the namespace of one instruction
// set.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#else
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include "pairs.h"
#endif

// A loop over an array of vectors that is to live in registers: GCC keeps in memory what it does not unroll early.
#define OCTAVO_EACH(index, count) _Pragma("GCC unroll 16") for (int index = 0; index < count; index++)

// One that may as well stay a loop, whose instructions outnumber the registers many times where vectors are short.
#ifdef __AVX2__
#define OCTAVO_STEPS(index, count) OCTAVO_EACH(index, count)
#else
#define OCTAVO_STEPS(index, count) _Pragma("GCC unroll 1") for (int index = 0; index < count; index++)
#endif

// Keeps a vector in a register at this point: GCC reorders the sums of a loop until every accumulator is spilled (35
// GOP/s for 58), and loads what several instructions need for each of them.
#if defined(__AVX512F__)
#define OCTAVO_KEEP(v) asm("" : "+v"(v))
#elif defined(__AVX2__)
#define OCTAVO_KEEP(v) asm("" : "+x"(v))
#else
#define OCTAVO_KEEP(v)
#endif

namespace octavo {
namespace OCTAVO_ISA {

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
typedef float F4u __attribute__((vector_size(16), aligned(4)));  // unaligned loads and stores

#ifdef __AVX2__

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float F __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef int16_t S __attribute__((vector_size(4 * kLanes)));
typedef float F8 __attribute__((vector_size(32)));  // smaller ones, cheaper to reduce
typedef int32_t I8 __attribute__((vector_size(32)));
typedef float Fu __attribute__((vector_size(4 * kLanes), aligned(4)));

static inline F load(const float* p) { return *reinterpret_cast<const Fu*>(p); }
static inline void store(float* p, F v) { *reinterpret_cast<Fu*>(p) = v; }

static inline F to_float(I v) { return __builtin_convertvector(v, F); }

static inline F splat(float x) {
#ifdef __AVX512F__
  return (F)_mm512_set1_ps(x);
#else
  return F{x, x, x, x, x, x, x, x};
#endif
}

static inline I splat(int32_t x) {
#ifdef __AVX512F__
  return (I)_mm512_set1_epi32(x);
#else
  return I{x, x, x, x, x, x, x, x};
#endif
}

#else

constexpr int kLanes = 8;

typedef Pair<F4> F;
typedef Pair<I4> I;
typedef Pair<int16_t __attribute__((vector_size(16)))> S;
typedef F F8;
typedef I I8;

static inline F load(const float* p) {
  return {*reinterpret_cast<const F4u*>(p), *reinterpret_cast<const F4u*>(p + 4)};
}
static inline void store(float* p, F v) {
  *reinterpret_cast<F4u*>(p) = v.low;
  *reinterpret_cast<F4u*>(p + 4) = v.high;
}

static inline F to_float(I v) { return {__builtin_convertvector(v.low, F4), __builtin_convertvector(v.high, F4)}; }

static inline F splat(float x) { return {F4{x, x, x, x}, F4{x, x, x, x}}; }
static inline I splat(int32_t x) { return {I4{x, x, x, x}, I4{x, x, x, x}}; }

#endif

// What a factor of Activations8 is multiplied by: `vpmaddwd` multiplies both halves of a lane, by one factor each.
#if defined(__SSE2__) && !defined(__AVX512VNNI__)
constexpr int32_t kFactorUnit = 0x10001;
#else
constexpr int32_t kFactorUnit = 1;
#endif

// kLanes integers, wherever and whatever they are. GCC copies more than 16 bytes through memory, where what was stored
// in two halves is waited for.
static inline I load_bits(const void* p) {
#if defined(__AVX512F__)
  return (I)_mm512_loadu_si512(p);
#elif defined(__AVX2__)
  return (I)_mm256_loadu_si256(static_cast<const __m256i*>(p));
#else
  I bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
#endif
}

// a * b + c, rounded once where the machine can.
static inline F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

template <typename V>
static inline V larger(V a, V b) {
  return a > b ? a : b;
}

template <typename V>
static inline V smaller(V a, V b) {
  return a < b ? a : b;
}

#ifndef __AVX2__
template <typename V>
static inline Pair<V> larger(Pair<V> a, Pair<V> b) {
  return {larger(a.low, b.low), larger(a.high, b.high)};
}

template <typename V>
static inline Pair<V> smaller(Pair<V> a, Pair<V> b) {
  return {smaller(a.low, b.low), smaller(a.high, b.high)};
}
#endif

// Half as many lanes. GCC would take a permutation of the whole vector for the upper half.
#ifdef __AVX2__
static inline F4 lower(F8 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
static inline F4 upper(F8 v) { return (F4)_mm256_extractf128_ps((__m256)v, 1); }
#else
static inline F4 lower(F8 v) { return v.low; }
static inline F4 upper(F8 v) { return v.high; }
#endif

static inline float sum(F8 v) {  // always in this order
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

static inline int32_t sum(I8 v) {
  I4 half = (I4)lower((F8)v) + (I4)upper((F8)v);
  half += __builtin_shufflevector(half, half, 2, 3, 0, 1);
  return half[0] + half[1];
}

static inline float largest(F8 v) {
  F4 half = larger(lower(v), upper(v));
  half = larger(half, __builtin_shufflevector(half, half, 2, 3, 0, 1));
  return half[0] > half[1] ? half[0] : half[1];
}

static inline int32_t largest(I8 v) {
  I4 half = larger((I4)lower((F8)v), (I4)upper((F8)v));
  half = larger(half, __builtin_shufflevector(half, half, 2, 3, 0, 1));
  return half[0] > half[1] ? half[0] : half[1];
}

#ifdef __AVX512F__
static inline F8 lower(F v) { return (F8)_mm512_castps512_ps256((__m512)v); }
static inline F8 upper(F v) { return (F8)_mm512_extractf32x8_ps((__m512)v, 1); }
static inline float sum(F v) { return sum(lower(v) + upper(v)); }
static inline int32_t sum(I v) { return sum((I8)lower((F)v) + (I8)upper((F)v)); }
static inline float largest(F v) { return largest(larger(lower(v), upper(v))); }
static inline int32_t largest(I v) { return largest(larger((I8)lower((F)v), (I8)upper((F)v))); }
#endif

// 32 integers that fit, as bytes in their order.
static inline void to_bytes(const I* x, int8_t* y) {
#if defined(__AVX512F__)
  for (int i = 0; i < 2; i++)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 16 * i), _mm512_cvtepi32_epi8((__m512i)x[i]));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]);
  const __m256i high = _mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing goes by halves of a vector
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
#else
  for (int i = 0; i < 32; i++) y[i] = static_cast<int8_t>(x[i / kLanes][i % kLanes]);
#endif
}

// 32 integers that fit, as shorts in the order of in_pairs.
static inline void to_shorts(const I* x, int16_t* y) {
#if defined(__AVX512F__)
  const __m512i order = _mm512_setr_epi32(0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15);
  for (int i = 0; i < 2; i++)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 16 * i),
                        _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(order, (__m512i)x[i])));
#elif defined(__AVX2__)
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  for (int i = 0; i < 2; i++)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 16 * i),
                        _mm256_shuffle_epi8(_mm256_packs_epi32((__m256i)x[2 * i], (__m256i)x[2 * i + 1]), order));
#else
  for (int i = 0; i < 32; i++) y[i] = static_cast<int16_t>(x[in_pairs(i) / kLanes][in_pairs(i) % kLanes]);
#endif
}

#ifndef __AVX2__
typedef int8_t B16 __attribute__((vector_size(16)));
typedef int16_t S8 __attribute__((vector_size(16)));

// Bytes as shorts, and shorts as integers, times 2 ** 8 and 2 ** 16: on a machine that puts the lowest byte first,
// zeros before each make them so, without asking what their signs are.
static inline S8 raised(const int8_t* p) {
  B16 v = {};
  std::memcpy(&v, p, 8);
  return (S8)__builtin_shufflevector(B16{}, v, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

static inline I raised(S8 v) {
  return {(I4)__builtin_shufflevector(S8{}, v, 0, 8, 1, 9, 2, 10, 3, 11),
          (I4)__builtin_shufflevector(S8{}, v, 4, 12, 5, 13, 6, 14, 7, 15)};
}

static inline I raised(const uint16_t* p) {
  S8 v;
  std::memcpy(&v, p, sizeof v);
  return raised(v);
}
#endif

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

static inline F load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  const I raised_half = raised(p), magnitude = raised_half & 0x7fffffff;
  const I finite = (I)((F)(magnitude >> 3) * splat(0x1p112f));  // as half_to_float does
  return (F)(finite | (~(magnitude < 0x7c000000) & 0x7f800000) | (raised_half & INT32_MIN));
#endif
}

static inline void to_half(const float* x, int64_t count, uint16_t* y) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + kLanes <= count; i += kLanes)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i),
                        _mm512_cvtps_ph((__m512)load(x + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  for (; i + kLanes <= count; i += kLanes)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i),
                     _mm256_cvtps_ph((__m256)load(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; i++) y[i] = float_to_half(x[i]);
}

static inline F load_bfloat(const uint16_t* p) {
#if defined(__AVX512F__)
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
  return (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
  return (F)raised(p);
#endif
}

static inline F load_byte(const int8_t* p) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return to_float(raised(raised(p)) >> 24);
#endif
}

// To the nearest integer, for |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction, and the integer in the low
// bits.
static inline I nearest(F x) {
  const F magic = splat(12582912.0f);
  return (I)(x + magic) - (I)magic;
}

// y = exp(x), relative error below 2e-7; 0 for x < -87. V vectors side by side: each is a long chain of operations.
template <int V>
static inline void exp_of(const F* x, F* y) {
  const F low = splat(-87.0f), high = splat(88.0f), magic = splat(12582912.0f);
  F within[V], shifted[V], r[V], p[V];
  OCTAVO_EACH(v, V) within[v] = larger(low, x[v]);
  OCTAVO_EACH(v, V) within[v] = smaller(high, within[v]);
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
    const F result = p[v] * (F)(((I)shifted[v] - (I)magic + 127) << 23);
    y[v] = (F)((I)result & ~(x[v] < low));
  }
}

static inline F exp_of(F x) {
  F y;
  exp_of<1>(&x, &y);
  return y;
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
