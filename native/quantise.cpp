// Activations in integers: a row in blocks of 32, each with its own scale.

#include <algorithm>
#include <type_traits>

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int kVectors = kBlock / kLanes;  // of a block

struct Rounded {
  I q[kVectors];
  I4 factors;          // of Activations8
  float scale, total;  // the sum of what was rounded
};

// The 16 inputs of half a block in pairs: those of one group in the lower four lanes, of the other in the upper ones.
#if defined(__AVX512F__)
static inline I8 lower_half(const I* block, int half) { return (I8)lower((F)block[half]); }
static inline I8 upper_half(const I* block, int half) { return (I8)upper((F)block[half]); }
static inline F spread(F8 v) { return (F)_mm512_broadcast_f32x8((__m256)v); }
#else
static inline I8 lower_half(const I* block, int half) { return block[2 * half]; }
static inline I8 upper_half(const I* block, int half) { return block[2 * half + 1]; }
static inline F spread(F8 v) { return v; }
#endif

// Four lanes of the one, four of the other.
static inline F8 halves(F4 v, int half) {
  const F4 a = half ? __builtin_shufflevector(v, v, 2, 2, 2, 2) : __builtin_shufflevector(v, v, 0, 0, 0, 0);
  const F4 b = half ? __builtin_shufflevector(v, v, 3, 3, 3, 3) : __builtin_shufflevector(v, v, 1, 1, 1, 1);
#ifdef __AVX2__
  return (F8)_mm256_set_m128((__m128)b, (__m128)a);
#else
  return {a, b};
#endif
}

