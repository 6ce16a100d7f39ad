// What is done to each row by itself: norms, rotary embedding, activation functions.

#include "kernels.h"
#include "variant.h"
#include "vectors.h"

namespace octavo {
namespace OCTAVO_ISA {

// sum of x * x (or of x, if `square` is false), always in the same order for the same length
template <bool square>
static float sum_of(const float* x, int64_t length) {
  F total[2] = {splat(0.0f), splat(0.0f)};
  int64_t i = 0;
  for (; i + 2 * kLanes <= length; i += 2 * kLanes)
    for (int j = 0; j < 2; j++) {
      const F v = load(x + i + kLanes * j);
      total[j] = square ? fma(v, v, total[j]) : total[j] + v;
    }
  float result = sum(total[0] + total[1]);
  for (; i < length; i++) result += square ? x[i] * x[i] : x[i];
  return result;
}

void rms_norm(const float* x, const float* weight, float eps, int64_t runs, int64_t length, float* y) {
  for (int64_t run = 0; run < runs; run++, x += length, y += length) {
    const float factor = 1.0f / std::sqrt(sum_of<true>(x, length) / static_cast<float>(length) + eps);
    for (int64_t i = 0; i < length; i++) y[i] = x[i] * factor * weight[i];
  }
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* y) {
  const float mean = sum_of<false>(x, width) / static_cast<float>(width);
  for (int64_t i = 0; i < width; i++) y[i] = x[i] - mean;
  const float factor = 1.0f / std::sqrt(sum_of<true>(y, width) / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i++) y[i] = y[i] * factor * weight[i] + bias[i];
}

void rope(const float* x, const float* cosine, const float* sine, int64_t heads, int64_t half, float* y) {
  for (int64_t head = 0; head < heads; head++, x += 2 * half, y += 2 * half)
    for (int64_t i = 0; i < half; i++) {
      const float a = x[i], b = x[half + i];
      y[i] = a * cosine[i] - b * sine[i];
      y[half + i] = b * cosine[i] + a * sine[i];
    }
}

// y = function(x), for V vectors.
template <int V>
static inline void activation(Function function, const F* x, F* y) {
  const F one = splat(1.0f);
  F u[V];
  switch (function) {
    case Function::kSilu:
      OCTAVO_EACH(v, V) u[v] = -x[v];
      exp_of<V>(u, u);
      // exp(88.8) is infinite in float32. Where exp_of stops growing instead, -1e38 would come to -0.6.
      OCTAVO_EACH(v, V) u[v] += (F)((x[v] < splat(-88.8f)) & 0x7f800000);
      OCTAVO_EACH(v, V) y[v] = x[v] / (one + u[v]);
      return;
    case Function::kGelu: {  // by the error function
      float each[V * kLanes];
      OCTAVO_EACH(v, V) store(each + v * kLanes, x[v]);
      for (float& x : each) x = 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
      OCTAVO_EACH(v, V) y[v] = load(each + v * kLanes);
      return;
    }
    case Function::kGeluTanh:  // tanh(u) = 1 - 2 / (exp(2u) + 1)
      OCTAVO_EACH(v, V) u[v] = splat(0.7978845608f) * (x[v] + splat(0.044715f) * x[v] * x[v] * x[v]);
      OCTAVO_EACH(v, V) u[v] += u[v];
      exp_of<V>(u, u);
      OCTAVO_EACH(v, V) y[v] = splat(0.5f) * x[v] * (splat(2.0f) - splat(2.0f) / (u[v] + one));
      return;
  }
}

void activate(Function function, const float* x, const float* gate, int64_t width, float* y) {
  constexpr int V = 4;
  for (int64_t i = 0; i < width; i += kLanes * V) {
    F in[V], out[V];
    const int64_t count = width - i < kLanes * V ? width - i : kLanes * V;
    if (count == kLanes * V) {
      OCTAVO_EACH(v, V) in[v] = load(x + i + kLanes * v);
    } else {
      std::memset(in, 0, sizeof in);
      std::memcpy(in, x + i, sizeof(float) * count);
    }
    activation<V>(function, in, out);
    if (count == kLanes * V) {
      OCTAVO_EACH(v, V) store(y + i + kLanes * v, gate ? out[v] * load(gate + i + kLanes * v) : out[v]);
    } else {
      float rest[kLanes * V];
      std::memcpy(rest, out, sizeof rest);
      for (int64_t j = 0; j < count; j++) y[i + j] = gate ? rest[j] * gate[i + j] : rest[j];
    }
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
