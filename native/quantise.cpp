// Activations in integers: a row in blocks of 32, each with its own scale.

#include <algorithm>

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int kVectors = kBlock / kLanes;  // of a block

struct Rounded {
  I q[kVectors];
  float scale, total;  // scale * (the sum of q)
};

// N blocks of 32 floats side by side, each as whole numbers of at most `limit`.
template <int N>
static inline void round_blocks(const float* x, float limit, Rounded* out) {
  F v[N][kVectors];
  I magnitude[N];
  float most[N];
  bool usual = true;
  OCTAVO_EACH(n, N) {
    magnitude[n] = I{};
    OCTAVO_EACH(i, kVectors) {
      v[n][i] = load(x + n * kBlock + kLanes * i);
      // As integers, magnitudes are in the same order, and nan is above them all.
      magnitude[n] = larger(magnitude[n], (I)v[n][i] & 0x7fffffff);
    }
  }
  OCTAVO_EACH(n, N) {
    const int32_t bits = largest(magnitude[n]);
    std::memcpy(&most[n], &bits, 4);
    usual &= most[n] >= 1e-30f && most[n] <= 3.4028235e38f;
  }
  if (usual) {
    OCTAVO_EACH(n, N) {
      const F inverse = splat(limit / most[n]);
      OCTAVO_EACH(i, kVectors) out[n].q[i] = nearest(v[n][i] * inverse);
    }
    OCTAVO_EACH(n, N) {
      I total = out[n].q[0];
      for (int i = 1; i < kVectors; i++) total += out[n].q[i];
      out[n].scale = most[n] / limit;
      out[n].total = out[n].scale * static_cast<float>(sum(total));
    }
    return;
  }
  for (int n = 0; n < N; n++) {
    if (N > 1) {
      round_blocks<1>(x + n * kBlock, limit, out + n);
    } else {  // what is not finite must not become a number, and what is next to nothing has no inverse
      for (int i = 0; i < kVectors; i++) out[n].q[i] = I{};
      out[n].scale = out[n].total = most[n] < 1e-30f ? 0.0f : NAN;
    }
  }
}

static inline void write(const Rounded& block, Activations8& out) {
  to_bytes(block.q, out.q);
  out.scale = block.scale, out.sum = block.total;
}

static inline void write(const Rounded& block, Activations16& out) {
  to_shorts(block.q, out.q);
  out.scale = block.scale, out.sum = block.total;
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
