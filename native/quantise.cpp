// Activations in integers: a row in blocks of 32, each with its own scale.

#include <algorithm>

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

struct Rounded {
  I8 q[4];
  float scale, total;  // scale * (the sum of q)
};

// N blocks of 32 floats side by side, each as whole numbers of at most `limit`.
template <int N>
static inline void round_blocks(const float* x, float limit, Rounded* out) {
  F8 v[N][4];
  I8 magnitude[N];
  float most[N];
  bool usual = true;
  OCTAVO_EACH(n, N) {
    OCTAVO_EACH(i, 4) v[n][i] = load(x + n * kBlock + 8 * i);
    const auto bits = [&](int i) { return (I8)v[n][i] & 0x7fffffff; };
    // As integers, magnitudes are in the same order, and nan is above them all.
    magnitude[n] = max8(max8(bits(0), bits(1)), max8(bits(2), bits(3)));
  }
  OCTAVO_EACH(n, N) {
    const int32_t bits = largest(magnitude[n]);
    std::memcpy(&most[n], &bits, 4);
    usual &= most[n] >= 1e-30f && most[n] <= 3.4028235e38f;
  }
  if (usual) {
    OCTAVO_EACH(n, N) {
      const F8 inverse = splat(limit / most[n]);
      OCTAVO_EACH(i, 4) out[n].q[i] = nearest(v[n][i] * inverse);
    }
    OCTAVO_EACH(n, N) {
      const I8* q = out[n].q;
      out[n].scale = most[n] / limit;
      out[n].total = out[n].scale * static_cast<float>(sum((q[0] + q[1]) + (q[2] + q[3])));
    }
    return;
  }
  for (int n = 0; n < N; n++) {
    if (N > 1) {
      round_blocks<1>(x + n * kBlock, limit, out + n);
    } else {  // what is not finite must not become a number, and what is next to nothing has no inverse
      for (int i = 0; i < 4; i++) out[n].q[i] = I8{};
      out[n].scale = out[n].total = most[n] < 1e-30f ? 0.0f : NAN;
    }
  }
}

static inline void write(const Rounded& block, Activations8& out) {
  alignas(32) int32_t fours[kBlock / 4];
  to_bytes(block.q, fours);
  asm("" : "+m"(fours));  // broadcasts from memory are cheaper than those from a vector's middle
  OCTAVO_EACH(i, kBlock / 4) store(&out.q[i][0][0], splat(fours[i]));
  store(out.scale, splat(block.scale));
  store(out.sum, splat(block.total));
}

static inline void write(const Rounded& block, Activations16& out) {
  to_shorts(block.q, out.q);
  store(out.scale, splat(block.scale));
  store(out.sum, splat(block.total));
}

template <typename Record>
static void quantise_row(float limit, const float* x, int64_t width, int64_t in, int64_t row, Record* activations) {
  const int64_t blocks = in / kBlock, whole = width / kBlock;
  Record* out = activations + row / kPanel * kPanel * blocks + row % kPanel;
  Rounded rounded[2];
  int64_t b = 0;
  for (; b + 2 <= whole; b += 2) {
    round_blocks<2>(x + b * kBlock, limit, rounded);
    write(rounded[0], out[b * kPanel]);
    write(rounded[1], out[(b + 1) * kPanel]);
  }
  for (; b < blocks; b++) {
    float padded[kBlock] = {};
    const int64_t present = std::clamp<int64_t>(width - b * kBlock, 0, kBlock);
    if (present > 0) std::memcpy(padded, x + b * kBlock, sizeof(float) * present);
    round_blocks<1>(padded, limit, rounded);
    write(rounded[0], out[b * kPanel]);
  }
}

void quantise(WeightKind kind, const float* x, int64_t width, int64_t in, int64_t row, void* activations) {
  if (kind == WeightKind::kU4)
    quantise_row(127.0f, x, width, in, row, static_cast<Activations8*>(activations));
  else
    quantise_row(32767.0f, x, width, in, row, static_cast<Activations16*>(activations));
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
