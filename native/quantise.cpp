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

static inline void write(const Rounded& block, SplitActivations16& out) {
  I high[kVectors], low[kVectors];
  OCTAVO_EACH(i, kVectors) {
    high[i] = (block.q[i] + 128) >> 8;
    low[i] = block.q[i] - (high[i] << 8);
  }
  to_bytes(high, out.high);
  to_bytes(low, out.low);
  out.scale = block.scale, out.sum = block.total;
}

template <typename Record>
static void quantise_blocks(float limit, const Records& records, const float* x, int64_t width, int64_t row,
                            int64_t block) {
  Record* out = static_cast<Record*>(records.data) + (row / kPanel * records.blocks + block) * kPanel + row % kPanel;
  Rounded rounded[2];
  for (; width >= 2 * kBlock; x += 2 * kBlock, width -= 2 * kBlock, out += 2 * kPanel) {
    round_blocks<2>(x, limit, rounded);
    write(rounded[0], out[0]);
    write(rounded[1], out[kPanel]);
  }
  for (; width >= kBlock; x += kBlock, width -= kBlock, out += kPanel) {
    round_blocks<1>(x, limit, rounded);
    write(rounded[0], out[0]);
  }
  if (width > 0) {
    float padded[kBlock] = {};
    std::memcpy(padded, x, sizeof(float) * width);
    round_blocks<1>(padded, limit, rounded);
    write(rounded[0], out[0]);
  }
}

void quantise(const Records& out, const float* x, int64_t width, int64_t row, int64_t block) {
  switch (out.kind) {
    case ActivationKind::k8: return quantise_blocks<Activations8>(127.0f, out, x, width, row, block);
    case ActivationKind::k16: return quantise_blocks<Activations16>(32767.0f, out, x, width, row, block);
    case ActivationKind::kSplit16: return quantise_blocks<SplitActivations16>(32512.0f, out, x, width, row, block);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
