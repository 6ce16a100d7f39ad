// Linears with weights of 16 or 32 bits times floats.

#include "dot.h"

namespace octavo {
namespace OCTAVO_ISA {

template <WeightKind kind>
static inline F load_weight(const uint8_t* data, int64_t element) {
  if constexpr (kind == WeightKind::kF32) return load(reinterpret_cast<const float*>(data) + element);
  if constexpr (kind == WeightKind::kF16) return load_half(reinterpret_cast<const uint16_t*>(data) + element);
  return load_bfloat(reinterpret_cast<const uint16_t*>(data) + element);
}

// M rows and T tiles at once: M * T sums that do not wait for each other.
template <WeightKind kind, int M, int T>
static void float_rows(const Weight& w, const float* x, int64_t x_stride, int64_t row, int64_t tile,
                       const Output& out) {
  F total[M][T];
  OCTAVO_EACH(m, M)
    OCTAVO_EACH(t, T) total[m][t] = splat(0.0f);
  const int64_t size = w.in * kLanes, start = tile * size;
  const float* rows = x + row * x_stride;
  for (int64_t k = 0; k < w.in; k++) {
    F weight[T];
    OCTAVO_EACH(t, T) weight[t] = load_weight<kind>(w.data, start + t * size + k * kLanes);
    OCTAVO_EACH(m, M)
      OCTAVO_EACH(t, T) {
        total[m][t] = fma(weight[t], splat(rows[m * x_stride + k]), total[m][t]);
        OCTAVO_KEEP(total[m][t]);
      }
  }
  OCTAVO_EACH(m, M)
    OCTAVO_EACH(t, T) put(out, row + m, (tile + t) * kLanes, total[m][t], w.bias);
}

template <WeightKind kind, int M, int T>
static void float_panel(const Weight& w, const float* x, int64_t x_stride, int64_t row, const Output& out,
                        Range tiles) {
  int64_t tile = tiles.first;
  for (; tile + T <= tiles.last; tile += T) float_rows<kind, M, T>(w, x, x_stride, row, tile, out);
  for (; tile < tiles.last; tile++) float_rows<kind, M, 1>(w, x, x_stride, row, tile, out);
}

template <WeightKind kind>
static void float_panels(const Weight& w, const float* x, int64_t x_stride, int64_t rows, const Output& out,
                         Range tiles) {
  int64_t row = 0;
  if (kLanes == 16)  // enough registers
    for (; row + 8 <= rows; row += 8) float_panel<kind, 8, 2>(w, x, x_stride, row, out, tiles);
  for (; row + 4 <= rows; row += 4) float_panel<kind, 4, 2>(w, x, x_stride, row, out, tiles);
  switch (rows - row) {
    case 3: return float_panel<kind, 3, 2>(w, x, x_stride, row, out, tiles);
    case 2: return float_panel<kind, 2, 4>(w, x, x_stride, row, out, tiles);
    case 1: return float_panel<kind, 1, 8>(w, x, x_stride, row, out, tiles);
    default: return;
  }
}

void linear_float(const Weight& w, const float* x, int64_t x_stride, int64_t rows, const Output& out, Range tiles) {
  switch (w.kind) {
    case WeightKind::kF16: return float_panels<WeightKind::kF16>(w, x, x_stride, rows, out, tiles);
    case WeightKind::kBF16: return float_panels<WeightKind::kBF16>(w, x, x_stride, rows, out, tiles);
    default: return float_panels<WeightKind::kF32>(w, x, x_stride, rows, out, tiles);
  }
}

}  // namespace OCTAVO_ISA
}  // namespace octavo
