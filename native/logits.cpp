// What the sampler needs of a row of logits: maxima of its runs, exponentials with their sum.

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

float run_maxima(const float* x, int64_t count, float* maxima) {
  I undefined = {};
  float highest = -INFINITY;
  for (int64_t first = 0; first < count; first += kRun, x += kRun) {
    float padded[kRun];
    const float* run = x;
    if (count - first < kRun) {
      for (int i = 0; i < kRun; i++) padded[i] = -INFINITY;
      std::memcpy(padded, x, sizeof(float) * (count - first));
      run = padded;
    }
    F even = splat(-INFINITY), odd = even;
    for (int i = 0; i < kRun; i += 2 * kLanes) {
      const F a = load(run + i), b = load(run + i + kLanes);
      even = larger(a, even);
      odd = larger(b, odd);
      undefined |= (a != a) | (b != b);
    }
    const float most = largest(larger(odd, even));
    maxima[first / kRun] = most;
    highest = most > highest ? most : highest;
  }
  for (int lane = 0; lane < kLanes; lane++)
    if (undefined[lane]) return NAN;
  return highest;
}

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
  y = larger(y, splat(-1023.0));                     // of which the bits below come out as zero
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
double exponentials(const float* x, int64_t count, float highest, double factor, double* y) {
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

}  // namespace OCTAVO_ISA
}  // namespace octavo