static inline int32_t largest(I4 v) {
  v = larger(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
  return v[0] > v[1] ? v[0] : v[1];
}

// The largest of each group: of the lanes of four vectors, which change places with their numbers.
static inline I4 largest_of_groups(const I* block) {
  const I8 first = larger(lower_half(block, 0), upper_half(block, 0));
  const I8 second = larger(lower_half(block, 1), upper_half(block, 1));
  const I4 a = (I4)lower((F8)first), b = (I4)upper((F8)first), c = (I4)lower((F8)second), d = (I4)upper((F8)second);
  const I4 ab = larger(__builtin_shufflevector(a, b, 0, 4, 1, 5), __builtin_shufflevector(a, b, 2, 6, 3, 7));
  const I4 cd = larger(__builtin_shufflevector(c, d, 0, 4, 1, 5), __builtin_shufflevector(c, d, 2, 6, 3, 7));
  return larger(__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
}

// The sum of integers, each times the factor of its group.
static inline int32_t weighted_sum(const I* block, I4 factors) {
  const F4 bits = (F4)factors;
  return sum((lower_half(block, 0) + upper_half(block, 0)) * (I8)halves(bits, 0) +
             (lower_half(block, 1) + upper_half(block, 1)) * (I8)halves(bits, 1));
}

// N blocks of 32 floats side by side, each as whole numbers of at most `limit`.
template <int N, bool grouping>
static inline void round_blocks(const float* x, float limit, Rounded* out) {
  F v[N][kVectors];
  I4 magnitudes[N];  // the largest of each group
  float most[N];
  bool usual = true;
  OCTAVO_EACH(n, N) {
    I magnitude[kVectors];
    OCTAVO_EACH(i, kVectors) {
      v[n][i] = load(x + n * kBlock + kLanes * i);
      // As integers, magnitudes are in the same order, and nan is above them all.
      magnitude[i] = (I)v[n][i] & 0x7fffffff;
    }
    if constexpr (grouping) {
      magnitudes[n] = largest_of_groups(magnitude);
    } else {
      for (int i = 1; i < kVectors; i++) magnitude[0] = larger(magnitude[0], magnitude[i]);
      magnitudes[n] = I4{largest(magnitude[0])};
    }
  }
  OCTAVO_EACH(n, N) {
    const int32_t bits = largest(magnitudes[n]);
    std::memcpy(&most[n], &bits, 4);
    usual &= most[n] >= 1e-30f && most[n] <= 3.4028235e38f;
  }
  if (usual) {
    OCTAVO_EACH(n, N) {
      if constexpr (grouping) {
        const float factor = kMaxFactor / most[n];
        out[n].scale = most[n] / (limit * kMaxFactor);
        out[n].factors = __builtin_convertvector((F4)magnitudes[n] * factor, I4) + 1;
        const F4 inverse = 1.0f / (out[n].scale * __builtin_convertvector(out[n].factors, F4));
        OCTAVO_EACH(i, kVectors) out[n].q[i] = nearest(v[n][i] * spread(halves(inverse, kLanes * i / 16)));
      } else {
        const F inverse = splat(limit / most[n]);
        OCTAVO_EACH(i, kVectors) out[n].q[i] = nearest(v[n][i] * inverse);
        out[n].scale = most[n] / limit;
      }
    }
    OCTAVO_EACH(n, N) {
      int32_t total;
      if constexpr (grouping) {
        total = weighted_sum(out[n].q, out[n].factors);
      } else {
        I sums = out[n].q[0];
        for (int i = 1; i < kVectors; i++) sums += out[n].q[i];
        total = sum(sums);
      }
      out[n].total = out[n].scale * static_cast<float>(total);
    }
    return;
  }
  for (int n = 0; n < N; n++) {
    if (N > 1) {
      round_blocks<1, grouping>(x + n * kBlock, limit, out + n);
    } else {  // what is not finite must not become a number, and what is next to nothing has no inverse
      for (int i = 0; i < kVectors; i++) out[n].q[i] = I{};
      out[n].factors = I4{};
      out[n].scale = out[n].total = most[n] < 1e-30f ? 0.0f : NAN;
    }
  }
}

static inline void write(const Rounded& block, Activations8& out) {
  to_bytes(block.q, out.q);
  const I4 factors = block.factors * kFactorUnit;
  std::memcpy(out.factors, &factors, sizeof factors);
  out.scale = block.scale, out.sum = block.total;
}

static inline void write(const Rounded& block, Activations16& out) {
  to_shorts(block.q, out.q);
  out.scale = block.scale, out.sum = block.total;
}

template <typename Record>
static void quantise_blocks(float limit, const Records& records, const float* x, int64_t width, int64_t row,
                            int64_t block) {
  Record* out = reinterpret_cast<Record*>(records.panel(row)) + block * kPanel + row % kPanel;
  constexpr bool kGrouping = std::is_same_v<Record, Activations8>;
  Rounded rounded[2];
  for (; width >= 2 * kBlock; x += 2 * kBlock, width -= 2 * kBlock, out += 2 * kPanel) {
    round_blocks<2, kGrouping>(x, limit, rounded);
    write(rounded[0], out[0]);
    write(rounded[1], out[kPanel]);
  }
  for (; width >= kBlock; x += kBlock, width -= kBlock, out += kPanel) {
    round_blocks<1, kGrouping>(x, limit, rounded);
    write(rounded[0], out[0]);
  }
  if (width > 0) {
    float padded[kBlock] = {};
    std::memcpy(padded, x, sizeof(float) * width);
    round_blocks<1, kGrouping>(padded, limit, rounded);
    write(rounded[0], out[0]);
  }
}

constexpr int32_t kCompared = 512;                                                     // groups, at most
constexpr int64_t kSegment = kCompared / 4 / kBlocksPerResidual * kBlocksPerResidual;  // of blocks

static inline float step_of(const Activations8& block, int64_t i) {
  return block.scale * static_cast<float>(block.factors[i] & 0xffff);
}

// Which groups of some blocks, a segment at most, are rounded most: numbers from that of the first block's on.
static void find_groups(const Activations8* blocks, int64_t count, int32_t* found) {
  // Groups by their steps, whose bits are in the same order; the lowest ones make room for the group's number.
  alignas(64) int32_t keys[kCompared];
  int32_t groups = 0;
  for (int64_t b = 0; b < count; b++)
    for (int64_t i = 0; i < 4; i++, groups++) {
      const float step = step_of(blocks[b * kPanel], i);
      int32_t bits;
      std::memcpy(&bits, &step, 4);
      keys[groups] = (bits & INT32_MAX & -kCompared) | (kCompared - 1 - groups);  // nan has a sign, too
    }
  for (; groups % kLanes; groups++) keys[groups] = 0;
  for (int64_t n = 0; n < residuals_of(count); n++) {
    I most = load_bits(keys);
    for (int64_t v = kLanes; v < groups; v += kLanes) most = larger(most, load_bits(keys + v));
    found[n] = kCompared - 1 - (largest(most) & (kCompared - 1));
    keys[found[n]] = 0;
  }
}

// What is left of group i of a block of `width` floats, and is added to the block's sum.
static Residual8 take_residual(Activations8& block, int64_t i, const float* x, int64_t width) {
  constexpr float kSteps = 252.0f;  // what is left may be a little more than half a step
  const float step = step_of(block, i), inverse = step > 0.0f ? kSteps / step : 0.0f;
  alignas(64) float left[kLanes] = {};
  for (int64_t j = 0; j < 8; j++) {
    const int64_t k = 16 * (i / 2) + 4 * (i % 2) + 8 * (j / 4) + j % 4;
    // Of a block without numbers nothing is left: its scale is nan.
    if (step > 0.0f && k < width) left[j] = x[k] - step * static_cast<float>(block.q[k]);
  }
  const I q = nearest(load(left) * splat(inverse));
  Residual8 out;
  for (int64_t j = 0; j < 8; j++) out.q[j] = static_cast<int8_t>(q[j]);
  out.scale = step / kSteps;
  block.sum += out.scale * static_cast<float>(sum(q));
  return out;
}

// Of a row that is quantised.
static void take_residuals(const Records& records, const float* x, int64_t width, int64_t row) {
  Activations8* blocks = reinterpret_cast<Activations8*>(records.panel(row)) + row % kPanel;
  Residual8* out = records.residuals_of_row(row);
  for (int64_t first = 0; first < records.blocks; first += kSegment) {
    const int64_t count = std::min(kSegment, records.blocks - first);
    int32_t groups[residuals_of(kSegment)];
    find_groups(blocks + first * kPanel, count, groups);
    for (int64_t n = 0; n < residuals_of(count); n++, out++) {
      const int64_t b = first + groups[n] / 4, k = b * kBlock;
      *out = take_residual(blocks[b * kPanel], groups[n] % 4, x + k, width - k);
      out->group = static_cast<int32_t>(4 * first) + groups[n];
    }
  }
}

void quantise(const Records& out, const float* x, int64_t width, int64_t row, int64_t block) {
  switch (out.kind) {
    case ActivationKind::k8:
      quantise_blocks<Activations8>(127.0f, out, x, width, row, block);
      if (out.residuals > 0) take_residuals(out, x, width, row);  // it was the whole row
      return;
    case ActivationKind::k16: return quantise_blocks<Activations16>(32767.0f, out, x, width, row, block);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
